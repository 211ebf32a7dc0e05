package envoy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// comment is a remark on the first place whose path ends in at.
type comment struct {
	at   string // keys joined with dots; list positions are left out
	text string
}

// commented turns a message into YAML with remarks. protojson puts random spaces
// into its output on purpose; reading it again as YAML takes them out.
func commented(m proto.Message, remarks []comment) ([]byte, error) {
	j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(j, &doc); err != nil {
		return nil, fmt.Errorf("reading our own JSON: %w", err)
	}
	root := doc.Content[0]
	w := &writer{left: slices.Clone(remarks)}
	w.walk(root, "")
	root.HeadComment = header()
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

type writer struct{ left []comment }

// walk sets block style, sorts keys and puts each remark at its first place.
func (w *writer) walk(n *yaml.Node, path string) {
	n.Style = 0
	switch n.Kind {
	case yaml.MappingNode:
		sortKeys(n)
		for i := 0; i < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			key.Style = 0
			at := path + "." + key.Value
			key.HeadComment = w.remark(at)
			w.walk(value, at)
		}
	case yaml.SequenceNode:
		for _, c := range n.Content {
			w.walk(c, path)
		}
	case yaml.ScalarNode:
		if strings.Contains(n.Value, "\n") {
			n.Style = yaml.LiteralStyle
		}
	case yaml.DocumentNode, yaml.AliasNode:
	}
}

func (w *writer) remark(path string) string {
	for i, c := range w.left {
		if strings.HasSuffix(path, "."+c.at) {
			w.left = slices.Delete(w.left, i, i+1)
			return c.text
		}
	}
	return ""
}

// sortKeys puts the keys a reader looks for first; the rest keeps the order of
// Envoy's own documentation.
func sortKeys(n *yaml.Node) {
	pairs := slices.Collect(slices.Chunk(n.Content, 2))
	slices.SortStableFunc(pairs, func(a, b []*yaml.Node) int { return rank(a[0].Value) - rank(b[0].Value) })
	n.Content = slices.Concat(pairs...)
}

// rank orders keys: lower comes first, and most keys are in the middle.
func rank(key string) int {
	first := []string{"@type", "name", "admin", "node", "domains", "address", "match", "type", "stat_prefix", "codec_type"}
	last := []string{"route_config", "http_filters", "routes", "transport_socket", "filter_chains", "overload_manager", "typed_extension_protocol_options", "clusters"}
	if i := slices.Index(first, key); i >= 0 {
		return i - len(first)
	}
	return slices.Index(last, key) + 1
}
