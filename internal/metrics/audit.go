package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// Audit shows the state of the audit log, which is asked at each scrape. Call it once.
func (m *Metrics) Audit(status func() audit.Status) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	m.Registry.MustRegister(auditCollector{
		status: status,
		lines: desc("mcp_auth_audit_lines_total",
			"Lines written to the audit, by kind: decision or outcome.", "kind"),
		dropped: desc("mcp_auth_audit_dropped_total",
			"Lines that did not come to a sink of the audit. Where audit is required, the requests of those of the first sink were refused.", "sink"),
		failures: desc("mcp_auth_audit_failures_total",
			"Attempts to write, sync or put aside the audit file that failed."),
		failing: desc("mcp_auth_audit_failing",
			"1 while the audit cannot be written, synced or put aside, else 0; absent without an audit."),
	})
}

type auditCollector struct {
	status                            func() audit.Status
	lines, dropped, failures, failing *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c auditCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.lines, c.dropped, c.failures, c.failing} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c auditCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.status()
	if len(s.Sinks) == 0 {
		return
	}
	count := func(desc *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	for kind, n := range s.Lines {
		count(c.lines, n, kind)
	}
	for _, sink := range s.Sinks {
		count(c.dropped, s.Dropped[sink], sink)
	}
	count(c.failures, s.Failures)
	failing := 0.0
	if s.Failing {
		failing = 1
	}
	ch <- prometheus.MustNewConstMetric(c.failing, prometheus.GaugeValue, failing)
}
