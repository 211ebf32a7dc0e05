package tokens

import (
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

func TestTokenFromARealServer(t *testing.T) {
	as := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood})
	for _, m := range []policy.AuthMethod{policy.ClientSecretBasic, policy.ClientSecretPost} {
		o := spec(as.TokenURL())
		o.CA, o.AuthMethod = as.CAFile(), m
		s := source(t, newCache(t, nil), "a", o)
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", m, err)
		}
		if !strings.HasPrefix(string(tok.Authorization()), "Bearer ey") || tok.Scope() != "mcp.read mcp.write" {
			t.Errorf("%s: want a JWT with both scopes, got scope %q", m, tok.Scope())
		}
	}
}
