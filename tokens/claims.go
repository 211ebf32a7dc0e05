package tokens

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// maxSkew bounds how far an issuer's clock may be off (rule J8).
	maxSkew = time.Minute
	// maxName bounds sub and client_id. OpenID Connect has 255 for a sub;
	// distinguished names of directories are longer.
	maxName = 1024
	// lastSecond is the end of the year 9999. What is later is no date.
	lastSecond = 253402300799
)

// check judges all that can be judged without a key, iss first: a token of
// another issuer is none of this rule's business.
func (r *Rule) check(j *jws, now time.Time) (Principal, *InvalidTokenError) {
	c := reader{claims: j.claims}
	p := Principal{Issuer: c.text("iss", true)}
	if c.bad == nil && p.Issuer != r.jwt.Issuer {
		return p, invalid("issuer", "its iss is %s, want %q to the letter", cited(p.Issuer), r.jwt.Issuer)
	}
	audiences := c.list("aud", true)
	if c.bad != nil {
		return p, c.bad
	}
	if !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(r.jwt.Audiences, a) }) {
		return p, invalid("audience", "its aud is %s, want one of %q to the letter", cited(strings.Join(audiences, " ")), r.jwt.Audiences)
	}
	if !r.lists(j.alg) {
		return p, invalid("algorithm", "it is signed with %s: list that under algorithms if it is right", cited(j.alg))
	}
	if bad := r.checkKind(j); bad != nil {
		return p, bad
	}
	p.IDToken = r.jwt.Profile == policy.ProfileIDToken
	p.Subject = c.text("sub", true)
	p.ClientID = r.client(&c, audiences)
	c.text("jti", r.jwt.Profile == policy.ProfileRFC9068)
	p.Expiry = r.checkTimes(&c, now)
	p.Scopes = r.scopes(&c)
	if _, bound := j.claims["cnf"]; bound && c.bad == nil {
		c.bad = invalid("bound", "it is bound to a key of its holder (cnf), which a Bearer header cannot show: have it issued without")
	}
	return p, c.bad
}

// lists reports whether the algorithm is accepted. EdDSA with Ed25519 has two
// names (RFC 9864 §2.2).
func (r *Rule) lists(alg string) bool {
	return slices.ContainsFunc(r.jwt.Algorithms, func(a string) bool { return oldName(a) == oldName(alg) })
}

// checkKind tells access tokens from everything else that the same issuer signs
// with the same keys (RFC 8725 §3.12, rule J5).
func (r *Rule) checkKind(j *jws) *InvalidTokenError {
	if sign := secondKind(j.claims); sign != "" {
		return invalid("typ", "it is no token that proves a caller: it has %s", sign)
	}
	access := j.is("at+jwt")
	switch r.jwt.Profile {
	case policy.ProfileGeneric:
		if !access && !j.is("", "jwt") {
			return invalid("typ", "its typ is %s, want at+jwt, JWT or none", cited(j.typ))
		}
		if sign := idToken(j.claims); sign != "" && !access {
			return invalid("id_token", "it is an ID token, by its %s: send the access token", sign)
		}
		return nil
	case policy.ProfileIDToken:
		if !j.is("", "jwt") {
			return invalid("typ", "its typ is %s, want an ID token", cited(j.typ))
		}
		if sign := accessToken(j.claims); sign != "" {
			return invalid("access_token", "it is an access token, by its %s: send the ID token", sign)
		}
		return nil
	case policy.ProfileRFC9068:
	}
	switch {
	case access:
		return nil
	case j.is("", "jwt"):
		return invalid("typ", "its typ is %s, want at+jwt: set profile: generic if this issuer's access tokens are not marked as such (RFC 9068)", cited(j.typ))
	}
	return invalid("typ", "its typ is %s, want at+jwt", cited(j.typ))
}

// secondKind returns the sign that a token is a security event or logout token
// (RFC 8417, OpenID Connect Back-Channel Logout), a refresh token or the like,
// whatever its typ.
func secondKind(claims map[string]json.RawMessage) string {
	if _, ok := claims["events"]; ok {
		return "events"
	}
	switch typ := text(claims["typ"]); strings.ToLower(typ) { // Keycloak's
	case "refresh", "offline", "logout", "serialized-id":
		return "typ " + typ
	}
	return ""
}

// idToken returns the claim by which a token is an ID token: those of OpenID
// Connect Core §2 and §3.3.2.11 that no access token has, and what Keycloak and
// Cognito write.
func idToken(claims map[string]json.RawMessage) string {
	for _, name := range []string{"nonce", "at_hash", "c_hash", "s_hash"} {
		if _, ok := claims[name]; ok {
			return name
		}
	}
	switch {
	case strings.EqualFold(text(claims["typ"]), "id"):
		return "typ"
	case strings.EqualFold(text(claims["token_use"]), "id"):
		return "token_use"
	}
	return ""
}

// accessToken returns the claim by which a token is no ID token.
func accessToken(claims map[string]json.RawMessage) string {
	for _, name := range []string{"scope", "scp"} {
		if _, ok := claims[name]; ok {
			return name
		}
	}
	switch {
	case strings.EqualFold(text(claims["typ"]), "bearer"):
		return "typ"
	case strings.EqualFold(text(claims["token_use"]), "access"):
		return "token_use"
	}
	return ""
}

