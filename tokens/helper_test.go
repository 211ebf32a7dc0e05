package tokens

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

const (
	clientID = "litellm-proxy"
	// canary is a client secret that is easy to find in any output, and
	// whose encodings all differ from it.
	canary = "c4n4ry+%:&= ä~!secret"
)

// store is a SecretSource whose secret can be changed or lost.
type store struct {
	mu     sync.Mutex
	secret string
	err    error
}

func (s *store) Secret(policy.SecretRef) (policy.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return policy.NewSecret(s.secret), s.err
}

func (s *store) set(secret string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret, s.err = secret, err
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func startAS(t *testing.T, cfg tokenstest.Config) *tokenstest.Server {
	t.Helper()
	if cfg.Clients == nil {
		cfg.Clients = map[string]tokenstest.Client{clientID: {Secret: canary}}
	}
	return tokenstest.Start(t, cfg)
}

func spec(url string) *policy.OAuth2 {
	return &policy.OAuth2{
		TokenURL: url, ClientID: clientID, AuthMethod: policy.ClientSecretBasic,
		ClientSecret: policy.SecretRef{Kind: policy.SecretEnv, Name: "CLIENT_SECRET"},
		Scopes:       []string{"mcp.read", "mcp.write"}, Resource: "https://mcp.company.com/mcp",
		DefaultLifetime: 5 * time.Minute, MaxLifetime: 24 * time.Hour,
	}
}

func newCache(t *testing.T, change func(*Config)) *Cache {
	t.Helper()
	cfg := Config{Secrets: &store{secret: canary}, Now: time.Now, Log: zerolog.Nop()}
	if change != nil {
		change(&cfg)
	}
	c := New(cfg)
	t.Cleanup(c.Close)
	return c
}

func source(t *testing.T, c *Cache, name string, o *policy.OAuth2) *Source {
	t.Helper()
	s, err := c.Source(name, o)
	if err != nil {
		t.Fatalf("Source(%q): %v", name, err)
	}
	return s
}

// failed asserts that err is an *Error and returns it.
func failed(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("want an *Error, got %v", err)
	}
	if e.RetryAfter < time.Second {
		t.Errorf("RetryAfter of %q: want at least 1s, got %s", e.Code, e.RetryAfter)
	}
	return e
}
