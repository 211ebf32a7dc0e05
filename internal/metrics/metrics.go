// Package metrics counts what the server does, for Prometheus.
package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/traceparent"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// Metrics holds the registry and everything counted. Its methods may be called
// from any number of goroutines.
type Metrics struct {
	// Registry is what /metrics shows.
	Registry *prometheus.Registry

	seconds   prometheus.Histogram
	exemplars prometheus.ExemplarObserver // of seconds
	fetches   *prometheus.CounterVec
	skew      *prometheus.GaugeVec
	reloads   *prometheus.CounterVec
	reloadOK  prometheus.Gauge
	reloadAt  prometheus.Gauge
	unlogged  prometheus.Counter
	stale     prometheus.Gauge
	shared    *prometheus.CounterVec
	sharedUp  *prometheus.GaugeVec
	folded    prometheus.Counter
	spans     *prometheus.CounterVec
	// byUpstream are those with series that end when the upstream leaves the policy.
	byUpstream []*prometheus.CounterVec

	index   atomic.Pointer[index]
	pairs   atomic.Int64 // of caller and tool, all upstreams together
	reasons map[string]policy.Reason
}

// New makes the metrics. version is shown by mcp_auth_build_info; expiries, when
// not nil, is asked at each scrape for the expiry times of tokens by upstream.
func New(version string, expiries func(yield func(upstream string, expiry time.Time))) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "mcp_auth_decision_seconds",
			Help:    "Time from Envoy's message to our reply, waiting for a token included.",
			Buckets: decisionBuckets(),
		}),
		fetches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_token_requests_total",
			Help: "Requests to token endpoints by upstream (the first in the alphabet, when several share the token) and result.",
		}, []string{"upstream", "result"}),
		skew: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mcp_auth_token_endpoint_clock_skew_seconds",
			Help: "How far the clock of a token endpoint (Date header) was ahead of ours at its last answer; negative when behind.",
		}, []string{"endpoint"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_config_reloads_total",
			Help: "Attempts to put a changed policy in force, by result.",
		}, []string{"result"}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mcp_auth_config_last_reload_successful",
			Help: "1 when the policy file as it is now is in force, 0 when it could not be loaded and the last good one serves.",
		}),
		reloadAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mcp_auth_config_last_reload_success_timestamp_seconds",
			Help: "When the policy in force was loaded.",
		}),
		stale: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mcp_auth_stale_secret_files",
			Help: "Secret files that cannot be read now: their last good values serve, and the next start would fail.",
		}),
		shared: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_shared_cache_requests_total",
			Help: "Uses of the shared cache by result: hit, miss and stored when it works; any other result is a token that was fetched without it.",
		}, []string{"result"}),
		sharedUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "mcp_auth_shared_cache_up",
			Help: "1 while the shared cache is used, 0 while each replica fetches its own tokens; absent without a shared_cache.",
		}, nil),
		unlogged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mcp_auth_log_lines_dropped_total",
			Help: "Log lines not written: refusals beyond 100 a second, a reader of the log that is too slow, or a disk that is full.",
		}),
		folded: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "mcp_auth_calls_folded_total",
			Help: "Calls counted under other, because their upstream or all together have as many tools as are told apart.",
		}),
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_spans_total",
			Help: "Spans of tracing by result: exported to the collector, failed because it did not take them, dropped because too many waited.",
		}, []string{"result"}),
		reasons: map[string]policy.Reason{},
	}
	for _, r := range policy.Reasons() {
		m.reasons[r.String()] = r
	}
	m.byUpstream = []*prometheus.CounterVec{m.fetches}
	m.index.Store(newIndex(&policy.Set{}, &index{}))
	m.exemplars, _ = m.seconds.(prometheus.ExemplarObserver)
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "mcp_auth_build_info", Help: "Always 1; the label says which version runs.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.Registry.MustRegister(newCollector(m), m.folded, m.spans, m.seconds, m.fetches, m.skew, m.reloads, m.reloadOK, m.reloadAt, m.unlogged, m.stale, m.shared, m.sharedUp, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if expiries != nil {
		m.Registry.MustRegister(expiryCollector{expiries, expiryDesc()})
	}
	return m
}

