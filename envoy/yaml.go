package envoy

import (
	"bytes"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

// comment is a remark on the first place whose path ends in at.
type comment struct {
	at   string // keys joined with dots; list positions are left out
	text string
}

// commented turns a message into YAML with remarks.
func commented(m proto.Message, remarks []comment) ([]byte, error) {
	root, err := (&writer{left: slices.Clone(remarks)}).message(m, "")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(header() + "\n\n")
	if err := encode(&b, root, "", pieceNodes); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

type writer struct {
	left []comment
	// merged is whether what is written is merged into something else, where a zero
	// value says nothing.
	merged bool
}

// walk sets block style, sorts keys and puts each remark at its first place.
func (w *writer) walk(n *yaml.Node, path string) {
	n.Style = 0
	switch n.Kind {
	case yaml.MappingNode:
		spellOut(n, w.merged)
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

// spellOut writes down the zero values that decide about safety. protojson leaves
// them out, and a reader should not have to know Envoy's defaults by heart.
func spellOut(n *yaml.Node, merged bool) {
	say := func(key, value string) {
		if k, _ := entryOf(n, key); k == nil {
			n.Content = append(n.Content, plain(key), plain(value))
		}
	}
	switch {
	case strings.HasSuffix(scalar(n, "@type"), ".ExternalProcessor"):
		say("failure_mode_allow", "false")
	case scalar(n, "request_header_mode") != "":
		say("request_body_mode", "NONE")
		say("response_body_mode", "NONE")
	case strings.HasSuffix(scalar(n, "@type"), ".HttpConnectionManager") && !merged:
		say("forward_client_cert_details", "SANITIZE")
	}
}

func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// scalar returns the value of a key that holds one, or "".
func scalar(n *yaml.Node, key string) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && n.Content[i+1].Kind == yaml.ScalarNode {
			return n.Content[i+1].Value
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
	first := []string{
		"@type", "name", "node", "admin", "domains", "address", "match", "type", "stat_prefix", "codec_type",
		"grpc_service", "failure_mode_allow", "message_timeout", "processing_mode", "request_header_mode", "response_header_mode",
	}
	last := []string{
		"http_filters", "route_config", "routes", "transport_socket", "filter_chains",
		"typed_extension_protocol_options", "clusters", "layered_runtime", "overload_manager",
	}
	if i := slices.Index(first, key); i >= 0 {
		return i - len(first)
	}
	return slices.Index(last, key) + 1
}
