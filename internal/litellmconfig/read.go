package litellmconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds the file before the YAML parser sees it.
const maxFile = 4 << 20

// maxDepth bounds merges within merges, and aliases of aliases.
const maxDepth = 16

// maxNodes bounds what is read and copied, which aliases could make grow without end.
const maxNodes = 100_000

var environRef = regexp.MustCompile(`os\.environ/([A-Za-z_][A-Za-z0-9_]*)`)

// variablesOf lists the names of all variables that the file has.
func variablesOf(b []byte) map[string]bool {
	names := map[string]bool{}
	for _, m := range environRef.FindAllSubmatch(b, -1) {
		names[string(m[1])] = true
	}
	return names
}

// parse reads the one document of the file. Its errors repeat nothing of it: what
// the YAML parser stumbles over may be a secret.
func parse(b []byte) (*yaml.Node, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("want at most %d bytes, got %d", maxFile, len(b))
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty; give LiteLLM's config.yaml")
		}
		return nil, fmt.Errorf("this is not YAML%s; LiteLLM could not read it either", lineOf(err))
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one YAML document, got a second one, or what is none; LiteLLM reads files with one only")
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("want a mapping with mcp_servers in it; give LiteLLM's config.yaml")
	}
	return doc.Content[0], nil
}

var yamlLine = regexp.MustCompile(`line [0-9]+`)

func lineOf(err error) string {
	if at := yamlLine.FindString(err.Error()); at != "" {
		return " near " + at
	}
	return ""
}

// entry is one key of a mapping.
type entry struct {
	name  string
	line  int
	style yaml.Style // of the name
	value *yaml.Node
}

// block is a mapping in the order of the file, merges applied. As in LiteLLM, of
// two equal keys the last one counts, and an own key more than a merged one.
type block []entry

func (b block) get(name string) *yaml.Node {
	for i := range b {
		if b[i].name == name {
			return b[i].value
		}
	}
	return nil
}

// text returns the value of a key, empty when it is none.
func (b block) text(name string) string { return text(b.get(name)) }

// line is where a key is, or else the block's first.
func (b block) line(name string) int {
	for i := range b {
		if b[i].name == name {
			return b[i].line
		}
	}
	if len(b) > 0 {
		return b[0].line
	}
	return 1
}

func (b block) has(name string) bool { n := b.get(name); return n != nil && !isNull(n) }

// put replaces the key of that name, or adds it.
func (b block) put(e entry) block {
	for i := range b {
		if b[i].name == e.name {
			b[i] = e
			return b
		}
	}
	return append(b, e)
}

// block reads a mapping; false when n is none.
func (c *converter) block(n *yaml.Node) (block, bool) { return c.mapping(n, 0) }

func (c *converter) mapping(n *yaml.Node, depth int) (block, bool) {
	n = target(n)
	if n == nil || n.Kind != yaml.MappingNode || depth > maxDepth {
		return nil, false
	}
	var merged, own block
	for i := 0; i+1 < len(n.Content) && c.spend(); i += 2 {
		key, value := target(n.Content[i]), target(n.Content[i+1])
		if key == nil || value == nil || key.Kind != yaml.ScalarNode {
			continue
		}
		if key.ShortTag() == "!!merge" {
			merged = append(merged, c.merge(value, depth+1)...)
			continue
		}
		own = own.put(entry{key.Value, n.Content[i].Line, key.Style, value})
	}
	var out block
	for _, e := range slices.Backward(merged) { // the first of several wins
		out = out.put(e)
	}
	for _, e := range own {
		out = out.put(e)
	}
	return out, true
}

func (c *converter) merge(n *yaml.Node, depth int) block {
	if n.Kind != yaml.SequenceNode {
		b, _ := c.mapping(n, depth)
		return b
	}
	var all block
	for _, item := range n.Content {
		if !c.spend() {
			break
		}
		b, _ := c.mapping(item, depth)
		all = append(all, b...)
	}
	return all
}

// spend counts a node, and reports whether there may be more.
func (c *converter) spend() bool { c.nodes++; return c.nodes <= maxNodes }

// target follows aliases.
func target(n *yaml.Node) *yaml.Node {
	for range maxDepth {
		if n == nil || n.Kind != yaml.AliasNode {
			return n
		}
		n = n.Alias
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// text returns a scalar, blanks around it taken off, as LiteLLM does with values of headers.
func text(n *yaml.Node) string {
	if n = target(n); n == nil || n.Kind != yaml.ScalarNode || isNull(n) {
		return ""
	}
	return strings.TrimSpace(n.Value)
}

// item is one entry of a list.
type item struct {
	text string
	line int
}

// listOf reads a list of strings; what is none is left out.
func listOf(n *yaml.Node) []item {
	n = target(n)
	if n == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	var list []item
	for _, v := range n.Content {
		if s := text(v); s != "" {
			list = append(list, item{s, v.Line})
		}
	}
	return list
}

var errTooMuch = errors.New("its aliases expand to too much; write the values out")

// plain copies a value without aliases and comments: these may hold secrets.
func (c *converter) plain(n *yaml.Node, depth int) (*yaml.Node, error) {
	n = target(n)
	if n == nil || depth > 100 || !c.spend() {
		return nil, errTooMuch
	}
	out := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style}
	for _, child := range n.Content {
		p, err := c.plain(child, depth+1)
		if err != nil {
			return nil, err
		}
		out.Content = append(out.Content, p)
	}
	return out, nil
}
