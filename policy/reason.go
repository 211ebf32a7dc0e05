package policy

// Reason says how a decision ended. It is the word in the audit line, the
// metric label and the x-mcp-auth-reason header.
type Reason uint8

// The reasons, in the order of the request path.
const (
	// Undecided is the zero value: no decision was made, which is a refusal.
	Undecided Reason = iota
	// Allowed lets the request go on with the upstream's credential.
	Allowed
	// NoPolicy: no upstream of that name, or none was given.
	NoPolicy
	// BadRequest: two identities, or a duplicate or malformed security header.
	BadRequest
	// OriginDenied: an Origin that the upstream's policy does not list.
	OriginDenied
	// CallerUnknown: the request proves no caller.
	CallerUnknown
	// CallerInvalid: the request offers a proof that does not hold.
	CallerInvalid
	// ScopeMissing: the caller is who it says, and lacks a scope that is demanded.
	ScopeMissing
	// IssuerUnavailable: the keys of the caller's issuer cannot be had.
	IssuerUnavailable
	// ToolDenied: no rule lets this caller use the tool.
	ToolDenied
	// ToolUnproved: nothing proves what the request would run.
	ToolUnproved
	// HeaderMismatch: the standard headers of MCP and the body disagree.
	HeaderMismatch
	// BodyTooLarge: the body is larger than what is read for tool rules.
	BodyTooLarge
	// SessionMismatch: the MCP session is another principal's.
	SessionMismatch
	// RateLimited: a limit of the policy is reached.
	RateLimited
	// UpstreamDisabled: the watch has switched the upstream off for now.
	UpstreamDisabled
	// TokenUnavailable: the authorization server is down or slow.
	TokenUnavailable
	// TokenRefused: the authorization server answered, and not with a usable token.
	TokenRefused
	// UpstreamRejected: the upstream refused our credential for good.
	UpstreamRejected
	// AuditUnavailable: the audit file is required and cannot be written.
	AuditUnavailable

	reasonCount
)

// outcome is one row of the table of refusals.
type outcome struct {
	word   string
	status int
	text   string
}

// row holds the one switch from reason to words: a Reason without a row does
// not pass the linter (exhaustive).
func (r Reason) row() outcome { //nolint:cyclop // one row for each reason
	switch r {
	case Allowed:
		return outcome{"allowed", 200, "The request was allowed."}
	case NoPolicy:
		return outcome{"no_policy", 403, "No upstream of this name is in the policy. Check the path against the upstreams of the policy file."}
	case BadRequest:
		return outcome{"bad_request", 400, "A header that decides about access is duplicate, malformed or contradicts another. Send it once."}
	case OriginDenied:
		return outcome{"origin_denied", 403, "The Origin of this request is not allowed. List it under origins.allow of the upstream, or call without a browser."}
	case CallerUnknown:
		return outcome{"caller_unknown", 403, "The caller is not known to this upstream. Present the client certificate, the x-mcp-auth-key or the access token that its policy asks for."}
	case CallerInvalid:
		return outcome{"caller_invalid", 403, "The caller's credential is not valid. Check the x-mcp-auth-key or the access token against the policy."}
	case ScopeMissing:
		return outcome{"scope_missing", 403, "The caller lacks a scope that this request needs. Ask for a token with that scope."}
	case IssuerUnavailable:
		return outcome{"issuer_unavailable", 503, "The keys of the issuer of the caller's token cannot be had, so the token cannot be verified. Try again later."}
	case ToolDenied:
		return outcome{"tool_denied", 403, "No rule lets this caller use this tool, prompt or resource. Its operator can add one under tools.rules of the upstream."}
	case ToolUnproved:
		return outcome{"tool_unproved", 403, "What this request would run cannot be proved. Send one JSON-RPC message as application/json in UTF-8, uncompressed, without duplicate members."}
	case HeaderMismatch:
		return outcome{"header_mismatch", 400, "Mcp-Method, Mcp-Name or MCP-Protocol-Version is missing, malformed or differs from the body. Send what the body says."}
	case BodyTooLarge:
		return outcome{"body_too_large", 413, "The body is larger than tools.max_body of this upstream. Send less, or have its operator raise the limit."}
	case SessionMismatch:
		return outcome{"session_mismatch", 403, "This MCP session belongs to another caller. Start a session of your own."}
	case RateLimited:
		return outcome{"rate_limited", 429, "A limit of this upstream, caller or tool is reached. Try again after the time in retry-after."}
	case UpstreamDisabled:
		return outcome{"upstream_disabled", 503, "This upstream is switched off for now because too many of its calls failed. Try again after the time in retry-after."}
	case TokenUnavailable:
		return outcome{"token_unavailable", 503, "The authorization server of this upstream cannot be reached. Try again later."}
	case TokenRefused:
		return outcome{"token_refused", 502, "The authorization server refused to issue a token for this upstream. Its operator must check the credential."}
	case UpstreamRejected:
		return outcome{"upstream_rejected", 502, "The upstream refused the service credential. Its operator must check audience, scopes and revocation."}
	case AuditUnavailable:
		return outcome{"audit_unavailable", 503, "The audit record of this request cannot be written, and without one nothing is lent. Try again later."}
	case Undecided, reasonCount:
	}
	return outcome{"undecided", 500, "No decision was made."}
}

// String returns the reason word, such as "no_policy".
func (r Reason) String() string { return r.row().word }

// Status returns the HTTP status the caller gets, 200 for Allowed. Where callers
// have tokens, Upstream.Status differs.
func (r Reason) Status() int { return r.row().status }

// Text returns the fixed sentence the caller gets. It never holds anything of
// the request, the policy or an authorization server's answer.
func (r Reason) Text() string { return r.row().text }

// Reasons lists every reason a decision can end with, Allowed first.
func Reasons() []Reason {
	all := make([]Reason, 0, reasonCount-1)
	for r := Allowed; r < reasonCount; r++ {
		all = append(all, r)
	}
	return all
}
