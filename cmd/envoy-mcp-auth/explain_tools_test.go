package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const ruledPolicy = `version: 1
callers:
  ci: {key: {sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}, scopes: [customer:read]}
  people: {jwt: {issuer: https://idp.company.com, audience: mcp}}
defaults:
  callers: [ci, people]
  credential: none
upstreams:
  tools:
    url: https://tools.company.com/mcp
    tools:
      implies: {admin: [ticket:create]}
      rules:
        - {names: [read]}
        - {names: ["customer_*"], scopes: [customer:read]}
        - {names: ["ticket_*"], scopes: [ticket:create, ticket:read]}
  modern:
    url: https://modern.company.com/mcp
    tools: {proof: headers, default: allow}
`

// TestExplainSaysWhichRuleDecided holds what explain shows of the tool rules.
func TestExplainSaysWhichRuleDecided(t *testing.T) {
	file := policyFile(t, ruledPolicy)
	call := func(name string) string {
		return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + name + `"}}`
	}
	key := []string{"-H", "x-mcp-auth-key: key"}
	token := []string{"-H", "authorization: Bearer canary.canary.canary"}
	for _, tc := range []struct {
		name, upstream, body string
		args                 []string
		code                 int
		want                 []string
	}{
		{"without scopes", "tools", call("read"), key, 0, []string{"tool      tools/call read: allowed: rule 1 lets in every caller"}},
		{"by a scope", "tools", call("customer_lookup"), key, 0, []string{"allowed: rule 2 asks for customer:read; caller ci has customer:read"}},
		{"S6 without it", "tools", call("ticket_new"), key, 1, []string{"scope_missing: rule 3 asks for ticket:create, ticket:read; caller ci has customer:read", "decision  scope_missing (403)"}},
		{"S7 no rule", "tools", call("drop"), key, 1, []string{"tool_denied: no rule is about it for caller ci, and the default is deny"}},
		{"a list", "tools", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`, key, 0, []string{"tools/list: allowed: no rule is about it, and it runs no tool"}},
		{"a batch", "tools", "[" + call("read") + "," + call("drop") + `,{"jsonrpc":"2.0","id":1,"result":{}}]`, key, 1, []string{"tools/call read: allowed", "tools/call drop: tool_denied", "response: allowed", "decision  tool_denied"}},
		{"S3 unproved", "tools", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","name":"drop"}}`, key, 1, []string{"note      the body: a member is there twice", "decision  tool_unproved"}},
		{"S1 a lying header", "tools", call("drop"), append([]string{"-H", "Mcp-Name: read"}, key...), 1, []string{"decision  header_mismatch (400)"}},
		{"a token with scopes", "tools", call("ticket_new"), append([]string{"--scope", "admin", "--scope", "ticket:read"}, token...), 0, []string{"taken to be of people", "caller people has admin, ticket:read"}},
		{"a token without", "tools", call("ticket_new"), token, 1, []string{"with the scopes that --scope names: none", "scope_missing"}},
		{"no body", "tools", "", key, 0, []string{"give one with --body FILE"}},
		{"a POST without a body", "tools", "", append([]string{"--method", "POST"}, key...), 1, []string{"tool_unproved"}},
		{"too large", "tools", call("read") + strings.Repeat(" ", 1<<20), key, 1, []string{"body_too_large (413)"}},
		{"H4 by headers", "modern", call("any"), key, 1, []string{"not looked at; proof: headers wants MCP-Protocol-Version", "tool_unproved"}},
		{"H4 by headers, modern", "modern", call("any"), append([]string{"-H", "mcp-protocol-version: 2026-07-28", "-H", "mcp-method: tools/call", "-H", "mcp-name: any"}, key...), 0, []string{"no rule is about it, and the default is allow"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"explain", "-c", file, "--upstream", tc.upstream}, tc.args...)
			if tc.body != "" {
				path := filepath.Join(t.TempDir(), "body.json")
				if err := os.WriteFile(path, []byte(tc.body), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--body", path)
			}
			got := program(t, nil, args...)
			if got.code != tc.code {
				t.Errorf("status %d, want %d", got.code, tc.code)
			}
			for _, want := range tc.want {
				if !strings.Contains(got.out, want) {
					t.Errorf("want %q in:\n%s%s", want, got.out, got.err)
				}
			}
			if strings.Contains(got.out+got.err, "canary") {
				t.Errorf("a secret is shown: %s", got.out)
			}
			var parsed explanation
			asJSON := program(t, nil, append(args, "-o", "json")...)
			if err := json.Unmarshal([]byte(asJSON.out), &parsed); err != nil || parsed.Reason == "" {
				t.Errorf("as JSON: %v: %s", err, asJSON.out)
			}
		})
	}
	if got := program(t, nil, "explain", "-c", file, "--upstream", "tools", "--body", "/nowhere"); got.code != 1 || !strings.Contains(got.err, "give an existing file") {
		t.Errorf("a body that is not there: status %d, %s", got.code, got.err)
	}
}
