package tokenstest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

func sign(t *testing.T, key *ecdsa.PrivateKey, typ string, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestO4_WhatAssertionsAreRefused: the server would not notice a bad client if
// it took any of these.
func TestO4_WhatAssertionsAreRefused(t *testing.T) {
	key := ecKey(t)
	as := tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{
		"id":     {Keys: []jose.JSONWebKey{{Key: key.Public()}}},
		"secret": {Secret: "s"},
	}})
	now := time.Now().Unix()
	const typ = "client-authentication+jwt"
	for name, c := range map[string]struct {
		change func(map[string]any)
		typ    string
		key    *ecdsa.PrivateKey
		form   []string
		status int
	}{
		"good":          {nil, typ, key, nil, 200},
		"same id":       {nil, typ, key, []string{"client_id", "id"}, 200},
		"token url":     {func(m map[string]any) { m["aud"] = as.TokenURL() }, typ, key, nil, 401},
		"two audiences": {func(m map[string]any) { m["aud"] = []string{as.Issuer(), "x"} }, typ, key, nil, 401},
		"other iss":     {func(m map[string]any) { m["iss"] = "x" }, typ, key, nil, 401},
		"expired":       {func(m map[string]any) { m["exp"] = now - 1 }, typ, key, nil, 401},
		"too long":      {func(m map[string]any) { m["exp"] = now + 90 }, typ, key, nil, 401},
		"no iat":        {func(m map[string]any) { delete(m, "iat") }, typ, key, nil, 401},
		"iat to come":   {func(m map[string]any) { m["iat"] = now + 100 }, typ, key, nil, 401},
		"no jti":        {func(m map[string]any) { delete(m, "jti") }, typ, key, nil, 401},
		"other typ":     {nil, "JWT", key, nil, 401},
		"other key":     {nil, typ, ecKey(t), nil, 401},
		"other type":    {nil, typ, key, []string{"client_assertion_type", "x"}, 401},
		"other id":      {nil, typ, key, []string{"client_id", "secret"}, 401},
		"two methods":   {nil, typ, key, []string{"client_secret", "s"}, 400},
	} {
		claims := map[string]any{"iss": "id", "sub": "id", "aud": as.Issuer(), "iat": now, "exp": now + 50, "jti": name}
		if c.change != nil {
			c.change(claims)
		}
		f := form("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", sign(t, c.key, c.typ, claims))
		for i := 0; i < len(c.form); i += 2 {
			f.Set(c.form[i], c.form[i+1])
		}
		if status, _ := ask(t, as, f, "", ""); status != c.status {
			t.Errorf("%s: want %d, got %d", name, c.status, status)
		}
		if status, _ := ask(t, as, f, "", ""); status == 200 {
			t.Errorf("%s: want it refused the second time", name)
		}
	}
	if status, _ := ask(t, as, form("client_id", "id"), "", ""); status != 401 {
		t.Errorf("want a client without proof refused, got %d", status)
	}
	if status, _ := ask(t, as, form("client_id", "id", "client_secret", ""), "", ""); status == 200 {
		t.Error("want an empty secret refused")
	}
}
