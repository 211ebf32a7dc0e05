package tokens

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// FuzzJWS: whatever is taken apart here, go-jose reads in the same way; and
// nothing takes long or panics.
func FuzzJWS(f *testing.F) {
	key := newMinter(f, "ES256", "k1")
	good := string(key.token(f, time.Unix(1e9, 0), nil, nil))
	f.Add([]byte(good))
	for _, header := range []string{
		`{"alg":"ES256"}`, `{"alg":"ES256","alg":"none"}`, `{"ALG":"none","alg":"ES256"}`, `{"alg":"ES256","crit":["x"],"x":1}`, `{"alg":null}`,
		`{"alg":"ES256","kid":"\ud800"}`, `{"alg":"ES256","kid":null,"typ":"at+jwt"}`, ` {"alg":"ES256","nonce":5}`, `{"alg":"ES256","jku":{}}`,
		`{"alg":"ES256","epk":{}}`, `{"alg":"ES256","x5t":5,"cty":[]}`, "\xef\xbb\xbf{\"alg\":\"ES256\"}",
	} {
		f.Add(key.raw(f, "ES256", header, `{"iss":"a","aud":["b"],"exp":1e3}`))
	}
	f.Add([]byte(good + "."))
	f.Add([]byte(strings.Replace(good, ".", "..", 1)))
	f.Add([]byte(strings.Replace(good, ".", "=.", 1)))
	f.Add([]byte(strings.Replace(good, "e", "\n", 1)))
	f.Fuzz(func(t *testing.T, token []byte) {
		j, bad := parseJWS(token)
		if bad != nil {
			if j != nil || bad.Code == "" || bad.Text == "" {
				t.Errorf("want a refusal with a reason, got %+v", bad)
			}
			return
		}
		if !bytes.Equal([]byte(j.text), token) || len(token) > maxToken || bytes.Count(token, []byte(".")) != 2 {
			t.Fatalf("taken: %q", token)
		}
		parsed, err := jose.ParseSignedCompact(string(token), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(j.alg)})
		if err != nil {
			return // stricter is fine: verify goes through it
		}
		h := parsed.Signatures[0].Protected
		typ, _ := h.ExtraHeaders["typ"].(string)
		if h.Algorithm != j.alg || h.KeyID != j.kid || typ != j.typ || h.JSONWebKey != nil {
			t.Errorf("header: want %q %q %q, go-jose has %q %q %q", j.alg, j.kid, j.typ, h.Algorithm, h.KeyID, typ)
		}
		if !bytes.Equal(parsed.UnsafePayloadWithoutVerification(), j.payload) || !bytes.Equal(parsed.Signatures[0].Signature, j.signature) {
			t.Error("payload or signature: go-jose reads another")
		}
		var claims map[string]json.RawMessage
		if err := json.Unmarshal(j.payload, &claims); err != nil || len(claims) != len(j.claims) {
			t.Errorf("claims: want %d, got %d: %v", len(j.claims), len(claims), err)
		}
	})
}

// FuzzClaims: no claims make the check panic, and what passes has every claim
// that a decision reads.
func FuzzClaims(f *testing.F) {
	v := newTestVerifier(f, newIssuer(), nil)
	rules := []*Rule{rule(f, v, jwtSpec(nil)), rule(f, v, jwtSpec(generic)), rule(f, v, jwtSpec(idTokens)), rule(f, v, jwtSpec(scp))}
	now := time.Unix(1_700_000_000, 0)
	b, err := json.Marshal(claimsOf(now, map[string]any{"scp": []string{"a"}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("at+jwt", b)
	f.Add("", b)
	f.Add("JWT", []byte(`{"iss":"https://idp.test","aud":["https://mcp.test"],"sub":"\ud800","exp":1.7e9,"iat":null}`))
	f.Fuzz(func(t *testing.T, typ string, payload []byte) {
		claims, bad := tokenObject(payload, "claims")
		if bad != nil {
			return
		}
		for _, r := range rules {
			p, bad := r.check(&jws{alg: "ES256", typ: typ, claims: claims}, now)
			if bad == nil && (p.Issuer != issuerURL || p.Subject == "" || !p.Expiry.After(now.Add(-maxSkew))) {
				t.Errorf("taken: %q as %+v", payload, p)
			}
		}
	})
}

// BenchmarkVerify is a token that is known, one that is not, and one with a bad signature.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range []string{"RS256", "ES256", "EdDSA"} {
		key := newMinter(b, alg, "k1")
		r := rule(b, newTestVerifier(b, newIssuer(publish(key)...), nil), jwtSpec(nil))
		token := key.token(b, time.Now(), nil, nil)
		if _, err := r.Verify(b.Context(), token); err != nil {
			b.Fatal(err)
		}
		if alg == "RS256" {
			b.Run("known", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.Verify(b.Context(), token); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(alg, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.v.seen.keep(nil)
				if _, err := r.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestJ11_KnownTokenAllocations: a token that is known costs no memory.
func TestJ11_KnownTokenAllocations(t *testing.T) {
	key := newMinter(t, "ES256", "k1")
	v := newTestVerifier(t, newIssuer(publish(key)...), nil)
	rules := []*Rule{rule(t, v, jwtSpec(func(j *policy.JWT) { j.Issuer = "https://other.test" })), rule(t, v, jwtSpec(nil))}
	token := key.token(t, time.Now(), nil, nil)
	if _, err := rules[1].Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		p := Present(token, rules)
		if _, err := rules[1].VerifyPresented(ctx, &p); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("want no allocation, got %v", n)
	}
}
