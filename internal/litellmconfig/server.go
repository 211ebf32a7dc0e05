package litellmconfig

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// server is one entry of mcp_servers, and what becomes of it.
type server struct {
	key  string     // its name in LiteLLM
	now  *yaml.Node // its name in the new configuration
	name string     // of the upstream
	line int
	b    block
	// direct servers are not behind Envoy: LiteLLM goes on calling them itself.
	direct bool

	url              string // as the policy has it: ${NAME} and $$ are read there
	query            string // stays with LiteLLM
	urlVariable      string
	urlSecret        bool
	tokenURLVariable string
	plaintext        bool
	listen           string // of its own, for SSE
	auth             string // in words
	headers          []lent
	oauth2           []pair
	cookies          bool
	tools            []string // nil for all
	pass             []string // caller's headers that end here

	static []pair   // headers that LiteLLM goes on sending
	extra  []string // headers that LiteLLM goes on passing
}

// lent is a header that the policy lends.
type lent struct{ name, expr string }

// pair is a key and its value.
type pair struct{ key, value string }

func (s *server) path() string { return "mcp_servers." + shown(s.key) }

func (s *server) at(key string) string { return s.path() + "." + key }

// servers reads mcp_servers.
func (c *converter) servers(doc *yaml.Node) ([]*server, error) {
	top, _ := c.block(doc)
	if n := top.get("include"); n != nil && !isNull(n) {
		c.lost(nil, top.line("include"), "include", "included files are not read; import each of them too, or put their mcp_servers into this file")
	}
	if n := top.get("mcp_builtin_servers"); n != nil {
		c.look(nil, top.line("mcp_builtin_servers"), "mcp_builtin_servers", "LiteLLM 1.106.2 does not read this; it is left as it is")
	}
	list, ok := c.block(top.get("mcp_servers"))
	if !ok || len(list) == 0 {
		return nil, errors.New("want mcp_servers with at least one server, got none; servers in LiteLLM's database are not in its file: write them there, or an upstream for each")
	}
	c.readAliases(top)
	c.readGeneral(top)
	var all []*server
	named := map[string]bool{}
	for _, e := range list {
		named[e.name] = true
	}
	for _, e := range list {
		s := &server{key: e.name, line: e.line}
		c.name(s)
		c.rename(s, named, e.style)
		b, ok := c.block(e.value)
		if !ok {
			s.direct = true
			c.lost(s, e.line, s.path(), "want a mapping with a url; LiteLLM does not start with this")
		}
		s.b = b
		if ok {
			c.server(s)
		}
		all = append(all, s)
	}
	if c.nodes > maxNodes {
		return nil, errTooMuch
	}
	return all, nil
}

// rename makes a name that LiteLLM starts with.
func (c *converter) rename(s *server, named map[string]bool, style yaml.Style) {
	s.now = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s.key, Style: style}
	if plain := strings.ReplaceAll(s.key, "-", "_"); plain != s.key {
		for named[plain] {
			plain += "_"
		}
		named[plain] = true
		s.now = str(plain)
		c.look(s, s.line, s.path(), "LiteLLM 1.106.2 does not start with a - in a name, so its new configuration says "+shown(plain)+"; with it, its tools are called otherwise")
	}
}

// readAliases reads litellm_settings.mcp_aliases, which say what tools are called.
func (c *converter) readAliases(top block) {
	c.aliases = map[string]string{}
	settings, _ := c.block(top.get("litellm_settings"))
	aliases, _ := c.block(settings.get("mcp_aliases"))
	for _, e := range aliases {
		if name := text(e.value); name != "" && c.aliases[name] == "" {
			c.aliases[name] = e.name
		}
	}
}

