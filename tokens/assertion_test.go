package tokens

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// refStore answers by the name of the ref.
type refStore map[string]string

func (s refStore) Secret(ref policy.SecretRef) (policy.Secret, error) {
	v, ok := s[ref.Name]
	if !ok {
		return policy.Secret{}, errors.New("not held")
	}
	return policy.NewSecret(v), nil
}

// keyRef is where the tests keep private keys.
func keyRef() policy.SecretRef { return policy.SecretRef{Kind: policy.SecretFile, Name: "PRIVATE_KEY"} }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) //nolint:forbidigo // a broken test
	}
	return v
}

func newRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	return must(rsa.GenerateKey(rand.Reader, 2048))
}

func newEC(curve elliptic.Curve) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(curve, rand.Reader))
}

func newEd() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return must(key, err)
}

func inPEM(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(key crypto.Signer) string {
	return inPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
}

func inJWK(key crypto.Signer, kid, alg string) string {
	return string(must(json.Marshal(jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: alg, Use: "sig"})))
}

// signed is a credential with private_key_jwt.
func signed(as *tokenstest.Server) *policy.OAuth2 {
	o := spec(as.TokenURL())
	o.AuthMethod, o.ClientSecret, o.PrivateKey = policy.PrivateKeyJWT, policy.SecretRef{}, keyRef()
	o.AssertionAudience = as.Issuer()
	return o
}

func keyed(key crypto.Signer, kid string) map[string]tokenstest.Client {
	public := jose.JSONWebKey{Key: key.Public(), KeyID: kid}
	return map[string]tokenstest.Client{clientID: {Keys: []jose.JSONWebKey{public}, NeedsResource: true}}
}

// TestO4_U5_EveryKeyAndAlgorithm gets a token with each kind of key in each
// form, from a server that verifies the assertions.
func TestO4_U5_EveryKeyAndAlgorithm(t *testing.T) {
	rsaKey, ecKey, edKey := newRSA(t), newEC(elliptic.P256()), newEd()
	sec1 := inPEM("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ecKey)))
	parameters := inPEM("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7})
	for name, c := range map[string]struct {
		key            crypto.Signer
		text, kid, alg string
		want           string
	}{
		"RS256 PKCS8":           {rsaKey, pkcs8(rsaKey), "", "", "RS256"},
		"PS256 PKCS1":           {rsaKey, inPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), "k1", "PS256", "PS256"},
		"ES256 SEC1":            {ecKey, sec1, "k2", "ES256", "ES256"},
		"ES256 with parameters": {ecKey, parameters + sec1, "", "", "ES256"},
		"ES256 on one line":     {ecKey, strings.ReplaceAll(pkcs8(ecKey), "\n", `\n`), "", "", "ES256"},
		"EdDSA PKCS8":           {edKey, pkcs8(edKey), "", "EdDSA", "EdDSA"},
		"PS256 JWK":             {rsaKey, inJWK(rsaKey, "k3", "PS256"), "", "", "PS256"},
		"EdDSA JWK":             {edKey, inJWK(edKey, "k4", ""), "", "", "EdDSA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kid := c.kid
			if strings.HasSuffix(name, "JWK") {
				kid = map[string]string{"PS256": "k3", "EdDSA": "k4"}[c.want]
			}
			as := startAS(t, tokenstest.Config{Clients: keyed(c.key, kid)})
			o := signed(as)
			o.KeyID, o.SigningAlgorithm = c.kid, c.alg
			s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = refStore{"PRIVATE_KEY": c.text} }), "a", o)
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			r := as.Recorded()[0]
			jws := must(jose.ParseSignedCompact(r.Form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(c.want)}))
			if got := jws.Signatures[0].Protected.KeyID; got != kid {
				t.Errorf("want kid %q, got %q", kid, got)
			}
			if r.Header.Get("Authorization") != "" || r.Form.Has("client_secret") || r.Form.Get("client_id") != clientID {
				t.Errorf("want the assertion as the only proof, got %v %v", r.Header, r.Form)
			}
		})
	}
}

