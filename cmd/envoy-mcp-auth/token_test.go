package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// TestTokenShowsWhatDiscoveryFound: the key is read from its file, and all that
// an operator wants to know of the server is shown, but for the key.
func TestTokenShowsWhatDiscoveryFound(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	as := tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{
		"proxy": {Keys: []jose.JSONWebKey{{Key: key.Public()}}},
	}})
	file := policyFile(t, fmt.Sprintf(`version: 1
callers:
  anyone: {any: true}
upstreams:
  tools:
    url: https://tools.company.com/mcp
    callers: [anyone]
    credential: {oauth2: {issuer: %q, client_id: proxy, private_key: {file: %q}}}
`, as.Issuer(), policyFile(t, text)))
	got := program(t, nil, "token", "-c", file)
	for _, want := range []string{
		"  issuer    " + as.Issuer() + "\n",
		"  metadata  " + as.URL() + "/.well-known/oauth-authorization-server (offers client_secret_basic, client_secret_post, private_key_jwt)\n",
		"  endpoint  " + as.TokenURL() + " (private_key_jwt, client proxy)\n",
		`"https://tools.company.com/mcp"`,
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s%s", want, got.out, got.err)
		}
	}
	as.EditMetadata(func(m map[string]any) { m["issuer"] = "https://other.example" })
	if again := program(t, nil, "token", "-c", file); again.code != 1 || !strings.Contains(again.out, "issuer_mismatch") {
		t.Errorf("want the fault named, got %d:\n%s%s", again.code, again.out, again.err)
	}
	if strings.Contains(got.out+got.err, strings.Split(text, "\n")[1]) {
		t.Error("the key is in the output")
	}
}
