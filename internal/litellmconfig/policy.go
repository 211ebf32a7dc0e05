package litellmconfig

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// width is where comments break.
const width = 110

// policy writes the policy file.
func (c *converter) policy(servers []*server) []byte {
	var w writer
	w.comment(0, "Made of "+shown(c.file)+" by \"envoy-mcp-auth import litellm\". Read it before you trust it; every remark names the line that it is about.")
	w.variables(c.file, c.variables(servers))
	w.direct(c, servers)
	w.line(0, "version: 1")
	if c.opt.Listen != "" {
		w.line(0, "")
		w.line(0, "server:")
		w.line(2, "listen: "+quote(dollars(c.opt.Listen)))
	}
	if c.opt.EnvoyListen != "" || c.opt.EnvoyURL != "" {
		w.line(0, "")
		w.line(0, "envoy:")
		if c.opt.EnvoyListen != "" {
			w.line(2, "listen: "+quote(dollars(c.opt.EnvoyListen)))
		}
		if c.opt.EnvoyURL != "" {
			w.line(2, "public_url: "+quote(dollars(c.opt.EnvoyURL)))
		}
	}
	w.callers(c.opt.KeySum)
	w.line(0, "")
	w.line(0, "upstreams:")
	for _, s := range servers {
		if !s.direct {
			w.upstream(c, s)
		}
	}
	return []byte(strings.Replace(w.String(), "upstreams:\n\n", "upstreams:\n", 1))
}

// writer writes YAML as text. Whatever comes from the file goes through quote or comment.
type writer struct{ strings.Builder }

func (w *writer) line(indent int, text string) {
	if text == "" {
		indent = 0
	}
	_, _ = fmt.Fprintf(w, "%*s%s\n", indent, "", text) // it never fails
}

// comment writes text as lines of a comment.
func (w *writer) comment(indent int, text string) { w.hanging(indent, "", text) }

// hanging writes a comment whose further lines stand under the first word after mark.
func (w *writer) hanging(indent int, mark, text string) {
	line := mark
	for word := range strings.FieldsSeq(text) {
		if len(line) > len(mark) && indent+2+len(line)+1+len(word) > width {
			w.line(indent, strings.TrimRight("# "+line, " "))
			line = strings.Repeat(" ", len(mark))
		}
		if len(line) > len(mark) {
			line += " "
		}
		line += word
	}
	w.line(indent, strings.TrimRight("# "+line, " "))
}

// variables lists what has to be set before the policy is used.
func (w *writer) variables(file string, vars []Variable) {
	if len(vars) == 0 || vars[0].ForLiteLLM {
		return
	}
	w.line(0, "#")
	w.comment(0, "To be set where envoy-mcp-auth runs:")
	for _, v := range vars {
		if !v.ForLiteLLM {
			w.hanging(0, "  ", v.Name+": "+v.about(file))
		}
	}
}

// about says what a variable must hold.
func (v *Variable) about(file string) string {
	where := fmt.Sprintf("%s:%d, %s", shown(file), v.Line, v.Path)
	said := "as in LiteLLM's environment (" + where + ")"
	switch {
	case v.Of != "":
		said = "made of " + v.Of + " (" + where + ")"
	case v.Literal:
		said = "what is written in " + where
	}
	if v.How != "" {
		said += "; " + v.How
	}
	return said
}

// About says what the variable must hold, for a person who has that file.
func (v *Variable) About(file string) string { return v.about(file) }

// direct lists the servers that are not in the policy, and why.
func (w *writer) direct(c *converter, servers []*server) {
	none := true
	for _, n := range c.sortedNotes() {
		if n.server != "" && !slices.ContainsFunc(servers, func(s *server) bool { return s.direct && s.name == n.server }) {
			continue
		}
		if none {
			w.line(0, "#")
			w.comment(0, "Not in this policy, and what is said of the whole file:")
			none = false
		}
		w.hanging(0, "  ", n.String())
	}
	w.line(0, "")
}

