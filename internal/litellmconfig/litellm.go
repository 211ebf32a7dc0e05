package litellmconfig

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// rendered is what `render litellm` says of one server.
type rendered struct {
	URL     string            `yaml:"url"`
	Extra   []string          `yaml:"extra_headers"`
	Headers map[string]string `yaml:"static_headers"`
}

// litellm writes LiteLLM's configuration with mcp_servers anew. All other text
// stays as it is, comments included.
func (c *converter) litellm(b []byte, doc *yaml.Node, servers []*server, set *policy.Set) ([]byte, error) {
	text, err := envoy.RenderLiteLLM(set)
	if err != nil {
		return nil, err
	}
	var through struct {
		Servers map[string]rendered `yaml:"mcp_servers"`
	}
	if err := yaml.Unmarshal(text, &through); err != nil {
		return nil, fmt.Errorf("reading what render litellm prints: %w", err)
	}
	list := &yaml.Node{Kind: yaml.MappingNode}
	for _, s := range servers {
		entry, err := c.entry(s, through.Servers[s.name])
		if err != nil {
			return nil, err
		}
		key := s.now
		if s.direct {
			key.HeadComment = "Not behind Envoy."
		}
		list.Content = append(list.Content, key, entry)
	}
	return replaced(b, doc, list)
}

// entry is a server as LiteLLM will have it.
func (c *converter) entry(s *server, r rendered) (*yaml.Node, error) {
	if s.direct {
		return c.directEntry(s)
	}
	if r.URL == "" {
		return nil, fmt.Errorf("render litellm says nothing of upstream %s", s.name)
	}
	out := &yaml.Node{Kind: yaml.MappingNode}
	at := r.URL
	if s.query != "" {
		at += "?" + s.query
	}
	put(out, "url", str(at))
	c.pin(s, out)
	for _, e := range s.b {
		if !stayingKey(e.name) {
			continue
		}
		v, err := c.plain(e.value, 0)
		if err != nil {
			return nil, err
		}
		put(out, e.name, v)
	}
	extra := slices.Clone(s.extra)
	for _, name := range r.Extra {
		if !slices.ContainsFunc(extra, func(e string) bool { return strings.EqualFold(e, name) }) {
			extra = append(extra, name)
		}
	}
	if len(extra) > 0 {
		seq := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, name := range extra {
			seq.Content = append(seq.Content, str(name))
		}
		put(out, "extra_headers", seq)
	}
	headers := &yaml.Node{Kind: yaml.MappingNode}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		put(headers, name, str(r.Headers[name]))
	}
	for _, p := range s.static {
		put(headers, p.key, str(p.value))
	}
	if len(headers.Content) > 0 {
		put(out, "static_headers", headers)
	}
	return out, nil
}

// pin writes the id that LiteLLM gave the server so far, which it makes of name,
// url and auth_type: grants in its database name servers by id.
func (c *converter) pin(s *server, out *yaml.Node) {
	if s.b.has("server_id") {
		return
	}
	at := s.b.text("url")
	if s.urlVariable != "" {
		at, _ = c.lookup(s.urlVariable)
	}
	transport := s.b.text("transport")
	if transport == "" {
		transport = "MCPTransport.http" // what Python makes of the default
	}
	alias := s.b.text("alias")
	if s.b.get("alias") == nil {
		alias = c.aliases[s.key]
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{s.key, at, transport, s.b.text("auth_type"), alias}, "|")))
	id := str(hex.EncodeToString(sum[:])[:32])
	put(out, "server_id", id)
	if !c.pinned {
		c.pinned = true
		out.Content[len(out.Content)-2].HeadComment = "The id that LiteLLM gave this server while it called it directly. Grants name it."
	}
}

