package litellmconfig

import (
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// static reads the headers that LiteLLM sends with every request. Secret ones
// become part of what the policy lends; the others stay with LiteLLM.
func (c *converter) static(s *server) {
	list, _ := c.block(s.b.get("static_headers"))
	vars := c.envVars(s)
	for _, e := range list {
		name, path := strings.ToLower(strings.TrimSpace(e.name)), s.at("static_headers")
		if !isHeader(name) || secretValue(name) {
			c.lost(s, e.line, path, "this line has no header name (not shown); correct it")
			continue
		}
		path += "." + name
		value := text(e.value)
		switch {
		case value == "":
			continue
		case name == "cookie":
			c.lost(s, e.line, path, "a fixed cookie cannot be lent; if it is a key, ask the server for a header that takes it")
		case name == "host" || name == "content-length" || strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-mcp-auth"):
			c.lost(s, e.line, path, "this header belongs to HTTP, Envoy or envoy-mcp-auth and is not LiteLLM's to set")
		case !isSecret(name, value):
			s.static = append(s.static, pair{name, e.value.Value})
		case len(s.oauth2) > 0:
			c.besideToken(s, e, name, path)
		default:
			expr, ok := c.interpolated(s, e, vars, name)
			if !ok {
				c.lost(s, e.line, path, "its value is made of env_vars that each user gives LiteLLM; it is the same for all here, so give the upstream a credential of its own")
				continue
			}
			c.lend(s, name, expr, e.line, path)
		}
	}
}

// isSecret reports whether a header must not stay in LiteLLM's configuration.
func isSecret(name, value string) bool {
	return secretName(name) || secretValue(value) || strings.Contains(value, "os.environ/") || strings.Contains(value, "${")
}

// besideToken handles a second credential beside an access token, which the
// policy cannot lend: it stays with LiteLLM, by variable, if it may pass.
func (c *converter) besideToken(s *server, e entry, name, path string) {
	if endsHere(name) {
		c.lost(s, e.line, path, "an upstream is lent an access token or fixed headers, not both, and "+name+" of a caller does not pass; ask the server for another header, or for one credential")
		return
	}
	from := c.secret(s, e.value, purpose{path: path, suffix: word(name), forLiteLLM: true})
	value := from.environ()
	if from.prefix != "" {
		value = from.prefix + value // as LiteLLM sent it
	}
	s.static = append(s.static, pair{name, value})
	c.look(s, e.line, path, "an upstream is lent an access token or fixed headers, not both, so LiteLLM goes on sending this one, from its environment")
}

// envVar is one entry of env_vars.
type envVar struct {
	value *yaml.Node
	user  bool
}

// envVars reads what ${NAME} stands for in static_headers.
func (c *converter) envVars(s *server) map[string]envVar {
	vars := map[string]envVar{}
	n := target(s.b.get("env_vars"))
	if n == nil || n.Kind != yaml.SequenceNode {
		return vars
	}
	for _, i := range n.Content {
		b, _ := c.block(i)
		if name := b.text("name"); name != "" {
			vars[name] = envVar{b.get("value"), b.text("scope") == "user"}
		}
	}
	return vars
}

var dollarRef = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// interpolated is the value of a header as the policy names it. It reports
// false when each user has a value of its own.
func (c *converter) interpolated(s *server, e entry, vars map[string]envVar, header string) (string, bool) {
	value, path := text(e.value), s.at("static_headers")+"."+header
	p := purpose{path: path, suffix: word(header)}
	refs := dollarRef.FindAllStringSubmatch(value, -1)
	rest := strings.TrimSpace(dollarRef.ReplaceAllString(value, ""))
	for _, r := range refs {
		if vars[r[1]].user {
			return "", false
		}
	}
	switch {
	case len(refs) == 0:
		return c.secret(s, e.value, p).expr(), true
	case len(refs) > 1 || !isScheme(rest):
		// The words between may be secret too.
		p.how = "all of the header's value, as LiteLLM put it together"
		made := c.makeUp(s, p.suffix)
		c.variable(s, Variable{Name: made, Line: e.line, Path: path, Literal: true, How: p.how})
		return "${" + made + "}", true
	}
	name := refs[0][1]
	prefix, _, _ := strings.Cut(value, "$")
	v, ok := vars[name]
	if !ok || v.value == nil {
		c.look(s, e.line, path, "env_vars has no "+name+", so LiteLLM sent these very words; the policy sends what the variable holds")
		c.variable(s, Variable{Name: name, Line: e.line, Path: path})
		return prefix + "${" + name + "}", true
	}
	from := c.secret(s, v.value, p)
	return prefix + from.expr(), true
}

// isScheme reports whether text beside a secret is an authentication scheme, or nothing.
func isScheme(text string) bool {
	switch strings.ToLower(text) {
	case "", "bearer", "basic", "token", "apikey", "key":
		return true
	}
	return false
}

// isHeader is token of RFC 9110 §5.6.2.
func isHeader(s string) bool {
	for _, b := range []byte(s) {
		if (!isWord(b) || b >= 0x80) && !strings.ContainsRune("!#$%&'*+-.^`|~", rune(b)) {
			return false
		}
	}
	return s != "" && len(s) <= 100
}

// endsHere reports whether a caller's header of that name never passes.
func endsHere(name string) bool {
	none := policy.NewHeaderRule(policy.HeadersSpec{}, policy.Credential{})
	return slices.Contains(none.Always(), strings.ReplaceAll(name, "_", "-")) || strings.HasPrefix(name, "x-mcp-")
}

// extra reads the headers that LiteLLM passes on from its callers.
func (c *converter) extra(s *server) {
	for _, i := range listOf(s.b.get("extra_headers")) {
		name, path := strings.ToLower(i.text), s.at("extra_headers")
		switch {
		case !isHeader(name) || secretValue(i.text):
			c.lost(s, i.line, path, "this entry is no header name (not shown); correct it")
		case name == "cookie":
			s.cookies = true
			s.extra = append(s.extra, i.text)
			if len(c.opt.Cookies) == 0 {
				c.lost(s, i.line, path, "LiteLLM passes every cookie on, its own dashboard's too; here only those go on that the policy names: list them under cookies.allow of the upstream, or import with --cookie NAME")
			}
		case name == "host" || strings.HasPrefix(name, "x-envoy-"):
			c.lost(s, i.line, path, name+" is not a caller's to set; it is taken off the list")
		case endsHere(name):
			c.callersOwn(s, i, name, path)
		default:
			s.extra = append(s.extra, i.text)
		}
	}
}

// callersOwn says what to do about a header with a secret of the caller.
func (c *converter) callersOwn(s *server, i item, name, path string) {
	switch {
	case len(s.headers)+len(s.oauth2) > 0:
		c.look(s, i.line, path, name+" of callers ends here and is taken off the list: the upstream gets the credential of the policy, which no caller overrides")
	case slices.Contains([]string{"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key"}, name):
		s.pass = append(s.pass, name)
		c.lost(s, i.line, path, name+" of callers may be their key for LiteLLM, and ends here; if the server needs its users' own, uncomment headers in the policy and list the header in LiteLLM's extra_headers again")
	default:
		c.lost(s, i.line, path, name+" of callers may be a key, and ends here; use another header if the server needs it")
	}
}

// toolNames turns allowed_tools into rules. Both lists stay with LiteLLM too,
// which also filters what it lists.
func (c *converter) toolNames(s *server) {
	denied := map[string]bool{}
	for _, i := range listOf(s.b.get("disallowed_tools")) {
		for _, name := range c.bare(s, i.text) {
			denied[name] = true
		}
	}
	allowed := listOf(s.b.get("allowed_tools"))
	if len(allowed) == 0 {
		if len(denied) > 0 {
			c.look(s, s.b.line("disallowed_tools"), s.at("disallowed_tools"), "LiteLLM goes on refusing these tools; the policy has no rule that refuses by name, so list what is allowed under tools to have Envoy refuse the rest")
		}
		return
	}
	s.tools = []string{}
	for _, i := range allowed {
		for _, name := range c.bare(s, i.text) {
			switch {
			case denied[name] || slices.Contains(s.tools, name):
			case strings.Contains(name, "*") || strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
				c.lost(s, i.line, s.at("allowed_tools"), shown(i.text)+" cannot be the name of one tool in a rule, so this tool is refused")
			default:
				s.tools = append(s.tools, name)
			}
		}
	}
}

// bare returns what a configured name may be called by the server: itself, and
// what follows the prefix that LiteLLM puts before names.
func (c *converter) bare(s *server, name string) []string {
	names := []string{name}
	for _, prefix := range []string{s.key, s.b.text("alias"), c.aliases[s.key]} {
		if rest, ok := strings.CutPrefix(name, strings.ReplaceAll(prefix, " ", "_")+"-"); ok && prefix != "" && rest != "" {
			names = append(names, rest)
		}
	}
	return names
}
