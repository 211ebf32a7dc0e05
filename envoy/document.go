package envoy

import (
	"fmt"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// object is a mapping in the order in which it is written.
type object []field

// field is one entry of an object. Its value is an object, a list, a message, a
// string, a number or a bool; remark stands above it.
type field struct {
	key    string
	value  any
	remark string
}

// list is a sequence of what a field may hold.
type list []any

// node turns a value into YAML. Messages of Envoy get the remarks of w.
func (w *writer) node(v any, path string) (*yaml.Node, error) {
	switch v := v.(type) {
	case object:
		m := mapping()
		for _, f := range v {
			n, err := w.node(f.value, path+"."+f.key)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.key, err)
			}
			add(m, f.key, n, f.remark)
		}
		return m, nil
	case list:
		s := &yaml.Node{Kind: yaml.SequenceNode}
		for _, item := range v {
			n, err := w.node(item, path)
			if err != nil {
				return nil, err
			}
			s.Content = append(s.Content, n)
		}
		return s, nil
	case proto.Message:
		return w.message(v, path)
	default:
		n := new(yaml.Node)
		return n, n.Encode(v)
	}
}

// message turns a message into YAML, in block style and with remarks. protojson puts
// random spaces into its output on purpose; reading it again as YAML takes them out.
func (w *writer) message(m proto.Message, path string) (*yaml.Node, error) {
	j, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(j, &doc); err != nil {
		return nil, fmt.Errorf("reading our own JSON: %w", err)
	}
	w.walk(doc.Content[0], path)
	return doc.Content[0], nil
}