// TestO4_Claims looks at what is signed.
func TestO4_Claims(t *testing.T) {
	key := newEC(elliptic.P256())
	as := startAS(t, tokenstest.Config{Clients: keyed(key, "")})
	as.FailNext(1, tokenstest.Status503)
	o := signed(as)
	c := newCache(t, func(cfg *Config) {
		cfg.Secrets = refStore{"PRIVATE_KEY": pkcs8(key)}
	})
	s := source(t, c, "a", o)
	before := time.Now()
	_, _ = s.Token(t.Context())
	time.Sleep(1200 * time.Millisecond) // the first pause after a failure
	if _, err := s.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, r := range as.Recorded() {
		jws := must(jose.ParseSignedCompact(r.Form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.ES256}))
		var claims map[string]any
		if err := json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &claims); err != nil {
			t.Fatal(err)
		}
		iat, _ := claims["iat"].(float64)
		exp, _ := claims["exp"].(float64)
		jti, _ := claims["jti"].(string)
		if claims["iss"] != clientID || claims["sub"] != clientID || claims["aud"] != as.Issuer() || len(claims) != 6 {
			t.Errorf("got %v", claims)
		}
		if exp-iat > 60 || exp <= iat || int64(iat) < before.Unix() || len(jti) < 20 || seen[jti] {
			t.Errorf("want 60 s at most and a jti of its own, got %v", claims)
		}
		seen[jti] = true
		if typ := jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType]; typ != assertionTyp {
			t.Errorf("got typ %v", typ)
		}
	}
	if len(seen) != 2 {
		t.Errorf("want an assertion for each of 2 attempts, got %d", len(seen))
	}
}

// TestO4_TheTypSwitch is for servers that know no typ.
func TestO4_TheTypSwitch(t *testing.T) {
	key := newEC(elliptic.P256())
	for _, old := range []bool{false, true} {
		for _, off := range []bool{false, true} {
			as := startAS(t, tokenstest.Config{Clients: keyed(key, ""), NoAssertionTyp: old})
			o := signed(as)
			o.NoAssertionTyp = off
			s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = refStore{"PRIVATE_KEY": pkcs8(key)} }), "a", o)
			_, err := s.Token(t.Context())
			if old == off && err != nil {
				t.Errorf("old server %v, typ off %v: %v", old, off, err)
			}
			if old != off && failed(t, err).Code != "invalid_client" {
				t.Errorf("old server %v, typ off %v: want invalid_client, got %v", old, off, err)
			}
		}
	}
}

// TestO4_ANewKeyIsUsedAtTheNextFetch: also when the old one was refused for good.
func TestO4_ANewKeyIsUsedAtTheNextFetch(t *testing.T) {
	old, fresh := newEC(elliptic.P256()), newEC(elliptic.P256())
	as := startAS(t, tokenstest.Config{Clients: keyed(fresh, "")})
	st := &store{secret: pkcs8(old)}
	s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = st }), "a", signed(as))
	for range 3 {
		_, err := s.Token(t.Context())
		if e := failed(t, err); e.Code != "invalid_client" || !e.permanent {
			t.Fatalf("want a permanent invalid_client, got %v", e)
		}
	}
	st.set(pkcs8(fresh), nil)
	if _, err := s.Token(t.Context()); err != nil || as.Requests() != 2 {
		t.Errorf("want a token with the new key at the second request, got %v after %d", err, as.Requests())
	}
}

