package policy

import (
	"slices"
	"time"
)

// Watch is what the `watch` block says about all upstreams together.
type Watch struct {
	Sweep SweepRule
	// Throttle is what a caller is left with that sweeps.
	Throttle WatchThrottle
	Alerts   WatchAlerts
}

// WatchRules are the rules about one upstream. The zero WatchRules hold nothing
// against anybody. They are comparable.
type WatchRules struct {
	AuthFailures, Errors ShareRule
	TokenEndpoint        TokenEndpointRule
	ToolUsage            ToolUsageRule
	Breaker              WatchBreaker
	Throttle             WatchThrottle
}

// WatchResponse is what happens when a rule is broken. The zero value turns the rule off.
type WatchResponse struct{ Alert, Disable, Throttle bool }

// Off reports whether the rule is off.
func (r WatchResponse) Off() bool { return r == WatchResponse{} }

// ShareRule is broken when more than Share of at least MinCalls calls failed within Window.
type ShareRule struct {
	// Share is above 0 and up to 1.
	Share    float64
	MinCalls int
	Window   time.Duration
	Do       WatchResponse
}

// TokenEndpointRule is broken by Failures in a row, or by failing for For.
type TokenEndpointRule struct {
	Failures int
	For      time.Duration
	Do       WatchResponse
}

// ToolUsageRule is broken by MinCalls calls within Window that are Factor times
// what is usual, once that was learnt for Learn.
type ToolUsageRule struct {
	Factor, MinCalls int
	Window, Learn    time.Duration
	Do               WatchResponse
}

// SweepRule is broken by a caller with more than Tools different ones within Window.
type SweepRule struct {
	Tools  int
	Window time.Duration
	Do     WatchResponse
}

// WatchBreaker says how an upstream is switched off and on again.
type WatchBreaker struct {
	Open, MaxOpen time.Duration
	Successes     int
	ProbeTimeout  time.Duration
}

// WatchThrottle is what is left to whom a throttle is about.
type WatchThrottle struct {
	Rate Rate
	For  time.Duration
}

// WatchAlerts says who is told. A nil one is not.
type WatchAlerts struct {
	Webhook      *WatchWebhook
	Slack        *WatchSlack
	Alertmanager *WatchAlertmanager
	// Link is where alerts lead to, or empty.
	Link string
}

// WatchWebhook is a receiver of signed alerts. CA is a path, or empty.
type WatchWebhook struct {
	URL, CA string
	Secret  SecretRef
}

// WatchSlack is a chat.
type WatchSlack struct {
	URL SecretRef
	CA  string
}

// WatchAlertmanager is Alertmanager: URLs are those of its API for alerts.
type WatchAlertmanager struct {
	URLs          []string
	Authorization SecretRef // may be zero
	Labels        []Param   // sorted by name
	CA            string
}

// Secrets lists the secrets of the watch; nil has none.
func (w *Watch) Secrets() []SecretRef {
	if w == nil {
		return nil
	}
	var refs []SecretRef
	if h := w.Alerts.Webhook; h != nil {
		refs = append(refs, h.Secret)
	}
	if s := w.Alerts.Slack; s != nil {
		refs = append(refs, s.URL)
	}
	if a := w.Alerts.Alertmanager; a != nil {
		refs = append(refs, a.Authorization)
	}
	return slices.DeleteFunc(refs, SecretRef.IsZero)
}
