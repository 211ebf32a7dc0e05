package envoy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// written returns the document with its changes, as what it was: JSON or YAML.
func (p *patcher) written(was []byte) ([]byte, error) {
	if len(p.changes) == 0 {
		return was, nil
	}
	if json.Valid(was) {
		var b, out bytes.Buffer
		if err := writeJSON(&b, p.doc.Content[0]); err != nil {
			return nil, err
		}
		if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
			return nil, err
		}
		out.WriteByte('\n')
		return out.Bytes(), nil
	}
	var b bytes.Buffer
	head, foot := p.doc.HeadComment, p.doc.FootComment
	if head != "" {
		b.WriteString(head + "\n\n")
	}
	if err := encode(&b, p.doc.Content[0], "", pieceNodes); err != nil {
		return nil, err
	}
	if foot != "" {
		b.WriteString("\n" + foot + "\n")
	}
	return b.Bytes(), nil
}

// writeJSON writes a value with its keys in their order.
func writeJSON(b *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				b.WriteByte(',')
			}
			writeString(b, n.Content[i].Value)
			b.WriteByte(':')
			if err := writeJSON(b, n.Content[i+1]); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, c := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeJSON(b, c); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case yaml.ScalarNode:
		writeScalar(b, n)
	case yaml.DocumentNode, yaml.AliasNode:
		return fmt.Errorf("line %d: want a value", n.Line)
	}
	return nil
}

// writeScalar leaves numbers as they stand: they may be longer than a float64.
func writeScalar(b *bytes.Buffer, n *yaml.Node) {
	switch n.ShortTag() {
	case "!!int", "!!float", "!!bool", "!!null":
		if json.Valid([]byte(n.Value)) {
			b.WriteString(n.Value)
			return
		}
	}
	writeString(b, n.Value)
}

func writeString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string always can be
	b.Truncate(b.Len() - 1)
}

// fragments returns, for each resource of a dump, the parts that change.
func (p *patcher) fragments() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`# What to change in the configuration that this /config_dump showed. A dump is no
# file to load: each document below is a part of one resource, to be merged into the
# place where that is made (a bootstrap file, a control plane). Of a list, only the
# changed entries are shown, unless "whole" is said above it. null takes a key out.
`)
	now := collect(tree{n: p.doc.Content[0], at: 1})
	var routes []tree
	for _, rc := range now.routes {
		routes = append(routes, rc)
	}
	slices.SortFunc(routes, func(a, b tree) int { return strings.Compare(a.path, b.path) })
	for _, group := range []struct {
		kind string
		all  []tree
	}{{"cluster", now.clusters}, {"listener", now.listeners}, {"routes", routes}, {"bootstrap", []tree{now.bootstrap.get("layered_runtime")}}} {
		for _, r := range group.all {
			if err := p.fragment(&b, group.kind, r); err != nil {
				return nil, err
			}
		}
	}
	return b.Bytes(), nil
}

func (p *patcher) fragment(b *bytes.Buffer, kind string, r tree) error {
	if r.n == nil {
		return nil
	}
	part := p.part(r.n)
	if part == nil {
		return nil
	}
	name := r.get("name").str()
	origin := ""
	switch {
	case kind == "bootstrap":
		m := mapping()
		add(m, "layered_runtime", part, "")
		part = m
	case strings.Contains(r.path, "static_"):
		origin = ", of the bootstrap file"
	case strings.Contains(r.path, "dynamic_"):
		origin = ", of a control plane"
	}
	fmt.Fprintf(b, "---\n# %s\n", strings.TrimSpace(kind+" "+name+origin))
	for _, c := range p.changes {
		if r.path != "" && strings.HasPrefix(c.Path, r.path) {
			fmt.Fprintf(b, "# - %s\n", Change{Path: strings.TrimPrefix(strings.TrimPrefix(c.Path, r.path), "."), What: c.What, Why: c.Why})
		}
	}
	return encode(b, part, "", pieceNodes)
}

// part returns what of a value changed, with what tells which entry of a list it is,
// and nil for a value that is as it was.
func (p *patcher) part(n *yaml.Node) *yaml.Node {
	if p.fresh[n] {
		return n
	}
	switch n.Kind {
	case yaml.MappingNode:
		return p.partOfMapping(n)
	case yaml.SequenceNode:
		if p.entire[n] {
			return block(n)
		}
		out := &yaml.Node{Kind: yaml.SequenceNode}
		for _, c := range n.Content {
			if sub := p.part(c); sub != nil {
				out.Content = append(out.Content, sub)
			}
		}
		if len(out.Content) > 0 {
			return out
		}
	case yaml.ScalarNode, yaml.DocumentNode, yaml.AliasNode:
	}
	return nil
}

func (p *patcher) partOfMapping(n *yaml.Node) *yaml.Node {
	out, changed := mapping(), len(p.removed[n]) > 0
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := *n.Content[i], n.Content[i+1]
		k.Style = 0
		sub := p.part(v)
		switch {
		case sub != nil:
			changed = true
			if v.Kind == yaml.SequenceNode && p.entire[v] {
				k.HeadComment = strings.TrimSpace(k.HeadComment + "\nwhole")
			}
			out.Content = append(out.Content, &k, sub)
		case slices.Contains([]string{"name", "@type", "match", "domains", "filter_chain_match"}, k.Value):
			out.Content = append(out.Content, &k, block(v))
		}
	}
	for _, key := range p.removed[n] {
		if k, _ := entryOf(n, key); k == nil {
			out.Content = append(out.Content, scalarNode(key), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"})
		}
	}
	if !changed {
		return nil
	}
	return out
}

// block is a value without the quotes and braces of JSON.
func block(n *yaml.Node) *yaml.Node {
	out := *n
	out.Style &^= yaml.FlowStyle | yaml.DoubleQuotedStyle
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out.Content[i] = block(c)
	}
	return &out
}
