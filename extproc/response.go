package extproc

import (
	"strconv"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// guardHeader is our mark on a request. Envoy's guard lets no request to an
// upstream that does not carry it with the upstream's name, so that a stream
// that ended without a reply cannot pass for permission.
const guardHeader = "x-mcp-auth-guard"

// reasonHeader tells a caller why it was refused.
const reasonHeader = "x-mcp-auth-reason"

// respond writes the decision as Envoy's reply, once it is final.
func (x *exchange) respond() {
	if x.decision.Reason == policy.Allowed {
		x.describe()
		x.out.continueWith(x.msg.phase)
		return
	}
	x.refuse()
}

// allow writes the header changes of a request that goes on. A credential that
// cannot stand in a header is found out here, and refuses.
func (x *exchange) allow() policy.Reason {
	m := append(x.out.mutation[:0], x.lane.mutation...)
	if x.token != nil {
		m = appendSet(m, "authorization", x.token.Authorization())
		x.decision.Token = x.token.Fingerprint()
	}
	for _, h := range x.lane.fixed {
		value, err := h.secret()
		if err != nil {
			x.cause = err
			if _, err := h.secrets.Secret(h.ref); err != nil {
				return policy.TokenUnavailable // its store has not given it yet
			}
			return policy.TokenRefused
		}
		m = appendSet(m, h.name, value)
	}
	switch x.cookies.Edit {
	case policy.CookieSet:
		m = appendSet(m, "cookie", x.cookies.Value)
	case policy.CookieRemove:
		m = appendRemove(m, "cookie")
	case policy.CookieKeep, policy.CookieRefuse:
	}
	for _, name := range x.screen.Remove {
		m = appendRemove(m, name)
	}
	x.out.mutation = m
	return policy.Allowed
}

// refuse writes an answer to the caller: fixed words, nothing of the request,
// the policy or an authorization server.
func (x *exchange) refuse() {
	reason := x.decision.Reason
	m := x.out.mutation[:0]
	m = appendSet(m, "content-type", "application/json")
	m = appendSet(m, "cache-control", "no-store")
	m = appendSet(m, reasonHeader, reason.String())
	var up *policy.Upstream
	if x.lane != nil {
		up = x.lane.up
		if ask := x.ask(reason); ask != "" {
			m = appendSet(m, "www-authenticate", ask)
		}
	}
	// A batch that is larger than a limit never passes it.
	if reason.Status() == 503 || reason == policy.RateLimited && x.decision.RetryAfter > 0 {
		m = appendSet(m, "retry-after", seconds(x.decision.RetryAfter))
	}
	x.out.mutation = m
	x.describe()
	x.out.immediate(up.Status(reason), up.Body(reason, x.id()), "mcp_auth_"+reason.String())
}

// describe writes the decision as metadata, for the next attempt and the access log.
func (x *exchange) describe() {
	m := appendMember(x.out.meta[:0], "upstream", x.decision.Upstream)
	m = appendMember(m, "reason", x.decision.Reason.String())
	m = appendMember(m, "caller", x.decision.Caller)
	m = appendMicros(m, "own", x.own)
	if x.session.word != "" {
		m = appendMember(m, "session", x.session.word)
	}
	for _, o := range [...]struct{ name, value string }{
		{"token", x.decision.Token},
		{"issuer", x.decision.Issuer},
		{"subject", x.decision.Subject},
		{"mark", x.mark},
		{"tool", x.decision.Tool},
	} {
		// Envoy puts these over those of attempt 1: what that one lent is not to
		// look lent by this one.
		if o.value != "" || o.name == "token" && x.decision.Attempt > 1 {
			m = appendMember(m, o.name, o.value)
		}
	}
	x.out.meta = m
}

// seconds renders a Retry-After value: whole seconds, rounded up, at least 1.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int((d+time.Second-1)/time.Second)))
}
