package e2e_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// forger makes tokens of an issuer by hand, good ones and others: it holds two
// keys that the issuer publishes.
type forger struct {
	t      *testing.T
	issuer string
	rsa    *rsa.PrivateKey
	ec     *ecdsa.PrivateKey
	n      int
}

// newForger publishes the forger's keys beside the issuer's own: "rsa" without a
// word on its algorithm, and "ec".
func newForger(p *people) *forger {
	p.t.Helper()
	f := &forger{t: p.t, issuer: p.idp.Issuer()}
	var err error
	if f.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		p.t.Fatal(err)
	}
	if f.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		p.t.Fatal(err)
	}
	p.idp.EditJWKS(func(keys []jose.JSONWebKey) []jose.JSONWebKey {
		return append(keys, jose.JSONWebKey{Key: f.rsa.Public(), KeyID: "rsa"}, jose.JSONWebKey{Key: f.ec.Public(), KeyID: "ec", Algorithm: "ES256"})
	})
	return f
}

type claims map[string]any

// with changes a copy; nil takes one out.
func (c claims) with(name string, value any) claims {
	c = maps.Clone(c)
	if c[name] = value; value == nil {
		delete(c, name)
	}
	return c
}

// claims are those of a good token.
func (f *forger) claims() claims {
	f.n++
	now := time.Now().Unix()
	return claims{
		"iss": f.issuer, "sub": "mallory", "aud": audienceOfPeople, "client_id": "app", "scope": scopesOfPeople,
		"iat": now, "exp": now + 300, "jti": fmt.Sprintf("forged-%d", f.n),
	}
}

// header is that of a good token.
func header(alg, kid string) claims { return claims{"typ": "at+jwt", "alg": alg, "kid": kid} }

func part(v any) string {
	if s, ok := v.(string); ok {
		return base64.RawURLEncoding.EncodeToString([]byte(s))
	}
	b, _ := json.Marshal(v) // of maps of texts and numbers
	return base64.RawURLEncoding.EncodeToString(b)
}

// join signs head and payload, which are values or their JSON.
func (f *forger) join(head, payload any, sign func([]byte) []byte) string {
	input := part(head) + "." + part(payload)
	return input + "." + base64.RawURLEncoding.EncodeToString(sign([]byte(input)))
}

func (f *forger) rs256(input []byte) []byte {
	sum := sha256.Sum256(input)
	sig, err := rsa.SignPKCS1v15(nil, f.rsa, crypto.SHA256, sum[:])
	if err != nil {
		f.t.Fatal(err)
	}
	return sig
}

