package litellmconfig

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// auth reads how LiteLLM authenticates to the server.
func (c *converter) auth(s *server) {
	kind := s.b.text("auth_type")
	line, at := s.b.line("auth_type"), s.at("auth_type")
	switch kind {
	case "", "none":
		s.auth = "no authentication"
		if value := authValue(s.b); value != "" {
			c.look(s, s.b.line(value), s.at(value), "LiteLLM sends it with no auth_type to say how, that is, not at all; it is left out")
		}
	case "api_key", "bearer_token", "token", "authorization", "basic":
		c.fixed(s, kind)
	case "oauth2":
		c.oauth2(s)
	case "oauth2_token_exchange", "oauth2_id_jag":
		c.stays(s, line, at, "each user's own token is exchanged, and the file does not say who issues these; see \"tokens of their own for users\" in docs/callers.md, and write a jwt caller and grant: "+
			strings.TrimPrefix(kind, "oauth2_")+" by hand")
	case "true_passthrough", "oauth_delegate":
		c.stays(s, line, at, "users bring their own tokens of the server, and nothing of a caller's passes here unless the policy says so; with credential: none, headers: {pass: [authorization]} would")
	case "aws_sigv4":
		c.stays(s, line, at, "a SigV4 signature is of each request's body, and is not made here")
	default:
		c.stays(s, line, at, "LiteLLM 1.106.2 knows no such type and does not start with it")
	}
}

// authValue is the key with the fixed credential; as in LiteLLM, the first that is there.
func authValue(b block) string {
	for _, key := range []string{"authentication_token", "auth_value"} {
		if b.get(key) != nil {
			return key
		}
	}
	return ""
}

// fixed reads a credential that is the same for every request.
func (c *converter) fixed(s *server, kind string) {
	key := authValue(s.b)
	if key == "" || text(s.b.get(key)) == "" {
		s.auth = kind + " without a value"
		c.lost(s, s.b.line("auth_type"), s.at("auth_type"), "it has no auth_value, so LiteLLM sends what callers bring in x-mcp-…-authorization, and that ends here; give the upstream a credential")
		return
	}
	name, scheme := "authorization", ""
	p := purpose{path: s.at(key), suffix: "TOKEN"}
	switch kind {
	case "api_key":
		name, p.suffix = "x-api-key", "API_KEY"
	case "bearer_token":
		scheme, p.how = "Bearer ", "the token alone, without the word Bearer"
	case "token":
		scheme, p.how = "token ", "the token alone, without the word token"
	case "authorization":
		p.suffix, p.how = "AUTHORIZATION", "all of the header's value, scheme included"
	case "basic":
		scheme = "Basic "
		basic(&p, text(s.b.get(key)))
	}
	if own := s.b.text("upstream_token_header"); own != "" {
		name = strings.ToLower(own)
	}
	s.auth = kind
	from := c.secret(s, s.b.get(key), p)
	if from.prefix != "" {
		scheme = ""
	}
	c.lend(s, name, scheme+from.expr(), s.b.line(key), p.path)
}

// basic says how the variable comes by its value: LiteLLM encodes what it has,
// and a header of the policy is sent as it is.
func basic(p *purpose, value string) {
	p.suffix, p.never, p.how = "BASIC", true, "base64 of USER:PASSWORD: printf %s 'USER:PASSWORD' | base64 -w0"
	if name, ok := strings.CutPrefix(value, "os.environ/"); ok && isVariable(name) {
		p.of, p.how = name, `in base64: printf %s "$`+name+`" | base64 -w0`
	}
	if plain, err := base64.StdEncoding.DecodeString(value); err == nil && bytes.ContainsRune(plain, ':') && utf8.Valid(plain) {
		p.how = "as it is, since it is base64 already (LiteLLM 1.106.2 would encode it once more)"
	}
	if scheme, rest, ok := strings.Cut(value, " "); ok && strings.EqualFold(scheme, "basic") {
		if _, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest)); err == nil {
			p.how = "what follows the word Basic"
		}
	}
}

// lend adds a header of the credential.
func (c *converter) lend(s *server, name, expr string, line int, path string) {
	for i := range s.headers {
		if s.headers[i].name == name {
			c.look(s, line, path, "two credentials want to be "+name+"; this one is taken")
			c.unused(s, s.headers[i].expr)
			s.headers[i].expr = expr
			return
		}
	}
	s.headers = append(s.headers, lent{name, expr})
}

// unused forgets the variable of a credential that is not lent after all.
func (c *converter) unused(s *server, expr string) {
	for _, ref := range dollarRef.FindAllStringSubmatch(expr, -1) {
		c.vars = slices.DeleteFunc(c.vars, func(v Variable) bool { return v.Name == ref[1] && v.server == s.name })
	}
}

