package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// collector shows the counts of the upstreams of the policy in force. Since it
// goes by the index, the series of an upstream end with it.
type collector struct {
	m *Metrics

	decisions, calls, failures, attempts, undecided, reset, bytes, total, own *prometheus.Desc
}

func newCollector(m *Metrics) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"upstream"}, labels...), nil)
	}
	return &collector{
		m: m,
		decisions: desc("mcp_auth_decisions_total",
			"Decisions by upstream and reason; reason is allowed when the request went on. A call has one for each attempt.", "reason"),
		calls: desc("mcp_auth_calls_total",
			"Calls that ended, by Envoy's access log: class is that of the status the caller got, none when it got none. Tool is empty where no rule governs tools, and other beyond the bounds.", "caller", "tool", "class"),
		failures: desc("mcp_auth_auth_failures_total",
			"Calls that failed to authenticate: the caller here, this server at the token endpoint, or at the upstream (401 or 403) with the credential lent.", "stage"),
		attempts: desc("mcp_auth_attempts_total",
			"How often Envoy sent requests to the upstream; a retry is one more."),
		undecided: desc("mcp_auth_calls_undecided_total",
			"Calls that never reached a decision: Envoy answered them itself, or this server was not to be had."),
		reset: desc("mcp_auth_calls_reset_total",
			"Calls that ended without a whole answer: connection lost, cancelled, or out of time."),
		bytes: desc("mcp_auth_call_bytes_total",
			"Bytes of bodies: received in requests, sent in answers.", "direction"),
		total: desc("mcp_auth_call_seconds",
			"Time from the first byte of a request to the last of its answer, streaming included, as Envoy saw it."),
		own: desc("mcp_auth_call_own_seconds",
			"Time that the decisions of a call took, all attempts together, waiting for a token included: our share of mcp_auth_call_seconds."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.decisions, c.calls, c.failures, c.attempts, c.undecided, c.reset, c.bytes, c.total, c.own} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, l := range c.m.index.Load().lanes {
		held := l.held.Load()
		if held == nil {
			continue
		}
		send := counterSender(ch, l.upstream)
		for i, r := range append([]policy.Reason{policy.Undecided}, policy.Reasons()...) {
			if n := held.decisions[i].Load(); n > 0 {
				send(c.decisions, n, r.String())
			}
		}
		if l.upstream != "" {
			c.outcomes(ch, l.upstream, held)
		}
	}
}

func counterSender(ch chan<- prometheus.Metric, upstream string) func(*prometheus.Desc, uint64, ...string) {
	return func(desc *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), append([]string{upstream}, labels...)...)
	}
}

// outcomes shows the counts of calls: zeros too, since a rate needs a start.
func (c *collector) outcomes(ch chan<- prometheus.Metric, upstream string, held *counts) {
	send := counterSender(ch, upstream)
	held.mu.RLock()
	for key, cell := range held.calls {
		for class := range cell {
			if n := cell[class].Load(); n > 0 {
				send(c.calls, n, key.caller, key.tool, className(class))
			}
		}
	}
	held.mu.RUnlock()
	for s := range stages {
		send(c.failures, held.failures[s].Load(), s.String())
	}
	send(c.attempts, held.attempts.Load())
	send(c.undecided, held.undecided.Load())
	send(c.reset, held.reset.Load())
	send(c.bytes, held.sent.Load(), "sent")
	send(c.bytes, held.received.Load(), "received")
	ch <- held.total.metric(c.total, upstream)
	ch <- held.own.metric(c.own, upstream)
}
