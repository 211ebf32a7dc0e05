package policy

import (
	"maps"
	"net/url"
	"slices"
	"strings"
)

func (c *checker) credential(path string, spec *CredentialSpec) {
	if spec == nil {
		return
	}
	if spec.OAuth2 != nil {
		c.oauth2(path+".oauth2", spec.OAuth2)
	}
	if p := path + ".header"; c.good(p) && len(spec.Header) == 0 {
		c.fault(p, "want at least one header, got none; add NAME: ${VARIABLE}, or write credential: none")
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(spec.Header)) {
		c.fixedHeader(join(path+".header", name), name, seen)
	}
}

// fixedHeader checks the name of a header that is lent.
func (c *checker) fixedHeader(path, name string, seen map[string]bool) {
	lower := strings.ToLower(name)
	switch {
	case !isToken(name):
		c.fault(path, "want a header name (RFC 9110 token); correct it")
	case seen[lower]:
		c.fault(path, "header names ignore case, and this one is here twice; remove one")
	case isFraming(lower) || lower == "cookie" || isOurs(lower):
		c.fault(path, "this header belongs to HTTP, Envoy or this program and cannot be lent; choose the one the upstream reads its key from")
	}
	seen[lower] = true
}

func (c *checker) oauth2(path string, spec *OAuth2Spec) {
	c.tokenServer(path, spec)
	c.grant(path, spec)
	c.clientAuth(path, spec)
	for _, p := range []struct{ path, value string }{
		{path + ".client_id", spec.ClientID},
		{path + ".audience", spec.Audience},
		{path + ".key_id", spec.KeyID},
		{path + ".assertion_audience", spec.AssertionAudience},
	} {
		if c.good(p.path) && strings.ContainsFunc(p.value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			c.fault(p.path, "want text without control characters; remove line breaks and tabs")
		}
	}
	c.each(path+".scopes", spec.Scopes, c.scope)
	if p := path + ".resource"; c.good(p) && !spec.Resource.Off {
		u, err := url.Parse(spec.Resource.Value)
		if err != nil || !u.IsAbs() || !isVisible(spec.Resource.Value) || strings.Contains(spec.Resource.Value, "#") || u.User != nil {
			c.fault(p, "want an absolute URI without a fragment (RFC 8707 §2), got %s; correct it, or write false to send none", c.gotURL(p))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Params)) {
		if isReservedParam(name) {
			c.fault(join(path+".params", name), "this parameter is not free; %s", paramHint(name))
		}
	}
}

// tokenServer checks where tokens come from.
func (c *checker) tokenServer(path string, spec *OAuth2Spec) {
	const ours = "set allow_plaintext: true if the network between is yours"
	c.url(path+".token_url", spec.TokenURL, urlRules{plaintext: spec.AllowPlaintext, query: true, hint: ours})
	c.url(path+".issuer", spec.Issuer, urlRules{plaintext: spec.AllowPlaintext, hint: ours})
	switch url, issuer := path+".token_url", path+".issuer"; {
	case c.has(url) && c.has(issuer):
		c.fault(issuer, "want token_url or issuer, got both; keep the issuer to let its metadata name the endpoint")
	case !c.has(url) && !c.has(issuer):
		c.fault(url, "want a token_url or an issuer, got neither; add one")
	}
	if p := path + ".allow_private"; c.good(p) && !c.has(path+".issuer") {
		c.fault(p, "this is about endpoints that an issuer's metadata names, and there is no issuer; remove it")
	}
}

func (c *checker) scope(path, scope string) {
	if !isScope(scope) {
		c.fault(path, "want one scope of visible ASCII without \" and \\ (RFC 6749 §3.3), got %s; write several as a list", c.got(path))
	}
}

// isScope is scope-token of RFC 6749 §3.3 (rule A6).
func isScope(s string) bool {
	return s != "" && isVisible(s) && !strings.ContainsAny(s, `"\`)
}

// isReservedParam lists what this program sets itself: a parameter that comes
// twice is an error at one server and a way in at another (RFC 6749 §3.2).
func isReservedParam(name string) bool {
	switch name {
	case "grant_type", "assertion", "requested_token_type", "client_id", "client_secret", "scope", "resource", "audience", "":
		return true
	}
	return strings.HasPrefix(name, "client_assertion") || strings.HasPrefix(name, "subject_token") || strings.HasPrefix(name, "actor_token")
}

func paramHint(name string) string {
	switch name {
	case "client_id", "client_secret", "resource", "audience":
		return "use the key " + name + " of oauth2"
	case "scope":
		return "use the key scopes of oauth2"
	case "":
		return "give it a name"
	}
	return "remove it: this program sets it itself"
}