// callers writes who may call: LiteLLM, by its key.
func (w *writer) callers(sum string) {
	w.line(0, "")
	w.line(0, "callers:")
	w.comment(2, "LiteLLM sends this key as x-mcp-auth-key (static_headers in its new configuration, from "+KeyVariable+"). The policy has its SHA-256 alone.")
	if sum == "" {
		w.line(2, "#   export "+KeyVariable+"=$(openssl rand -hex 32)")
		w.line(2, "#   export "+SumVariable+"=$(printf %s \"$"+KeyVariable+"\" | openssl dgst -sha256 -r | cut -d' ' -f1)")
		sum = "${" + SumVariable + "}"
	}
	w.line(2, "litellm:")
	w.line(4, "key:")
	w.line(6, "sha256: "+quote(sum))
	w.line(0, "")
	w.line(0, "defaults:")
	w.line(2, "callers: [litellm]")
}

// upstream writes one upstream.
func (w *writer) upstream(c *converter, s *server) {
	w.line(0, "")
	w.comment(2, fmt.Sprintf("%s:%d, %s: %s.", shown(c.file), s.line, s.path(), s.auth))
	for _, n := range c.sortedNotes() {
		if n.server == s.name {
			w.hanging(2, "- ", fmt.Sprintf("line %d, %s: %s", n.Line, strings.TrimPrefix(n.Path, s.path()+"."), n.words()))
		}
	}
	w.line(2, s.quotedName()+":")
	w.line(4, "url: "+quote(s.url))
	if s.plaintext {
		w.line(4, "allow_plaintext: true")
	}
	if s.listen != "" {
		w.line(4, "envoy:")
		w.line(6, "listen: "+quote(s.listen))
	}
	w.credential(s)
	if len(s.pass) > 0 {
		w.line(4, "# headers:")
		w.line(4, "#   pass: ["+strings.Join(s.pass, ", ")+"]")
	}
	if s.cookies && len(c.opt.Cookies) > 0 {
		var names []string
		for _, name := range c.opt.Cookies {
			names = append(names, quote(dollars(name)))
		}
		w.line(4, "cookies:")
		w.line(6, "allow: ["+strings.Join(names, ", ")+"]")
	}
	if s.tools != nil {
		w.tools(s.tools)
	}
}

// quotedName is the upstream's name as a key: a number would not be a string.
func (s *server) quotedName() string {
	if s.name[0] >= '0' && s.name[0] <= '9' {
		return strconv.Quote(s.name)
	}
	return quote(s.name)
}

func (w *writer) credential(s *server) {
	switch {
	case len(s.oauth2) > 0:
		w.line(4, "credential:")
		w.line(6, "oauth2:")
		for _, p := range s.oauth2 {
			w.line(8, p.key+": "+p.value)
		}
	case len(s.headers) > 0:
		w.line(4, "credential:")
		w.line(6, "header:")
		for _, h := range s.headers {
			w.line(8, quote(h.name)+": "+quote(h.expr))
		}
	default:
		w.line(4, "credential: none")
	}
}

// tools writes what allowed_tools means: nothing is said there of prompts and
// resources, so these pass as they did.
func (w *writer) tools(names []string) {
	w.comment(4, "allowed_tools. Prompts and resources are not limited by it.")
	w.line(4, "tools:")
	w.line(6, "default: deny")
	w.line(6, "rules:")
	if len(names) > 0 {
		w.line(8, "- names:")
		for _, n := range names {
			w.line(12, "- "+quote(dollars(n)))
		}
	}
	w.line(8, `- {methods: [prompts/get, resources/read, resources/subscribe], names: ["*"]}`)
}

var plainText = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_./-]*(:[A-Za-z0-9_./-]+)*|\$\{[A-Za-z0-9_]+\})$`)

// quote writes a string so that YAML reads it as it is.
func quote(s string) string {
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n", "none":
	default:
		if plainText.MatchString(s) {
			return s
		}
	}
	return strconv.QuoteToASCII(s)
}
