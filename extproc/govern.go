package extproc

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxTool bounds what of a tool's name is logged: it is the caller's to choose.
const maxTool = 128

// errOrder ends a stream whose messages come in an order that was not asked for.
var errOrder = status.Error(codes.FailedPrecondition, "a part of a request that was not asked for: "+
	"in Envoy's processing_mode, set request_header_mode: SEND and everything else to NONE or SKIP")

// Causes of tool_unproved, for the log. Those of a body are policy.ParseCalls'.
var (
	errUnread = errors.New("want a POST of application/json in UTF-8, not packed, or a GET or DELETE without a body")
	errStated = errors.New("proof: headers wants MCP-Protocol-Version 2026-07-28, Mcp-Method, and Mcp-Name where that method has one; " +
		"choose proof: body for callers of older versions")
	errFiltered = errors.New("no word of Envoy's mcp filter on what the body names; put the filter before the router, " +
		"and list " + filterNamespace + " in forwarding_namespaces of the ext_proc filter")
)

// govern finds out what the request would run, where rules say who may. The
// verdict on attempt 1 stands for those that follow, which send the same body.
//
// Undecided, with x.awaiting set, means that the body has to be read first.
func (x *exchange) govern() policy.Reason {
	tools := x.lane.up.Tools
	if tools == nil || x.screen.Attempt > 1 {
		return policy.Allowed
	}
	if r := policy.ReadStandard(&x.msg.req, &x.standard); r != policy.Allowed {
		return r
	}
	reason := tools.Start(&x.standard, x.msg.bodiless)
	if reason != policy.Undecided {
		return x.unproved(reason, errUnread)
	}
	switch tools.Proof {
	case policy.ProofHeaders:
		x.calls, reason = tools.ByHeaders(&x.standard, x.calls[:0])
		return x.judge(x.unproved(reason, errStated))
	case policy.ProofMCPFilter:
		x.calls, reason = tools.ByFilter(&x.standard, &x.msg.filtered, x.calls[:0])
		return x.judge(x.unproved(reason, errFiltered))
	case policy.ProofBody:
	}
	x.awaiting = true
	x.msg.room = int(tools.MaxBody) + maxHeaders
	return policy.Undecided
}

// unproved notes why nothing is proved.
func (x *exchange) unproved(r policy.Reason, cause error) policy.Reason {
	if r == policy.ToolUnproved {
		x.cause = cause
	}
	return r
}

// governBody judges the body that was asked for.
func (x *exchange) governBody() policy.Reason {
	x.awaiting = false
	var reason policy.Reason
	x.calls, reason, x.cause = x.lane.up.Tools.ByBody(&x.standard, x.msg.body, x.calls[:0])
	return x.judge(reason)
}

// judge holds proved calls against the rules.
func (x *exchange) judge(proved policy.Reason) policy.Reason {
	if proved != policy.Allowed {
		return proved
	}
	v := x.lane.up.Tools.Judge(x.bearer(), x.calls)
	x.decision.Tool, x.decision.Rule = ToolName(&x.calls[v.Call]), v.Rule+1
	x.needs = v.Scopes
	return v.Reason
}

// bearer is the caller as a rule sees it: the scopes of its token, or those that
// the policy gives to a caller without one.
func (x *exchange) bearer() policy.Bearer {
	b := policy.Bearer{Caller: x.caller.Name, Scopes: x.caller.Scopes}
	if x.caller.JWT != nil {
		b.Scopes = nil
		if x.principal != nil {
			b.Scopes = x.principal.Scopes
		}
	}
	return b
}

// ToolName names a call as Decision.Tool does: a tool by its name, anything else by
// method and target, in at most 193 characters, all visible ASCII but for a blank
// between the two. No tool's name holds a blank. Of the URI of a resource, the parts
// that hold arguments and passwords are left out.
func ToolName(c *policy.Call) string {
	if string(c.Method) == "tools/call" {
		return printable(c.Target, maxTool)
	}
	return strings.TrimSpace(printable(c.Method, 64) + " " + printable(place(c.Target), maxTool))
}

// place is a URI without query, fragment and user.
func place(uri []byte) []byte {
	if i := bytes.IndexAny(uri, "?#"); i >= 0 {
		uri = uri[:i]
	}
	before, rest, ok := bytes.Cut(uri, []byte("//"))
	if !ok {
		return uri
	}
	authority, _, _ := bytes.Cut(rest, []byte("/"))
	if i := bytes.LastIndexByte(authority, '@'); i >= 0 {
		return slices.Concat(before, []byte("//"), rest[i+1:])
	}
	return uri
}

// id is the id of the request that is refused, where its body was read and holds
// no other (rule T14).
func (x *exchange) id() []byte {
	if len(x.calls) == 1 {
		return x.calls[0].ID
	}
	return nil
}