func (f *forger) ps256(input []byte) []byte {
	sum := sha256.Sum256(input)
	sig, err := rsa.SignPSS(rand.Reader, f.rsa, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	if err != nil {
		f.t.Fatal(err)
	}
	return sig
}

func (f *forger) es256(input []byte) []byte {
	sum := sha256.Sum256(input)
	r, s, err := ecdsa.Sign(rand.Reader, f.ec, sum[:])
	if err != nil {
		f.t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

// hs256 signs with what is public of a key.
func hs256(secret []byte) func([]byte) []byte {
	return func(input []byte) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write(input)
		return h.Sum(nil)
	}
}

func nothing([]byte) []byte { return nil }

// good signs these claims as the issuer would.
func (f *forger) good(c claims) string { return f.join(header("RS256", "rsa"), c, f.rs256) }

// headed signs good claims under another header.
func (f *forger) headed(h claims) string { return f.join(h, f.claims(), f.rs256) }

// algorithms is J1 and J2: what the header says of the signature.
func (f *forger) algorithms() map[string]string {
	der, err := x509.MarshalPKIXPublicKey(f.rsa.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	c := f.claims()
	return map[string]string{
		"alg none":               f.join(header("none", "rsa"), c, nothing),
		"alg NONE, signed":       f.join(header("NONE", "rsa"), c, f.rs256),
		"alg none, no kid":       f.join(claims{"alg": "none"}, c, nothing),
		"no alg":                 f.headed(header("", "rsa").with("alg", nil)),
		"alg a number":           f.headed(header("", "rsa").with("alg", 256)),
		"HS256 with the PEM":     f.join(header("HS256", "rsa"), c, hs256(public)),
		"HS256 with the DER":     f.join(header("HS256", "rsa"), c, hs256(der)),
		"HS256 with the modulus": f.join(header("HS256", "rsa"), c, hs256(f.rsa.N.Bytes())),
		"PS256, not listed":      f.join(header("PS256", "rsa"), c, f.ps256),
		"RS256 with the EC kid":  f.join(header("RS256", "ec"), c, f.rs256),
		"ES256 with the RSA kid": f.join(header("ES256", "rsa"), c, f.es256),
		"no signature":           f.join(header("RS256", "rsa"), c, nothing),
		"a signature of zeros":   f.join(header("ES256", "ec"), c, func([]byte) []byte { return make([]byte, 64) }),
		"signed by a stranger":   newStranger(f).good(c),
		"changed after signing":  strings.Replace(f.good(c), "."+part(c)+".", "."+part(c.with("sub", "root"))+".", 1),
		"PS256 called RS256":     f.join(header("RS256", "rsa"), c, f.ps256),
		"crit":                   f.headed(header("RS256", "rsa").with("crit", []string{"x"}).with("x", 1)),
		"crit exp":               f.headed(header("RS256", "rsa").with("crit", []string{"exp"}).with("exp", 1)),
		"b64 false":              f.headed(header("RS256", "rsa").with("crit", []string{"b64"}).with("b64", false)),
		"alg twice":              f.join(`{"typ":"at+jwt","alg":"RS256","alg":"none","kid":"rsa"}`, c, f.rs256),
	}
}

// newStranger is a forger whose keys nobody publishes.
func newStranger(f *forger) *forger {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.t.Fatal(err)
	}
	return &forger{t: f.t, issuer: f.issuer, rsa: key, ec: f.ec}
}

// claimed is J2 and J5 to J9: what the claims say, well signed.
func (f *forger) claimed() map[string]string {
	now, c := time.Now().Unix(), f.claims
	return map[string]string{
		"no exp":              f.good(c().with("exp", nil)),
		"expired":             f.good(c().with("exp", now-60)),
		"exp a text":          f.good(c().with("exp", fmt.Sprint(now+300))),
		"exp 1e300":           f.good(c().with("exp", 1e300)),
		"exp below zero":      f.good(c().with("exp", -1)),
		"nbf ahead":           f.good(c().with("nbf", now+300)),
		"iat ahead":           f.good(c().with("iat", now+300)),
		"no iat":              f.good(c().with("iat", nil)),
		"no aud":              f.good(c().with("aud", nil)),
		"another aud":         f.good(c().with("aud", "https://other.company.com")),
		"aud with a slash":    f.good(c().with("aud", audienceOfPeople+"/")),
		"aud in other case":   f.good(c().with("aud", strings.ToUpper(audienceOfPeople))),
		"aud a list, no ours": f.good(c().with("aud", []string{"a", "b"})),
		"aud an object":       f.good(c().with("aud", map[string]string{audienceOfPeople: ""})),
		"aud of an upstream":  f.good(c().with("aud", "http://127.0.0.1/mcp")),
		"no iss":              f.good(c().with("iss", nil)),
		"another iss":         f.good(c().with("iss", "https://evil.test")),
		"iss with a slash":    f.good(c().with("iss", f.issuer+"/")),
		"no sub":              f.good(c().with("sub", nil)),
		"sub a number":        f.good(c().with("sub", 7)),
		"no client_id":        f.good(c().with("client_id", nil)),
		"no jti":              f.good(c().with("jti", nil)),
		"sub twice":           f.join(header("RS256", "rsa"), strings.Replace(string(must(json.Marshal(c()))), `{`, `{"sub":"alice",`, 1), f.rs256),
		"cnf":                 f.good(c().with("cnf", map[string]string{"jkt": "x"})),
		"an ID token":         f.join(header("RS256", "rsa").with("typ", "JWT"), c().with("nonce", "n").with("aud", "app"), f.rs256),
		"an ID token for us":  f.join(header("RS256", "rsa").with("typ", "JWT"), c().with("nonce", "n"), f.rs256),
		"no typ":              f.headed(header("RS256", "rsa").with("typ", nil)),
		"typ dpop+jwt":        f.headed(header("RS256", "rsa").with("typ", "dpop+jwt")),
		"typ of an assertion": f.headed(header("RS256", "rsa").with("typ", "client-authentication+jwt")),
		"typ of an ID-JAG":    f.headed(header("RS256", "rsa").with("typ", "oauth-id-jag+jwt")),
		"claims a list":       f.join(header("RS256", "rsa"), `[]`, f.rs256),
		"claims null":         f.join(header("RS256", "rsa"), `null`, f.rs256),
		"deep claims":         f.join(header("RS256", "rsa"), `{"x":`+strings.Repeat("[", 3000)+strings.Repeat("]", 3000)+"}", f.rs256),
	}
}

func must(b []byte, _ error) []byte { return b }

// named is J3: keys that the token itself brings or names. canary is a host that
// nobody may ask.
func (f *forger) named(canary string) map[string]string {
	h := header("RS256", "rsa")
	own, err := json.Marshal(jose.JSONWebKey{Key: newStranger(f).rsa.Public(), KeyID: "x", Algorithm: "RS256"})
	if err != nil {
		f.t.Fatal(err)
	}
	stranger := newStranger(f)
	bring := func(name string, value any) string {
		return stranger.join(h.with(name, value), f.claims(), stranger.rs256)
	}
	x := header("RS256", "x")
	return map[string]string{
		"jku":                bring("jku", canary+"/jwks"),
		"jku and its kid":    stranger.join(x.with("jku", canary+"/jwks"), f.claims(), stranger.rs256),
		"x5u":                bring("x5u", canary+"/x5u"),
		"jwk":                bring("jwk", json.RawMessage(own)),
		"jwk, no kid":        stranger.join(h.with("kid", nil).with("jwk", json.RawMessage(own)), f.claims(), stranger.rs256),
		"x5c":                bring("x5c", []string{"MIIB"}),
		"iss of a canary":    f.good(f.claims().with("iss", canary)),
		"kid a path":         f.headed(header("RS256", "../../../../dev/null")),
		"kid a URL":          f.headed(header("RS256", canary+"/rsa")),
		"kid SQL":            f.headed(header("RS256", "rsa' OR '1'='1")),
		"kid with NUL":       f.headed(header("RS256", "rsa\x00")),
		"kid of 10 kB":       f.headed(header("RS256", strings.Repeat("k", 10<<10))),
		"kid a list":         f.headed(header("RS256", "").with("kid", []string{"rsa"})),
		"kid in other case":  f.headed(header("RS256", "RSA")),
		"no kid, of several": f.join(header("ES256", "").with("kid", nil), f.claims(), f.es256),
	}
}

// shaped is J4 and J1: what is no compact JWS, and what is large.
func (f *forger) shaped() map[string]string {
	good := f.good(f.claims())
	parts := strings.Split(good, ".")
	return map[string]string{
		"one part":            parts[0],
		"two parts":           parts[0] + "." + parts[1],
		"four parts":          good + ".AAAA",
		"a JWE":               part(claims{"alg": "RSA-OAEP", "enc": "A256GCM", "zip": "DEF"}) + ".AAAA.AAAA.AAAA.AAAA",
		"empty payload":       parts[0] + ".." + parts[2],
		"only dots":           "..",
		"padding":             good + "=",
		"padding within":      parts[0] + "=." + parts[1] + "." + parts[2],
		"a plus for a minus":  parts[0] + "." + parts[1] + "." + strings.NewReplacer("-", "+", "_", "/").Replace(parts[2]) + "+",
		"spare bits":          parts[0] + "." + parts[1] + "." + parts[2] + "A",
		"a space in it":       parts[0] + " ." + parts[1] + "." + parts[2],
		"50,000 dots":         strings.Repeat(".", 50000),
		"20 kB":               f.good(f.claims().with("x", strings.Repeat("x", 20<<10))),
		"50 kB":               f.good(f.claims().with("x", strings.Repeat("x", 35<<10))),
		"a number for header": part(`1`) + "." + parts[1] + "." + parts[2],
		"huge number":         f.good(f.claims().with("exp", new(big.Int).Lsh(big.NewInt(1), 2000))),
	}
}

// TestJ1_J8_Forged: the forged set, through Envoy, by both protocols. None of it
// reaches an upstream, and no token makes us ask anybody.
func TestJ1_J8_Forged(t *testing.T) {
	var asked atomic.Int64
	host := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(host.Close)
	p := newPeople(t, byToken)
	f := newForger(p)
	p.proc = p.serve(p.policy, p.facts.Admin)
	p.startEnvoy(p.render())
	p.accepts(t, f)
	p.up("alpha").take()
	rows := map[string]string{}
	for _, set := range []map[string]string{f.algorithms(), f.claimed(), f.named(host.URL), f.shaped()} {
		maps.Copy(rows, set)
	}
	slowest := time.Duration(0)
	for what, token := range rows {
		p.show(token)
		p.both(func(proto string, get func(string, ...string) reply) {
			got := get("/alpha/mcp", bearer(token))
			p.challenged(t, proto+" "+what, got, 401, "caller_invalid", p.invalidToken("alpha", scopesOfPeople))
			slowest = max(slowest, got.took)
		})
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("J3: want nothing asked of the host that tokens name, got %d requests", n)
	}
	if n := p.idp.JWKSRequests(); n > 3 {
		t.Errorf("J6: want the keys asked for at the start and once in 10 s, got %d requests", n)
	}
	if n := len(p.up("alpha").take()); n != 0 {
		t.Errorf("want nothing at the upstream, got %d requests", n)
	}
	if slowest > 2*time.Second {
		t.Errorf("J4: want no token to take long, got %s", slowest)
	}
	t.Logf("%d forged tokens by two protocols; the slowest answer took %s; %d requests for keys", len(rows), slowest, p.idp.JWKSRequests())
	p.accepts(t, f)
}

// accepts fails unless the forger's good tokens pass: else the others show nothing.
func (p *people) accepts(t *testing.T, f *forger) {
	t.Helper()
	for what, token := range map[string]string{
		"RS256":                           f.good(f.claims()),
		"ES256":                           f.join(header("ES256", "ec"), f.claims(), f.es256),
		"aud a list":                      f.good(f.claims().with("aud", []string{"a", audienceOfPeople})),
		"no kid, and one key of the kind": f.headed(header("RS256", "").with("kid", nil)),
		"typ long":                        f.headed(header("RS256", "rsa").with("typ", "application/AT+jwt")),
		"nbf, skew":                       f.good(f.claims().with("nbf", time.Now().Unix()+20)),
		"15 kB":                           f.good(f.claims().with("x", strings.Repeat("x", 11<<10))),
	} {
		p.both(func(proto string, get func(string, ...string) reply) {
			if got := get("/alpha/mcp", bearer(p.show(token))); got.status != http.StatusOK {
				t.Errorf("%s, good %s: got %v", proto, what, got)
			}
		})
	}
}

// TestJ4_TooLargeForEnvoy: what is over Envoy's own limit is refused there.
func TestJ4_TooLargeForEnvoy(t *testing.T) {
	p := startPeople(t, byToken)
	p.show("no-caller-shows-a-token-here")
	for what, token := range map[string]string{
		"1,000,000 dots": strings.Repeat(".", 1e6), "8 MiB": strings.Repeat("A", 8<<20), "a kid of 64 kB": part(header("RS256", strings.Repeat("k", 64<<10))) + ".AAAA.AAAA",
	} {
		p.both(func(proto string, get func(string, ...string) reply) {
			// Envoy may cut the connection while it still comes.
			if got := get("/alpha/mcp", bearer(token)); got.status != http.StatusRequestHeaderFieldsTooLarge && got.status != 0 {
				t.Errorf("%s %s: want 431 or the connection cut, got %v", proto, what, got)
			}
		})
	}
	p.untouched()
	if got := p.get1("/open/mcp"); got.status != http.StatusOK {
		t.Errorf("Envoy goes on: got %v", got)
	}
}

// TestJ7_IssuerConfusion: a token of one issuer is none of the other's, whichever
// name it bears and whoever signed it.
func TestJ7_IssuerConfusion(t *testing.T) {
	p := startPeople(t, byToken)
	theirs, ours := p.partner.Issuer(), p.idp.Issuer()
	for what, row := range map[string]struct{ upstream, token string }{
		"the partner's token here":                 {"alpha", p.mint(p.partner, "carol", scopesOfPeople, nil)},
		"our token there":                          {"fixed", p.mint(p.idp, "alice", scopesOfPeople, nil)},
		"the partner's key, our name":              {"alpha", p.mint(p.partner, "alice", scopesOfPeople, claims{"iss": ours})},
		"the partner's key, our name, either goes": {"both", p.mint(p.partner, "alice", scopesOfPeople, claims{"iss": ours})},
		"our key, the partner's name, either goes": {"both", p.mint(p.idp, "carol", scopesOfPeople, claims{"iss": theirs})},
	} {
		p.both(func(proto string, get func(string, ...string) reply) {
			scope := scopesOfPeople
			if row.upstream != "alpha" {
				scope = ""
			}
			p.challenged(t, proto+" "+what, get("/"+row.upstream+"/mcp", bearer(row.token)), 401, "caller_invalid", p.invalidToken(row.upstream, scope))
		})
	}
	p.untouched()
}
