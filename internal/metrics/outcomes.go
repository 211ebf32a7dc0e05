package metrics

import (
	"net/http"
	"sync/atomic"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Bounds on series that callers can make: names of tools are theirs to choose.
const (
	// maxTools bounds the tools of an upstream that no rule lists by name.
	maxTools = 64
	// maxPairs bounds the pairs of caller and tool of all upstreams together.
	maxPairs = 10000
	// other stands for what is beyond.
	other = "other"
)

// stage is where authentication failed.
type stage int

const (
	stageCaller stage = iota
	stageToken
	stageUpstream
	stages
)

// String returns the label of the stage.
func (s stage) String() string { return [...]string{"caller", "token", "upstream"}[s] }

// stageOf returns where the authentication of a call failed, stages when it did not.
// A refusal of authorization, such as a missing scope, is the policy at work.
func stageOf(o *extproc.Outcome, reason policy.Reason) stage {
	switch reason { //nolint:exhaustive // the others are no failure of authentication, or the upstream's
	case policy.CallerUnknown, policy.CallerInvalid, policy.IssuerUnavailable:
		return stageCaller
	case policy.TokenUnavailable, policy.TokenRefused:
		return stageToken
	}
	if o.Decided && (o.Rejected() || o.Refusal == "" && o.Status == http.StatusForbidden) {
		return stageUpstream
	}
	return stages
}

// classes are the status classes: none, 1xx to 5xx.
const classes = 6

// classOf returns the class of a status.
func classOf(status int) int {
	if class := status / 100; class > 0 && class < classes {
		return class
	}
	return 0
}

func className(class int) string {
	return [classes]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}[class]
}

// Ended implements extproc.OutcomeObserver.
func (m *Metrics) Ended(o *extproc.Outcome) {
	in := m.index.Load()
	l, ok := in.lanes[o.Upstream]
	if !ok {
		return // it left the policy while its entry was on the way
	}
	c := l.counts()
	m.cell(in, l, c, o)[classOf(o.Status)].Add(1)
	if s := stageOf(o, m.reasons[o.Reason]); s < stages {
		c.failures[s].Add(1)
	}
	c.attempts.Add(count(o.Attempts))
	c.sent.Add(count(o.Sent))
	c.received.Add(count(o.Received))
	if o.Reset {
		c.reset.Add(1)
	}
	if !o.Began.IsZero() {
		c.total.observe(o.Took)
	}
	if o.Decided {
		c.own.observe(o.Own)
	} else {
		c.undecided.Add(1)
	}
}

// count is a number that Envoy reports; it has no negative ones.
func count[N int | int64](n N) uint64 { return uint64(max(n, 0)) }

// cell returns the counters of the call's caller and tool.
func (m *Metrics) cell(in *index, l *lane, c *counts, o *extproc.Outcome) *[classes]atomic.Uint64 {
	key := callKey{caller: o.Caller, tool: toolLabel(o.Tool)}
	if key.caller != "" && !in.callers[key.caller] {
		key.caller = other
	}
	listed := key.tool == "" || l.listed[key.tool]
	if !listed && o.Reason != policy.Allowed.String() {
		key.tool = other
	}
	c.mu.RLock()
	cell := c.calls[key]
	c.mu.RUnlock()
	if cell != nil {
		return cell
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return m.newCell(c, key, listed || key.tool == other)
}

// newCell makes the counters of a pair, or returns those of a coarser one when a
// bound is reached. It is called with c locked.
func (m *Metrics) newCell(c *counts, key callKey, listed bool) *[classes]atomic.Uint64 {
	if !listed && !c.tools[key.tool] {
		if len(c.tools) >= maxTools {
			m.folded.Inc()
			key.tool = other
		} else {
			c.tools[key.tool] = true
		}
	}
	if c.calls[key] == nil && m.pairs.Load() >= maxPairs && key.tool+key.caller != "" {
		m.folded.Inc()
		key = callKey{other, other} // at most one for each upstream
	}
	cell := c.calls[key]
	if cell == nil {
		cell = new([classes]atomic.Uint64)
		c.calls[key] = cell
		m.pairs.Add(1)
	}
	return cell
}
