package tokens

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// codeOf is the code of the error, "" for none.
func faultOf(t *testing.T, err error) string {
	t.Helper()
	var bad *InvalidTokenError
	var none *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &bad):
		return bad.Code
	case errors.As(err, &none) && none.Kind == Unavailable:
		return "unavailable"
	}
	t.Fatalf("want an *InvalidTokenError or an *Error of kind unavailable, got %v", err)
	return ""
}

func TestVerifyFromARealIssuer(t *testing.T) {
	as := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood, IssuerPath: "/tenant"})
	for name, change := range map[string]func(*policy.JWT){
		"metadata": func(*policy.JWT) {},
		"jwks_url": func(j *policy.JWT) { j.JWKSURL = as.JWKSURL() },
	} {
		t.Run(name, func(t *testing.T) {
			v := newTestVerifier(t, nil, nil)
			r := rule(t, v, jwtSpec(func(j *policy.JWT) {
				j.Issuer, j.CA = as.Issuer(), as.CAFile()
				change(j)
			}))
			text, err := as.Mint("alice", ourAudience, map[string]any{"scope": "a b"})
			if err != nil {
				t.Fatal(err)
			}
			p, err := r.Verify(t.Context(), []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if p.Issuer != as.Issuer() || p.Subject != "alice" || p.ClientID != "app" || p.IDToken || !cmp.Equal(p.Scopes, []string{"a", "b"}) ||
				time.Until(p.Expiry) > 5*time.Minute || time.Until(p.Expiry) < 4*time.Minute || p.token() != text {
				t.Errorf("got %+v", *p)
			}
			if err := as.RotateKeys(); err != nil {
				t.Fatal(err)
			}
			if st := v.Status(); len(st) != 1 || !st[0].Ready || st[0].URL != as.JWKSURL() || len(st[0].Keys) == 0 || st[0].LastGood.IsZero() {
				t.Errorf("status: got %+v", st)
			}
		})
	}
	text, err := as.Mint("alice", ourAudience, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := rule(t, newTestVerifier(t, nil, nil), jwtSpec(func(j *policy.JWT) { j.Issuer = as.Issuer() }))
	if _, err = r.Verify(t.Context(), []byte(text)); faultOf(t, err) != "unavailable" {
		t.Errorf("without the issuer's authority: want unavailable, got %v", err)
	}
}

// forgery is a token and the code of its refusal, "" for a good one.
type forgery struct {
	header, claims map[string]any
	change         func(*policy.JWT)
	want           string
}

func generic(j *policy.JWT)  { j.Profile = policy.ProfileGeneric }
func idTokens(j *policy.JWT) { j.Profile = policy.ProfileIDToken }
func scp(j *policy.JWT)      { j.ScopeClaim = "scp" }

// TestForgedTokens has a row for each rule about header and claims. All are
// signed with the right key.
func TestForgedTokens(t *testing.T) {
	type m = map[string]any
	now := time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	key := newMinter(t, "ES256", "k1")
	for name, c := range map[string]forgery{
		"good":                               {},
		"J2 other algorithm listed":          {change: func(j *policy.JWT) { j.Algorithms = []string{"RS256"} }, want: "algorithm"},
		"J4 jku is passed over":              {header: m{"jku": "https://evil.test/jwks", "x5u": "https://evil.test/x"}},
		"J4 jwk":                             {header: m{"jwk": key.published(t, nil)}, want: "own_key"},
		"J4 x5c":                             {header: m{"x5c": []string{"AA"}}, want: "own_key"},
		"J4 crit":                            {header: m{"crit": []string{"exp"}}, want: "critical"},
		"J4 crit b64":                        {header: m{"crit": []string{"b64"}, "b64": true}, want: "critical"},
		"J4 b64 alone":                       {header: m{"b64": false}, want: "critical"},
		"J4 no kid, one key":                 {header: m{"kid": nil}},
		"J4 kid is a number":                 {header: m{"kid": 1}, want: "malformed"},
		"J4 kid is empty":                    {header: m{"kid": ""}, want: "malformed"},
		"J4 kid of 257 bytes":                {header: m{"kid": strings.Repeat("k", 257)}, want: "malformed"},
		"J4 kid is a path":                   {header: m{"kid": "../../etc/passwd"}, want: codeUnknownKey},
		"J4 kid in other case":               {header: m{"kid": "K1"}, want: codeUnknownKey},
		"J5 application/at+jwt":              {header: m{"typ": "Application/AT+JWT"}},
		"J5 typ JWT":                         {header: m{"typ": "JWT"}, want: "typ"},
		"J5 no typ":                          {header: m{"typ": nil}, want: "typ"},
		"J5 typ is no string":                {header: m{"typ": []string{"at+jwt"}}, want: "malformed"},
		"J5 dpop+jwt":                        {header: m{"typ": "dpop+jwt"}, want: "typ"},
		"J5 generic, at+jwt":                 {change: generic},
		"J5 generic, typ JWT":                {header: m{"typ": "JWT"}, change: generic},
		"J5 generic, no typ":                 {header: m{"typ": nil}, change: generic},
		"J5 generic, oauth-id-jag+jwt":       {header: m{"typ": "oauth-id-jag+jwt"}, change: generic, want: "typ"},
		"J5 generic, secevent+jwt":           {header: m{"typ": "secevent+jwt"}, change: generic, want: "typ"},
		"J5 generic, logout token":           {header: m{"typ": "JWT"}, claims: m{"events": m{"logout": m{}}}, change: generic, want: "typ"},
		"J5 generic, ID token by nonce":      {header: m{"typ": "JWT"}, claims: m{"nonce": "n"}, change: generic, want: "id_token"},
		"J5 generic, ID token by at_hash":    {header: m{"typ": nil}, claims: m{"at_hash": "n"}, change: generic, want: "id_token"},
		"J5 generic, ID token of Keycloak":   {header: m{"typ": "JWT"}, claims: m{"typ": "ID"}, change: generic, want: "id_token"},
		"J5 generic, ID token of Cognito":    {header: m{"typ": nil}, claims: m{"token_use": "id"}, change: generic, want: "id_token"},
		"J5 generic, refresh token":          {header: m{"typ": "JWT"}, claims: m{"typ": "Refresh"}, change: generic, want: "typ"},
		"J5 ID token":                        {header: m{"typ": "JWT"}, claims: m{"scope": nil, "nonce": "n", "client_id": nil, "jti": nil}, change: idTokens},
		"J5 ID token wanted, at+jwt":         {claims: m{"scope": nil}, change: idTokens, want: "typ"},
		"J5 ID token wanted, access token":   {header: m{"typ": "JWT"}, change: idTokens, want: "access_token"},
		"J5 ID token for several":            {header: m{"typ": nil}, claims: m{"scope": nil, "aud": []string{ourAudience, "x"}, "azp": "x"}, change: idTokens, want: "audience"},
		"J5 ID token for several, our azp":   {header: m{"typ": nil}, claims: m{"scope": nil, "aud": []string{ourAudience, "x"}, "azp": ourAudience}, change: idTokens},
		"J6 no iss":                          {claims: m{"iss": nil}, want: "claim"},
		"J6 no sub":                          {claims: m{"sub": nil}, want: "claim"},
		"J6 sub is a number":                 {claims: m{"sub": 5}, want: "claim"},
		"J6 sub is empty":                    {claims: m{"sub": ""}, want: "claim"},
		"J6 sub with a line break":           {claims: m{"sub": "alice\nadmin"}, want: "claim"},
		"J6 sub that JSON cannot express":    {claims: m{"sub": "alice\xff"}, want: "claim"},
		"J6 no client_id":                    {claims: m{"client_id": nil}, want: "claim"},
		"J6 no jti":                          {claims: m{"jti": nil}, want: "claim"},
		"J6 no iat":                          {claims: m{"iat": nil}, want: "claim"},
		"J6 generic, no client_id, no jti":   {claims: m{"client_id": nil, "jti": nil}, change: generic},
		"J6 generic, no iat":                 {claims: m{"iat": nil}, change: generic, want: "claim"},
		"J6 generic, client_id is a list":    {claims: m{"client_id": []string{"a"}}, change: generic, want: "claim"},
		"J7 other issuer":                    {claims: m{"iss": "https://evil.test"}, want: "issuer"},
		"J7 issuer with a slash more":        {claims: m{"iss": issuerURL + "/"}, want: "issuer"},
		"J7 issuer is a list":                {claims: m{"iss": []string{issuerURL}}, want: "claim"},
		"J7 A1 other audience":               {claims: m{"aud": "https://other.test"}, want: "audience"},
		"J7 audience with a slash more":      {claims: m{"aud": ourAudience + "/"}, want: "audience"},
		"J7 audience as a prefix":            {claims: m{"aud": ourAudience + ".evil.test"}, want: "audience"},
		"J7 no audience":                     {claims: m{"aud": nil}, want: "claim"},
		"J7 no audience in the list":         {claims: m{"aud": []string{}}, want: "claim"},
		"J7 audience is an object":           {claims: m{"aud": m{ourAudience: 1}}, want: "claim"},
		"J7 a number among the audiences":    {claims: m{"aud": []any{ourAudience, 1}}, want: "claim"},
		"J7 null among the audiences":        {claims: m{"aud": []any{ourAudience, nil}}, want: "claim"},
		"J7 one audience of several":         {claims: m{"aud": []string{"x", "second"}}},
		"J8 no exp":                          {claims: m{"exp": nil}, want: "claim"},
		"J8 expired":                         {claims: m{"exp": at(-40 * time.Second)}, want: "expired"},
		"J8 expired within the skew":         {claims: m{"exp": at(-20 * time.Second)}},
		"J8 skew is a minute at most":        {claims: m{"exp": at(-2 * time.Minute)}, change: func(j *policy.JWT) { j.Skew = time.Hour }, want: "expired"},
		"J8 exp 1e300":                       {claims: m{"exp": 1e300}, want: "claim"},
		"J8 exp is a string":                 {claims: m{"exp": "9999999999"}, want: "claim"},
		"J8 exp is negative":                 {claims: m{"exp": -1}, want: "claim"},
		"J8 exp with a fraction":             {claims: m{"exp": float64(at(time.Minute)) + 0.5}},
		"J8 nbf ahead":                       {claims: m{"nbf": at(time.Minute)}, want: "not_yet"},
		"J8 nbf within the skew":             {claims: m{"nbf": at(20 * time.Second)}},
		"J8 iat ahead":                       {claims: m{"iat": at(time.Minute)}, want: "not_yet"},
		"J9 bound to a key":                  {claims: m{"cnf": m{"jkt": "x"}}, want: "bound"},
		"J9 bound to nothing":                {claims: m{"cnf": "x"}, want: "bound"},
		"A6 no scope":                        {claims: m{"scope": nil}},
		"A6 scope is a list":                 {claims: m{"scope": []string{"a"}}, want: "claim"},
		"A6 scope with a quote":              {claims: m{"scope": `a "b`}, want: "claim"},
		"A6 scp is a list":                   {claims: m{"scp": []string{"a"}}, change: scp},
		"A6 scp is a string":                 {claims: m{"scp": "a b"}, change: scp},
		"A6 scp is an object":                {claims: m{"scp": m{"a": 1}}, change: scp, want: "claim"},
		"A6 a blank in the member of a list": {claims: m{"scp": []string{"a b"}}, change: scp, want: "claim"},
	} {
		t.Run(name, func(t *testing.T) {
			idp := newIssuer(publish(key)...)
			r := rule(t, newTestVerifier(t, idp, nil), jwtSpec(c.change))
			token := key.token(t, now, c.header, c.claims)
			if name == "J6 sub that JSON cannot express" { // json.Marshal mends it
				token = key.raw(t, "ES256", `{"alg":"ES256","kid":"k1","typ":"at+jwt"}`, fmt.Sprintf(
					`{"iss":%q,"sub":"alice\ud800","aud":%q,"client_id":"a","jti":"1","iat":%d,"exp":%d}`, issuerURL, ourAudience, now.Unix(), at(time.Minute)))
			}
			_, err := r.Verify(t.Context(), token)
			if got := faultOf(t, err); got != c.want {
				t.Errorf("want %q, got %q: %v", c.want, got, err)
			}
			for url := range idp.asked {
				if !strings.HasPrefix(url, issuerURL) {
					t.Errorf("S1: %s was asked", url)
				}
			}
		})
	}
}

func TestA6_ScopesAndClients(t *testing.T) {
	type m = map[string]any
	key := newMinter(t, "ES256", "k1")
	v := newTestVerifier(t, newIssuer(publish(key)...), nil)
	for name, c := range map[string]struct {
		claim  string
		claims m
		scopes []string
		client string
	}{
		"scope":    {"scope", m{"scope": " a  b:C "}, []string{"a", "b:C"}, "app"},
		"empty":    {"scope", m{"scope": ""}, nil, "app"},
		"scp list": {"scp", m{"scp": []string{"a", "b"}, "client_id": nil, "cid": "okta"}, []string{"a", "b"}, "okta"},
		"scp":      {"scp", m{"scp": "a b", "client_id": nil, "azp": "entra", "appid": "old"}, []string{"a", "b"}, "entra"},
		"other":    {"permissions", m{"permissions": []string{"p"}}, []string{"p"}, "app"},
	} {
		t.Run(name, func(t *testing.T) {
			r := rule(t, v, jwtSpec(func(j *policy.JWT) { j.Profile, j.ScopeClaim = policy.ProfileGeneric, c.claim }))
			p, err := r.Verify(t.Context(), key.token(t, time.Now(), nil, c.claims))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Join(p.Scopes, "|") != strings.Join(c.scopes, "|") || p.ClientID != c.client {
				t.Errorf("want %q and %q, got %q and %q", c.scopes, c.client, p.Scopes, p.ClientID)
			}
		})
	}
}

// TestJ1_Shapes: what is no compact JWS of three clean parts is refused before
// any key is asked for.
func TestJ1_J4_Shapes(t *testing.T) {
	key := newMinter(t, "ES256", "k1")
	good := string(key.token(t, time.Now(), nil, nil))
	part := strings.Split(good, ".")
	body := fmt.Sprintf(`{"iss":%q,"aud":%q}`, issuerURL, ourAudience)
	signed := func(header, payload string) string { return string(key.raw(t, "ES256", header, payload)) }
	members := func(n int) string { // each with a name of its own
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"x%d":1,`, i)
		}
		return b.String()
	}
	for name, c := range map[string]struct{ token, want string }{
		"as many claims as may":   {signed(`{"alg":"ES256"}`, "{"+members(maxClaims-1)+`"iss":"x"}`), "issuer"},
		"one claim more":          {signed(`{"alg":"ES256"}`, "{"+members(maxClaims)+`"iss":"x"}`), "too_big"},
		"many header parameters":  {signed("{"+members(maxClaims)+`"alg":"ES256"}`, body), "too_big"},
		"empty":                   {"", "malformed"},
		"an opaque token":         {"sk-1234567890", "malformed"},
		"two parts":               {part[0] + "." + part[1], "malformed"},
		"four parts":              {good + ".x", "malformed"},
		"JWE":                     {good + ".x.y", "encrypted"},
		"a million dots":          {strings.Repeat(".", 1e6), "too_big"},
		"10,000 dots":             {strings.Repeat(".", 1e4), "malformed"},
		"8 MiB":                   {strings.Repeat("a", 8<<20), "too_big"},
		"over 16 KiB":             {good + strings.Repeat("A", 16<<10), "too_big"},
		"JSON serialisation":      {`{"payload":"","signatures":[]}`, "malformed"},
		"no signature":            {part[0] + "." + part[1] + ".", "malformed"},
		"no payload":              {part[0] + ".." + part[2], "malformed"},
		"padding":                 {part[0] + "=." + part[1] + "." + part[2], "malformed"},
		"blank":                   {" " + good, "malformed"},
		"line break":              {part[0] + "\n." + part[1] + "." + part[2], "malformed"},
		"line break at the end":   {good + "\n", "malformed"},
		"standard alphabet":       {"+/" + part[0] + "." + part[1] + "." + part[2], "malformed"},
		"spare bits":              {good[:len(good)-1] + string(sibling(good[len(good)-1])), "malformed"},
		"header is a list":        {signed(`["alg"]`, body), "malformed"},
		"header is two objects":   {signed(`{"alg":"ES256"}{}`, body), "malformed"},
		"header not UTF-8":        {signed("{\"alg\":\"ES256\",\"x\":\"\xff\"}", body), "malformed"},
		"alg twice":               {signed(`{"alg":"ES256","alg":"none"}`, body), "duplicate_member"},
		"alg twice, by an escape": {signed(`{"alg":"ES256","\u0061lg":"none"}`, body), "duplicate_member"},
		"no alg":                  {signed(`{"typ":"at+jwt"}`, body), "malformed"},
		"alg in other case":       {signed(`{"ALG":"ES256"}`, body), "malformed"},
		"claims are text":         {signed(`{"alg":"ES256"}`, "alice"), "malformed"},
		"claims with a BOM":       {signed(`{"alg":"ES256"}`, "\xef\xbb\xbf"+body), "malformed"},
		"J6 sub twice":            {signed(`{"alg":"ES256"}`, `{"sub":"a","sub":"b"}`), "duplicate_member"},
		"deep":                    {signed(`{"alg":"ES256"}`, `{"a":`+strings.Repeat("[", 11000)+strings.Repeat("]", 11000)+"}"), "too_big"},
		"deep, less":              {signed(`{"alg":"ES256"}`, `{"a":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+"}"), "claim"},
	} {
		t.Run(name, func(t *testing.T) {
			idp := newIssuer(publish(key)...)
			r := rule(t, newTestVerifier(t, idp, nil), jwtSpec(nil))
			start := time.Now()
			_, err := r.Verify(t.Context(), []byte(c.token))
			if got := faultOf(t, err); got != c.want {
				t.Errorf("want %q, got %q: %v", c.want, got, err)
			}
			if took := time.Since(start); took > 10*time.Second { // 1 ms on a quiet machine
				t.Errorf("it took %s", took)
			}
			if idp.fetches() != 0 {
				t.Error("the keys were asked for")
			}
		})
	}
}