// TestS4_O4_KeysThatCannotSign: each is named by its fault, never by its content.
func TestS4_O4_KeysThatCannotSign(t *testing.T) {
	small := must(rsa.GenerateKey(rand.Reader, 1024)) //nolint:gosec // too small is the point
	p384 := newEC(elliptic.P384())
	ec := newEC(elliptic.P256())
	good := pkcs8(ec)
	as := startAS(t, tokenstest.Config{Clients: keyed(ec, "")})
	for name, c := range map[string]struct{ text, alg, want string }{
		"nothing":     {"c4n4ry", "", "neither"},
		"small":       {pkcs8(small), "", "1024 bits"},
		"P-384":       {pkcs8(p384), "", "P-256"},
		"cut off":     {good[:80] + "\n-----END PRIVATE KEY-----\n", "", "cut off"},
		"encrypted":   {inPEM("ENCRYPTED PRIVATE KEY", []byte("x")), "", "passphrase"},
		"certificate": {inPEM("CERTIFICATE", []byte("x")), "", "neither"},
		"public":      {string(must(json.Marshal(jose.JSONWebKey{Key: ec.Public()}))), "", "without a private key"},
		"symmetric":   {`{"kty":"oct","k":"c4n4rysecretc4n4rysecret"}`, "", "no valid JWK"},
		"not a JWK":   {`{"kty":"EC","crv":"P-256","x":"c4n4ry"}`, "", "no valid JWK"},
		"other alg":   {good, "RS256", "is to be RS256"},
		"encryption":  {strings.Replace(inJWK(ec, "", ""), `"sig"`, `"enc"`, 1), "", "for encryption"},
	} {
		t.Run(name, func(t *testing.T) {
			var log buffer
			o := signed(as)
			o.SigningAlgorithm = c.alg
			s := source(t, newCache(t, func(cfg *Config) {
				cfg.Secrets, cfg.Log = refStore{"PRIVATE_KEY": c.text}, zerolog.New(&log)
			}), "a", o)
			_, err := s.Token(t.Context())
			e := failed(t, err)
			if e.Kind != Unavailable || e.Code != "key_unusable" || !strings.Contains(e.Text, c.want) {
				t.Errorf("want key_unusable about %q, got %v", c.want, e)
			}
			for _, line := range append(strings.Split(c.text, "\n"), "c4n4ry") {
				if len(line) > 5 && !strings.HasPrefix(line, "-----") && strings.Contains(e.Text+log.String(), line) {
					t.Errorf("the key is in %q", e.Text)
				}
			}
		})
	}
	if as.Requests() != 0 {
		t.Error("a request without a proof was sent")
	}
}

// TestS4_NoAssertionIsQuoted: servers that echo the form meet a redactor that
// knows the assertion.
func TestS4_NoAssertionIsQuoted(t *testing.T) {
	key := newEC(elliptic.P256())
	for _, f := range []tokenstest.Fault{tokenstest.EchoForm, "echo_description"} {
		as := startAS(t, tokenstest.Config{Clients: keyed(key, "")})
		as.Fail(f)
		var log buffer
		s := source(t, newCache(t, func(cfg *Config) {
			cfg.Secrets, cfg.Log = refStore{"PRIVATE_KEY": pkcs8(key)}, zerolog.New(&log).Level(zerolog.TraceLevel)
		}), "a", signed(as))
		_, err := s.Token(t.Context())
		text := err.Error() + log.String() + string(must(json.Marshal(s.Status())))
		jwt := as.Recorded()[0].Form.Get("client_assertion")
		for _, piece := range append(strings.Split(jwt, "."), strings.Split(pkcs8(key), "\n")[1]) {
			if strings.Contains(text, piece) {
				t.Errorf("%s: a piece of assertion or key is in %s", f, text)
			}
		}
	}
}

// TestT7_O2_RawBasic is for servers that take id and secret as they come.
func TestT7_O2_RawBasic(t *testing.T) {
	for _, raw := range []bool{false, true} {
		for _, off := range []bool{false, true} {
			as := startAS(t, tokenstest.Config{Clients: map[string]tokenstest.Client{clientID: {Secret: canary, RawBasic: raw}}})
			o := spec(as.TokenURL())
			o.RawBasic = off
			_, err := source(t, newCache(t, nil), "a", o).Token(t.Context())
			if (err == nil) != (raw == off) {
				t.Errorf("server raw %v, client raw %v: got %v", raw, off, err)
			}
		}
	}
}
