package policy

import (
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// maxSkew is all that a clock may be off: more would keep a stolen token alive.
	maxSkew = time.Minute
	// bearerHeader is where a token stands unless the policy says otherwise (RFC 6750 §2.1).
	bearerHeader = "authorization"
)

// jwt checks a caller with an access token.
func (c *checker) jwt(path string, spec *JWTSpec) {
	rules := urlRules{plaintext: spec.AllowPlaintext, hint: "set allow_plaintext: true if the network between is yours"}
	c.url(path+".issuer", spec.Issuer, rules)
	rules.query = true
	c.url(path+".jwks_url", spec.JWKSURL, rules)
	if p := path + ".audience"; c.good(p) {
		c.some(p, len(spec.Audience))
		c.each(p, spec.Audience, func(path, audience string) {
			if !isPlain(audience) {
				c.fault(path, "want an aud value without control characters, got %s; correct it", c.got(path))
			}
		})
	}
	if p := path + ".algorithms"; c.good(p) {
		c.some(p, len(spec.Algorithms))
		c.each(p, spec.Algorithms, c.algorithm)
	}
	if p := path + ".header"; c.good(p) {
		c.tokenHeader(p, strings.ToLower(spec.Header))
	}
	if p := path + ".scope_claim"; c.good(p) && !isPlain(spec.ScopeClaim) {
		c.fault(p, "want the name of a claim, got %s; write for example scp", c.got(p))
	}
	c.each(path+".require_scopes", spec.RequireScopes, c.scope)
	if p := path + ".skew"; c.good(p) && time.Duration(spec.Skew) > maxSkew {
		c.fault(p, "want at most %s, got %s; a clock that is off by more must be set", maxSkew, c.got(p))
	}
	if p := path + ".profile"; c.good(p) && Profile(spec.Profile) == ProfileIDToken {
		c.idTokens(p)
	}
}

// algorithm refuses what is no signature (none) and what is verified with the
// key that signs (HS256 and its like): an issuer's public key would then forge
// (RFC 8725 §3.1).
func (c *checker) algorithm(path, alg string) {
	known := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
	switch {
	case alg == "Ed25519":
		c.fault(path, "tokens with this name are taken with EdDSA, the older name of the same; write EdDSA")
	case !slices.Contains(known, alg):
		c.fault(path, "want %s, got %s; a token without a signature or with a shared key proves nobody", choice(known), c.got(path))
	}
}

// tokenHeader checks the header that a token is read from and taken off.
func (c *checker) tokenHeader(path, name string) {
	switch {
	case !isToken(name):
		c.fault(path, "want a header name (RFC 9110 token), got %s; correct it", c.gotUpTo(path, ":= "))
	case isFraming(name), isOurs(name), needed(name), name == "cookie", name == "forwarded",
		strings.HasPrefix(name, "content-"), strings.HasPrefix(name, "mcp-"), strings.HasPrefix(name, "x-forwarded-"):
		c.fault(path, "HTTP, MCP, Envoy or this program need %s for something else; leave the key out for authorization, or choose another header", c.got(path))
	}
}

// idTokens refuses ID tokens where they would prove a caller to an upstream: they
// say who logged in and are meant for the client alone. All they are good for is
// to be exchanged.
func (c *checker) idTokens(path string) {
	caller := strings.TrimSuffix(path, ".jwt.profile")
	for _, name := range slices.Sorted(maps.Keys(c.f.Upstreams)) {
		up := c.f.Upstreams[name]
		if !slices.ContainsFunc(c.callersOf(&up), func(n string) bool { return join("callers", n) == caller }) {
			continue
		}
		credential := or(up.Credential, c.f.Defaults.Credential)
		if credential != nil && credential.OAuth2 != nil {
			if g := Grant(credential.OAuth2.Grant); g == IDJAG || g == TokenExchange {
				continue
			}
		}
		c.fault(path, "an ID token is no access token, and upstream %s does not exchange it; use profile generic or rfc9068 there, or lend it by the grant id_jag or token_exchange", show(name))
		return
	}
}

// passesToken refuses a headers.pass by which a caller's token would go on.
func (c *checker) passesToken(path string, pass []string, up *UpstreamSpec) {
	for _, name := range c.callersOf(up) {
		caller := c.f.Callers[name]
		if caller.JWT != nil && slices.Contains(pass, strings.ToLower(caller.JWT.Header)) {
			c.fault(path, "headers.pass lets %s go on, where caller %s has its token, which never does; remove it, or give the caller another jwt.header", caller.JWT.Header, show(name))
			return
		}
	}
}

func (c *checker) compileJWT(spec *JWTSpec) *JWT {
	j := &JWT{
		Issuer:         spec.Issuer,
		JWKSURL:        spec.JWKSURL,
		CA:             c.resolve(spec.CA),
		AllowPlaintext: spec.AllowPlaintext,
		AllowPrivate:   spec.AllowPrivate,
		Audiences:      spec.Audience,
		Algorithms:     spec.Algorithms,
		Header:         strings.ToLower(spec.Header),
		Profile:        Profile(spec.Profile),
		ScopeClaim:     spec.ScopeClaim,
		RequireScopes:  spec.RequireScopes,
		Skew:           time.Duration(spec.Skew),
	}
	if len(j.Algorithms) == 0 {
		j.Algorithms = []string{"RS256", "PS256", "ES256", "EdDSA"}
	}
	return j
}
