package mcpserver_test

import (
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}}}`

// post sends one request to the MCP endpoint with that Authorization, if any.
func post(t *testing.T, url, authorization string) (status int, challenge, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/mcp", strings.NewReader(initialize))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	client := &http.Client{Timeout: 10 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("WWW-Authenticate"), string(b)
}

func TestProtectedRefusesBareCall(t *testing.T) {
	t.Parallel()
	url, rec := newIssuer(t).protected(t)
	status, challenge, _ := post(t, url, "")
	if status != http.StatusUnauthorized {
		t.Errorf("want 401, got %d", status)
	}
	want := `Bearer resource_metadata="http://127.0.0.1:9001/.well-known/oauth-protected-resource/mcp", scope="mcp.read"`
	if challenge != want {
		t.Errorf("challenge: want %q, got %q", want, challenge)
	}
	if got := rec.Requests(); len(got) != 1 || got[0].Status != http.StatusUnauthorized || got[0].Path != "/mcp" {
		t.Errorf("recorded %+v", got)
	}
}

func TestProtectedJudgesTokens(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	url, _ := i.protected(t)
	with := func(name string, value any) string {
		c := maps.Clone(i.claims())
		c[name] = value
		if value == nil {
			delete(c, name)
		}
		return i.sign(t, c)
	}
	other := newIssuer(t) // the same key id, another key
	shared, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte("0123456789abcdef0123456789abcdef")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	symmetric, err := jwt.Signed(shared).Claims(i.claims()).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, token string
		status      int
		body        string
	}{
		{"good", i.sign(t, i.claims()), 200, "protected-demo"},
		{"audience as a list", with("aud", []string{"other", audience}), 200, "protected-demo"},
		{"other issuer", with("iss", "http://other"), 401, "issuer"},
		{"other audience", with("aud", "http://other/mcp"), 401, "audience"},
		{"no audience", with("aud", nil), 401, "audience"},
		{"expired", with("exp", time.Now().Add(-time.Second).Unix()), 401, "expired"},
		{"no id", with("jti", nil), 401, "no jti"},
		{"id unknown to the issuer", with("jti", "token-2"), 401, "revoked"},
		{"no exp", with("exp", nil), 401, "no exp"},
		{"not yet valid", with("nbf", time.Now().Add(time.Minute).Unix()), 401, "not yet"},
		{"scope missing", with("scope", "other"), 403, "insufficient scope"},
		{"foreign signature", other.sign(t, i.claims()), 401, "signature"},
		{"symmetric signature", symmetric, 401, "not a signed JWT"},
		{"not a JWT", "opaque", 401, "not a signed JWT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			status, challenge, body := post(t, url, "Bearer "+c.token)
			if status != c.status || !strings.Contains(body, c.body) {
				t.Errorf("want %d with %q, got %d: %s", c.status, c.body, status, body)
			}
			if status != http.StatusOK && challenge == "" {
				t.Error("no WWW-Authenticate")
			}
			if strings.Contains(body, c.token) {
				t.Error("the token is in the answer")
			}
		})
	}
}

func TestProtectedAsksAboutRevocation(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	url, _ := i.protected(t)
	token := "Bearer " + i.sign(t, i.claims())
	for _, step := range []struct {
		name   string
		do     func()
		status int
	}{
		{"live", func() {}, 200},
		{"revoked", func() { i.revoked = true }, 401},
		{"no answer is not a yes", func() { i.revoked, i.down = false, true }, 500},
		{"live again", func() { i.down = false }, 200},
	} {
		i.set(step.do)
		if status, _, body := post(t, url, token); status != step.status {
			t.Errorf("%s: want %d, got %d: %s", step.name, step.status, status, body)
		}
	}
}

func TestProtectedFetchesKeysForUnknownKidOnceASecond(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	clock := time.Now().Add(2 * time.Second) // not before any iat
	url, _ := i.protected(t, func(c *mcpserver.Config) { c.Now = func() time.Time { return clock } })
	if status, _, _ := post(t, url, "Bearer "+i.sign(t, i.claims())); status != http.StatusOK {
		t.Fatalf("want 200, got %d", status)
	}
	i.rotate(t, "key-2")
	rotated := "Bearer " + i.sign(t, i.claims())
	for range 5 {
		if status, _, _ := post(t, url, rotated); status != http.StatusUnauthorized {
			t.Errorf("within the second: want 401, got %d", status)
		}
	}
	clock = clock.Add(time.Second)
	if status, _, _ := post(t, url, rotated); status != http.StatusOK {
		t.Errorf("after a second: want 200, got %d", status)
	}
	i.set(func() {
		if i.fetches != 2 {
			t.Errorf("want 2 fetches of the keys, got %d", i.fetches)
		}
	})
}

func TestProtectedServesItsMetadata(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	url, _ := i.protected(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/.well-known/oauth-protected-resource/mcp", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{audience, i.URL, scope} {
		if !strings.Contains(string(b), want) {
			t.Errorf("metadata lacks %q: %s", want, b)
		}
	}
}

func TestNewProtectedWantsAllOfItsConfig(t *testing.T) {
	t.Parallel()
	good := mcpserver.Config{Issuer: "http://a", JWKSURL: "http://a/jwks", Audience: audience, Scope: scope, Now: time.Now}
	for name, spoil := range map[string]func(*mcpserver.Config){
		"Issuer":   func(c *mcpserver.Config) { c.Issuer = "" },
		"JWKSURL":  func(c *mcpserver.Config) { c.JWKSURL = "" },
		"Audience": func(c *mcpserver.Config) { c.Audience = "mcp" },
		"Scope":    func(c *mcpserver.Config) { c.Scope = "" },
		"Now":      func(c *mcpserver.Config) { c.Now = nil },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := mcpserver.NewProtected(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: want an error that names it, got %v", name, err)
		}
	}
	if _, err := mcpserver.NewProtected(good); err != nil {
		t.Errorf("good config: %v", err)
	}
}
