package envoy

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// tree is a place in a configuration: a node, or the absence of one.
type tree struct {
	n    *yaml.Node // nil when absent
	at   int        // the line of its key, or of the block that should hold it
	path string
}

func parseTree(b []byte) (tree, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return tree{}, err
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return tree{}, errors.New("want a mapping at the top")
	}
	return tree{n: doc.Content[0], at: 1}, asEnvoy(&doc)
}

func (t tree) ok() bool { return t.n != nil }

// str returns the value of a scalar, and "" for anything else.
func (t tree) str() string {
	if t.n == nil || t.n.Kind != yaml.ScalarNode {
		return ""
	}
	return t.n.Value
}

func (t tree) yes() bool { return strings.EqualFold(t.str(), "true") }

// number returns the value of a number, and false without one. Envoy takes 3.0 and 3e0
// for 3.
func (t tree) number() (uint64, bool) {
	if n, err := strconv.ParseUint(t.str(), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(t.str(), 64)
	if err != nil || f < 0 || f >= 1<<63 || f != math.Trunc(f) {
		return 0, false
	}
	return uint64(f), true
}

// enum returns the name of an enum's value, "" without one. names are those of the
// generated code. Envoy takes a name in any case, and a number.
func (t tree) enum(names map[int32]string) string {
	if n, err := strconv.ParseInt(t.str(), 10, 32); err == nil {
		if name, ok := names[int32(n)]; ok {
			return name
		}
	}
	return strings.ToUpper(t.str())
}

// duration returns the value of a duration, and false without one.
func (t tree) duration() (time.Duration, bool) {
	d, err := time.ParseDuration(t.str())
	return d, err == nil
}

// get walks down keys. Envoy takes snake_case and camelCase alike, and null for nothing.
func (t tree) get(keys ...string) tree {
	for _, key := range keys {
		t = t.child(key)
	}
	return t
}

func (t tree) child(key string) tree {
	missing := tree{at: t.at, path: join(t.path, key)}
	for k, v := range t.each() {
		if (snake(k) == key || k == key) && v.n.ShortTag() != "!!null" {
			return v
		}
	}
	return missing
}

// each yields the entries of a mapping.
func (t tree) each() iter.Seq2[string, tree] {
	return func(yield func(string, tree) bool) {
		if t.n == nil || t.n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(t.n.Content); i += 2 {
			key, value := t.n.Content[i], resolve(t.n.Content[i+1])
			v := tree{n: value, at: key.Line, path: join(t.path, key.Value)}
			if !yield(key.Value, v) {
				return
			}
		}
	}
}

// items returns the entries of a list. Their paths carry the name of those that
// have one, because lines move and names stay.
func (t tree) items() []tree {
	if t.n == nil || t.n.Kind != yaml.SequenceNode {
		return nil
	}
	all := make([]tree, len(t.n.Content))
	for i, n := range t.n.Content {
		item := tree{n: resolve(n), at: n.Line}
		label := item.get("name").str()
		if label == "" {
			label = strconv.Itoa(i)
		}
		item.path = fmt.Sprintf("%s[%s]", t.path, label)
		all[i] = item
	}
	return all
}

// strs returns a list of scalars.
func (t tree) strs() []string {
	items := t.items()
	all := make([]string, len(items))
	for i, item := range items {
		all[i] = item.str()
	}
	return all
}

// walk yields this place and all below it. A document with an alias to itself
// ends at the depth where no configuration goes.
func (t tree) walk(yield func(tree) bool) bool { return t.walkTo(yield, 200) }

func (t tree) walkTo(yield func(tree) bool, depth int) bool {
	if t.n == nil || depth == 0 {
		return true
	}
	if !yield(t) {
		return false
	}
	for _, v := range t.each() {
		if !v.walkTo(yield, depth-1) {
			return false
		}
	}
	for _, v := range t.items() {
		if !v.walkTo(yield, depth-1) {
			return false
		}
	}
	return true
}

// mentions reports whether a scalar below holds the text.
func (t tree) mentions(text string) bool {
	return !t.walk(func(v tree) bool { return !strings.Contains(strings.ToLower(v.str()), text) })
}

// config returns the typed configuration of an extension and the last part of
// its type, such as ExternalProcessor. A TypedStruct is looked through.
func (t tree) config() (tree, string) {
	c := t.get("typed_config")
	if !c.ok() {
		c = t
	}
	kind := c.get("@type").str()
	if strings.HasSuffix(kind, ".TypedStruct") {
		kind, c = c.get("type_url").str(), c.get("value")
	}
	return c, kind[strings.LastIndexAny(kind, "./")+1:]
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// snake turns camelCase into snake_case. Names of extensions stay as they are.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		if r >= 'A' && r <= 'Z' && i > 0 && !strings.ContainsAny(s, "._/") {
			b.WriteByte('_')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