// directEntry is a server as it was, but for the secrets, which LiteLLM now
// reads from its environment.
func (c *converter) directEntry(s *server) (*yaml.Node, error) {
	out := &yaml.Node{Kind: yaml.MappingNode}
	for _, e := range s.b {
		if !stayingKey(e.name) && !goingKey(e.name) {
			continue
		}
		v, err := c.plain(e.value, 0)
		if err != nil {
			return nil, err
		}
		c.withoutSecrets(s, e, v)
		put(out, e.name, v)
	}
	return out, nil
}

// withoutSecrets takes the secrets out of v, the copy of a value.
func (c *converter) withoutSecrets(s *server, e entry, v *yaml.Node) {
	switch e.name {
	case "url":
		if s.urlSecret {
			c.hide(s, e.value, v, s.at("url"), "URL")
		}
	case "static_headers", "env":
		c.hideValues(s, e, v)
	case "env_vars":
		for _, item := range v.Content {
			c.hideEnvVar(s, item)
		}
	case "args":
		c.args(s, e)
	case "extra_headers":
		c.names(s, e, v)
	default:
		if secretKey(e.name) {
			c.hide(s, e.value, v, s.at(e.name), word(e.name))
		}
	}
}

// hide puts a reference to a variable in place of a secret.
func (c *converter) hide(s *server, from, v *yaml.Node, path, suffix string) {
	if v.Kind != yaml.ScalarNode || isNull(v) || v.Value == "" {
		return
	}
	if strings.HasPrefix(v.Value, "os.environ/") {
		return
	}
	got := c.secret(s, from, purpose{path: path, suffix: suffix, forLiteLLM: true})
	if got.prefix == "" {
		v.SetString(got.environ())
	}
}

// headerRef is what LiteLLM fills in: ${NAME} of env_vars in headers, and
// ${X-HEADER} of the caller's headers in env.
var headerRef = regexp.MustCompile(`\$\{[A-Za-z0-9_-]+\}`)

// hideValues hides the values of a mapping that are secret, by name or look.
func (c *converter) hideValues(s *server, e entry, v *yaml.Node) {
	for i := 0; i+1 < len(v.Content); i += 2 {
		name, value := v.Content[i].Value, v.Content[i+1]
		of := strings.TrimSpace(headerRef.ReplaceAllString(value.Value, ""))
		if value.Kind != yaml.ScalarNode || of != value.Value && isScheme(of) || !secretName(name) && !secretValue(value.Value) {
			continue
		}
		from := &yaml.Node{Kind: yaml.ScalarNode, Value: value.Value, Line: e.line}
		c.hide(s, from, value, s.at(e.name), word(name[:min(len(name), 40)]))
	}
}

// hideEnvVar hides the value of one entry of env_vars.
func (c *converter) hideEnvVar(s *server, item *yaml.Node) {
	for i := 0; item.Kind == yaml.MappingNode && i+1 < len(item.Content); i += 2 {
		if item.Content[i].Value == "value" && item.Content[i+1].Kind == yaml.ScalarNode {
			from := &yaml.Node{Kind: yaml.ScalarNode, Value: item.Content[i+1].Value, Line: s.b.line("env_vars")}
			c.hide(s, from, item.Content[i+1], s.at("env_vars"), "VALUE")
		}
	}
}

// names takes off a list of headers what is none.
func (c *converter) names(s *server, e entry, v *yaml.Node) {
	v.Content = slices.DeleteFunc(v.Content, func(n *yaml.Node) bool {
		bad := n.Kind != yaml.ScalarNode || !isHeader(strings.ToLower(n.Value)) || secretValue(n.Value)
		if bad {
			c.lost(s, e.line, s.at(e.name), "an entry is no header name (not shown), and is left out")
		}
		return bad
	})
}

// args says of arguments that LiteLLM reads no variables in lists.
func (c *converter) args(s *server, e entry) {
	for _, i := range listOf(e.value) {
		if secretValue(i.text) {
			c.look(s, i.line, s.at("args"), "this argument looks like a key and is still in LiteLLM's configuration; hand it to the process by env, with os.environ/NAME")
		}
	}
}

