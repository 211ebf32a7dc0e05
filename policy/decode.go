package policy

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder walks a YAML tree into the types of file.go. yaml.v3 can do that too,
// but then stops at the first fault, forgets where a value stood, takes yes for
// true and 010 for 8, and prints the values it does not like.
type decoder struct {
	file   string
	dir    string
	env    func(string) (string, bool)
	at     map[string]mark
	fields map[reflect.Type][]field
	faults Faults
	// remote lists where the file names secrets in stores.
	remote []storedAt
}

// mark is what is known about one key path.
type mark struct {
	line int
	node *yaml.Node
	bad  bool // it has a fault, so that checks do not add a second one
}

// field is one key of a block, as the tags of file.go describe it.
type field struct {
	key, def string
	enum     []string
	required bool
	index    int
}

// union is a type that is written in more than one way.
type union interface {
	decode(d *decoder, n *yaml.Node, path string)
}

func newDecoder(file, dir string, env func(string) (string, bool)) *decoder {
	return &decoder{file: file, dir: dir, env: env, at: map[string]mark{}, fields: map[reflect.Type][]field{}}
}

// fault records a fault at path, or at the nearest block above it that the file has.
func (d *decoder) fault(path, format string, args ...any) {
	m := d.at[path]
	d.faults = append(d.faults, Fault{d.file, d.line(path), clip(path, 200), fmt.Sprintf(format, args...)})
	m.bad = true
	if m.line > 0 {
		d.at[path] = m
	}
}

// line returns the line of path, or of the nearest block above it that the file has.
func (d *decoder) line(path string) int {
	for path != "" {
		if m, ok := d.at[path]; ok {
			return m.line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 1
}

// value decodes n into v.
func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	if !d.plain(n, path) {
		return
	}
	if u, ok := reflect.TypeAssert[union](v.Addr()); ok {
		u.decode(d, n, path)
		return
	}
	switch v.Kind() { //nolint:exhaustive // the kinds of file.go; any other is a fault
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, path, v.Elem())
	case reflect.Struct:
		d.block(n, path, v)
	case reflect.Map:
		d.mapping(n, path, v)
	case reflect.Slice:
		d.list(n, path, v)
	case reflect.String:
		v.SetString(d.text(n, path, "a string"))
	case reflect.Bool:
		if d.want(n, path, "!!bool", "true or false") {
			v.SetBool(strings.EqualFold(n.Value, "true"))
		}
	case reflect.Int:
		d.integer(n, path, v)
	default:
		d.fault(path, "this build cannot read a %s; report it", v.Kind())
	}
}

// plain refuses what YAML offers beyond plain values.
func (d *decoder) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fault(path, noAliases)
	case n.Style&yaml.TaggedStyle != 0:
		d.fault(path, "YAML tags are refused; take the word with ! off")
	default:
		return true
	}
	return false
}

// want checks that n is a scalar of the given YAML tag.
func (d *decoder) want(n *yaml.Node, path, tag, words string) bool {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == tag {
		return true
	}
	hint := "write " + words
	if isNull(n) {
		hint = "give it a value or leave the key out"
	}
	d.fault(path, "want %s, got %s; %s", words, kind(n), hint)
	return false
}

func (d *decoder) integer(n *yaml.Node, path string, v reflect.Value) {
	if !d.want(n, path, "!!int", "a whole number") {
		return
	}
	i, err := strconv.ParseInt(n.Value, 10, 32)
	if err != nil {
		d.fault(path, "want a whole number, got %s; write it in plain decimal digits", show(n.Value))
		return
	}
	v.SetInt(i)
}

// text decodes a string and expands it. The empty string is a fault everywhere:
// it is what an unset default in a template leaves behind.
func (d *decoder) text(n *yaml.Node, path, words string) string {
	if !isString(n) {
		d.notString(n, path, words)
		return ""
	}
	s, ex, err := expand(n.Value, d.env)
	switch {
	case err != nil:
		d.fault(path, "%s", err)
	case s == "" && ex.empty != "":
		d.fault(path, "want %s, but the variable %s is empty; give it a value", words, ex.empty)
	case s == "":
		d.fault(path, "want %s, got an empty one; give it a value or leave the key out", words)
	}
	return s
}

func (d *decoder) notString(n *yaml.Node, path, words string) {
	hint := "write one value"
	switch {
	case isNull(n):
		hint = "give it a value or leave the key out"
	case n.Kind == yaml.ScalarNode:
		hint = "put it in quotes"
	}
	d.fault(path, "want %s, got %s; %s", words, kind(n), hint)
}

func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		hint := "write it as [a, b]"
		if isNull(n) {
			hint = "write [] for none, or leave the key out"
		}
		d.fault(path, "want a list, got %s; %s", kind(n), hint)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		p := path + "[" + strconv.Itoa(i) + "]"
		d.at[p] = mark{line: item.Line, node: item}
		d.value(item, p, v.Index(i))
	}
}

func (d *decoder) mapping(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	for _, p := range d.pairs(n, path) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(p.node, p.path, elem)
		v.SetMapIndex(reflect.ValueOf(p.key), elem)
	}
}

// kind names what n is, without its content.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	case yaml.ScalarNode, yaml.DocumentNode:
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a true or false"
	case "!!int", "!!float":
		return "a number"
	}
	return "a string"
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// isString also takes what YAML would read as a date: no key here wants one.
func isString(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (n.ShortTag() == "!!str" || n.ShortTag() == "!!timestamp")
}
