package tokenstest_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

type answer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"`
	Scope       string `json:"scope"`
	Error       string `json:"error"`
}

// ask sends one token request.
func ask(t *testing.T, as *tokenstest.Server, form url.Values, user, pass string) (int, answer) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, as.TokenURL(), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if user != "" {
		r.SetBasicAuth(user, pass)
	}
	var a answer
	return do(t, r, &a), a
}

func do(t *testing.T, r *http.Request, into any) int {
	t.Helper()
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && into != nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return resp.StatusCode
}

func get(t *testing.T, method, url string, into any) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return do(t, r, into)
}

func form(pairs ...string) url.Values {
	v := url.Values{"grant_type": {"client_credentials"}}
	for pair := range slices.Chunk(pairs, 2) {
		v.Set(pair[0], pair[len(pair)-1])
		if v.Get(pair[0]) == "" {
			v.Del(pair[0])
		}
	}
	return v
}

func clients() map[string]tokenstest.Client {
	return map[string]tokenstest.Client{
		"id:1 x": {
			Secret: "p%ä+:~ !", Methods: []string{"client_secret_basic"}, Scopes: []string{"a", "b"},
			Resources: []string{"https://mcp/"}, Audiences: []string{"aud"}, NeedsResource: true,
		},
		"post": {Secret: "s"},
	}
}

func TestTheServerChecksItsRequests(t *testing.T) {
	as := tokenstest.Start(t, tokenstest.Config{Clients: clients()})
	// The vector of RFC 6749 §2.3.1 and appendix B.
	const id, secret = "id%3A1+x", "p%25%C3%A4%2B%3A%7E+%21"
	for name, c := range map[string]struct {
		form       url.Values
		user, pass string
		status     int
		code       string
	}{
		"good":               {form("resource", "https://mcp/", "scope", "a"), id, secret, 200, ""},
		"not encoded":        {form("resource", "https://mcp/"), "id:1 x", "p%ä+:~ !", 401, "invalid_client"},
		"wrong secret":       {form("resource", "https://mcp/"), id, "x", 401, "invalid_client"},
		"unknown client":     {form(), "nobody", "x", 401, "invalid_client"},
		"post":               {form("client_id", "post", "client_secret", "s"), "", "", 200, ""},
		"post not allowed":   {form("client_id", "id:1 x", "client_secret", "p%ä+:~ !"), "", "", 401, "invalid_client"},
		"two methods":        {form("client_secret", "s"), "post", "s", 400, "invalid_request"},
		"no grant":           {form("grant_type", ""), "post", "s", 400, "unsupported_grant_type"},
		"wrong grant":        {form("grant_type", "password"), "post", "s", 400, "unsupported_grant_type"},
		"wrong scope":        {form("resource", "https://mcp/", "scope", "a c"), id, secret, 400, "invalid_scope"},
		"wrong resource":     {form("resource", "https://mcp"), id, secret, 400, "invalid_target"},
		"no resource":        {form(), id, secret, 400, "invalid_target"},
		"wrong audience":     {form("resource", "https://mcp/", "audience", "x"), id, secret, 400, "invalid_target"},
		"parameter twice":    {url.Values{"grant_type": {"client_credentials"}, "scope": {"a", "b"}}, "post", "s", 400, "invalid_request"},
		"an empty parameter": {url.Values{"grant_type": {"client_credentials"}, "scope": {""}}, "post", "s", 400, "invalid_request"},
	} {
		status, a := ask(t, as, c.form, c.user, c.pass)
		if status != c.status || a.Error != c.code || (a.AccessToken != "") != (status == 200) {
			t.Errorf("%s: want %d %q, got %d %q", name, c.status, c.code, status, a.Error)
		}
	}
	if as.Requests() != 15 || as.RequestsBy("post") == 0 || len(as.Recorded()) != 15 {
		t.Errorf("want 15 requests counted and recorded, got %d and %d", as.Requests(), len(as.Recorded()))
	}
}

