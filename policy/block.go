package policy

import (
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// pair is one key of a mapping with its value.
type pair struct {
	key, path string
	node      *yaml.Node
}

// pairs returns the keys of a mapping in order, each once, and marks where they stand.
func (d *decoder) pairs(n *yaml.Node, path string) []pair {
	if n.Kind != yaml.MappingNode {
		hint := "write its keys below it, indented"
		if isNull(n) {
			hint = "write its keys below it, indented, or leave the key out"
		}
		d.fault(path, "want a mapping, got %s; %s", kind(n), hint)
		return nil
	}
	all := make([]pair, 0, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, node := n.Content[i], n.Content[i+1]
		if !d.key(key, path) {
			continue
		}
		p := join(path, key.Value)
		if m, twice := d.at[p]; twice {
			d.faults = append(d.faults, Fault{d.file, key.Line, p, "this key is here twice, first in line " + strconv.Itoa(m.line) + "; remove one"})
			continue
		}
		d.at[p] = mark{line: key.Line, node: node}
		all = append(all, pair{key.Value, p, node})
	}
	return all
}

// key checks that a key is a plain word.
func (d *decoder) key(key *yaml.Node, path string) bool {
	var text string
	switch {
	case key.Kind == yaml.AliasNode || key.Anchor != "" || key.ShortTag() == "!!merge":
		text = noAliases
	case key.Kind != yaml.ScalarNode:
		text = "want a word as a key, got " + kind(key) + "; if this was meant to be ${NAME} or a template, put it in quotes"
	case key.Style&yaml.TaggedStyle != 0:
		text = "YAML tags are refused; take the word with ! off"
	default:
		return true
	}
	d.faults = append(d.faults, Fault{d.file, key.Line, path, text})
	return false
}

// block decodes a mapping with fixed keys: defaults first, then what the file
// says. An unknown key is a fault, since a misspelt rule would be no rule.
func (d *decoder) block(n *yaml.Node, path string, v reflect.Value) {
	d.fill(v)
	d.keys(n, path, v)
}

func (d *decoder) keys(n *yaml.Node, path string, v reflect.Value) {
	fields := d.describe(v.Type())
	for _, p := range d.pairs(n, path) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == p.key })
		if i < 0 {
			d.fault(p.path, "unknown key; %s", suggest(p.key, fields))
			continue
		}
		f := fields[i]
		d.value(p.node, p.path, v.Field(f.index))
		if f.enum != nil && !d.at[p.path].bad && !slices.Contains(f.enum, v.Field(f.index).String()) {
			d.fault(p.path, "want %s, got %s; pick one", choice(f.enum), show(p.node.Value))
		}
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	for _, f := range fields {
		if p := join(path, f.key); f.required && !d.has(p) {
			d.fault(p, "want a value, got nothing; add this key")
		}
	}
}

func (d *decoder) has(path string) bool { _, ok := d.at[path]; return ok }

// describe reads the tags of a block's type, once per type.
func (d *decoder) describe(t reflect.Type) []field {
	if known, ok := d.fields[t]; ok {
		return known
	}
	var fields []field
	for sf := range t.Fields() {
		tag := sf.Tag
		key := tag.Get("yaml")
		if key == "" || key == "-" {
			continue
		}
		f := field{key: key, def: tag.Get("default"), required: tag.Get("required") == "true", index: sf.Index[0]}
		if enum := tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, ",")
		}
		fields = append(fields, f)
	}
	d.fields[t] = fields
	return fields
}

// fill sets the defaults of a block and of the blocks inside it that are not optional.
func (d *decoder) fill(v reflect.Value) {
	if _, isUnion := reflect.TypeAssert[union](v.Addr()); isUnion {
		return
	}
	for _, f := range d.describe(v.Type()) {
		fv := v.Field(f.index)
		switch {
		case f.def != "":
			setDefault(fv, f.def)
		case fv.Kind() == reflect.Struct:
			d.fill(fv)
		}
	}
}

// setDefault writes the text of a `default` tag; a test reads every one of them.
func setDefault(v reflect.Value, text string) {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
	case *int:
		*p, _ = strconv.Atoi(text)
	case *Rate:
		*p, _ = parseRate(text)
	case *Duration:
		*p, _ = parseDuration(text)
	case *Size:
		*p, _ = parseSize(text)
	case **bool:
		on := text == "true"
		*p = &on
	}
}

// join extends a key path. A key with a dot or a bracket in it is quoted, so
// that two paths never read the same.
func join(path, key string) string {
	for _, c := range []byte(key) {
		if c != '_' && c != '-' && !isAlnum(c) {
			return path + "[" + strconv.Quote(key) + "]"
		}
	}
	if key == "" {
		return path + `[""]`
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