// client returns whom the token was issued to. Without client_id, azp, cid and
// appid are asked, under which most issuers have it.
func (r *Rule) client(c *reader, audiences []string) string {
	id := c.text("client_id", r.jwt.Profile == policy.ProfileRFC9068)
	for _, name := range []string{"azp", "cid", "appid"} {
		if id == "" {
			id = c.text(name, false)
		}
	}
	// OpenID Connect Core §3.1.3.7: of an ID token for several, azp says whose it is.
	if r.jwt.Profile == policy.ProfileIDToken && len(audiences) > 1 && c.bad == nil &&
		!slices.Contains(r.jwt.Audiences, c.text("azp", false)) {
		c.bad = invalid("audience", "it is an ID token for several clients, and its azp is not %q", r.jwt.Audiences)
	}
	return id
}

// checkTimes returns the end of the token.
func (r *Rule) checkTimes(c *reader, now time.Time) time.Time {
	end, begin, issued := c.date("exp", true), c.date("nbf", false), c.date("iat", true)
	switch {
	case c.bad != nil:
	case !now.Before(end.Add(r.jwt.Skew)):
		c.bad = invalid("expired", "it expired at %s", end.UTC().Format(time.RFC3339))
	case begin.After(now.Add(r.jwt.Skew)):
		c.bad = invalid("not_yet", "it begins at %s (nbf): compare the clocks", begin.UTC().Format(time.RFC3339))
	case issued.After(now.Add(r.jwt.Skew)):
		c.bad = invalid("not_yet", "it was issued at %s (iat): compare the clocks", issued.UTC().Format(time.RFC3339))
	}
	return end
}

// scopes reads the scopes: scope is a string (RFC 9068 §2.2.3), any other claim
// a string or a list.
func (r *Rule) scopes(c *reader) []string {
	name := r.jwt.ScopeClaim
	if name == "" {
		name = "scope"
	}
	raw, ok := c.claims[name]
	if !ok || c.bad != nil {
		return nil
	}
	var list []string
	one := text(raw)
	switch {
	case one != "" || string(raw) == `""`:
		list = strings.Split(one, " ")
	case name == "scope" || json.Unmarshal(raw, &list) != nil || string(raw) == "null":
		c.bad = invalid("claim", "its %s is of the wrong JSON type: name the claim with the scopes as scope_claim", cited(name))
		return nil
	}
	list = slices.DeleteFunc(list, func(s string) bool { return s == "" })
	for _, s := range list {
		if !isScope(s) || strings.Contains(s, " ") {
			c.bad = invalid("claim", "its %s holds what cannot be a scope (RFC 6749 §3.3)", cited(name))
			return nil
		}
	}
	return slices.Clip(list)
}

// reader reads claims and keeps the first fault.
type reader struct {
	claims map[string]json.RawMessage
	bad    *InvalidTokenError
}

// get returns a claim, nil when it is absent.
func (c *reader) get(name string, required bool) json.RawMessage {
	raw, ok := c.claims[name]
	switch {
	case ok || !required:
	case name == "client_id" || name == "jti":
		c.fail(name, "is missing: set profile: generic if this issuer leaves out what RFC 9068 §2.2 wants")
	default:
		c.fail(name, "is missing")
	}
	return raw
}

func (c *reader) fail(name, why string) {
	if c.bad == nil {
		c.bad = invalid("claim", "its claim %s %s", name, why)
	}
}

// text reads a string. Two names that differ must not read as one, so what JSON
// cannot express (half a surrogate pair becomes U+FFFD) is refused.
func (c *reader) text(name string, required bool) string {
	raw := c.get(name, required)
	if raw == nil {
		return ""
	}
	s := text(raw)
	bad := func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' }
	if s == "" || len(s) > maxName || strings.ContainsFunc(s, bad) {
		c.fail(name, "is no string of 1 to 1024 bytes without control characters")
		return ""
	}
	return s
}

// list reads a string or a list of strings (RFC 7519 §4.1.3).
func (c *reader) list(name string, required bool) []string {
	raw := c.get(name, required)
	if raw == nil {
		return nil
	}
	if s := text(raw); s != "" {
		return []string{s}
	}
	var all []*string
	if json.Unmarshal(raw, &all) != nil || len(all) == 0 || slices.Contains(all, nil) {
		c.fail(name, "is neither a string nor a list of strings")
		return nil
	}
	list := make([]string, len(all))
	for i, s := range all {
		list[i] = *s
	}
	return list
}

// date reads a NumericDate (RFC 7519 §2), which may have a fraction.
func (c *reader) date(name string, required bool) time.Time {
	raw := c.get(name, required)
	if raw == nil {
		return time.Time{}
	}
	secs, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || secs < 0 || secs > lastSecond {
		c.fail(name, "is no date: want seconds since 1970 as a number")
		return time.Time{}
	}
	whole, part := math.Modf(secs)
	return time.Unix(int64(whole), int64(part*1e9))
}
