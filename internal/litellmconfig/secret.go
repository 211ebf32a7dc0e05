package litellmconfig

import (
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// secret is where a value comes from that must not be in any file.
type secret struct {
	variable string
	// prefix is text before it that is no secret, such as "Bearer ".
	prefix string
}

// expr is the secret as the policy names it.
func (s secret) expr() string { return s.prefix + "${" + s.variable + "}" }

// environ is the secret as LiteLLM's configuration names it.
func (s secret) environ() string { return "os.environ/" + s.variable }

// purpose says what a secret is for.
type purpose struct {
	path string
	// suffix ends the name of a variable that is made up, such as TOKEN.
	suffix string
	// how says what the value must look like.
	how string
	// never says that the value is not what LiteLLM's variable holds, so that one of its own is needed.
	never bool
	// of is the variable that the value is made of, if it is.
	of string
	// forLiteLLM says that LiteLLM reads it.
	forLiteLLM bool
}

var inText = regexp.MustCompile(`^([A-Za-z]+) +os\.environ/([A-Za-z_][A-Za-z0-9_]*)$`)

// secret names the variable of a value: the one that the file names, else one that is made up.
func (c *converter) secret(s *server, n *yaml.Node, p purpose) secret {
	value, line := text(n), 1
	if n != nil {
		line = n.Line
	}
	if name, ok := strings.CutPrefix(value, "os.environ/"); ok && !p.never {
		if isVariable(name) {
			c.variable(s, Variable{Name: name, Line: line, Path: p.path, How: p.how, ForLiteLLM: p.forLiteLLM})
			return secret{variable: name}
		}
		made := c.makeUp(s, p.suffix)
		c.variable(s, Variable{Name: made, Line: line, Path: p.path, How: p.how, ForLiteLLM: p.forLiteLLM})
		c.look(s, line, p.path, "what follows os.environ/ is no variable's name, so LiteLLM asks a secret manager; put the secret in the variable "+made+
			", or name it in the policy by {vault: …}, {aws: …} or {gcp: …}")
		return secret{variable: made}
	}
	if m := inText.FindStringSubmatch(value); m != nil && !p.never {
		c.variable(s, Variable{Name: m[2], Line: line, Path: p.path, How: p.how, ForLiteLLM: p.forLiteLLM})
		c.look(s, line, p.path, "LiteLLM reads a variable only where a value begins with os.environ/, so it sent these very words; the policy sends what the variable holds")
		return secret{variable: m[2], prefix: m[1] + " "}
	}
	for _, l := range c.literals {
		if l.value == value && l.how == p.how && l.forLiteLLM == p.forLiteLLM {
			c.variable(s, Variable{Name: l.variable, Line: line, Path: p.path, Literal: true, How: p.how, ForLiteLLM: p.forLiteLLM})
			return secret{variable: l.variable}
		}
	}
	made := c.makeUp(s, p.suffix)
	c.variable(s, Variable{Name: made, Line: line, Path: p.path, Literal: p.of == "", Of: p.of, How: p.how, ForLiteLLM: p.forLiteLLM})
	c.literals = append(c.literals, literal{value, made, p.how, p.forLiteLLM})
	return secret{variable: made}
}

func (c *converter) variable(s *server, v Variable) {
	v.server = s.name
	c.vars = append(c.vars, v)
}

// variables lists each variable once, and those first that envoy-mcp-auth reads.
func (c *converter) variables(servers []*server) []Variable {
	direct := map[string]bool{}
	for _, s := range servers {
		direct[s.name] = s.direct
	}
	var out []Variable
	seen := map[string]bool{}
	for _, forLiteLLM := range []bool{false, true} {
		for _, v := range c.vars {
			id := v.Name + strconv.FormatBool(forLiteLLM)
			if v.ForLiteLLM != forLiteLLM || seen[id] || !forLiteLLM && direct[v.server] {
				continue
			}
			seen[id] = true
			out = append(out, v)
		}
	}
	return out
}

// makeUp makes a name for a variable that no other has: GITHUB_MCP_TOKEN.
func (c *converter) makeUp(s *server, suffix string) string {
	base := strings.ToUpper(s.name)
	if !strings.Contains(base, "MCP") {
		base += "_MCP"
	}
	if base[0] >= '0' && base[0] <= '9' {
		base = "MCP_" + base
	}
	base = strings.ReplaceAll(base, "__", "_") + "_" + suffix
	name := base
	for i := 2; c.taken[name]; i++ {
		name = base + "_" + strconv.Itoa(i)
	}
	c.taken[name] = true
	return name
}

func isVariable(name string) bool {
	for i, b := range []byte(name) {
		if !isWord(b) || i == 0 && b >= '0' && b <= '9' {
			return false
		}
	}
	return name != ""
}

// word makes a name of a header fit for a variable.
func word(s string) string {
	return strings.Map(func(r rune) rune {
		if (r < 'A' || r > 'Z') && (r < '0' || r > '9') {
			return '_'
		}
		return r
	}, strings.ToUpper(s))
}

// secretName reports whether a name tells of a secret.
func secretName(name string) bool {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	for _, w := range words {
		for _, part := range []string{"token", "secret", "passw", "credential", "bearer", "session", "cookie", "jwt", "signature", "oauth"} {
			if strings.Contains(w, part) {
				return true
			}
		}
		switch {
		case strings.HasSuffix(w, "key"), strings.HasSuffix(w, "keys"), strings.HasPrefix(w, "auth") && !strings.HasPrefix(w, "author") || strings.HasPrefix(w, "authori"),
			w == "pat", w == "sig", w == "pwd", w == "pass", w == "cred", w == "creds", w == "cert", w == "dsn":
			return true
		}
	}
	return false
}

// keyStart is what keys begin with, and headers with a scheme.
var keyStart = regexp.MustCompile(`(?i)^(sk[-_]|[pr]k[-_](live|test|lf)|ak-|gh[opusr]_|github_pat_|glpat-|xox[a-z]-|xapp-|eyJ|AKIA|ASIA|AIza|ya29\.|hf_|npm_|dop_v1_|lin_api|ntn_|pat[a-z0-9]{14}\.|whsec_|bearer |basic |token |-----BEGIN)`)

// secretValue reports whether a value looks like a key: by its beginning, or
// because it is long, without blanks, and of letters and digits.
func secretValue(v string) bool {
	const long, digitsOfKeys = 20, 3
	if keyStart.MatchString(v) {
		return true
	}
	if len(v) < long || strings.ContainsAny(v, " ,;") {
		return false
	}
	letters, digits := 0, 0
	for _, b := range []byte(v) {
		switch {
		case b >= '0' && b <= '9':
			digits++
		case isWord(b):
			letters++
		}
	}
	return letters > 0 && digits >= digitsOfKeys
}
