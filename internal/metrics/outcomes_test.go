package metrics

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// compare holds the metrics of these names to the text.
func compare(t *testing.T, m *Metrics, want string, names ...string) {
	t.Helper()
	if err := testutil.GatherAndCompare(m.Registry, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

// series counts the series of mcp_auth_calls_total.
func series(t *testing.T, m *Metrics) int {
	t.Helper()
	n, err := testutil.GatherAndCount(m.Registry, "mcp_auth_calls_total")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	m := New("v1", nil)
	set := upstreams("a", "b")
	set.Upstreams[0].Tools = &policy.Tools{Rules: []policy.ToolRule{{Methods: []string{"tools/call"}, Names: []string{"lookup", "ticket_*"}}}}
	m.Expect(set)
	began := time.Unix(1000, 0)
	for _, o := range []extproc.Outcome{
		{Upstream: "a", Caller: "ci", Reason: "allowed", Tool: "lookup", Decided: true, Status: 200, Attempts: 1, Sent: 10, Received: 3, Began: began, Took: 20 * time.Millisecond, Own: 20 * time.Microsecond},
		{Upstream: "a", Caller: "ci", Reason: "allowed", Tool: "ticket_new", Decided: true, Status: 200, Attempts: 2},
		{Upstream: "a", Caller: "ci", Reason: "allowed", Tool: "resources/read file:///x", Decided: true, Status: 403, Attempts: 1},
		{Upstream: "a", Caller: "ci", Reason: "scope_missing", Tool: "lookup", Decided: true, Status: 403, Refusal: "scope_missing"},
		{Upstream: "a", Caller: "ci", Reason: "tool_denied", Tool: "made-up", Decided: true, Status: 403, Refusal: "tool_denied"},
		{Upstream: "a", Reason: "caller_invalid", Decided: true, Status: 403, Refusal: "caller_invalid"},
		{Upstream: "a", Caller: "ci", Reason: "token_unavailable", Tool: "lookup", Decided: true, Status: 503, Refusal: "token_unavailable"},
		{Upstream: "a", Caller: "ci", Reason: "allowed", Tool: "lookup", Decided: true, Status: 502, Refusal: "upstream_rejected", Attempts: 2},
		{Upstream: "a", Caller: "who", Reason: "allowed", Tool: "lookup", Decided: true, Reset: true, Attempts: 1},
		{Upstream: "a", Status: 401},
		{Upstream: "gone", Status: 200},
	} {
		m.Ended(&o)
	}
	compare(t, m, `
# HELP mcp_auth_attempts_total How often Envoy sent requests to the upstream; a retry is one more.
# TYPE mcp_auth_attempts_total counter
mcp_auth_attempts_total{upstream="a"} 7
# HELP mcp_auth_auth_failures_total Calls that failed to authenticate: the caller here, this server at the token endpoint, or at the upstream (401 or 403) with the credential lent.
# TYPE mcp_auth_auth_failures_total counter
mcp_auth_auth_failures_total{stage="caller",upstream="a"} 1
mcp_auth_auth_failures_total{stage="token",upstream="a"} 1
mcp_auth_auth_failures_total{stage="upstream",upstream="a"} 2
# HELP mcp_auth_call_bytes_total Bytes of bodies: received in requests, sent in answers.
# TYPE mcp_auth_call_bytes_total counter
mcp_auth_call_bytes_total{direction="received",upstream="a"} 3
mcp_auth_call_bytes_total{direction="sent",upstream="a"} 10
# HELP mcp_auth_calls_reset_total Calls that ended without a whole answer: connection lost, cancelled, or out of time.
# TYPE mcp_auth_calls_reset_total counter
mcp_auth_calls_reset_total{upstream="a"} 1
# HELP mcp_auth_calls_total Calls that ended, by Envoy's access log: class is that of the status the caller got, none when it got none. Tool is empty where no rule governs tools, and other beyond the bounds.
# TYPE mcp_auth_calls_total counter
mcp_auth_calls_total{caller="",class="4xx",tool="",upstream="a"} 2
mcp_auth_calls_total{caller="ci",class="2xx",tool="lookup",upstream="a"} 1
mcp_auth_calls_total{caller="ci",class="2xx",tool="ticket_new",upstream="a"} 1
mcp_auth_calls_total{caller="ci",class="4xx",tool="lookup",upstream="a"} 1
mcp_auth_calls_total{caller="ci",class="4xx",tool="other",upstream="a"} 1
mcp_auth_calls_total{caller="ci",class="4xx",tool="resources/read",upstream="a"} 1
mcp_auth_calls_total{caller="ci",class="5xx",tool="lookup",upstream="a"} 2
mcp_auth_calls_total{caller="other",class="none",tool="lookup",upstream="a"} 1
# HELP mcp_auth_calls_undecided_total Calls that never reached a decision: Envoy answered them itself, or this server was not to be had.
# TYPE mcp_auth_calls_undecided_total counter
mcp_auth_calls_undecided_total{upstream="a"} 1
`, "mcp_auth_attempts_total", "mcp_auth_auth_failures_total", "mcp_auth_call_bytes_total", "mcp_auth_calls_total",
		"mcp_auth_calls_undecided_total", "mcp_auth_calls_reset_total")
	compare(t, m, `
# HELP mcp_auth_call_seconds Time from the first byte of a request to the last of its answer, streaming included, as Envoy saw it.
# TYPE mcp_auth_call_seconds histogram
mcp_auth_call_seconds_bucket{upstream="a",le="0.005"} 0
mcp_auth_call_seconds_bucket{upstream="a",le="0.01"} 0
mcp_auth_call_seconds_bucket{upstream="a",le="0.025"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="0.05"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="0.1"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="0.25"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="0.5"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="1"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="2.5"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="10"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="60"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="300"} 1
mcp_auth_call_seconds_bucket{upstream="a",le="+Inf"} 1
mcp_auth_call_seconds_sum{upstream="a"} 0.02
mcp_auth_call_seconds_count{upstream="a"} 1
`, "mcp_auth_call_seconds")
	if problems, err := testutil.GatherAndLint(m.Registry); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

// TestBounds has callers make up names: they get no series beyond the bounds, and
// take none from the tools that a rule lists.
func TestBounds(t *testing.T) {
	t.Parallel()
	m := New("v1", nil)
	set := &policy.Set{}
	for i := range 200 {
		set.Upstreams = append(set.Upstreams, &policy.Upstream{Name: fmt.Sprint("up", i)})
		set.Callers = append(set.Callers, &policy.Caller{Name: fmt.Sprint("caller", i)})
	}
	set.Upstreams[0].Tools = &policy.Tools{Rules: []policy.ToolRule{{Methods: []string{"tools/call"}, Names: []string{"lookup"}}}}
	m.Expect(set)
	call := func(upstream, caller, tool string) {
		m.Ended(&extproc.Outcome{Upstream: upstream, Caller: caller, Tool: tool, Reason: "allowed", Decided: true, Status: 200})
	}
	for i := range 1000 {
		call("up0", "caller0", fmt.Sprint("made-up", i))
	}
	call("up0", "caller0", "lookup")
	if n := series(t, m); n != maxTools+2 { // other, lookup
		t.Errorf("after 1000 names, mcp_auth_calls_total has %d series, want %d", n, maxTools+2)
	}
	if got := testutil.ToFloat64(m.folded); got != 1000-maxTools {
		t.Errorf("folded: got %v, want %d", got, 1000-maxTools)
	}
	for _, up := range set.Upstreams {
		for i := range 200 {
			call(up.Name, fmt.Sprint("caller", i), fmt.Sprint("tool", i))
		}
	}
	if n := series(t, m); n > maxPairs+len(set.Upstreams) {
		t.Errorf("of 40,000 pairs, mcp_auth_calls_total has %d series, want at most %d", n, maxPairs+len(set.Upstreams))
	}
	m.Retain(upstreams("up0"))
	if got := m.pairs.Load(); got != int64(series(t, m)) {
		t.Errorf("pairs: got %d after the others left, want those of one upstream: %d", got, series(t, m))
	}
}

// TestReload: what stays in the policy goes on counting, what left is gone, and
// what comes late of it brings nothing back.
func TestReload(t *testing.T) {
	t.Parallel()
	m := New("v1", nil)
	limited, watched := NewLimits(m), NewWatch(m, func(func(string, bool)) {})
	for _, name := range []string{"a", "b"} {
		limited.Limited(name, "rule")
		watched.Fired("errors", name)
		m.Fetched(tokens.Fetch{Upstreams: []string{name}, Result: "ok"})
	}
	m.Expect(upstreams("a", "b"))
	m.Retain(upstreams("a", "b"))
	both := func() {
		for _, name := range []string{"a", "b", "c"} {
			m.Decided(&extproc.Decision{Upstream: name, Reason: policy.Allowed})
			m.Ended(&extproc.Outcome{Upstream: name, Status: 200})
		}
	}
	both()
	m.Expect(upstreams("a", "c"))
	both() // while it is loaded, all three count
	m.Retain(upstreams("a", "c"))
	both()
	compare(t, m, `
# HELP mcp_auth_calls_total Calls that ended, by Envoy's access log: class is that of the status the caller got, none when it got none. Tool is empty where no rule governs tools, and other beyond the bounds.
# TYPE mcp_auth_calls_total counter
mcp_auth_calls_total{caller="",class="2xx",tool="",upstream="a"} 3
mcp_auth_calls_total{caller="",class="2xx",tool="",upstream="c"} 2
# HELP mcp_auth_decisions_total Decisions by upstream and reason; reason is allowed when the request went on. A call has one for each attempt.
# TYPE mcp_auth_decisions_total counter
mcp_auth_decisions_total{reason="allowed",upstream="a"} 3
mcp_auth_decisions_total{reason="allowed",upstream="c"} 2
`, "mcp_auth_calls_total", "mcp_auth_decisions_total")
	for _, vec := range m.byUpstream {
		if n := testutil.CollectAndCount(vec); n != 1 {
			t.Errorf("%d series of a and b, want those of a alone: 1", n)
		}
	}
	if n := len(m.byUpstream); n != 3 {
		t.Errorf("%d metrics by upstream, want those of tokens, limits and the watch", n)
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	m := New("v1", nil)
	m.Expect(upstreams("a"))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				m.Ended(&extproc.Outcome{Upstream: "a", Caller: "ci", Tool: fmt.Sprint(i % 100), Reason: "allowed", Decided: true, Status: 200})
				m.Decided(&extproc.Decision{Upstream: "a", Reason: policy.Allowed})
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			m.Expect(upstreams("a"))
			m.Retain(upstreams("a"))
			_, _ = m.Registry.Gather()
		}
	})
	wg.Wait()
	calls := 0.0
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "mcp_auth_calls_total" {
			for _, s := range f.GetMetric() {
				calls += s.GetCounter().GetValue()
			}
		}
	}
	if calls != 2000 {
		t.Errorf("calls: got %v, want 2000", calls)
	}
}
