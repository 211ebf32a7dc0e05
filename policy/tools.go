package policy

import (
	"slices"
	"strings"
)

// Proof says what proves the tool that a call names.
type Proof string

// The proofs.
const (
	// ProofBody reads the request's body.
	ProofBody Proof = "body"
	// ProofMCPFilter takes the word of Envoy's own mcp filter.
	ProofMCPFilter Proof = "mcp_filter"
	// ProofHeaders takes the word of Mcp-Method and Mcp-Name, of callers that
	// speak a protocol version whose servers compare them with the body (rule H4).
	ProofHeaders Proof = "headers"
)

// Tools says which tools, prompts and resources of an upstream may be used, and
// by whom. It is immutable. A nil *Tools governs nothing.
type Tools struct {
	Proof Proof
	// MaxBody is the largest body that is read, in bytes.
	MaxBody int64
	// AllowUnlisted lets through what no rule names.
	AllowUnlisted bool
	// Rules are tried in order: the first that is about a call decides it.
	Rules []ToolRule
	// Implies maps a scope to those it includes, itself not among them.
	Implies map[string][]string
}

// ToolRule is one rule.
type ToolRule struct {
	// Methods are the JSON-RPC methods it is about, never empty.
	Methods []string
	// Names are names or URIs; a * stands for any run of characters.
	Names []string
	// Scopes are needed, all of them. Without any, every caller of the upstream is let in.
	Scopes []string
	// Callers are the names of those it is about; empty means all.
	Callers []string
}

// Bearer is a caller and what it may do, as a rule sees it.
type Bearer struct {
	// Caller is a name of the policy.
	Caller string
	// Scopes are those of the caller's token, or of the policy where it has none.
	Scopes []string
}

// Verdict is what the rules say about the calls of one request.
type Verdict struct {
	// Reason is Allowed, ToolDenied or ScopeMissing.
	Reason Reason
	// Call is the index of the call that decided: the first refused one, else the first.
	Call int
	// Rule is the index of the rule that decided it, -1 when none was about it.
	Rule int
	// Scopes are all that the calls need and the caller lacks one of, for one
	// challenge (rule A5). Empty unless ScopeMissing.
	Scopes []string
}

// Judge says whether all calls may pass. Calls must not be empty.
func (t *Tools) Judge(who Bearer, calls []Call) Verdict {
	total := Verdict{Reason: Allowed, Rule: -1}
	for i := range calls {
		v := t.judge(who, &calls[i])
		v.Call = i
		switch {
		case i == 0, v.Reason == ToolDenied && total.Reason != ToolDenied:
			// A denied tool outweighs a missing scope: no scope would help.
			v.Scopes = MergeScopes(total.Scopes, v.Scopes)
			total = v
		case v.Reason == ScopeMissing && total.Reason == Allowed:
			total = v
		case v.Reason == ScopeMissing:
			total.Scopes = MergeScopes(total.Scopes, v.Scopes)
		}
	}
	if total.Reason != ScopeMissing {
		total.Scopes = nil
	}
	return total
}

// judge decides about one call.
func (t *Tools) judge(who Bearer, c *Call) Verdict {
	if len(c.Method) == 0 {
		return Verdict{Reason: Allowed, Rule: -1} // a response to the server asks for nothing
	}
	for i := range t.Rules {
		r := &t.Rules[i]
		if !r.about(who.Caller, c) {
			continue
		}
		for _, need := range r.Scopes {
			if !t.holds(who.Scopes, need) {
				return Verdict{Reason: ScopeMissing, Rule: i, Scopes: r.Scopes}
			}
		}
		return Verdict{Reason: Allowed, Rule: i}
	}
	if t.AllowUnlisted || housekeeping(string(c.Method)) {
		return Verdict{Reason: Allowed, Rule: -1}
	}
	return Verdict{Reason: ToolDenied, Rule: -1}
}

// about reports whether the rule decides about this call of this caller.
func (r *ToolRule) about(caller string, c *Call) bool {
	return slices.Contains(r.Methods, string(c.Method)) &&
		(len(r.Callers) == 0 || slices.Contains(r.Callers, caller)) &&
		slices.ContainsFunc(r.Names, func(n string) bool { return glob(n, string(c.Target)) })
}

// holds reports whether a caller with these scopes has one, by itself or by a
// broader one (rule A6).
func (t *Tools) holds(scopes []string, need string) bool {
	for _, s := range scopes {
		if s == need || slices.Contains(t.Implies[s], need) {
			return true
		}
	}
	return false
}

// MergeScopes returns the scopes of a and those of b that a lacks. It changes neither.
func MergeScopes(a, b []string) []string {
	out := slices.Clip(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// housekeeping lists the methods of MCP that run nothing and read no resource:
// the handshake, the lists, completions, and what is about a call that was judged
// before. They pass where no rule is about them. A method that is not here, of
// the future or of one server, is governed as a tool is.
func housekeeping(method string) bool {
	switch method {
	case "initialize", "ping", "server/discover", "subscriptions/listen", "logging/setLevel", "completion/complete",
		"tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/unsubscribe",
		"tasks/get", "tasks/list", "tasks/result", "tasks/cancel", "tasks/update":
		return true
	}
	return strings.HasPrefix(method, "notifications/")
}

// glob matches pattern, where * stands for any run of characters, and everything
// else for itself. It takes time in the product of the lengths at worst.
func glob(pattern, s string) bool {
	p, i, star, mark := 0, 0, -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && pattern[p] == s[i]:
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