// oauth2 reads the grant client_credentials. Any other is about users.
func (c *converter) oauth2(s *server) {
	flow, line, at := s.b.text("oauth2_flow"), s.b.line("auth_type"), s.at("auth_type")
	machine := flow == "" && s.b.has("token_url") && s.b.has("client_id") && s.b.has("client_secret") && !s.b.has("authorization_url")
	switch {
	case machine:
		c.look(s, line, at, "LiteLLM 1.106.2 wants oauth2_flow, and does not start without; client id, secret and token_url together are taken for client_credentials")
	case flow == "":
		c.stays(s, line, at, "without oauth2_flow LiteLLM 1.106.2 does not start, and the rest does not tell whether users log in or LiteLLM itself; write oauth2_flow: client_credentials if the client is LiteLLM's own")
		return
	case flow != "client_credentials":
		c.stays(s, line, at, "users log in to the server through LiteLLM, which keeps their tokens; only client_credentials can be lent here")
		return
	}
	for _, key := range []string{"client_id", "client_secret"} {
		if s.b.text(key) == "" {
			c.stays(s, line, s.at(key), "client_credentials needs it; add it")
			return
		}
	}
	if h := s.b.text("upstream_token_header"); h != "" && !strings.EqualFold(h, "authorization") {
		c.stays(s, s.b.line("upstream_token_header"), s.at("upstream_token_header"), "access tokens are lent in authorization only")
		return
	}
	s.auth = "oauth2, client_credentials"
	if !c.tokenServer(s) {
		return
	}
	c.client(s)
}

// tokenServer says where tokens come from. A pinned issuer counts more than a
// token_url in LiteLLM.
func (c *converter) tokenServer(s *server) bool {
	key := "issuer"
	if !s.b.has(key) {
		key = "token_url"
	}
	raw, line, at := s.b.text(key), s.b.line(key), s.at(key)
	if raw == "" {
		c.stays(s, s.b.line("auth_type"), at, "LiteLLM asks the server who issues its tokens, and whoever answers there would be sent the client's secret; write token_url")
		return false
	}
	value := raw
	if name, ok := strings.CutPrefix(raw, "os.environ/"); ok {
		if value, ok = c.lookup(name); !isVariable(name) || !ok {
			c.stays(s, line, at, "the policy is checked with the url in it, and the variable is not set here; set it and import again")
			return false
		}
		s.tokenURLVariable, raw = name, "${"+name+"}"
		c.variable(s, Variable{Name: name, Line: line, Path: at})
	} else {
		raw = dollars(raw)
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || u.User != nil || secretQuery(u.Query()) {
		c.stays(s, line, at, "want an http or https url without user, password and keys in it; correct it")
		return false
	}
	s.oauth2 = append(s.oauth2, pair{key, quote(raw)})
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		s.oauth2 = append(s.oauth2, pair{"allow_plaintext", "true"})
		c.look(s, line, at, "plain http to a host that is not this one: whoever is on the way reads the client's secret; use https")
	}
	return true
}

// client reads who asks for tokens, and for which.
func (c *converter) client(s *server) {
	id := dollars(s.b.text("client_id"))
	if name, ok := strings.CutPrefix(s.b.text("client_id"), "os.environ/"); ok && isVariable(name) {
		id = "${" + name + "}"
		c.variable(s, Variable{Name: name, Line: s.b.line("client_id"), Path: s.at("client_id")})
	}
	from := c.secret(s, s.b.get("client_secret"), purpose{path: s.at("client_secret"), suffix: "CLIENT_SECRET"})
	s.oauth2 = append(s.oauth2, pair{"client_id", quote(id)}, pair{"client_secret", quote(from.expr())})
	method := s.b.text("token_endpoint_auth_method")
	if method != "client_secret_basic" {
		method = "client_secret_post"
	}
	s.oauth2 = append(s.oauth2, pair{"auth_method", method})
	if scopes := c.scopes(s); len(scopes) > 0 {
		s.oauth2 = append(s.oauth2, pair{"scopes", "[" + strings.Join(scopes, ", ") + "]"})
	}
	switch resource := s.b.text("upstream_resource"); {
	case resource == "":
		// LiteLLM sends none, and some servers refuse one.
		s.oauth2 = append(s.oauth2, pair{"resource", "false"})
	case !strings.EqualFold(resource, "auto"):
		s.oauth2 = append(s.oauth2, pair{"resource", quote(c.mayName(s, "upstream_resource", resource))})
	}
	if audience := s.b.text("audience"); audience != "" {
		s.oauth2 = append(s.oauth2, pair{"audience", quote(c.mayName(s, "audience", audience))})
	}
}

// mayName is a value that may be in a variable, and is no secret.
func (c *converter) mayName(s *server, key, value string) string {
	name, ok := strings.CutPrefix(value, "os.environ/")
	if !ok || !isVariable(name) {
		return dollars(value)
	}
	c.variable(s, Variable{Name: name, Line: s.b.line(key), Path: s.at(key)})
	return "${" + name + "}"
}

// scopes are a list, or one string with blanks between them.
func (c *converter) scopes(s *server) []string {
	var scopes []string
	for _, i := range listOf(s.b.get("scopes")) {
		scopes = append(scopes, i.text)
	}
	if scopes == nil {
		scopes = strings.Fields(s.b.text("scopes"))
	}
	var quoted []string
	for _, scope := range scopes {
		if q := quote(dollars(scope)); !slices.Contains(quoted, q) {
			quoted = append(quoted, q)
		}
	}
	return quoted
}