// verify reads a token with the keys that the server publishes.
func verify(t *testing.T, as *tokenstest.Server, alg jose.SignatureAlgorithm, token string) map[string]any {
	t.Helper()
	var set jose.JSONWebKeySet
	get(t, http.MethodGet, as.JWKSURL(), &set)
	j, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		t.Fatal(err)
	}
	keys := set.Key(j.Headers[0].KeyID)
	if len(keys) != 1 || !keys[0].IsPublic() || j.Headers[0].ExtraHeaders["typ"] != "at+jwt" {
		t.Fatalf("want one public key and typ at+jwt, got %d, %v", len(keys), j.Headers[0].ExtraHeaders)
	}
	var claims map[string]any
	if err := j.Claims(keys[0].Key, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestTokensKeysAndRevocation(t *testing.T) {
	for _, alg := range []jose.SignatureAlgorithm{jose.ES256, jose.RS256} {
		as := tokenstest.Start(t, tokenstest.Config{Clients: clients(), Algorithm: string(alg), Lifetime: time.Hour, Control: true})
		_, a := ask(t, as, form("scope", "r w", "resource", "https://mcp/x"), "post", "s")
		c := verify(t, as, alg, a.AccessToken)
		if c["iss"] != as.URL() || c["sub"] != "post" || c["client_id"] != "post" || c["aud"] != "https://mcp/x" || c["scope"] != "r w" {
			t.Errorf("claims %v", c)
		}
		if life := c["exp"].(float64) - c["iat"].(float64); life != 3600 || a.ExpiresIn != 3600 || a.TokenType != "Bearer" || a.Scope != "r w" {
			t.Errorf("want an hour, got %v and %d", life, a.ExpiresIn)
		}
		jti, _ := c["jti"].(string)
		if as.Revoked(jti) || !as.Revoked("never issued") {
			t.Error("want the token good, and an unknown one not")
		}
		if err := as.RotateKeys(); err != nil {
			t.Fatal(err)
		}
		verify(t, as, alg, a.AccessToken)
		if status := get(t, http.MethodPost, as.URL()+"/control/revoke", nil); status != 200 {
			t.Fatalf("control: %d", status)
		}
		var got struct{ Revoked bool }
		get(t, http.MethodGet, as.URL()+"/revoked?jti="+url.QueryEscape(jti), &got)
		_, b := ask(t, as, form(), "post", "s")
		c2 := verify(t, as, alg, b.AccessToken)
		id2, _ := c2["jti"].(string)
		if !got.Revoked || as.Revoked(id2) || c2["aud"] != as.URL() {
			t.Error("want the old token revoked and the new one good")
		}
	}
}

func TestMetadataAndControl(t *testing.T) {
	as := tokenstest.Start(t, tokenstest.Config{Clients: clients()})
	var meta map[string]any
	get(t, http.MethodGet, as.URL()+"/.well-known/oauth-authorization-server", &meta)
	if meta["issuer"] != as.Issuer() || meta["token_endpoint"] != as.TokenURL() || meta["jwks_uri"] != as.JWKSURL() {
		t.Errorf("metadata %v", meta)
	}
	if status := get(t, http.MethodPost, as.URL()+"/control/revoke", nil); status != 404 {
		t.Errorf("control must be asked for, got %d", status)
	}
	as = tokenstest.Start(t, tokenstest.Config{Clients: clients(), Control: true})
	for path, want := range map[string]int{"fail?fault=status_503": 200, "fail?fault=nonsense": 400, "nonsense": 404} {
		if status := get(t, http.MethodPost, as.URL()+"/control/"+path, nil); status != want {
			t.Errorf("%s: want %d, got %d", path, want, status)
		}
	}
	as.Heal()
	as.FailNext(1, tokenstest.InvalidClient)
	first, _ := ask(t, as, form(), "post", "s")
	second, _ := ask(t, as, form(), "post", "s")
	as.SetSecret("post", "new")
	third, _ := ask(t, as, form(), "post", "s")
	if first != 401 || second != 200 || third != 401 {
		t.Errorf("want 401 200 401, got %d %d %d", first, second, third)
	}
}

func TestTLS(t *testing.T) {
	as := tokenstest.Start(t, tokenstest.Config{TLS: tokenstest.TLSGood})
	pem, err := os.ReadFile(as.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, as.JWKSURL(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	hc.CloseIdleConnections()
	as.Close()
	if _, err := os.Stat(as.CAFile()); !os.IsNotExist(err) {
		t.Errorf("want the ca file gone, got %v", err)
	}
	if _, err := tokenstest.New(tokenstest.Config{TLS: "x"}); err == nil {
		t.Error("want an unknown tls mode refused")
	}
	if _, err := tokenstest.New(tokenstest.Config{Algorithm: "none"}); err == nil {
		t.Error("want an unknown algorithm refused")
	}
}
