package mcpserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

const (
	audience = "http://127.0.0.1:9001/mcp"
	scope    = "mcp.read"
)

// issuer signs tokens, publishes its keys and says which are revoked.
type issuer struct {
	*httptest.Server

	mu      sync.Mutex // guards what follows
	kid     string
	key     *ecdsa.PrivateKey
	fetches int
	revoked bool
	down    bool
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{}
	i.rotate(t, "key-1")
	mux := http.NewServeMux()
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.fetches++
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: i.kid, Algorithm: "ES256", Use: "sig"}}})
	})
	mux.HandleFunc("GET /revoked", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		answer(w, map[string]bool{"revoked": r.URL.Query().Get("jti") != "token-1" || i.revoked})
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func (i *issuer) rotate(t *testing.T, kid string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.key, i.kid = key, kid
}

func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

// claims are those of a good token; a test spoils one.
func (i *issuer) claims() map[string]any {
	return map[string]any{
		"iss": i.URL, "aud": audience, "sub": "service-1", "client_id": "litellm-proxy", "jti": "token-1",
		"scope": "other " + scope, "exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix(),
	}
}

func (i *issuer) sign(t *testing.T, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	opts := (&jose.SignerOptions{}).WithType("at+jwt").WithHeader("kid", i.kid)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// protected starts a protected server that trusts i.
func (i *issuer) protected(t *testing.T, spoil ...func(*mcpserver.Config)) (url string, rec *mcpserver.Recorder) {
	t.Helper()
	cfg := mcpserver.Config{
		Issuer: i.URL, JWKSURL: i.URL + "/jwks", RevocationURL: i.URL + "/revoked",
		Audience: audience, Scope: scope, Now: time.Now,
	}
	for _, f := range spoil {
		f(&cfg)
	}
	h, err := mcpserver.NewProtected(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rec = mcpserver.NewRecorder(time.Now, nil)
	s := httptest.NewServer(rec.Wrap(h))
	t.Cleanup(func() {
		s.CloseClientConnections() // Close waits for streams that a failed test left open
		s.Close()
	})
	return s.URL, rec
}