// readGeneral says what of general_settings matters here.
func (c *converter) readGeneral(top block) {
	general, _ := c.block(top.get("general_settings"))
	if n := general.get("store_model_in_db"); n != nil && strings.EqualFold(text(n), "true") {
		c.look(nil, general.line("store_model_in_db"), "general_settings.store_model_in_db",
			"servers that were added in LiteLLM's dashboard are in its database and not in this file; they are still called directly")
	}
	if general.has("key_management_system") {
		c.look(nil, general.line("key_management_system"), "general_settings.key_management_system",
			"LiteLLM may take what is named os.environ/… from there; envoy-mcp-auth reads the environment, or the store that you name by {vault: …}, {aws: …} or {gcp: …}")
	}
}

// name makes the name of an upstream: lower case, of letters, digits and _.
func (c *converter) name(s *server) {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '_'
	}, s.key)
	name = strings.Trim(name[:min(len(name), 50)], "_")
	if name == "" {
		name = "server"
	}
	free := name
	for i := 2; c.upstream[free]; i++ {
		free = name + "_" + strconv.Itoa(i)
	}
	c.upstream[free] = true
	s.name = free
	if free != name {
		c.look(s, s.line, s.path(), "another server has the name "+name+" too once it is in lower case, so the upstream is called "+free)
	}
}

// server reads one entry. What keeps it from being behind Envoy comes first.
func (c *converter) server(s *server) {
	for _, step := range []func(*server){c.unknown, c.transport, c.url, c.sse, c.auth, c.static, c.extra, c.toolNames, c.leftOver} {
		if step(s); s.direct {
			return
		}
	}
}

// unknown names keys that LiteLLM does not read. What a key is called is not
// shown: it may be a secret that slipped there.
func (c *converter) unknown(s *server) {
	for _, e := range s.b {
		if !stayingKey(e.name) && !goingKey(e.name) {
			c.look(s, e.line, s.path(), "this line has a key that LiteLLM 1.106.2 does not read; it is left out")
		}
	}
}

// transport leaves alone what is not spoken over HTTP.
func (c *converter) transport(s *server) {
	transport := s.b.text("transport")
	switch {
	case transport == "stdio" || transport == "" && s.b.has("command") && !s.b.has("url"):
		c.stays(s, s.b.line("transport"), s.at("transport"), "a stdio server is a process of LiteLLM's and no traffic passes through Envoy; run it behind an HTTP transport to protect it")
	case transport != "" && transport != "http" && transport != "sse":
		c.stays(s, s.b.line("transport"), s.at("transport"), "want http, sse or stdio; LiteLLM does not start with this")
	case s.b.has("spec_path"):
		c.stays(s, s.b.line("spec_path"), s.at("spec_path"), "LiteLLM makes tools of an OpenAPI description and calls many paths of an API, each of which would need a route; write an upstream for the API by hand")
	}
}

// sse gives a server of the legacy transport a listener.
func (c *converter) sse(s *server) {
	u, err := url.Parse(s.b.text("url"))
	sse := err == nil && strings.HasSuffix(u.Path, "/sse")
	switch {
	case s.b.text("transport") == "sse":
		s.listen = c.nextListen()
		c.look(s, s.b.line("transport"), s.at("transport"), "a legacy SSE server tells its clients a path, so it needs a listener of its own: "+s.listen+"; choose another port under envoy.listen of the upstream if this is taken")
	case sse:
		c.look(s, s.b.line("url"), s.at("url"), "by its path this is a server of the legacy SSE transport; LiteLLM takes it for http unless transport: sse says so")
	}
}

// nextListen is the address of the next listener, after that of the policy.
func (c *converter) nextListen() string {
	main := c.opt.EnvoyListen
	if main == "" {
		main = "127.0.0.1:10000"
	}
	host, port, err := net.SplitHostPort(main)
	n, convErr := strconv.Atoi(port)
	if err != nil || convErr != nil {
		host, n = "127.0.0.1", 10000
	}
	c.ports++
	return net.JoinHostPort(host, strconv.Itoa(n+c.ports))
}