// str is a string for LiteLLM, whose YAML reads more words as true and false
// than the one here.
func str(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off":
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func put(m *yaml.Node, key string, v *yaml.Node) { m.Content = append(m.Content, str(key), v) }

const blockHead = `# Written by "envoy-mcp-auth import litellm": servers are called by the way
# through Envoy, which puts credentials on. Those still called directly say so.
`

var errElsewhere = errors.New("an anchor in mcp_servers is used elsewhere in the file, so it cannot be taken out; write the values out")

// replaced puts a new mcp_servers in the place of the old one. Lines outside of
// it are not touched where it stands in lines of its own; a file in another form,
// such as JSON, is written anew.
func replaced(b []byte, doc, list *yaml.Node) ([]byte, error) {
	text, err := encode(list)
	if err != nil {
		return nil, err
	}
	if out := spliced(b, doc, text); sameBut(out, doc, list) {
		return out, nil
	}
	again := *doc
	again.Content = slices.Clone(doc.Content)
	for i := 0; i+1 < len(again.Content); i += 2 {
		if again.Content[i].Value == "mcp_servers" {
			again.Content[i+1] = list
		}
	}
	again.Style = 0
	var w bytes.Buffer
	enc := yaml.NewEncoder(&w)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&again), enc.Close()); err != nil || !sameBut(w.Bytes(), doc, list) {
		return nil, errElsewhere
	}
	return w.Bytes(), nil
}

func encode(list *yaml.Node) ([]byte, error) {
	var w bytes.Buffer
	enc := yaml.NewEncoder(&w)
	enc.SetIndent(2)
	doc := &yaml.Node{Kind: yaml.MappingNode}
	put(doc, "mcp_servers", list)
	if err := errors.Join(enc.Encode(doc), enc.Close()); err != nil {
		return nil, err
	}
	return append([]byte(blockHead), w.Bytes()...), nil
}

// spliced replaces the lines of mcp_servers, up to the next key or the comment
// that stands before that.
func spliced(b []byte, doc *yaml.Node, text []byte) []byte {
	lines := bytes.SplitAfter(b, []byte("\n"))
	from, to, column := 0, len(lines)+1, 1
	for i := 0; i < len(doc.Content); i += 2 {
		switch k := doc.Content[i]; {
		case k.Value == "mcp_servers":
			from, column = k.Line, k.Column
		case from > 0 && k.Line > from && k.Line < to:
			to = k.Line
		}
	}
	if from == 0 || from > len(lines) {
		return nil
	}
	for to <= len(lines) && to-1 > from && bytes.HasPrefix(bytes.TrimSpace(lines[to-2]), []byte("#")) {
		to--
	}
	var out bytes.Buffer
	out.Write(bytes.Join(lines[:from-1], nil))
	for line := range bytes.Lines(text) {
		out.WriteString(strings.Repeat(" ", max(column-1, 0)))
		out.Write(line)
	}
	if to <= len(lines) {
		out.WriteByte('\n')
		out.Write(bytes.Join(lines[to-1:], nil))
	}
	return out.Bytes()
}

// sameBut reports whether text is doc with list as its mcp_servers.
func sameBut(text []byte, doc, list *yaml.Node) bool {
	got, err := parse(text)
	if err != nil || len(got.Content) != len(doc.Content) {
		return false
	}
	for i := 0; i+1 < len(doc.Content); i += 2 {
		want := doc.Content[i+1]
		if doc.Content[i].Value == "mcp_servers" {
			want = list
		}
		if !same(doc.Content[i], got.Content[i]) || !same(want, got.Content[i+1]) {
			return false
		}
	}
	return true
}

// same compares two trees, aliases by name.
func same(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Value != b.Value || a.ShortTag() != b.ShortTag() || a.Anchor != b.Anchor || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !same(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}
