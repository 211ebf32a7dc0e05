package envoy_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// numbers are those of the enum values of the rows below, in Envoy's protos.
func numbers() map[string]string {
	return map[string]string{
		"SKIP": "2", "SEND": "1", "BUFFERED": "2", "STREAMED": "1", "LOG": "2", "ACCEPT_UNTRUSTED": "1", "ORIGINAL_DST": "4",
		"KEEP_UNCHANGED": "1", "UNESCAPE_AND_FORWARD": "4", "ALLOW": "0", "ALWAYS_FORWARD_ONLY": "4",
	}
}

// spellings are other words for a value that Envoy takes for the same.
func spellings(t *testing.T, value string) []string {
	t.Helper()
	switch {
	case value == "true":
		return []string{"on", "yes", "y", "On", "YES", "Y", "True", "!!str on"}
	case value == "false":
		return []string{"off", "no", "n", "Off", "NO", "N", "FALSE"}
	case value == "3":
		return []string{"0x3", "03", "+3", "3.0", "3e0"}
	case regexp.MustCompile(`^[A-Z_]+$`).MatchString(value):
		number, ok := numbers()[value]
		if !ok {
			t.Errorf("%s: want its number in numbers", value)
		}
		return []string{strings.ToLower(value), number}
	}
	return nil
}

// aBroken is a place with an unsafe value in some configuration.
type aBroken struct {
	broken

	text []byte // without it
	set  *policy.Set
}

func everyBroken(t *testing.T) []aBroken {
	t.Helper()
	var all []aBroken
	add := func(text []byte, s *policy.Set, rows []broken) {
		for _, b := range rows {
			all = append(all, aBroken{b, text, s})
		}
	}
	s := breakable()
	add(render(t, s, envoy.Options{}), s, append(brokenUpstream(), brokenListener()...))
	add(downstream(t), local(), brokenDownstream())
	up := goodFile(t, "upstream.yaml")
	for _, u := range append(unsafeChain(), unsafeAround()...) {
		if place, listener := strings.CutPrefix(u.place, "listener: "); listener {
			add(downstream(t), local(), []broken{{u.file, place, u.value}})
		} else {
			add(up, set(upstream("tools", "https://tools.company.com/mcp", withMTLS)), []broken{{u.file, place, u.value}})
		}
	}
	return all
}

// TestC3_E8_EverySpellingIsOne: an unsafe setting is found however it is written, and
// mended or left open alike.
func TestC3_E8_EverySpellingIsOne(t *testing.T) {
	seen := 0
	for row, b := range everyBroken(t) {
		words := spellings(t, b.value)
		if _, last, _ := cutLast(b.place); b.value == "" && last[0] > '9' {
			words = []string{"null"} // as good as nothing
		}
		if len(words) == 0 {
			continue
		}
		plain := edit(t, b.text, b.broken)
		want := idsOf(check(t, plain, b.set))
		for i := range 2 { // the first, and others by turns
			word := words[i*row%len(words)]
			seen++
			text := edit(t, b.text, broken{"", b.place, word})
			if got := idsOf(check(t, text, b.set)); got != want {
				t.Errorf("%s: %s: want %q as for %q, got %q", b.place, word, want, b.value, got)
			}
			if i > 0 || row%4 > 0 {
				continue
			}
			if got, open := idsOf(settled(t, text, b.set).Open), idsOf(patch(t, plain, b.set).Open); got != open {
				t.Errorf("%s: %s: want %q left open as for %q, got %q", b.place, word, open, b.value, got)
			}
		}
	}
	if seen < 100 {
		t.Errorf("want 100 spellings, got %d", seen)
	}
}

// TestC3_E8_ASettingTwice: Envoy takes the last, so the first must not hide it.
func TestC3_E8_ASettingTwice(t *testing.T) {
	seen := 0
	for _, b := range everyBroken(t) {
		within, last, nested := cutLast(b.place)
		if b.value == "" || last[0] <= '9' || !nested {
			continue
		}
		for i, key := range []string{last, camel(last)} {
			seen++
			text := again(t, edit(t, b.text, b.broken), within, last, key)
			_, err := envoy.Check("envoy.yaml", text, b.set)
			if err == nil || !strings.Contains(err.Error(), "says again what") || !strings.Contains(err.Error(), "line ") {
				t.Errorf("%s: %s: want an error that names the line, got %v", b.place, key, err)
			}
			if i > 0 {
				continue
			}
			if _, err := envoy.Patch("envoy.yaml", text, b.set, envoy.Options{}); err == nil || !strings.Contains(err.Error(), "says again what") {
				t.Errorf("%s: %s: want no patch, got %v", b.place, key, err)
			}
		}
	}
	if seen < 100 {
		t.Errorf("want 100 settings, got %d", seen)
	}
}

// cutLast splits a place into that of the mapping or list and its last key.
func cutLast(place string) (within, last string, ok bool) {
	i := strings.LastIndexByte(place, '/')
	return place[:max(i, 0)], place[i+1:], i > 0
}

// again gives a mapping a key twice: as it was, and with another spelling.
func again(t *testing.T, text []byte, place, key, as string) []byte {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	at := doc.Content[0]
	for k := range strings.SplitSeq(strings.ReplaceAll(place, "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "\x00"), "/") {
		at = down(t, at, unescape(k))
	}
	i := slices.IndexFunc(at.Content, func(n *yaml.Node) bool { return n.Value == key })
	at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: as}, at.Content[i+1])
	out, err := yaml.Marshal(&doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// camel is the other spelling of a setting, if it has one.
func camel(s string) string {
	if strings.Contains(s, ".") {
		return s
	}
	return regexp.MustCompile(`_[a-z]`).ReplaceAllStringFunc(s, func(m string) string { return strings.ToUpper(m[1:]) })
}

// TestC3_E8_WhatIsNoSetting: what Envoy takes for text or for a key of somebody's own
// stays so.
func TestC3_E8_WhatIsNoSetting(t *testing.T) {
	const text = `{node: {metadata: {fooBar: 1, foo_bar: 2}}, layered_runtime: {layers: [{name: l, static_layer: {aB: 1, a_b: 2}}]},
 static_resources: {clusters: [{name: "on", x: 0b11, y: "0x10", z: tRue, load_assignment: {cluster_name: "on"}}]}}`
	s := set(upstream("on", "http://127.0.0.1:9000/mcp", withoutCredential))
	p := settled(t, []byte(text), s)
	for _, want := range []string{"fooBar: 1", "foo_bar: 2", "aB: 1", "a_b: 2", `name: "on"`, "x: 0b11", `y: "0x10"`, "z: tRue"} {
		if !strings.Contains(string(p.Config), want) {
			t.Errorf("want %s in %s", want, p.Config)
		}
	}
}

// TestC3_E8_AnAliasAsAKey: it hides no setting.
func TestC3_E8_AnAliasAsAKey(t *testing.T) {
	text := strings.Replace(string(downstream(t)), "message_timeout: 2s", "? *key\n                      : true\n                      message_timeout: 2s", 1)
	text = "node: {id: &key failure_mode_allow}\n" + text
	if got := idsOf(check(t, []byte(text), nil)); got != "failure-mode-allow" {
		t.Errorf("want failure-mode-allow, got %q", got)
	}
}
