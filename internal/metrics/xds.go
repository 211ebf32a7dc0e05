package metrics

import "github.com/prometheus/client_golang/prometheus"

// XDS shows how many Envoys follow the configuration that is served, and returns
// what to call with the kind of a resource that one of them refused. Call it once.
func (m *Metrics) XDS(envoys func() int) (refused func(kind string)) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mcp_auth_xds_refused_total",
		Help: "Resources that an Envoy refused, by kind: cluster, listener, route or secret. It goes on with what it had.",
	}, []string{"kind"})
	m.Registry.MustRegister(counter, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mcp_auth_xds_envoys", Help: "Envoys that follow the configuration served with --xds.",
	}, func() float64 { return float64(envoys()) }))
	for _, kind := range []string{"cluster", "listener", "route", "secret"} {
		counter.WithLabelValues(kind) // from 0 on: a rate needs a start, and one refusal is worth an alert
	}
	return func(kind string) { counter.WithLabelValues(kind).Inc() }
}
