package envoy_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func patch(t *testing.T, b []byte, s *policy.Set) *envoy.Patched {
	t.Helper()
	p, err := envoy.Patch("envoy.yaml", b, s, envoy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// settled patches twice: what Check finds is what Patch left open, and a second time
// nothing changes.
func settled(t *testing.T, b []byte, s *policy.Set) *envoy.Patched {
	t.Helper()
	p := patch(t, b, s)
	if diff := cmp.Diff(check(t, p.Config, s), p.Open); diff != "" {
		t.Errorf("what Check finds in the result is not what Patch says is open (-check +patch):\n%s", diff)
	}
	again := patch(t, p.Config, s)
	if diff := cmp.Diff(string(p.Config), string(again.Config)); diff != "" || len(again.Changes) > 0 {
		t.Errorf("patched again, it changes: %v\n%s", again.Changes, diff)
	}
	return p
}

func idsOf(found []envoy.Finding) string {
	var ids []string
	for _, f := range found {
		ids = append(ids, f.ID)
	}
	slices.Sort(ids)
	return strings.Join(slices.Compact(ids), " ")
}

// decisions are what Patch leaves to a person: to mend it would take something away
// that somebody wanted, or needs to be known.
func decisions() []string {
	return []string{
		// Somebody's own wish, on this very route or cluster.
		"ext-proc-disabled", "observability-mode", "body-sent", "guard-disabled", "guard-too-early", "guard-forged", "mirrored", "hedged", "redirects-followed",
		"cluster-from-request", "weighted-clusters", "destination-from-request", "way-around", "internal-callers", "credential-in-route", "tunnel",
		"secret-copied", "secret-logged", "secret-traced", "secret-in-metadata", "verdict-forged", "own-401-replaced", "no-body-limit", "mcp-filter-open", "one-identity",
		// What neither file says: files, addresses, routes, other processes.
		"no-client-ca", "caller-unverified", "routes-unseen", "upstream-plaintext", "processor-plaintext", "processor-unverified", "admin-exposed", "envoy-too-old",
		"rejection-relayed",
	}
}

// TestPatchMendsWhatCheckNames: each broken setting is mended or left open, with what
// to do.
func TestPatchMendsWhatCheckNames(t *testing.T) {
	s := breakable()
	down, err := os.ReadFile("testdata/good/downstream.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range []struct {
		text []byte
		set  *policy.Set
		all  []broken
	}{
		{render(t, s, envoy.Options{}), s, append(brokenUpstream(), brokenListener()...)},
		{render(t, withRules(), envoy.Options{}), withRules(), brokenTools()},
		{render(t, told(), envoy.Options{}), told(), brokenTold()},
		{down, local(), brokenDownstream()},
	} {
		for _, b := range base.all {
			t.Run(b.ids+" "+b.place[strings.LastIndexByte(strings.TrimSuffix(b.place, "/"), '/')+1:]+" "+b.value, func(t *testing.T) {
				p := settled(t, edit(t, base.text, b), base.set)
				for _, f := range p.Open {
					if !slices.Contains(decisions(), f.ID) {
						t.Errorf("not mended: %s", f)
					}
				}
			})
		}
	}
}

// mine is a configuration of somebody's own, with what one meets there: comments,
// flow style, anchors, camelCase, older fields, filters and settings of its own.
func mine(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/patch/mine.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func minePolicy() *policy.Set {
	return set(
		upstream("tools", "https://tools.company.com/mcp"),
		upstream("wiki", "https://wiki.company.com/mcp", withoutCredential),
		upstream("loop", "http://127.0.0.1:9000/mcp", withTools(policy.ProofBody, 4<<20)),
		upstream("elsewhere", "https://elsewhere.company.com/mcp"),
		upstream("renamed", "https://shop.company.com/mcp"),
	)
}

// TestPatchKeepsWhatIsThere: all of somebody's own file is in the result, but what
// the changes say.
func TestPatchKeepsWhatIsThere(t *testing.T) {
	p := settled(t, mine(t), minePolicy())
	golden(t, "patch/mine.golden.yaml", p.Config)
	var said strings.Builder
	for _, c := range p.Changes {
		said.WriteString("changed: " + c.String() + "\n")
	}
	for _, s := range p.Assumed {
		said.WriteString("assumed: " + s + "\n")
	}
	for _, s := range p.Notes {
		said.WriteString("look at: " + s + "\n")
	}
	for _, f := range p.Open {
		said.WriteString("decide: " + f.String() + "\n")
	}
	golden(t, "patch/mine.golden.txt", []byte(said.String()))
	for line := range strings.Lines(string(mine(t))) {
		if _, remark, ok := strings.Cut(line, "# mine: "); ok && !strings.Contains(string(p.Config), remark) {
			t.Errorf("the remark %q is lost", remark)
		}
	}
}

// TestPatchedIsAcceptedByEnvoy: what was valid stays valid.
func TestPatchedIsAcceptedByEnvoy(t *testing.T) {
	binary := realenvoy.Require(t)
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	for name, b := range map[string][]byte{"as it was": mine(t), "patched": patch(t, mine(t), minePolicy()).Config} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := realenvoy.Validate(t.Context(), binary, file); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPatchWritesJSON: a JSON file stays one, keys in their order and numbers as they
// were written.
func TestPatchWritesJSON(t *testing.T) {
	const text = `{"static_resources": {"listeners": [], "clusters": [{"name": "a", "x": 12345678901234567890, "y": 1e3, "z": "<&\u00e9\n", "n": null, "load_assignment": {"cluster_name": "a"}}]}}`
	p := settled(t, []byte(text), set(upstream("a", "http://127.0.0.1:9000/mcp", withoutCredential)))
	if !json.Valid(p.Config) {
		t.Fatalf("want JSON, got %s", p.Config)
	}
	for _, want := range []string{`"x": 12345678901234567890,`, `"y": 1e3,`, `"z": "<&é\n",`, `"n": null,`} {
		if !strings.Contains(string(p.Config), want) {
			t.Errorf("want %s in %s", want, p.Config)
		}
	}
}

func TestPatchRefuses(t *testing.T) {
	s := set(upstream("a", "https://a.company.com/mcp"))
	for text, want := range map[string]string{
		"":           "EOF",
		"- a":        "want a mapping",
		"a: b":       "want listeners or clusters",
		"a: [":       "did not find",
		"&x {a: *x}": "four million",
		"static_resources: {clusters: [{name: a, circuit_breakers: [x]}]}": "want a mapping, as Envoy does",
		"static_resources: {clusters: [{name: b}]}\n---\nx: y\n":           "want one document",
		"static_resources: {clusters: [{name: b, load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: a.company.com, port_value: 443}}}}]}]}}]}": `write envoy: {cluster: b} in the policy`,
	} {
		_, err := envoy.Patch("envoy.yaml", []byte(text), s, envoy.Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}

// TestPatchLeavesRenderedAsItIs: what is rendered needs no patch.
func TestPatchLeavesRenderedAsItIs(t *testing.T) {
	for name, s := range rendered() {
		if name == "tools" {
			continue // one upstream of its own listener has its limit on that listener alone
		}
		b := render(t, s, envoy.Options{})
		p := settled(t, b, s)
		for _, c := range p.Changes {
			t.Errorf("%s: %s", name, c)
		}
	}
}

// TestPatchBesideAFilterOfTheSameName: settings per route go by a filter's name, so
// the guard takes another where a route has some for somebody's own filter.
func TestPatchBesideAFilterOfTheSameName(t *testing.T) {
	own := broken{
		"", "static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes/0/typed_per_filter_config/envoy.filters.http.lua",
		`{"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute, disabled: true}`,
	}
	for _, text := range [][]byte{mine(t), edit(t, mine(t), own)} {
		p := settled(t, text, minePolicy())
		if len(p.Open) > 0 || !strings.Contains(string(p.Config), "name: envoy.filters.http.lua.envoy_mcp_auth") {
			t.Errorf("want a guard of another name, and nothing open, got %v", p.Open)
		}
	}
	p := patch(t, edit(t, patch(t, mine(t), minePolicy()).Config, broken{"", strings.Replace(own.place, "http.lua", "http.lua.envoy_mcp_auth", 1), own.value}), minePolicy())
	if got := idsOf(p.Open); got != "guard-disabled" {
		t.Errorf("want the guard of that name missed, got %q", got)
	}
}
