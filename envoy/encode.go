package envoy

import (
	"bytes"
	"strings"

	"go.yaml.in/yaml/v3"
)

// pieceNodes is how many YAML nodes the library is given at once.
const pieceNodes = 4096

// encode writes n as the library would, each line indented. The library keeps
// every event of a document until its end, which took 5 GB for 10,000
// upstreams: what has more than limit nodes is taken apart here, and the
// library writes the pieces.
func encode(b *bytes.Buffer, n *yaml.Node, indent string, limit int) error {
	if whole(n, limit) {
		return encodeWhole(b, n, indent)
	}
	if n.Kind == yaml.SequenceNode {
		return encodeSequence(b, n, indent, limit)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if whole(value, limit) {
			if err := encodeWhole(b, &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{key, value}}, indent); err != nil {
				return err
			}
			continue
		}
		// With null for its value, the library writes the key and its remark.
		var head bytes.Buffer
		null := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
		if err := encodeWhole(&head, &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{key, null}}, indent); err != nil {
			return err
		}
		b.WriteString(strings.TrimRight(head.String(), " \n") + "\n")
		if err := encode(b, value, indent+"  ", limit); err != nil {
			return err
		}
	}
	return nil
}

func encodeSequence(b *bytes.Buffer, n *yaml.Node, indent string, limit int) error {
	for _, c := range n.Content {
		if whole(c, limit) {
			if err := encodeWhole(b, &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{c}}, indent); err != nil {
				return err
			}
			continue
		}
		start := b.Len()
		if err := encode(b, c, indent+"  ", limit); err != nil {
			return err
		}
		b.Bytes()[start+len(indent)] = '-'
	}
	return nil
}

// encodeWhole has the library write n.
func encodeWhole(b *bytes.Buffer, n *yaml.Node, indent string) error {
	quoteWords(n)
	var text bytes.Buffer
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if line != "\n" {
			b.WriteString(indent)
		}
		b.WriteString(line)
	}
	return nil
}

// whole reports whether n is for the library as it is.
func whole(n *yaml.Node, limit int) bool {
	return len(n.Content) == 0 || n.Style&yaml.FlowStyle != 0 || nodes(n) <= limit
}

func nodes(n *yaml.Node) int {
	sum := 1
	for _, c := range n.Content {
		sum += nodes(c)
	}
	return sum
}
