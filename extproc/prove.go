package extproc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

var errNoBearer = errors.New("what stands in the header of the caller's token is no bearer token (RFC 6750 §2.1)")

// prove finds out who calls by what the request brings. A token decides alone:
// to fall back to a weaker proof would let a forged one through.
func (x *exchange) prove(ctx context.Context) policy.Reason {
	candidates, token, reason := x.lane.up.TokenOf(&x.screen)
	switch {
	case reason != policy.Allowed:
		x.cause = errNoBearer
		return reason
	case token != nil:
		return x.verify(ctx, candidates, token)
	}
	x.caller, reason = x.lane.up.Authorize(&x.msg.req, &x.screen)
	return reason
}

// verify tries the callers that the token may prove, in the order of the policy.
// The first one wins that the token proves with all the scopes it must have.
func (x *exchange) verify(ctx context.Context, candidates []*policy.Caller, token []byte) policy.Reason {
	x.rules = x.rules[:0]
	for _, c := range candidates {
		x.rules = append(x.rules, x.lane.rules[c])
	}
	t := tokens.Present(token, x.rules)
	for i, c := range candidates {
		if !t.Concerns(x.rules[i]) {
			continue
		}
		p, err := x.principalOf(ctx, x.rules[i], &t)
		if err != nil {
			x.cause = weightier(x.cause, err)
			continue
		}
		if hasAll(p.Scopes, c.JWT.RequireScopes) {
			x.admit(c, p)
			x.cause = nil
			return policy.Allowed
		}
		if x.caller == nil {
			x.admit(c, p)
		}
	}
	if x.caller != nil {
		x.cause = errScopes
		return policy.ScopeMissing
	}
	if te, ok := errors.AsType[*tokens.Error](x.cause); ok {
		x.decision.RetryAfter = max(te.RetryAfter, time.Second)
		return policy.IssuerUnavailable
	}
	return policy.CallerInvalid
}

var errScopes = errors.New("the caller's token lacks one of its require_scopes")

func (x *exchange) admit(c *policy.Caller, p *tokens.Principal) {
	x.caller, x.principal = c, p
	x.decision.Issuer, x.decision.Subject = p.Issuer, p.Subject
}

// principalOf asks one rule. Only a token that it does not know can make the call wait.
func (x *exchange) principalOf(ctx context.Context, rule *tokens.Rule, t *tokens.Presented) (*tokens.Principal, error) {
	if p := rule.Known(t); p != nil {
		return p, nil
	}
	ctx, cancel := x.bounded(ctx)
	defer cancel()
	return rule.VerifyPresented(ctx, t)
}

// weightier returns the error that says more: of several rules, those of other
// issuers and audiences have nothing to say of the token, and one that could not
// be asked may be the one that it is for.
func weightier(a, b error) error {
	if weight(b) > weight(a) {
		return b
	}
	return a
}

func weight(err error) int {
	var invalid *tokens.InvalidTokenError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &invalid):
		return 4
	case invalid.Code == "issuer":
		return 1
	case invalid.Code == "audience":
		return 2
	}
	return 3
}

// hasAll compares scopes to the letter (RFC 6749 §3.3).
func hasAll(has, want []string) bool {
	for _, s := range want {
		if !slices.Contains(has, s) {
			return false
		}
	}
	return true
}

// challenges are what callers of an upstream with tokens are asked for (RFC 6750
// §3, RFC 9728 §5.1). They name our own metadata, never the upstream's. The zero
// value asks for nothing: a challenge makes an MCP client start a login.
type challenges struct {
	unknown, invalid string
	metadata         string
}

func newChallenges(set *policy.Set, up *policy.Upstream) challenges {
	metadata := `resource_metadata="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(set.MetadataURL(up)) + `"`
	ch := challenges{metadata: metadata}
	var needs []string
	for _, c := range up.Callers {
		if c.JWT != nil {
			needs = append(needs, demanded(c.JWT.RequireScopes))
		}
	}
	// Where callers need different scopes, nobody knows yet which the next one is.
	if len(slices.Compact(needs)) == 1 {
		metadata += needs[0]
	}
	// RFC 6750 §3.1: no error for a request that brought no token.
	ch.unknown, ch.invalid = "Bearer "+metadata, `Bearer error="invalid_token", `+metadata
	return ch
}

// demanded is the scope attribute: all that is needed at once, so that one login
// is enough. A refresh token is no business of a resource.
func demanded(scopes []string) string {
	need := slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == "offline_access" })
	if len(need) == 0 {
		return ""
	}
	return `, scope="` + strings.Join(need, " ") + `"`
}

// ask is the challenge for a refusal. A bad key is no bad token: who brought none
// is not told that it is invalid.
func (x *exchange) ask(r policy.Reason) string {
	if r == policy.CallerInvalid {
		if _, token, why := x.lane.up.TokenOf(&x.screen); token == nil && why == policy.Allowed {
			r = policy.CallerUnknown
		}
	}
	return x.lane.asks.of(r, x.caller, x.needs)
}

// of returns the challenge for a refusal, "" for none. The caller is the one
// that lacks scopes, and needs are those that a tool takes: what it must have to
// call at all is asked for along with them, in one challenge (rule A5).
func (ch *challenges) of(r policy.Reason, c *policy.Caller, needs []string) string {
	switch r { //nolint:exhaustive // all others tell the caller nothing that a token could mend
	case policy.CallerUnknown:
		return ch.unknown
	case policy.CallerInvalid:
		return ch.invalid
	case policy.ScopeMissing:
		if c != nil && c.JWT != nil {
			return `Bearer error="insufficient_scope", ` + ch.metadata + demanded(policy.MergeScopes(c.JWT.RequireScopes, needs))
		}
	}
	return ""
}
