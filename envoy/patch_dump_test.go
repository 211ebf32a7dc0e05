package envoy_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
)

// TestPatchReadsConfigDump: from what a running Envoy says of itself come the parts to
// change, and a file with these parts in it is one that check finds nothing in.
func TestPatchReadsConfigDump(t *testing.T) {
	binary := realenvoy.Require(t)
	_, port, _ := strings.Cut(free(t), ":")
	text := edit(t, edit(t, mine(t), broken{"", "admin", ""}), broken{"", "static_resources/listeners/0/address/socket_address/port_value", port})
	e, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: binary, Dir: t.TempDir(), Bootstrap: text})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	dump, err := e.Get(t.Context(), "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	s := minePolicy()
	p := patch(t, dump, s)
	if p.Whole || len(p.Open) > 0 || len(p.Changes) == 0 {
		t.Fatalf("want parts, and nothing left open, got whole %t, %v", p.Whole, p.Open)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	static := value(doc.Content[0], "static_resources")
	dec := yaml.NewDecoder(bytes.NewReader(p.Config))
	applied := 0
	for {
		var part yaml.Node
		if err := dec.Decode(&part); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		applied++
		root := part.Content[0]
		switch {
		case value(root, "layered_runtime") != nil:
			put(t, doc.Content[0], "layered_runtime", value(root, "layered_runtime"))
		case value(root, "filter_chains") != nil:
			into(entryLike(value(static, "listeners"), root), root)
		default:
			clusters := value(static, "clusters")
			if have := entryLike(clusters, root); have != nil {
				into(have, root)
			} else {
				clusters.Content = append(clusters.Content, root)
			}
		}
	}
	if applied != 6 { // a listener, three clusters of upstreams, the server's, the runtime
		t.Errorf("want 6 parts, got %d", applied)
	}
	b, err := yaml.Marshal(&doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range check(t, b, s) {
		t.Error(f)
	}
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := realenvoy.Validate(t.Context(), binary, file); err != nil {
		t.Error(err)
	}
}

// into merges a part into what it is a part of, as its head says: of a list the
// changed entries, or the whole.
func into(have, part *yaml.Node) {
	for i := 0; i+1 < len(part.Content); i += 2 {
		k, v := part.Content[i], part.Content[i+1]
		old := value(have, k.Value)
		switch {
		case k.Value == "@type":
		case v.Tag == "!!null":
			have.Content = slices.DeleteFunc(have.Content, func(n *yaml.Node) bool { return n.Value == k.Value || n == old })
		case old == nil:
			have.Content = append(have.Content, k, v)
		case v.Kind == yaml.MappingNode && old.Kind == yaml.MappingNode:
			into(old, v)
		case v.Kind == yaml.SequenceNode && !strings.Contains(k.HeadComment, "whole"):
			for j, item := range v.Content {
				if like := entryLike(old, item); like != nil {
					into(like, item)
				} else if len(old.Content) == len(v.Content) && item.Kind == yaml.MappingNode {
					into(old.Content[j], item) // filter chains have no names here
				} else {
					*old = *v
				}
			}
		default:
			*old = *v
		}
	}
}

// entryLike finds the entry of a list by its name, else by what it matches.
func entryLike(list, item *yaml.Node) *yaml.Node {
	i := slices.IndexFunc(list.Content, func(n *yaml.Node) bool {
		for _, key := range []string{"name", "match"} {
			if want := value(item, key); want != nil {
				have := value(n, key)
				return have != nil && flat(have) == flat(want)
			}
		}
		return false
	})
	if i < 0 {
		return nil
	}
	return list.Content[i]
}

func flat(n *yaml.Node) string {
	out := n.Value
	for _, c := range n.Content {
		out += " " + flat(c)
	}
	return out
}

// value is that of a key; Envoy's own answers are in snake_case.
func value(m *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		camel := strings.ReplaceAll(strings.ToLower(m.Content[i].Value), "_", "")
		if m.Kind == yaml.MappingNode && camel == strings.ReplaceAll(key, "_", "") || m.Content[i].Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}
