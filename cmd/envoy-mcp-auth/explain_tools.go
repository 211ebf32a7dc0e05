package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// toolCall is what the rules say about one call of the body.
type toolCall struct {
	Method string `json:"method,omitempty"` // empty for a response to the server
	Target string `json:"target,omitempty"`
	Reason string `json:"reason"`
	// Rule is the number of the rule that decided, 0 when none was about it.
	Rule int    `json:"rule"`
	Why  string `json:"why"`
}

// readBody reads the file of --body, - being the standard input. It reads a
// little more than any policy permits, so that too much is seen to be.
func readBody(path string, in io.Reader) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	return readInput("--body", path, in, policy.MaxBody+1)
}

// readInput reads the file that a flag names, or the standard input for -, up to
// limit bytes.
func readInput(flag, path string, in io.Reader, limit int64) ([]byte, error) {
	if path != "-" {
		f, err := os.Open(path) //nolint:gosec // the path is the user's own
		if err != nil {
			return nil, fmt.Errorf("%s: %w; give an existing file, or - for the standard input", flag, err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return b, nil
}

// complete adds what an HTTP client would send along with a body.
func complete(req *policy.Request, method string, body []byte) {
	has := func(name string) bool {
		return slices.ContainsFunc(req.Headers, func(h policy.Header) bool { return h.Name == name })
	}
	if method == "" {
		method = "GET"
		if body != nil {
			method = "POST"
		}
	}
	req.Headers = append(req.Headers, policy.Header{Name: ":method", Value: []byte(method)})
	if body != nil && !has("content-type") {
		req.Headers = append(req.Headers, policy.Header{Name: "content-type", Value: []byte("application/json")})
	}
}

// govern walks the step of extproc's decide about tools.
func (ex *explanation) govern(up *policy.Upstream, req *policy.Request, f *explainFlags) policy.Reason {
	tools := up.Tools
	if tools == nil {
		return policy.Allowed
	}
	var h policy.Standard
	if r := policy.ReadStandard(req, &h); r != policy.Allowed {
		return r
	}
	reason := tools.Start(&h, f.sent == nil)
	switch {
	case reason == policy.Undecided:
	case f.sent == nil && reason == policy.Allowed:
		ex.Notes = append(ex.Notes, "no body was given, so the tool rules were not asked; give one with --body FILE")
		return reason
	default:
		return reason
	}
	calls, reason, err := prove(tools, &h, f.sent)
	if err != nil {
		ex.Notes = append(ex.Notes, "the body: "+err.Error())
	}
	if reason != policy.Allowed {
		return reason
	}
	who := policy.Bearer{Caller: ex.as.Name, Scopes: ex.as.Scopes}
	if ex.as.JWT != nil {
		who.Scopes = f.scopes
		ex.Notes = append(ex.Notes, "the token is taken to be of "+ex.as.Name+", with the scopes that --scope names: "+listOr(f.scopes, "none"))
	}
	for i := range calls {
		ex.Tools = append(ex.Tools, judged(tools, who, &calls[i]))
	}
	return tools.Judge(who, calls).Reason
}

// prove reads the calls as the policy has them proved. Envoy's mcp filter is not
// here, so its part is taken by the stricter reader of bodies.
func prove(tools *policy.Tools, h *policy.Standard, body []byte) ([]policy.Call, policy.Reason, error) {
	if tools.Proof != policy.ProofHeaders {
		return tools.ByBody(h, body, nil)
	}
	calls, reason := tools.ByHeaders(h, nil)
	if reason == policy.ToolUnproved {
		return nil, reason, errors.New("not looked at; proof: headers wants MCP-Protocol-Version 2026-07-28, Mcp-Method, and Mcp-Name where that method has one")
	}
	return calls, reason, nil
}

// judged says which rule decides about one call, and why.
func judged(tools *policy.Tools, who policy.Bearer, c *policy.Call) toolCall {
	v := tools.Judge(who, []policy.Call{*c})
	out := toolCall{Method: shown(c.Method), Target: shown(c.Target), Reason: v.Reason.String(), Rule: v.Rule + 1}
	switch {
	case len(c.Method) == 0:
		out.Why = "a response to the server runs nothing"
	case v.Rule >= 0 && v.Reason == policy.Allowed && len(tools.Rules[v.Rule].Scopes) == 0:
		out.Why = fmt.Sprintf("rule %d lets in every caller that it is about", v.Rule+1)
	case v.Rule >= 0:
		out.Why = fmt.Sprintf("rule %d asks for %s; caller %s has %s",
			v.Rule+1, listOr(tools.Rules[v.Rule].Scopes, "nothing"), who.Caller, listOr(who.Scopes, "no scopes"))
	case v.Reason != policy.Allowed:
		out.Why = "no rule is about it for caller " + who.Caller + ", and the default is deny"
	case tools.AllowUnlisted:
		out.Why = "no rule is about it, and the default is allow"
	default:
		out.Why = "no rule is about it, and it runs no tool and reads no resource"
	}
	return out
}

func listOr(list []string, none string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Join(list, ", ")
}

// shown is what a terminal can take of a name in a body.
func shown(b []byte) string {
	return string(bytes.ToValidUTF8(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, b[:min(len(b), 256)]), nil))
}

// toolLines writes the part about tools.
func (ex *explanation) toolLines(b *strings.Builder) {
	for _, n := range ex.Notes {
		fmt.Fprintf(b, "note      %s\n", n)
	}
	for _, c := range ex.Tools {
		name := strings.TrimSpace(c.Method + " " + c.Target)
		if name == "" {
			name = "response"
		}
		fmt.Fprintf(b, "tool      %s: %s: %s\n", name, c.Reason, c.Why)
	}
}
