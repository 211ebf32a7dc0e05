package watch

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
)

// Status is what the watch knows now, for /status and pages. Nothing in it is
// secret. What callers choose, names of tools among it, is visible ASCII and a
// blank at most.
type Status struct {
	// Outcomes is whether Envoy's access log has told how a call ended since the
	// start. While it has not, what upstreams answer is unknown: Ended, Upstream,
	// Errors, P50 and P99 stay zero.
	Outcomes bool `json:"outcomes"`
	// Upstreams are all of the policy, sorted by name.
	Upstreams []UpstreamStatus `json:"upstreams"`
	// Alerts are those that last, the newest first.
	Alerts []alert.Alert `json:"alerts"`
	// Throttles are those in force, the newest first.
	Throttles []ThrottleStatus `json:"throttles"`
}

// Status returns what the watch knows now.
func (w *Watch) Status() Status {
	now := w.cfg.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	st := Status{Outcomes: w.outcomes.Load(), Upstreams: []UpstreamStatus{}, Alerts: []alert.Alert{}, Throttles: w.throttles.list()}
	for _, s := range w.table.Load().sorted {
		st.Upstreams = append(st.Upstreams, s.status(now))
	}
	for _, f := range w.firing {
		st.Alerts = append(st.Alerts, f.alert)
	}
	slices.SortFunc(st.Alerts, func(a, b alert.Alert) int {
		return cmp.Or(b.Since.Compare(a.Since), strings.Compare(a.Summary, b.Summary))
	})
	slices.SortFunc(st.Throttles, func(a, b ThrottleStatus) int {
		return cmp.Or(b.Since.Compare(a.Since), strings.Compare(a.Upstream+a.Caller, b.Upstream+b.Caller))
	})
	return st
}

// Off calls yield for each upstream of the policy, and whether calls to it are
// refused now: by the policy, or by a breaker, half-open ones included.
func (w *Watch) Off(yield func(upstream string, off bool)) {
	for _, s := range w.table.Load().sorted {
		yield(s.name, s.disabled || s.breaker.now() != closed)
	}
}

// UpstreamStatus is how an upstream does. Its figures are of the last five
// minutes, to the ten seconds.
type UpstreamStatus struct {
	Name    string        `json:"name"`
	Breaker BreakerStatus `json:"breaker"`
	// Calls are those decided on, each once however often it was tried; Tried are
	// those of them that got as far as the credential, and Ended those of which the
	// access log told the end.
	Calls uint64 `json:"calls"`
	Tried uint64 `json:"tried"`
	Ended uint64 `json:"ended"`
	// Failures counts calls that failed, by stage.
	Failures Failures `json:"failures"`
	// Limited counts calls refused with rate_limited or upstream_disabled.
	Limited uint64 `json:"limited"`
	// AuthFailureShare is the share of Calls that failed authentication at any
	// stage, and ErrorShare the share of ended calls that failed otherwise: 0 to 1.
	AuthFailureShare float64 `json:"auth_failure_share"`
	ErrorShare       float64 `json:"error_share"`
	// Rate is calls per second over the last minute.
	Rate float64 `json:"rate"`
	// P50 and P99 are in seconds, from Envoy's view: whole calls, streaming
	// included. They are within an eighth of the true ones, and 0 when unknown.
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	// TokenEndpoint is how requests for tokens go. It is nil while there was none.
	TokenEndpoint *EndpointStatus `json:"token_endpoint,omitempty"`
	// Series are 30 points, ten seconds apart, the oldest first; the last one is not
	// over yet. There are none for an upstream that was not called since the start.
	Series []Point `json:"series,omitempty"`
}

// Failures counts calls that failed.
type Failures struct {
	// Caller: who calls is unknown or its credential is not valid.
	Caller uint64 `json:"caller"`
	// Token: there was no token for the upstream.
	Token uint64 `json:"token"`
	// Upstream: it refused the credential, with 401 or 403.
	Upstream uint64 `json:"upstream"`
	// Errors: it answered 5xx, broke off, or let the caller wait until it left.
	Errors uint64 `json:"errors"`
}

// Point is ten seconds of an upstream.
type Point struct {
	// At is when they began.
	At time.Time `json:"at"`
	// Calls are those decided on, and Failures those that failed at any stage.
	Calls    uint64 `json:"calls"`
	Failures uint64 `json:"failures"`
	// P50 and P99 are in seconds; 0 when unknown.
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
}

// BreakerState says whether an upstream may be called.
type BreakerState string

// The states.
const (
	// Closed: calls pass.
	Closed BreakerState = "closed"
	// Open: calls are refused with upstream_disabled until the next probe.
	Open BreakerState = "open"
	// HalfOpen: one call at a time passes, to see whether the upstream is well.
	HalfOpen BreakerState = "half_open"
	// Disabled: calls are refused because the policy says disabled: true.
	Disabled BreakerState = "disabled"
)

// BreakerStatus is the breaker of an upstream.
type BreakerStatus struct {
	State BreakerState `json:"state"`
	// Since is when the state began; zero for an upstream that was never anything but Closed.
	Since time.Time `json:"since,omitzero"`
	// NextProbe is when a call is let through next; zero unless the state is Open.
	NextProbe time.Time `json:"next_probe,omitzero"`
	// Rule is the rule that opened it, and Why says it in words; empty when Closed.
	Rule string `json:"rule,omitempty"`
	Why  string `json:"why,omitempty"`
	// Opened is how often it opened since it was last closed, and Successes how many
	// probes of the Needed ones succeeded.
	Opened    int `json:"opened,omitempty"`
	Successes int `json:"successes,omitempty"`
	Needed    int `json:"needed,omitempty"`
}

// EndpointStatus is how the token requests of an upstream go.
type EndpointStatus struct {
	// Failures is how many failed in a row: 0 when the last one succeeded.
	Failures int `json:"failures"`
	// FailingSince is when the first of them failed; zero when none did.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Last is the result of the last one: ok, or a word such as invalid_client.
	Last string `json:"last"`
}

// ThrottleStatus is a throttle in force.
type ThrottleStatus struct {
	// Upstream is whose calls it holds back; empty for calls to all of them.
	Upstream string `json:"upstream,omitempty"`
	// Caller is whose calls; empty for everybody's.
	Caller string `json:"caller,omitempty"`
	// Rule is the rule that asked for it.
	Rule string `json:"rule"`
	// Rate is what may pass, in calls per second.
	Rate  float64   `json:"rate"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	// Refused counts the calls refused so far.
	Refused uint64 `json:"refused"`
}