// sibling is another character of base64url that differs in the lowest bit only.
func sibling(c byte) byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return alphabet[strings.IndexByte(alphabet, c)^1]
}

// TestJ2_J3_KeysAndAlgorithms: which key may verify what.
func TestJ2_J3_KeysAndAlgorithms(t *testing.T) {
	type m = map[string]any
	rsaKey, ps, es, es384, ed := newMinter(t, "RS256", "r"), newMinter(t, "PS256", "p"), newMinter(t, "ES256", "e"), newMinter(t, "ES384", "e3"), newMinter(t, "EdDSA", "d")
	weak, twin := newMinter(t, "RS1024", "w"), newMinter(t, "ES256", "e")
	private := func(k minter) m {
		return k.published(t, m{"d": "AAAA"})
	}
	for name, c := range map[string]struct {
		key    minter
		header m
		set    []any
		algs   []string
		want   string
	}{
		"RS256":                         {key: rsaKey},
		"PS256":                         {key: ps},
		"ES256":                         {key: es},
		"EdDSA":                         {key: ed},
		"Ed25519, the new name":         {key: ed, header: m{"alg": "Ed25519"}},
		"EdDSA where Ed25519 is listed": {key: ed, algs: []string{"Ed25519"}},
		"Ed25519, key says so too":      {key: ed, header: m{"alg": "Ed25519"}, set: []any{ed.published(t, m{"alg": "Ed25519"})}},
		"none":                          {key: rsaKey, header: m{"alg": "none"}, want: "algorithm"},
		"None":                          {key: rsaKey, header: m{"alg": "None"}, want: "algorithm"},
		"HS256 with the public key":     {key: rsaKey, header: m{"alg": "HS256"}, want: "algorithm"},
		"PS256 with an RS256 key":       {key: rsaKey, header: m{"alg": "PS256"}, want: "algorithm"},
		"PS256 not listed":              {key: ps, algs: []string{"RS256"}, want: "algorithm"},
		"RS256 that is ES256":           {key: es, header: m{"alg": "RS256"}, want: "algorithm"},
		"key without alg":               {key: rsaKey, set: []any{rsaKey.published(t, m{"alg": nil})}},
		"key without alg, second fit":   {key: rsaKey, header: m{"alg": "PS256"}, set: []any{rsaKey.published(t, m{"alg": nil})}, want: "algorithm"},
		"key without alg, PS256 first":  {key: rsaKey, header: m{"alg": "PS256"}, set: []any{rsaKey.published(t, m{"alg": nil})}, algs: []string{"PS256", "RS256"}},
		"ES384 key, ES256 header":       {key: es384, header: m{"alg": "none"}, algs: []string{"ES384"}, want: "algorithm"},
		"use enc":                       {key: es, set: []any{es.published(t, m{"use": "enc"})}, want: "unavailable"},
		"no use":                        {key: es, set: []any{es.published(t, m{"use": nil})}},
		"key_ops sign":                  {key: es, set: []any{es.published(t, m{"use": nil, "key_ops": []string{"sign"}})}, want: "unavailable"},
		"key_ops verify":                {key: es, set: []any{es.published(t, m{"use": nil, "key_ops": []string{"verify"}})}},
		"weak RSA":                      {key: weak, set: publish(weak), want: "unavailable"},
		"weak RSA beside another":       {key: rsaKey, set: publish(weak, rsaKey)},
		"exponent 1":                    {key: rsaKey, set: []any{rsaKey.published(t, m{"e": "AQ"})}, want: "unavailable"},
		"exponent even":                 {key: rsaKey, set: []any{rsaKey.published(t, m{"e": "AQAA"})}, want: "unavailable"},
		"private":                       {key: es, set: []any{private(es), rsaKey.JSONWebKey}, want: "key_refused"},
		"private and public":            {key: es, set: []any{es.JSONWebKey, private(es), rsaKey.JSONWebKey}, want: "key_refused"},
		"oct":                           {key: es, set: []any{m{"kty": "oct", "k": "AAAA", "kid": "e"}, rsaKey.JSONWebKey}, want: "key_refused"},
		"unknown kty beside":            {key: es, set: []any{m{"kty": "AKP", "kid": "e"}, m{"kty": 5}, "text", nil, es.JSONWebKey}},
		"unknown curve beside":          {key: es, set: []any{es.published(t, m{"crv": "P-999", "kid": "x"}), es.JSONWebKey}},
		"unknown alg beside":            {key: es, set: []any{es.published(t, m{"alg": "ES999"}), es.JSONWebKey}},
		"encryption key of same kid":    {key: es, set: []any{rsaKey.published(t, m{"use": "enc", "kid": "e"}), es.JSONWebKey}},
		"alg that does not fit":         {key: es, set: []any{es.published(t, m{"alg": "RS256"}), rsaKey.JSONWebKey}, want: "key_refused"},
		"a point off the curve":         {key: es, set: []any{es.published(t, m{"x": es384.published(t, nil)["x"]}), rsaKey.JSONWebKey}, want: "key_refused"},
		"two of a kid":                  {key: es, set: publish(es, twin, rsaKey), want: "key_refused"},
		"three of a kid":                {key: es, set: publish(es, twin, es, rsaKey), want: "key_refused"},
		"J4 no kid, several keys":       {key: es, header: m{"kid": nil}, set: publish(es, newMinter(t, "ES256", "z")), want: "no_kid"},
		"J4 no kid, one of its kind":    {key: es, header: m{"kid": nil}, set: publish(es, rsaKey)},
		"J4 kid where keys have none":   {key: es, set: []any{es.published(t, m{"kid": nil})}, want: codeUnknownKey},
		"signature of another":          {key: twin, set: publish(es), want: "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.set == nil {
				c.set = publish(c.key)
			}
			r := rule(t, newTestVerifier(t, newIssuer(c.set...), nil), jwtSpec(func(j *policy.JWT) {
				if c.algs != nil {
					j.Algorithms = c.algs
				}
			}))
			header := m{}
			if c.key.Algorithm == "ES384" {
				header["alg"] = "ES256"
			}
			maps.Copy(header, c.header)
			_, err := r.Verify(t.Context(), c.key.token(t, time.Now(), header, nil))
			if got := faultOf(t, err); got != c.want {
				t.Errorf("want %q, got %q: %v", c.want, got, err)
			}
		})
	}
}

