package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func toolsOf(t *testing.T, set *Set, name string) *Tools {
	t.Helper()
	u, reason := set.Lookup(&Request{Name: name})
	if reason != Allowed {
		t.Fatal(reason)
	}
	return u.Tools
}

// TestCompileTools holds what the blocks become.
func TestCompileTools(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "testdata/good/tools.yaml")
	call := []string{"tools/call"}
	for name, want := range map[string]*Tools{
		"inherits": {Proof: ProofBody, MaxBody: 1 << 20, Implies: map[string][]string{}, Rules: []ToolRule{
			{Methods: call, Names: []string{"customer_lookup"}, Scopes: []string{"customer:read"}},
			{Methods: call, Names: []string{"nightly"}, Scopes: []string{"night"}, Callers: []string{"cron"}},
		}},
		"own": {
			Proof: ProofBody, MaxBody: 4 << 20, AllowUnlisted: true,
			Rules: []ToolRule{
				{Methods: call, Names: []string{"ticket_*", "*_ticket"}, Scopes: []string{"ticket:create", "ticket:read"}, Callers: []string{"people"}},
				{Methods: []string{"resources/read"}, Names: []string{"file:///srv/*/{id}?x=1"}, Scopes: []string{"customer:read"}},
				{Methods: []string{"tools/list", "prompts/list"}, Names: []string{"*"}, Callers: []string{"cron"}},
			},
			// A6: the two scopes that include each other mean the same.
			Implies: map[string][]string{
				"admin":          {"customer:read", "customer:write", "ticket:*"},
				"customer:write": {"admin", "customer:read", "ticket:*"},
			},
		},
		"filtered": {Proof: ProofMCPFilter, MaxBody: 64 << 10, Implies: map[string][]string{}, Rules: []ToolRule{{Methods: call, Names: []string{"*"}}}},
		"closed":   {Proof: ProofBody, MaxBody: 1 << 20, Implies: map[string][]string{}},
	} {
		if diff := cmp.Diff(want, toolsOf(t, set, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestToolWarnings holds what is allowed and rarely meant, by a part of its text.
func TestToolWarnings(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ tools, want string }{
		"S7 nothing is allowed":             {`{}`, "every tool, prompt and resource is refused"},
		"H5 the caller's word":              {`{proof: headers, rules: [{names: [a]}]}`, "2026-07-28"},
		"the filter of Envoy":               {`{proof: mcp_filter, rules: [{names: [a]}]}`, "work in progress"},
		"a glob of another kind":            {`{rules: [{names: ["ticket_?"]}]}`, "only * stands"},
		"a regular expression":              {`{rules: [{names: ["ticket_.*"]}]}`, "only * stands"},
		"a URI may hold anything":           {`{rules: [{names: ["db://x?y={z}"], methods: [resources/read]}]}`, ""},
		"a rule that is not reached":        {`{rules: [{names: ["t*"]}, {names: ["ticket_*", tea]}]}`, "number 1 decides"},
		"the same for all callers, by name": {`{rules: [{names: [a], callers: [ci, cron]}, {names: [a]}]}`, "number 1 decides"},
		"reached by another caller":         {`{rules: [{names: [a], callers: [ci]}, {names: [a]}]}`, ""},
		"reached by another method":         {`{rules: [{names: ["*"]}, {names: ["*"], methods: [tools/call, prompts/get]}]}`, ""},
		"reached by another name":           {`{rules: [{names: ["ticket_*"]}, {names: ["t*"]}]}`, ""},
		"default allow without rules":       {`{default: allow}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := "version: 1\ncallers:\n  ci: {mtls: {san: a}}\n  cron: {mtls: {san: b}}\nenvoy: {tls: {certificate: c, private_key: k, client_ca: a}}\n" +
				"upstreams:\n  a: {url: https://a.example, callers: [ci, cron], credential: none, tools: " + tc.tools + "}\n"
			set, err := Parse("f", []byte(text), testEnv)
			if err != nil {
				t.Fatal(err)
			}
			var got string
			for _, w := range set.Warnings {
				got += w.String() + "\n"
			}
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) || strings.Count(got, "\n") > 1 {
				t.Errorf("got warnings %q, want one with %q", got, tc.want)
			}
		})
	}
}

// TestH7StandardHeadersAreInspected: Envoy must show what ReadStandard looks for,
// or a second Mcp-Name would go unseen.
func TestH7StandardHeadersAreInspected(t *testing.T) {
	t.Parallel()
	with, without := &Upstream{Tools: &Tools{}}, &Upstream{}
	shown, _, _ := with.Inspected()
	hidden, _, _ := without.Inspected()
	var h Standard
	var name, length []byte
	for _, header := range standardHeaders() {
		if h.slot(header, &name, &length) == nil {
			t.Errorf("%s is forwarded and not read", header)
		}
		if !slices.Contains(shown, header) || slices.Contains(hidden, header) {
			t.Errorf("want %s shown with tool rules only", header)
		}
	}
}
