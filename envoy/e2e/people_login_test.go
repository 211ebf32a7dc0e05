package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
	"golang.org/x/oauth2"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

// login is an authorization server's part for users: it gives out codes and, for
// them, the issuer's tokens for the resource that was asked for.
type login struct {
	p   *people
	url string

	mu    sync.Mutex
	asked []url.Values // authorization requests, the latest last
}

// newLogin adds it to the issuer's metadata.
func newLogin(p *people) *login {
	l := &login{p: p}
	srv := httptest.NewServer(http.HandlerFunc(l.token))
	p.t.Cleanup(srv.Close)
	l.url = srv.URL
	p.idp.EditMetadata(func(m map[string]any) {
		m["authorization_endpoint"], m["token_endpoint"] = srv.URL+"/authorize", srv.URL+"/token"
		m["code_challenge_methods_supported"] = []string{"S256"}
		m["response_types_supported"] = []string{"code"}
	})
	return l
}

// authorize is the user's browser: it agrees to everything.
func (l *login) authorize(_ context.Context, args *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
	u, err := url.Parse(args.URL)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, u.Query())
	return &auth.AuthorizationResult{Code: "code", State: u.Query().Get("state")}, nil
}

func (l *login) last() url.Values {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) == 0 {
		return nil
	}
	return l.asked[len(l.asked)-1]
}

// token is the token endpoint (RFC 6749 §4.1.3, RFC 7636, RFC 8707).
func (l *login) token(w http.ResponseWriter, r *http.Request) {
	asked := l.last()
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	if r.FormValue("grant_type") != "authorization_code" || r.FormValue("resource") != asked.Get("resource") ||
		base64.RawURLEncoding.EncodeToString(sum[:]) != asked.Get("code_challenge") {
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	token, err := l.p.idp.Mint("alice", r.FormValue("resource"), map[string]any{"scope": asked.Get("scope")})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": l.p.show(token), "token_type": "Bearer", "expires_in": 300, "scope": asked.Get("scope")})
}

// byLogin is a policy whose audience is the very URL that callers use, as MCP
// clients ask for it (RFC 8707).
func byLogin() string {
	return strings.NewReplacer(
		`audience: "https://mcp.company.com", algorithms`, `audience: "http://{{.Listen}}/alpha/mcp", algorithms`,
	).Replace(byToken)
}

// TestA2_SDKClientLogsIn: a client of the go-sdk that knows nothing but the URL
// finds the issuer by our challenge and metadata, logs its user in, and calls a
// protected server. It never hears of the server's own issuer.
func TestA2_SDKClientLogsIn(t *testing.T) {
	p := startPeople(t, byLogin())
	l := newLogin(p)
	p.withServers()
	for proto, transport := range map[string]http.RoundTripper{"h1": &http.Transport{}, "h2": h2c().Transport} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			resource, _ := p.at("alpha")
			s := l.session(t, resource, version, transport, "")
			var who mcpserver.Whoami
			callTool(t, s, &mcp.CallToolParams{Name: "whoami"}, &who)
			if who.ClientID != "alpha-client" || who.Subject != "alpha-client" {
				t.Errorf("%s %s: want the service's identity at the server, got %+v", proto, version, who)
			}
			if asked := l.last(); asked.Get("resource") != resource || !allScopes(asked) {
				t.Errorf("%s %s: want a token for %s with all scopes asked for, got %v", proto, version, resource, asked)
			}
			_ = s.Close()
		}
	}
	if n := len(l.asked); n != 4 {
		t.Errorf("want one login for each client, got %d", n)
	}
}

// allScopes reports whether an authorization request has them, in any order.
func allScopes(asked url.Values) bool {
	return slices.Equal(slices.Sorted(slices.Values(strings.Fields(asked.Get("scope")))), slices.Sorted(slices.Values(strings.Fields(scopesOfPeople))))
}

// session connects a client that can log in, and may have a token already.
func (l *login) session(t *testing.T, endpoint, version string, transport http.RoundTripper, token string) *mcp.ClientSession {
	t.Helper()
	client := &http.Client{Transport: transport}
	var first oauth2.TokenSource
	if token != "" {
		first = oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token})
	}
	handler, err := auth.NewAuthorizationCodeHandler(&auth.AuthorizationCodeHandlerConfig{
		InitialTokenSource:       first,
		PreregisteredClient:      &oauthex.ClientCredentials{ClientID: "app"},
		RedirectURL:              "http://127.0.0.1/callback",
		AuthorizationCodeFetcher: l.authorize,
		Client:                   &http.Client{Transport: &http.Transport{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "0"}, nil).Connect(t.Context(), &mcp.StreamableClientTransport{
		Endpoint: endpoint, HTTPClient: client, OAuthHandler: handler,
	}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestA5_SDKClientStepsUp: a client whose token lacks a scope reads from the 403
// which ones to ask for, and does so once.
func TestA5_SDKClientStepsUp(t *testing.T) {
	p := startPeople(t, byLogin())
	l := newLogin(p)
	p.withServers()
	resource, metadata := p.at("alpha")
	poor, err := p.idp.Mint("alice", resource, map[string]any{"scope": "mcp.read"})
	if err != nil {
		t.Fatal(err)
	}
	got := p.post("/alpha/mcp", "{}", "Authorization", "Bearer "+p.show(poor))
	got.refused(t, http.StatusForbidden, "scope_missing")
	asks, err := oauthex.ParseWWWAuthenticate(got.header.Values("Www-Authenticate"))
	if err != nil || len(asks) != 1 || asks[0].Scheme != "bearer" || asks[0].Params["error"] != "insufficient_scope" ||
		asks[0].Params["scope"] != scopesOfPeople || asks[0].Params["resource_metadata"] != metadata {
		t.Fatalf("want one challenge with all scopes, got %v, %v", asks, err)
	}
	found, err := oauthex.GetProtectedResourceMetadata(t.Context(), metadata, resource, &http.Client{Transport: &http.Transport{}})
	if err != nil || !slices.Equal(found.AuthorizationServers, []string{p.idp.Issuer()}) {
		t.Fatalf("want the issuer in our metadata, got %v, %v", found, err)
	}
	server, err := auth.GetAuthServerMetadata(t.Context(), found.AuthorizationServers[0], &http.Client{Transport: &http.Transport{}})
	if err != nil || server == nil || server.TokenEndpoint != l.url+"/token" {
		t.Fatalf("want the issuer's own metadata, got %v, %v", server, err)
	}
	s := l.session(t, resource, "2025-11-25", &http.Transport{}, poor)
	callTool(t, s, &mcp.CallToolParams{Name: "whoami"}, &mcpserver.Whoami{})
	if asked := l.last(); len(l.asked) != 1 || !allScopes(asked) {
		t.Errorf("want one step up with all scopes, got %v", l.asked)
	}
}
