package envoy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// asEnvoy makes a document say what Envoy reads in it. Its YAML parser is not ours: it
// knows other words for true, and other numbers. What Envoy decides by order alone, a
// key that stands twice, is an error: a person reads the first, Envoy the last.
//
// No value changes its meaning for Envoy: where a plain word is such a word or number,
// Envoy takes it for one, whatever the setting.
func asEnvoy(n *yaml.Node) error { return (&reading{}).node(n) }

// reading is on the way through a document.
type reading struct{ free int } // mappings above whose keys are no settings

func (r *reading) node(n *yaml.Node) error {
	switch n.Kind {
	case yaml.ScalarNode:
		plainValue(n)
	case yaml.MappingNode:
		return r.mapping(n)
	case yaml.SequenceNode, yaml.DocumentNode:
		for _, c := range n.Content {
			if err := r.node(c); err != nil {
				return err
			}
		}
	case yaml.AliasNode: // what it stands for is elsewhere in the document
	}
	return nil
}

func (r *reading) mapping(n *yaml.Node) error {
	first := make(map[string]*yaml.Node, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := spelledKey(n.Content[i])
		n.Content[i] = key
		name := key.Value
		if r.free == 0 {
			name = snake(name)
		}
		if was := first[name]; was != nil {
			return fmt.Errorf("line %d: %q says again what %q says on line %d, and Envoy takes the last; take one of the two out", key.Line, key.Value, was.Value, was.Line)
		}
		first[name] = key
		if err := r.below(key.Value, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// below reads the value of a key. In metadata and runtime values, fooBar and foo_bar are
// two keys.
func (r *reading) below(key string, value *yaml.Node) error {
	switch snake(key) {
	case "metadata", "filter_metadata", "static_layer":
		r.free++
		defer func() { r.free-- }()
	}
	return r.node(value)
}

// spelledKey writes an alias out: as a key it hides a setting from who looks for it.
func spelledKey(k *yaml.Node) *yaml.Node {
	if k.Kind != yaml.AliasNode || resolve(k).Kind != yaml.ScalarNode {
		return k
	}
	twin := *resolve(k)
	twin.Anchor, twin.Line, twin.Column = "", k.Line, k.Column
	return &twin
}

// otherBase are numbers that Envoy reads in C's way, and numbers with a plus.
var otherBase = regexp.MustCompile(`^(?:[+-]?0(?:[xX][0-9a-fA-F]+|[0-7]+)|\+[0-9]+)$`)

func plainValue(n *yaml.Node) {
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return
	}
	if word, ok := truth(n.Value); ok {
		n.Value, n.Tag, n.Style = word, "!!bool", 0
		return
	}
	if !otherBase.MatchString(n.Value) {
		return
	}
	if i, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
		n.Value, n.Tag, n.Style = strconv.FormatInt(i, 10), "!!int", 0
	}
}

// truth is the table of https://yaml.org/type/bool.html, which yaml-cpp takes in lower
// case, in upper case and with a capital.
func truth(s string) (word string, ok bool) {
	low := strings.ToLower(s)
	if s != low && s != strings.ToUpper(s) && s != strings.ToUpper(s[:1])+low[1:] {
		return "", false
	}
	switch low {
	case "y", "yes", "true", "on":
		return "true", true
	case "n", "no", "false", "off":
		return "false", true
	}
	return "", false
}

// quoteWords has text written as text where Envoy would read it as true or false: the
// library leaves an upstream of the name "on" without quotes.
func quoteWords(n *yaml.Node) {
	if _, ok := truth(n.Value); ok && n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		n.Style |= yaml.DoubleQuotedStyle
	}
	for i, c := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 { // a key is text always
			quoteWords(c)
		}
	}
}