// TestJ7_KeysOfAnotherIssuer: a token of A signed with the key of B is refused,
// also when both have the same kid, and when a rule of B has verified it as its own.
func TestJ7_KeysOfAnotherIssuer(t *testing.T) {
	as, bs := startAS(t, tokenstest.Config{}), startAS(t, tokenstest.Config{})
	v := newTestVerifier(t, nil, nil)
	of := func(s *tokenstest.Server) *Rule {
		return rule(t, v, jwtSpec(func(j *policy.JWT) { j.Issuer = s.Issuer() }))
	}
	ra, rb := of(as), of(bs)
	forged, err := bs.Mint("alice", ourAudience, map[string]any{"iss": as.Issuer()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ra.Verify(t.Context(), []byte(forged)); faultOf(t, err) != "signature" {
		t.Errorf("a token of A with the key of B: got %v", err)
	}
	if _, err := rb.Verify(t.Context(), []byte(forged)); faultOf(t, err) != "issuer" {
		t.Errorf("the same for B: got %v", err)
	}
	own, err := bs.Mint("alice", ourAudience, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rb.Verify(t.Context(), []byte(own)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := ra.Verify(t.Context(), []byte(own)); faultOf(t, err) != "issuer" {
			t.Errorf("a token of B for A, after B knows it: got %v", err)
		}
		p := Present([]byte(own), []*Rule{ra, rb})
		if _, err := ra.VerifyPresented(t.Context(), &p); faultOf(t, err) != "issuer" || p.jws != nil {
			t.Errorf("want the issuer known without reading, got %v", err)
		}
		if _, err := rb.VerifyPresented(t.Context(), &p); err != nil {
			t.Error(err)
		}
	}
}

func TestRulesThatCannotWork(t *testing.T) {
	v := newTestVerifier(t, newIssuer(), nil)
	for name, change := range map[string]func(*policy.JWT){
		"no issuer":        func(j *policy.JWT) { j.Issuer = "" },
		"S1 plain issuer":  func(j *policy.JWT) { j.Issuer = "http://idp.test" },
		"S1 plain keys":    func(j *policy.JWT) { j.JWKSURL = "http://idp.test/jwks" },
		"password in keys": func(j *policy.JWT) { j.JWKSURL = "https://u:p@idp.test/jwks" },
		"query in issuer":  func(j *policy.JWT) { j.Issuer += "?a=b" },
		"no audience":      func(j *policy.JWT) { j.Audiences = nil },
		"empty audience":   func(j *policy.JWT) { j.Audiences = []string{""} },
		"no algorithms":    func(j *policy.JWT) { j.Algorithms = nil },
		"J2 none":          func(j *policy.JWT) { j.Algorithms = []string{"none"} },
		"J2 HS256":         func(j *policy.JWT) { j.Algorithms = []string{"HS256"} },
		"no profile":       func(j *policy.JWT) { j.Profile = "" },
	} {
		if _, err := v.Rule(jwtSpec(change)); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	a, b := rule(t, v, jwtSpec(nil)), rule(t, v, jwtSpec(func(j *policy.JWT) { j.RequireScopes, j.Header = []string{"x"}, "x-token" }))
	other := rule(t, v, jwtSpec(generic))
	if a != b || a == other || a.ring != other.ring {
		t.Error("want equal rules to be one, and rules of one issuer to share its keys")
	}
}

// TestTokensAreNotShown: the canary is in the token's kid-less parts, its
// signature and its subject; no error, log or print shows the token.
func TestTokensAreNotShown(t *testing.T) {
	key, stranger := newMinter(t, "ES256", "k1"), newMinter(t, "ES256", "k1")
	log := &buffer{}
	v := newTestVerifier(t, newIssuer(publish(key)...), func(c *VerifierConfig) { c.Log = zerolog.New(log) })
	r := rule(t, v, jwtSpec(nil))
	now := time.Now()
	good := key.token(t, now, nil, nil)
	p, err := r.Verify(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %s %q %x", p, p, p, p, p, p)
	out += fmt.Sprintf("%+v %#v", struct{ P *Principal }{p}, struct{ p Principal }{*p})
	all := [][]byte{good}
	for _, token := range [][]byte{
		stranger.token(t, now, nil, nil), key.token(t, now, map[string]any{"kid": "x"}, nil), key.token(t, now, nil, map[string]any{"exp": 1}),
		[]byte("sk-c4n4ry-opaque-token"), append(slices.Clip(good), '.'), key.token(t, now, map[string]any{"typ": "JWT"}, nil),
		key.token(t, now, nil, map[string]any{"aud": "x"}), key.token(t, now, nil, map[string]any{"cnf": 1}),
	} {
		_, err := r.Verify(t.Context(), token)
		if err == nil {
			t.Fatal("want an error")
		}
		out += fmt.Sprintf("%v %+v %#v %s", err, err, err, err)
		all = append(all, token)
	}
	out += log.String() + fmt.Sprintf("%+v", v.Status())
	for _, token := range all {
		for part := range strings.SplitSeq(string(token), ".") {
			if part != "" && strings.Contains(out, part) {
				t.Errorf("the output shows %q", part)
			}
		}
	}
	if !strings.Contains(out, "profile: generic") {
		t.Error("the refusal of typ JWT does not name the switch")
	}
}
