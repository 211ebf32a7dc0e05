package metrics

import "github.com/prometheus/client_golang/prometheus"

// Watch counts what the watch finds, and shows what it switched off. It
// implements the callbacks of watch.Config and alert.Config.
type Watch struct{ alerts, deliveries *prometheus.CounterVec }

// NewWatch adds the metrics of the watch. At each scrape, off is asked which
// upstreams are switched off. Call it once, before Retain.
func NewWatch(m *Metrics, off func(yield func(upstream string, off bool))) *Watch {
	w := &Watch{
		alerts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_alerts_total",
			Help: "Alerts of the watch that began, by rule and upstream; upstream is empty for a rule about all.",
		}, []string{"rule", "upstream"}),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcp_auth_alert_deliveries_total",
			Help: "Messages to receivers of alerts by kind and result: ok, refused (not taken, whatever the time), gave_up and dropped are ends; retried is an attempt that failed.",
		}, []string{"kind", "result"}),
	}
	for _, kind := range []string{"webhook", "slack", "alertmanager"} {
		for _, result := range []string{"ok", "refused", "gave_up", "dropped", "retried"} {
			w.deliveries.WithLabelValues(kind, result) // from 0 on, as in Metrics.XDS
		}
	}
	m.byUpstream = append(m.byUpstream, w.alerts)
	m.Registry.MustRegister(w.alerts, w.deliveries, offCollector{off, prometheus.NewDesc("mcp_auth_upstream_disabled",
		"1 while calls to the upstream are refused with upstream_disabled, by the watch or by disabled: true, probes aside; else 0.", []string{"upstream"}, nil)})
	return w
}

// Fired counts one alert.
func (w *Watch) Fired(rule, upstream string) { w.alerts.WithLabelValues(rule, upstream).Inc() }

// Delivered counts how a message ended, or an attempt.
func (w *Watch) Delivered(kind, result string) { w.deliveries.WithLabelValues(kind, result).Inc() }

// offCollector is like expiryCollector.
type offCollector struct {
	each func(yield func(upstream string, off bool))
	desc *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c offCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector.
func (c offCollector) Collect(ch chan<- prometheus.Metric) {
	c.each(func(upstream string, off bool) {
		value := 0.0
		if off {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, value, upstream)
	})
}
