package envoy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

// positions are the parts of a tree's path that a remark's path leaves out.
var positions = regexp.MustCompile(`\[[^\]]*\]`)

// adopt remembers what stands in what.
func (p *patcher) adopt(n *yaml.Node) {
	for _, c := range n.Content {
		p.parents[c] = n
		p.adopt(c)
	}
}

// touch marks a value as new. What holds it leaves the flow style, in which no
// remark has room.
func (p *patcher) touch(n *yaml.Node) {
	p.fresh[n] = true
	p.open(n)
}

func (p *patcher) open(n *yaml.Node) {
	for ; n != nil; n = p.parents[n] {
		n.Style &^= yaml.FlowStyle
	}
}

func (p *patcher) changed(path, what, why string) {
	p.changes = append(p.changes, Change{Path: path, What: what, Why: why})
}

// node turns a message of Envoy's into YAML as `render envoy` writes it.
func (p *patcher) node(m proto.Message) *yaml.Node {
	n, err := (&writer{}).message(m, "")
	if err != nil {
		p.fail(err)
		return mapping()
	}
	return n
}

// value turns plain values into YAML.
func (p *patcher) value(v any) *yaml.Node {
	n := new(yaml.Node)
	if err := n.Encode(v); err != nil {
		p.fail(err)
	}
	return n
}

// entryOf returns the key and the value of an entry, nil without one.
func entryOf(m *yaml.Node, key string) (k, v *yaml.Node) {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if name := m.Content[i].Value; name == key || snake(name) == key {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

// put sees to it that a mapping says what want says under key: what is missing is
// added, what differs replaced, and what is there besides stays.
func (p *patcher) put(m tree, key string, want *yaml.Node, why string) {
	k, have := entryOf(m.n, key)
	switch {
	case have == nil || have.Tag == "!!null":
		p.add(m, key, want, why)
	case says(have, want):
	case have.Kind == yaml.MappingNode && want.Kind == yaml.MappingNode:
		at := m.get(key)
		for i := 0; i+1 < len(want.Content); i += 2 {
			p.put(at, want.Content[i].Value, want.Content[i+1], why)
		}
	default:
		p.swap(m, k, have, want, why)
	}
}

// replace puts want in the place of what is there, whole.
func (p *patcher) replace(m tree, key string, want *yaml.Node, why string) {
	k, have := entryOf(m.n, key)
	switch {
	case have == nil:
		p.add(m, key, want, why)
	case !same(have, want):
		p.swap(m, k, have, want, why)
	}
}

func (p *patcher) add(m tree, key string, want *yaml.Node, why string) {
	if k, old := entryOf(m.n, key); old != nil { // null
		p.drop(m, k)
	}
	k, path := scalarNode(key), join(m.path, key)
	k.HeadComment = p.remark(path, want)
	m.n.Content = append(m.n.Content, k, want)
	p.parents[k], p.parents[want] = m.n, m.n
	p.adopt(want)
	p.touch(want)
	p.changed(path, "added", why)
}

func (p *patcher) swap(m tree, k, have, want *yaml.Node, why string) {
	path := join(m.path, k.Value)
	if remark := p.remark(path, want); k.HeadComment == "" {
		k.HeadComment = remark
	}
	was := "replaced"
	if have.Kind == yaml.ScalarNode {
		was = "was " + have.Value
		if want.Kind == yaml.ScalarNode {
			want.LineComment = was
			if have.LineComment != "" {
				want.LineComment += "; " + strings.TrimLeft(have.LineComment, "# ")
			}
		}
	}
	for i, c := range m.n.Content {
		if c == have {
			m.n.Content[i] = want
		}
	}
	p.parents[want] = m.n
	p.adopt(want)
	p.touch(want)
	p.changed(path, was, why)
}

// remove takes an entry out, where there is one.
func (p *patcher) remove(m tree, key, why string) {
	k, have := entryOf(m.n, key)
	if have == nil {
		return
	}
	what := "removed"
	if have.Kind == yaml.ScalarNode {
		what += ", was " + have.Value
	}
	p.drop(m, k)
	p.open(m.n)
	p.removed[m.n] = append(p.removed[m.n], k.Value)
	p.changed(join(m.path, k.Value), what, why)
}

func (p *patcher) drop(m tree, k *yaml.Node) {
	if i := slices.Index(m.n.Content, k); i >= 0 {
		m.n.Content = slices.Delete(m.n.Content, i, i+2)
	}
}

// insert puts items into a list, before position i.
func (p *patcher) insert(list tree, i int, why string, items ...*yaml.Node) {
	list.n.Content = slices.Insert(list.n.Content, i, items...)
	p.entire[list.n] = true
	labels := make([]string, len(items))
	for j, item := range items {
		p.remarks.walk(item, "."+positions.ReplaceAllString(list.path, ""))
		p.parents[item] = list.n
		p.adopt(item)
		p.touch(item)
		if labels[j] = scalar(item, "name"); item.Kind == yaml.ScalarNode {
			labels[j] = item.Value
		}
	}
	p.changed(list.path, strings.TrimSpace("added "+strings.Join(labels, ", ")), why)
}

// list returns the list under key, an empty one made where there is none.
func (p *patcher) list(m tree, key string) tree {
	return p.made(m, key, yaml.SequenceNode)
}

// within returns the mapping down these keys, made where there is none.
func (p *patcher) within(m tree, keys ...string) tree {
	for _, key := range keys {
		m = p.made(m, key, yaml.MappingNode)
	}
	return m
}

func (p *patcher) made(m tree, key string, kind yaml.Kind) tree {
	if at := m.get(key); at.ok() && at.n.Kind == kind {
		return at
	}
	n := &yaml.Node{Kind: kind}
	k, old := entryOf(m.n, key)
	if old != nil && old.ShortTag() != "!!null" {
		p.fail(fmt.Errorf("line %d: %s: want %s, as Envoy does", k.Line, join(m.path, key), map[yaml.Kind]string{yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}[kind]))
		return tree{n: n}
	}
	if old != nil {
		p.drop(m, k)
	}
	k = scalarNode(key)
	k.HeadComment = p.remark(join(m.path, key), n)
	m.n.Content = append(m.n.Content, k, n)
	p.parents[k], p.parents[n] = m.n, m.n
	p.touch(n)
	return m.get(key)
}

// lists sees to it that a list of words has all of these.
func (p *patcher) lists(m tree, key string, want []string, why string) {
	var missing []*yaml.Node
	have := m.get(key).strs()
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h string) bool { return strings.EqualFold(h, w) }) {
			missing = append(missing, scalarNode(w))
		}
	}
	if len(missing) > 0 {
		at := p.list(m, key)
		p.insert(at, len(at.n.Content), why, missing...)
	}
}

