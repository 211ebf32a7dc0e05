package tokens

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	issuerURL   = "https://idp.test"
	ourAudience = "https://mcp.test"
)

// issuer publishes keys without a network, for tests in fake time.
type issuer struct {
	mu      sync.Mutex
	url     string
	keys    []any // jose.JSONWebKey, or any other JSON
	status  int   // of the keys, 0 is 200
	body    string
	header  http.Header
	latency time.Duration
	hang    bool
	asked   map[string]int
	starts  []time.Time // of the requests for keys
}

func newIssuer(keys ...any) *issuer {
	return &issuer{url: issuerURL, keys: keys, asked: map[string]int{}, header: http.Header{}}
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

// fetches returns how often the keys were asked for.
func (i *issuer) fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.starts)
}

func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	i.mu.Lock()
	i.asked[r.URL.String()]++
	if r.URL.Path == "/jwks" {
		i.starts = append(i.starts, time.Now())
	}
	latency, hang := i.latency, i.hang
	i.mu.Unlock()
	if hang {
		latency = time.Hour
	}
	if err := pass(r.Context(), latency); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	status, body := http.StatusOK, any(nil)
	switch {
	case r.URL.Path == "/jwks":
		status, body = max(i.status, 200), map[string]any{"keys": i.keys}
	case strings.HasPrefix(r.URL.Path, "/.well-known/oauth-authorization-server"):
		body = map[string]any{"issuer": i.url, "jwks_uri": i.url + "/jwks"}
	default:
		status = http.StatusNotFound
	}
	b, err := json.Marshal(body)
	if i.body != "" && r.URL.Path == "/jwks" {
		b = []byte(i.body)
	}
	return &http.Response{
		StatusCode: status, Header: i.header.Clone(), Request: r, ProtoMajor: 1, ProtoMinor: 1, Body: io.NopCloser(bytes.NewReader(b)),
	}, err
}

// minter is a private key and how its public half is published.
type minter struct {
	jose.JSONWebKey
	signer crypto.Signer
}

func newMinter(tb testing.TB, alg, id string) minter {
	tb.Helper()
	var signer crypto.Signer
	var err error
	switch alg {
	case "RS256", "PS256":
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case "RS1024":
		signer, alg = weakRSA(tb), "RS256"
	case "ES256":
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		signer, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "EdDSA":
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return minter{jose.JSONWebKey{Key: signer.Public(), KeyID: id, Algorithm: alg, Use: "sig"}, signer}
}

// weakRSA makes a key of 1024 bits by hand: the library makes none that short.
func weakRSA(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	prime := func() *big.Int {
		p, err := rand.Prime(rand.Reader, 512)
		if err != nil {
			tb.Fatal(err)
		}
		return p
	}
	p, q := prime(), prime()
	one := big.NewInt(1)
	order := new(big.Int).Mul(new(big.Int).Sub(p, one), new(big.Int).Sub(q, one))
	return &rsa.PrivateKey{
		PublicKey: rsa.PublicKey{N: new(big.Int).Mul(p, q), E: 65537}, Primes: []*big.Int{p, q},
		D: new(big.Int).ModInverse(big.NewInt(65537), order),
	}
}

// published returns the JWK as a map, for changes.
func (k minter) published(tb testing.TB, change map[string]any) map[string]any {
	tb.Helper()
	b, err := json.Marshal(k.JSONWebKey)
	if err != nil {
		tb.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		tb.Fatal(err)
	}
	maps.Copy(m, change)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	return m
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// raw signs any header and payload, sensible or not.
func (k minter) raw(tb testing.TB, alg, header, payload string) []byte {
	tb.Helper()
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return []byte(input + "." + b64(k.sign(tb, alg, []byte(input))))
}

func (k minter) sign(tb testing.TB, alg string, input []byte) []byte {
	tb.Helper()
	sum := sha256.Sum256(input)
	var sig []byte
	var err error
	switch alg {
	case "RS256":
		sig, err = k.signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	case "PS256":
		sig, err = k.signer.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256})
	case "ES256":
		key, _ := k.signer.(*ecdsa.PrivateKey)
		r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
		if err != nil {
			tb.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	case "EdDSA", "Ed25519":
		sig, err = k.signer.Sign(rand.Reader, input, crypto.Hash(0))
	case "HS256": // with the public key as the secret
		der, merr := json.Marshal(k.JSONWebKey)
		if merr != nil {
			tb.Fatal(merr)
		}
		m := hmac.New(sha256.New, der)
		m.Write(input)
		sig = m.Sum(nil)
	default:
		sig = []byte("none")
	}
	if err != nil {
		tb.Fatal(err)
	}
	return sig
}

// claimsOf are those of a good RFC 9068 token, with changes; nil takes one out.
func claimsOf(now time.Time, change map[string]any) map[string]any {
	c := map[string]any{
		"iss": issuerURL, "sub": "alice", "aud": ourAudience, "client_id": "app", "jti": "1", "scope": "mcp.read mcp.write",
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// token signs a token of the kind that RFC 9068 wants, with changes to header and claims.
func (k minter) token(tb testing.TB, now time.Time, header, claims map[string]any) []byte {
	tb.Helper()
	h := map[string]any{"alg": k.Algorithm, "kid": k.KeyID, "typ": "at+jwt"}
	maps.Copy(h, header)
	maps.DeleteFunc(h, func(_ string, v any) bool { return v == nil })
	alg, _ := h["alg"].(string)
	head, err := json.Marshal(h)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := json.Marshal(claimsOf(now, claims))
	if err != nil {
		tb.Fatal(err)
	}
	return k.raw(tb, alg, string(head), string(body))
}

// jwtSpec is what a policy says of the issuer.
func jwtSpec(change func(*policy.JWT)) *policy.JWT {
	j := &policy.JWT{
		Issuer: issuerURL, Audiences: []string{ourAudience, "second"}, Algorithms: []string{"RS256", "PS256", "ES256", "EdDSA"},
		Header: "authorization", Profile: policy.ProfileRFC9068, ScopeClaim: "scope", Skew: 30 * time.Second,
	}
	if change != nil {
		change(j)
	}
	return j
}

func newTestVerifier(tb testing.TB, transport http.RoundTripper, change func(*VerifierConfig)) *Verifier {
	tb.Helper()
	cfg := VerifierConfig{Now: time.Now, Transport: transport, Dice: func() float64 { return 0 }}
	if change != nil {
		change(&cfg)
	}
	v := NewVerifier(cfg)
	tb.Cleanup(v.Close)
	return v
}

func rule(tb testing.TB, v *Verifier, j *policy.JWT) *Rule {
	tb.Helper()
	r, err := v.Rule(j)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// any list of keys as an issuer publishes it.
func publish(keys ...minter) []any {
	list := make([]any, len(keys))
	for i, k := range keys {
		list[i] = k.JSONWebKey
	}
	return slices.Clip(list)
}
