package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
)

// usersOfLiteLLM is a policy for LiteLLM's users: LiteLLM itself is known by its
// key, and at two upstreams a user by a token in a header of its own.
const usersOfLiteLLM = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}"}
envoy: {listen: "{{.Listen}}"}
callers:
  litellm: {key: {sha256: "{{.KeySum}}"}}
  users:   {jwt: {issuer: "IDP", audience: "IDP", header: x-user-token}}
defaults:
  callers: [users]
  credential: {oauth2: {token_url: "{{.TokenURL}}", grant: token_exchange, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
upstreams:
  own:   {url: "{{.URL "own"}}"}
  other: {url: "{{.URL "other"}}"}
  alpha:
    url: "{{.URL "alpha"}}"
    callers: [users, litellm]
    credential: {oauth2: {token_url: "{{.TokenURL}}", client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
`

// TestUsersOfLiteLLM: the real LiteLLM, configured by what we render, passes its
// users' tokens on in a header of its own. Each gets a token of its own at the
// upstream, and LiteLLM's log tells why one gets none.
func TestUsersOfLiteLLM(t *testing.T) {
	binary := reallitellm.Require(t)
	p := startPeople(t, usersOfLiteLLM)
	for _, name := range []string{"own", "other", "alpha"} {
		protected, err := mcpserver.NewProtected(mcpserver.Config{
			Issuer: p.idp.Issuer(), JWKSURL: p.idp.JWKSURL(), RevocationURL: p.idp.URL() + "/revoked", Audience: p.up(name).url(), Scope: "mcp.read", Now: time.Now,
		})
		if err != nil {
			t.Fatal(err)
		}
		p.up(name).answer(protected)
	}
	l := p.litellm(binary)
	alice, bob := p.user("alice", 10*time.Minute), p.user("bob", 10*time.Minute)
	for what, row := range map[string]struct {
		server string
		more   pairs
		who    string
	}{
		"the header that is configured":      {"own", pairs{"x-user-token", alice}, "alice"},
		"with a scheme":                      {"own", pairs{"X-User-Token", "Bearer " + bob}, "bob"},
		"the header that every client has":   {"other", pairs{"x-mcp-other-x-user-token", alice}, "alice"},
		"a token where LiteLLM's key counts": {"alpha", pairs{"x-user-token", bob}, "alpha-client"},
		"LiteLLM's own key":                  {"alpha", nil, "alpha-client"},
	} {
		if who, err := as(t.Context(), l, row.server, row.more); err != nil || who != row.who {
			t.Errorf("%s: want to be %s at the upstream, got %q, %v", what, row.who, who, err)
		}
	}
	for name, want := range map[string][]string{"own": {"alice", "bob"}, "other": {"alice"}, "alpha": {"alpha-client"}} {
		got := users(p.up(name).take())
		slices.Sort(got)
		if n := len(got); !slices.Equal(slices.Compact(got), want) {
			t.Errorf("%s: want requests for %q and nobody else, got %q in %d", name, want, got, n)
		}
	}
	for what, row := range map[string]struct {
		more   pairs
		reason string
	}{
		"no token":                {nil, "caller_unknown"},
		"a token of nobody":       {pairs{"x-user-token", "Bearer " + canary}, "caller_invalid"},
		"LiteLLM's Authorization": {pairs{"Authorization", "Bearer " + alice}, "caller_unknown"},
	} {
		before := strings.Count(tail(l.Log, 4<<20), row.reason)
		if who, err := as(t.Context(), l, "own", row.more); err == nil || !strings.Contains(err.Error(), "401 Unauthorized") {
			t.Errorf("%s: want LiteLLM to tell of a refusal, got %q, %v", what, who, err)
		}
		// It logs what stands in a refusal when it lists, and not when it calls.
		if who, err := use(t.Context(), l, "own", row.more); err == nil {
			t.Errorf("%s: want no tools, got %q", what, who)
		}
		p.eventually("the reason is in LiteLLM's log: "+what, 5*time.Second, func() bool { return strings.Count(tail(l.Log, 4<<20), row.reason) > before })
	}
	if n := p.up("own").total(); n == 0 || len(p.up("own").take()) != 0 {
		t.Error("want nothing of those at the upstream")
	}
	log := tail(l.Log, 4<<20)
	for token := range p.shown {
		if strings.Contains(log, token) {
			t.Error("LiteLLM logs its users' tokens")
		}
	}
}

// as returns who one is at the server behind LiteLLM.
func as(ctx context.Context, l *reallitellm.LiteLLM, server string, more pairs) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "0"}, nil)
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:             l.URL + "/" + server + "/mcp",
		HTTPClient:           &http.Client{Transport: caller{append(pairs{"x-litellm-api-key", "Bearer " + masterKey}, more...), &http.Transport{}}},
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }()
	res, err := s.CallTool(ctx, &mcp.CallToolParams{Name: server + "-whoami"})
	if err != nil {
		return "", err
	}
	text := ""
	for _, c := range res.Content {
		if c, ok := c.(*mcp.TextContent); ok {
			text += c.Text
		}
	}
	if res.IsError {
		return "", fmt.Errorf("the tool failed: %.300s", text)
	}
	_, after, _ := strings.Cut(text, `"subject":"`)
	who, _, _ := strings.Cut(after, `"`)
	return who, nil
}