// silently makes changes without remarks: what is said of a setting does not hold for
// this value.
func (p *patcher) silently(change func()) {
	all := p.remarks.left
	p.remarks.left = nil
	change()
	p.remarks.left = all
}

// remark gives a new value its remarks and returns that of its key. Each is made once.
func (p *patcher) remark(path string, n *yaml.Node) string {
	path = "." + positions.ReplaceAllString(path, "")
	head := p.remarks.remark(path)
	p.remarks.walk(n, path)
	return head
}

// says reports whether have holds all that want does.
func says(have, want *yaml.Node) bool {
	if have.Kind != want.Kind {
		return false
	}
	switch have.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(want.Content); i += 2 {
			if _, v := entryOf(have, want.Content[i].Value); v == nil || !says(v, want.Content[i+1]) {
				return false
			}
		}
		return true
	case yaml.SequenceNode:
		return slices.EqualFunc(have.Content, want.Content, says)
	case yaml.ScalarNode:
		return sameScalar(have.Value, want.Value)
	case yaml.DocumentNode, yaml.AliasNode:
	}
	return false
}

// same reports whether two values say the same.
func same(a, b *yaml.Node) bool { return says(a, b) && says(b, a) }

// sameScalar knows that 2s is 2.000s.
func sameScalar(a, b string) bool {
	if a == b {
		return true
	}
	da, erra := time.ParseDuration(a)
	db, errb := time.ParseDuration(b)
	return erra == nil && errb == nil && da == db
}
