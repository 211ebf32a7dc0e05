package main

import (
	"strings"
	"testing"
)

const jwtPolicy = `version: 1
callers:
  people: {jwt: {issuer: https://idp.company.com, audience: https://mcp.company.com}}
  ci: {key: {sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}}
upstreams:
  tools:
    url: https://tools.company.com/mcp
    callers: [people, ci]
    credential: {oauth2: {token_url: "https://auth.company.com/token", client_id: proxy, client_secret: "${SECRET}"}}
  own:
    url: https://own.company.com/mcp
    callers: [people]
    credential: {oauth2: {token_url: "https://auth.company.com/token", grant: token_exchange, client_id: proxy, client_secret: "${SECRET}"}}
`

// A token decides alone, is not shown, and nobody is asked about it.
func TestExplainTokens(t *testing.T) {
	file := policyFile(t, jwtPolicy)
	for _, c := range []struct {
		title, upstream string
		headers         []string
		code            int
		want            []string
	}{
		{"a token", "tools", []string{"Authorization: Bearer canary.a.b", "x-mcp-auth-key: wrong"}, 0, []string{
			"caller    people if the token in authorization is of https://idp.company.com, for https://mcp.company.com (rfc9068, RS256 PS256 ES256 EdDSA)\n",
			"verify    nothing was sent", "decision  allowed (200)", "access token of client proxy",
		}},
		{"a token, exchanged", "own", []string{"Authorization: Bearer canary.a.b"}, 0, []string{"access token of the caller alone, by client proxy"}},
		{"no token, a key", "tools", []string{"x-mcp-auth-key: key"}, 0, []string{"caller    ci\n"}},
		{"A4 nothing", "tools", nil, 1, []string{"caller_unknown (401)"}},
		{"A9 no token in its place", "tools", []string{"Authorization: Basic canary", "x-mcp-auth-key: key"}, 1, []string{"caller_invalid (401)"}},
		{"H7 two", "tools", []string{"Authorization: Bearer canary", "Authorization: Bearer canary"}, 1, []string{"bad_request (400)"}},
	} {
		t.Run(c.title, func(t *testing.T) {
			args := []string{"explain", "-c", file, "--upstream", c.upstream}
			for _, h := range c.headers {
				args = append(args, "-H", h)
			}
			got := program(t, secretEnv(), args...)
			for _, want := range c.want {
				if !strings.Contains(got.out, want) {
					t.Errorf("want %q in:\n%s%s", want, got.out, got.err)
				}
			}
			if got.code != c.code || strings.Contains(got.out+got.err, "canary") {
				t.Errorf("want %d and no secret, got %d:\n%s%s", c.code, got.code, got.out, got.err)
			}
		})
	}
}
