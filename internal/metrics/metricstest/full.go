// Package metricstest has every metric of the server with a value, for tests of what
// names them: tables, rules and dashboards.
package metricstest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// Full returns metrics of which none is absent: upstream a has calls, refusals and
// failures of each kind.
func Full() *metrics.Metrics {
	m := metrics.New("v", func(yield func(string, time.Time)) { yield("a", time.Unix(1_800_000_000, 0)) })
	m.AccessLog(func() extproc.LogStats { return extproc.LogStats{Calls: 1} })
	m.Expect(&policy.Set{Upstreams: []*policy.Upstream{{Name: "a"}}, Callers: []*policy.Caller{{Name: "ci"}}})
	for _, r := range policy.Reasons() {
		m.Decided(&extproc.Decision{Upstream: "a", Caller: "ci", Reason: r})
	}
	for _, status := range []int{http.StatusOK, http.StatusForbidden, http.StatusBadGateway, 0} {
		m.Ended(&extproc.Outcome{Upstream: "a", Caller: "ci", Tool: "search", Decided: true, Reason: policy.Allowed.String(), Status: status})
	}
	m.StaleTokens(func(yield func(string)) { yield("a") })
	m.Fetched(tokens.Fetch{Upstreams: []string{"a"}, Endpoint: "as.test", Result: "ok"})
	m.Fetched(tokens.Fetch{Upstreams: []string{"a"}, Endpoint: "as.test", Result: "invalid_client"})
	m.Reloaded(time.Unix(1_800_000_000, 0), nil)
	for _, result := range []string{"exported", "failed", "dropped"} {
		m.Spans(result, 1)
	}
	m.SharedCache("hit")
	m.SharedCacheUp(true)
	m.Audit(func() audit.Status {
		return audit.Status{Sinks: []string{"file"}, Lines: map[string]uint64{"decision": 1, "outcome": 1}}
	})
	m.XDS(func() int { return 1 })("cluster")
	watched := metrics.NewWatch(m, func(yield func(string, bool)) { yield("a", true) })
	watched.Fired("errors", "a")
	watched.Delivered("webhook", "ok")
	limited := metrics.NewLimits(m)
	limited.Limited("a", "rule")
	limited.Asked("ok")
	limited.Up(true)
	return m
}

// Text is what /metrics says of Full.
func Text() string {
	w := httptest.NewRecorder()
	promhttp.HandlerFor(Full().Registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, "/", nil))
	return w.Body.String()
}