// Decided implements extproc.Observer.
func (m *Metrics) Decided(d *extproc.Decision) {
	if l, ok := m.index.Load().lanes[d.Upstream]; ok {
		l.counts().decisions[d.Reason].Add(1)
	}
	// Only a trace that somebody records can be looked up.
	if c, ok := traceparent.Parse(d.Trace); ok && c.Sampled() && m.exemplars != nil {
		m.exemplars.ObserveWithExemplar(d.Took.Seconds(), prometheus.Labels{"trace_id": c.TraceHex()})
		return
	}
	m.seconds.Observe(d.Took.Seconds())
}

// AccessLog shows what is counted of Envoy's access log. Call it once.
func (m *Metrics) AccessLog(stats func() extproc.LogStats) {
	const entries, help = "mcp_auth_access_log_entries_total", "Entries of Envoy's access log: call was decided on here, undecided was not and is of an upstream of the policy, foreign is of none, malformed could not be read."
	for kind, count := range map[string]func(extproc.LogStats) uint64{
		"call":      func(s extproc.LogStats) uint64 { return s.Calls },
		"undecided": func(s extproc.LogStats) uint64 { return s.Undecided },
		"foreign":   func(s extproc.LogStats) uint64 { return s.Foreign },
		"malformed": func(s extproc.LogStats) uint64 { return s.Malformed },
	} {
		m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: entries, Help: help, ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return float64(count(stats())) }))
	}
	m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "mcp_auth_tokens_evicted_total",
		Help: "Tokens dropped because Envoy's access log told of an upstream that refused them.",
	}, func() float64 { return float64(stats().Evicted) }))
}

// Fetched counts one token request.
func (m *Metrics) Fetched(f tokens.Fetch) {
	// One request counts once, however many upstreams share the token.
	m.fetches.WithLabelValues(f.Upstreams[0], f.Result).Inc()
	if f.Result == "ok" || f.Skew != 0 { // else there may have been no answer
		m.skew.WithLabelValues(f.Endpoint).Set(f.Skew.Seconds())
	}
}

// StaleTokens shows which upstreams are lent an expired token; each is asked at
// each scrape. Call it once.
func (m *Metrics) StaleTokens(each func(yield func(upstream string))) {
	m.Registry.MustRegister(staleCollector{each, prometheus.NewDesc("mcp_auth_token_stale",
		"Always 1: the upstream is lent an expired token (stale_grace) because its token endpoint is unavailable; absent otherwise.", []string{"upstream"}, nil)})
}

// staleCollector is like expiryCollector.
type staleCollector struct {
	each func(yield func(upstream string))
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c staleCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c staleCollector) Collect(ch chan<- prometheus.Metric) {
	c.each(func(upstream string) { ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, 1, upstream) })
}

// Spans counts spans by what became of them.
func (m *Metrics) Spans(result string, spans int) {
	m.spans.WithLabelValues(result).Add(float64(spans))
}

// LogDropped counts one log line that was not written.
func (m *Metrics) LogDropped() { m.unlogged.Inc() }

// SecretsStale says how many secret files cannot be read again.
func (m *Metrics) SecretsStale(n int) { m.stale.Set(float64(n)) }

// SharedCache counts one use of the shared cache.
func (m *Metrics) SharedCache(result string) { m.shared.WithLabelValues(result).Inc() }

// SharedCacheUp says whether the shared cache is used.
func (m *Metrics) SharedCacheUp(up bool) {
	value := 0.0
	if up {
		value = 1
	}
	m.sharedUp.WithLabelValues().Set(value)
}

// SharedCacheOff says that there is no shared cache any more.
func (m *Metrics) SharedCacheOff() { m.sharedUp.Reset() }

// Reloaded counts one attempt to put a policy in force.
func (m *Metrics) Reloaded(at time.Time, err error) {
	if err != nil {
		m.reloads.WithLabelValues("failed").Inc()
		m.reloadOK.Set(0)
		return
	}
	m.reloads.WithLabelValues("ok").Inc()
	m.reloadOK.Set(1)
	m.reloadAt.Set(float64(at.Unix()))
}

// expiryCollector reads expiry times when asked, so that nothing keeps them in step.
type expiryCollector struct {
	each func(yield func(upstream string, expiry time.Time))
	desc *prometheus.Desc
}

func expiryDesc() *prometheus.Desc {
	return prometheus.NewDesc("mcp_auth_token_expiry_timestamp_seconds",
		"When the access token held for an upstream expires; absent while there is none.", []string{"upstream"}, nil)
}

// Describe implements prometheus.Collector.
func (c expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c expiryCollector) Collect(ch chan<- prometheus.Metric) {
	c.each(func(upstream string, expiry time.Time) {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(expiry.Unix()), upstream)
	})
}
