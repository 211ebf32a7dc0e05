package metrics

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

func TestMetrics(t *testing.T) {
	expiries := func(yield func(string, time.Time)) { yield("a", time.Unix(1234, 0)) }
	m := New("v1", expiries)
	m.Expect(upstreams("a", "b"))
	m.Decided(&extproc.Decision{Upstream: "a", Reason: policy.Allowed})
	m.Decided(&extproc.Decision{Upstream: "a", Reason: policy.Allowed})
	m.Decided(&extproc.Decision{Reason: policy.NoPolicy})
	m.Fetched(tokens.Fetch{Upstreams: []string{"a", "b"}, Endpoint: "as.test", Result: "ok", Skew: -90 * time.Second})
	m.Fetched(tokens.Fetch{Upstreams: []string{"b"}, Endpoint: "down.test", Result: "timeout"})
	m.StaleTokens(func(yield func(string)) { yield("b") })
	m.SharedCache("hit")
	m.SharedCacheUp(true)
	m.Reloaded(time.Unix(99, 0), nil)
	m.Reloaded(time.Unix(100, 0), errors.New("bad"))
	want := `
# HELP mcp_auth_config_last_reload_success_timestamp_seconds When the policy in force was loaded.
# TYPE mcp_auth_config_last_reload_success_timestamp_seconds gauge
mcp_auth_config_last_reload_success_timestamp_seconds 99
# HELP mcp_auth_config_last_reload_successful 1 when the policy file as it is now is in force, 0 when it could not be loaded and the last good one serves.
# TYPE mcp_auth_config_last_reload_successful gauge
mcp_auth_config_last_reload_successful 0
# HELP mcp_auth_decisions_total Decisions by upstream and reason; reason is allowed when the request went on. A call has one for each attempt.
# TYPE mcp_auth_decisions_total counter
mcp_auth_decisions_total{reason="allowed",upstream="a"} 2
mcp_auth_decisions_total{reason="no_policy",upstream=""} 1
# HELP mcp_auth_shared_cache_requests_total Uses of the shared cache by result: hit, miss and stored when it works; any other result is a token that was fetched without it.
# TYPE mcp_auth_shared_cache_requests_total counter
mcp_auth_shared_cache_requests_total{result="hit"} 1
# HELP mcp_auth_shared_cache_up 1 while the shared cache is used, 0 while each replica fetches its own tokens; absent without a shared_cache.
# TYPE mcp_auth_shared_cache_up gauge
mcp_auth_shared_cache_up 1
# HELP mcp_auth_token_endpoint_clock_skew_seconds How far the clock of a token endpoint (Date header) was ahead of ours at its last answer; negative when behind.
# TYPE mcp_auth_token_endpoint_clock_skew_seconds gauge
mcp_auth_token_endpoint_clock_skew_seconds{endpoint="as.test"} -90
# HELP mcp_auth_token_stale Always 1: the upstream is lent an expired token (stale_grace) because its token endpoint is unavailable; absent otherwise.
# TYPE mcp_auth_token_stale gauge
mcp_auth_token_stale{upstream="b"} 1
# HELP mcp_auth_token_expiry_timestamp_seconds When the access token held for an upstream expires; absent while there is none.
# TYPE mcp_auth_token_expiry_timestamp_seconds gauge
mcp_auth_token_expiry_timestamp_seconds{upstream="a"} 1234
# HELP mcp_auth_token_requests_total Requests to token endpoints by upstream (the first in the alphabet, when several share the token) and result.
# TYPE mcp_auth_token_requests_total counter
mcp_auth_token_requests_total{result="ok",upstream="a"} 1
mcp_auth_token_requests_total{result="timeout",upstream="b"} 1
`
	if err := testutil.GatherAndCompare(m.Registry, strings.NewReader(want),
		"mcp_auth_config_last_reload_success_timestamp_seconds", "mcp_auth_config_last_reload_successful",
		"mcp_auth_shared_cache_requests_total", "mcp_auth_shared_cache_up",
		"mcp_auth_decisions_total", "mcp_auth_token_expiry_timestamp_seconds", "mcp_auth_token_requests_total",
		"mcp_auth_token_endpoint_clock_skew_seconds", "mcp_auth_token_stale"); err != nil {
		t.Error(err)
	}
	m.SharedCacheOff()
	if n, err := testutil.GatherAndCount(m.Registry, "mcp_auth_shared_cache_up"); n != 0 || err != nil {
		t.Errorf("mcp_auth_shared_cache_up without a shared cache: got %d, %v", n, err)
	}
	if problems, err := testutil.GatherAndLint(m.Registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

// upstreams returns a policy with these upstreams, whose callers are ci and people.
func upstreams(names ...string) *policy.Set {
	set := &policy.Set{Callers: []*policy.Caller{{Name: "ci"}, {Name: "people"}}}
	for _, name := range names {
		set.Upstreams = append(set.Upstreams, &policy.Upstream{Name: name})
	}
	return set
}

func TestDecidedDoesNotAllocate(t *testing.T) {
	m := New("v1", nil)
	m.Expect(upstreams("a"))
	d := &extproc.Decision{
		Upstream: "a", Reason: policy.Allowed, Took: time.Millisecond,
		Trace: []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"),
	}
	m.Decided(d)
	if n := testing.AllocsPerRun(100, func() { m.Decided(d) }); n != 0 {
		t.Errorf("Decided allocates %v times, want 0", n)
	}
}

// TestExemplars shows the trace of a decision to a scraper that asks for OpenMetrics,
// when somebody records that trace.
func TestExemplars(t *testing.T) {
	t.Parallel()
	m := New("v1", nil)
	const sampled, other = "4bf92f3577b34da6a3ce929d0e0e4736", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	m.Decided(&extproc.Decision{Took: time.Millisecond, Trace: []byte("00-" + sampled + "-00f067aa0ba902b7-01")})
	m.Decided(&extproc.Decision{Took: time.Millisecond, Trace: []byte("00-" + other + "-00f067aa0ba902b7-00")})
	m.Decided(&extproc.Decision{Took: time.Millisecond, Trace: []byte("no trace at all")})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody)
	r.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	w := httptest.NewRecorder()
	promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{EnableOpenMetrics: true}).ServeHTTP(w, r)
	body := w.Body.String()
	if !strings.Contains(body, `mcp_auth_decision_seconds_bucket{le="0.001"} 3 # {trace_id="`+sampled+`"}`) {
		t.Errorf("no exemplar of the sampled trace in\n%s", body)
	}
	if strings.Contains(body, other) {
		t.Error("an exemplar of a trace that nobody records")
	}
}