// url takes the url apart. What LiteLLM is told is made of its path, so a
// variable that holds a url has to be set.
func (c *converter) url(s *server) {
	raw, line, at := s.b.text("url"), s.b.line("url"), s.at("url")
	value := raw
	if name, ok := strings.CutPrefix(raw, "os.environ/"); ok {
		if !isVariable(name) {
			c.stays(s, line, at, "what follows os.environ/ is no variable's name; write the url, or a variable with it")
			return
		}
		if value, ok = c.lookup(name); !ok {
			c.stays(s, line, at, "LiteLLM's new url is made of the path of this one, and the variable "+name+" is not set here; set it and import again")
			return
		}
		s.urlVariable = name
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		c.stays(s, line, at, "want an http or https url with a host; correct it")
		return
	}
	if why := s.refuses(u); why != "" {
		c.stays(s, line, at, why)
		return
	}
	c.goodURL(s, u)
}

// refuses says why a url cannot be in the policy; empty when it can.
func (s *server) refuses(u *url.URL) string {
	s.urlSecret = true
	switch {
	case u.User != nil:
		return "it has a user or password in it; take them out of the url, and write them as auth_type: basic"
	case secretPath(u.Path):
		return "part of its path looks like a key, and Envoy's and LiteLLM's configurations would both have it; ask the server's owner for a url without, with the key in a header"
	case secretQuery(u.Query()):
		return "its query looks like it holds a key, and Envoy adds no query; ask the server's owner for a header that takes the key"
	}
	s.urlSecret = false
	switch {
	case u.Fragment != "":
		return "it has a fragment, which no server ever sees; take the # and the rest off"
	case strings.Contains(u.EscapedPath(), "//") || strings.Contains(u.EscapedPath(), "/."):
		return "its path has empty or dot segments, which Envoy normalises; write the path they lead to"
	case u.RawQuery != "" && s.urlVariable != "":
		return "the url in the variable has a query, which the policy cannot have; take it off"
	}
	return ""
}

// goodURL keeps a url. Its query stays with LiteLLM, since Envoy adds none.
func (c *converter) goodURL(s *server, u *url.URL) {
	line, at := s.b.line("url"), s.at("url")
	s.query = u.RawQuery
	if s.query != "" {
		c.look(s, line, at, "the query of the url is not in the policy: LiteLLM goes on sending it")
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		s.plaintext = true
		c.look(s, line, at, "plain http to a host that is not this one: whoever is on the way reads what is lent; use https where the server has it")
	}
	u.RawQuery, u.ForceQuery = "", false
	s.url = dollars(u.String())
	if s.urlVariable != "" {
		s.url = "${" + s.urlVariable + "}"
		c.variable(s, Variable{Name: s.urlVariable, Line: line, Path: at})
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback() || strings.EqualFold(host, "localhost")
}

// dollars writes text so that the policy takes it as it is.
func dollars(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// secretPath looks for a key among the segments of a path.
func secretPath(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if secretValue(segment) {
			return true
		}
	}
	return false
}

func secretQuery(q url.Values) bool {
	for name, values := range q {
		if secretName(name) {
			return true
		}
		for _, v := range values {
			if secretValue(v) || strings.Contains(v, "os.environ/") {
				return true
			}
		}
	}
	return false
}

// leftOver says what of the rest is no longer as it was.
func (c *converter) leftOver(s *server) {
	if s.b.has("oauth_passthrough") && strings.EqualFold(s.b.text("oauth_passthrough"), "true") {
		c.lost(s, s.b.line("oauth_passthrough"), s.at("oauth_passthrough"), "users' own tokens of the server do not pass; see what is said of extra_headers")
	}
	if s.b.has("rpm") || s.b.has("max_concurrent_requests") {
		c.look(s, s.b.line("rpm"), s.path(), "rpm and max_concurrent_requests stay with LiteLLM: they hold for its calls only")
	}
}
