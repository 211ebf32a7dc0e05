package admin

import "github.com/envoy-mcp-auth/envoy-mcp-auth/policy"

// advice is what a refusal means to the operator. What the caller reads is
// policy.Reason.Text, which may not speak of the inside.
type advice struct{ Means, Do string }

// adviseOn holds the one switch from reason to advice: a new Reason does not
// pass the linter (exhaustive) until somebody says what to do about it.
func adviseOn(r policy.Reason) advice { //nolint:cyclop // one row for each reason
	switch r {
	case policy.NoPolicy:
		return advice{"Envoy asked about an upstream that is not in the policy.", "Compare mcp-upstream and the cluster's name in Envoy's configuration with the upstreams here; envoy-mcp-auth check --envoy does."}
	case policy.BadRequest:
		return advice{"A header that decides about access came twice, malformed, or against another.", "Look at what sends it: two Authorization or x-mcp-auth-key headers, often one of the client and one of a proxy before Envoy."}
	case policy.OriginDenied:
		return advice{"A browser called from an Origin that the upstream does not list.", "If that site may call, add it under origins.allow of the upstream. If nobody knows it, this was the check at work."}
	case policy.CallerUnknown:
		return advice{"The call proved no caller that this upstream lists.", "See whether the client sends its certificate, key or token at all, and whether the caller is under callers of the upstream."}
	case policy.CallerInvalid:
		return advice{"The call brought a key or token that does not hold: expired, of another issuer or audience, or simply wrong.", "The log line of the request id names the cause. After a rotation, give the client the new key."}
	case policy.ScopeMissing:
		return advice{"The caller is who it says, and its token lacks a scope that the rule asks for.", "Grant the scope at the issuer, or change scopes of the rule; explain shows which rule decided."}
	case policy.IssuerUnavailable:
		return advice{"The keys of the caller's issuer could not be read, so no token of it can be verified.", "See Issuers below for the error; check network, DNS and certificates from here to the issuer."}
	case policy.ToolDenied:
		return advice{"No rule lets this caller use this tool.", "If it should, add the tool under tools.rules of the upstream. One caller trying many tools is worth a look."}
	case policy.ToolUnproved:
		return advice{"Nothing proves which tool the call would run: an odd body, a content type that is not JSON, or missing headers.", "The log line names the cause. Old clients want proof: body; see docs/tools.md."}
	case policy.HeaderMismatch:
		return advice{"The Mcp-Method or Mcp-Name header says one thing and the body another.", "An honest client does not do that: update it, or find out who is testing the rules."}
	case policy.BodyTooLarge:
		return advice{"The body is larger than what is read for tool rules.", "Raise tools.max_body of the upstream if such calls are wanted; the limit costs memory for each call under way."}
	case policy.SessionMismatch:
		return advice{"The call used an MCP session that belongs to another principal.", "Usually a client that shares sessions between users. Otherwise somebody has another's session id: see docs/sessions.md."}
	case policy.RateLimited:
		return advice{"A limit of the policy was reached.", "If these calls are wanted, raise the limit under limits; else find the client that repeats itself."}
	case policy.UpstreamDisabled:
		return advice{"The watch has switched this upstream off because too many of its calls failed.", "Mend the upstream or its credential. Probes go through by themselves and switch it on again."}
	case policy.TokenUnavailable:
		return advice{"No token, because the authorization server could not be reached or did not answer in time.", "See the upstream's last error; check network, DNS and certificates to the token endpoint. It is tried again by itself."}
	case policy.TokenRefused:
		return advice{"The authorization server answered, and not with a token that can be used.", "See the upstream's last error: mostly a wrong client id or secret, or a scope that the client may not have. envoy-mcp-auth token tries it alone."}
	case policy.UpstreamRejected:
		return advice{"The upstream answered 401 to a fresh token as well.", "Compare audience, resource and scopes with what the upstream wants; see whether the client was revoked there."}
	case policy.AuditUnavailable:
		return advice{"The audit record could not be written, and audit.required refuses without one.", "See Audit below: a full disk, a missing directory, or rights on the file."}
	case policy.Undecided, policy.Allowed:
	}
	return advice{"No decision was made, which is a refusal.", "This is a fault of envoy-mcp-auth: please report it with the log lines of the request id."}
}
