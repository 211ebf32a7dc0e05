package metrics

import "github.com/prometheus/client_golang/prometheus"

// Limits counts what the limits of the policy do. It implements the callbacks of
// limits.Config.
type Limits struct {
	limited *prometheus.CounterVec
	asked   *prometheus.CounterVec
	up      *prometheus.GaugeVec
}

// NewLimits adds the metrics of limits. Call it once, before Retain.
func NewLimits(m *Metrics) *Limits {
	l := &Limits{
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_rate_limited_total",
			Help: "Calls refused by a limit, by upstream and rule of the policy; the rule that asks for the longest wait, when several refuse.",
		}, []string{"upstream", "rule"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_ratelimit_service_requests_total",
			Help: "Calls that the rate limit service is for, by result: ok, over_limit, unmatched (it knows no limit for a rule), timeout, failed, skipped (not asked, since it failed just before).",
		}, []string{"result"}),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mcp_auth_ratelimit_service_up",
			Help: "1 while the rate limit service answers, 0 after three failures in a row; absent without one, and before the first answer.",
		}, nil),
	}
	m.byUpstream = append(m.byUpstream, l.limited)
	m.Registry.MustRegister(l.limited, l.asked, l.up)
	return l
}

// Limited counts one refusal.
func (l *Limits) Limited(upstream, rule string) { l.limited.WithLabelValues(upstream, rule).Inc() }

// Asked counts one use of the service.
func (l *Limits) Asked(result string) { l.asked.WithLabelValues(result).Inc() }

// Up says whether the service answers.
func (l *Limits) Up(up bool) {
	value := 0.0
	if up {
		value = 1
	}
	l.up.WithLabelValues().Set(value)
}

// Off says that there is no service any more.
func (l *Limits) Off() { l.up.Reset() }
