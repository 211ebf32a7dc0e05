package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// upstreamSaying is an upstream whose protected resource metadata names these
// servers; %s in it is its own URL.
func upstreamSaying(t *testing.T, document string) string {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/oauth-protected-resource/mcp" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(strings.ReplaceAll(document, "URL", s.URL)))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/mcp"
}

func discoverPolicy(t *testing.T, as *tokenstest.Server, upstream string) string {
	t.Helper()
	return policyFile(t, fmt.Sprintf(`version: 1
callers:
  anyone: {any: true}
defaults:
  callers: [anyone]
  credential: {oauth2: {issuer: %q, client_id: proxy, client_secret: "${SECRET}", scopes: [mcp.read]}}
upstreams:
  tools: {url: %q, discover: true}
  a: {url: "https://a.example"}
  b: {url: "https://b.example"}
`, as.Issuer(), upstream))
}

func proxyClient() tokenstest.Config {
	return tokenstest.Config{Clients: map[string]tokenstest.Client{"proxy": {Secret: "canary-secret"}}}
}

// U2, U4: check --discover explains what was found, and what of it differs.
func TestCheckDiscover(t *testing.T) {
	as := tokenstest.Start(t, proxyClient())
	agrees := discoverPolicy(t, as, upstreamSaying(t, `{"resource": "URL/mcp", "authorization_servers": ["`+as.Issuer()+`"]}`))
	got := program(t, secretEnv(), "check", "--discover", "-c", agrees)
	for _, want := range []string{
		"discovered for a, b\n  issuer    " + as.Issuer() + "\n",
		"  metadata  " + as.URL() + "/.well-known/oauth-authorization-server (offers client_secret_basic, ",
		"  endpoint  " + as.TokenURL() + " (client_secret_basic, client proxy)\n",
		"discovered for tools\n", "/mcp (says http://", ", of " + as.Issuer() + ")\n", "ok: ",
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s", want, got.out)
		}
	}
	if got.code != 0 || as.Requests() != 0 {
		t.Errorf("want 0 and no token request, got %d, %d and:\n%s%s", got.code, as.Requests(), got.out, got.err)
	}

	differs := discoverPolicy(t, as, upstreamSaying(t, `{"resource": "URL", "authorization_servers": ["https://evil.example"]}`))
	got = program(t, secretEnv(), "check", "--discover", "-c", differs)
	if got.code != 1 || strings.Count(got.out, "  differs   ") != 2 || strings.Contains(got.out, "ok: ") || !strings.Contains(got.out, `"https://evil.example"`) {
		t.Errorf("want two differences and 1, got %d:\n%s%s", got.code, got.out, got.err)
	}
	if off := program(t, secretEnv(), "check", "-c", differs); off.code != 0 || strings.Contains(off.out, "discovered") {
		t.Errorf("want check to ask nobody, got %d:\n%s", off.code, off.out)
	}
	var report struct {
		Discovered []struct {
			Upstreams []string `json:"upstreams"`
			Findings  []string `json:"findings"`
		} `json:"discovered"`
	}
	if err := json.Unmarshal([]byte(program(t, secretEnv(), "check", "--discover", "-c", differs, "-o", "json").out), &report); err != nil || len(report.Discovered) != 2 {
		t.Errorf("want two servers as JSON, got %+v, %v", report, err)
	}

	as.EditMetadata(func(m map[string]any) { m["issuer"] = "https://other.example" })
	if got := program(t, secretEnv(), "check", "--discover", "-c", agrees); got.code != 1 || !strings.Contains(got.out, "issuer_mismatch") {
		t.Errorf("U3: want the other issuer named, got %d:\n%s", got.code, got.out)
	}
}

// U9, J5: the identity provider of an id_jag and the issuers of callers' tokens
// are asked as well.
func TestCheckDiscoversCallersAndIdentityProviders(t *testing.T) {
	as, idp := tokenstest.Start(t, proxyClient()), tokenstest.Start(t, proxyClient())
	file := policyFile(t, fmt.Sprintf(`version: 1
callers:
  people: {jwt: {issuer: %[1]q, audience: mcp}}
  robots: {jwt: {issuer: %[1]q, audience: mcp, require_scopes: [robot]}}
upstreams:
  tools:
    url: https://tools.example/mcp
    callers: [people, robots]
    credential:
      oauth2:
        token_url: %[2]q
        grant: id_jag
        client_id: proxy
        client_secret: "${SECRET}"
        idp: {issuer: %[1]q, client_id: proxy, client_secret: "${SECRET}", audience: %[3]q}
`, idp.Issuer(), as.TokenURL(), as.Issuer()))
	got := program(t, secretEnv(), "check", "--discover", "-c", file)
	for _, want := range []string{
		"discovered for tools\n  endpoint  " + as.TokenURL() + " (client_secret_basic, grant id_jag, client proxy)\n" +
			" identity provider\n  issuer    " + idp.Issuer() + "\n  metadata  " + idp.URL() + "/.well-known/",
		"  endpoint  " + idp.TokenURL() + " (client_secret_basic, grant token_exchange, client proxy)\n",
		"discovered for callers people, robots\n  issuer    " + idp.Issuer() + "\n  keys      " + idp.JWKSURL() + " (", "ok: ",
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s", want, got.out)
		}
	}
	if got.code != 0 || as.Requests()+idp.Requests() != 0 {
		t.Errorf("want 0 and no token request, got %d:\n%s%s", got.code, got.out, got.err)
	}
	var report struct {
		Discovered []struct {
			Callers []string `json:"callers"`
			IDP     struct{ Endpoint string }
		} `json:"discovered"`
	}
	if err := json.Unmarshal([]byte(program(t, secretEnv(), "check", "--discover", "-c", file, "-o", "json").out), &report); err != nil ||
		len(report.Discovered) != 2 || len(report.Discovered[1].Callers) != 2 || report.Discovered[0].IDP.Endpoint != idp.TokenURL() {
		t.Errorf("want both as JSON, got %+v, %v", report, err)
	}

	idp.FailJWKS(tokenstest.HTML)
	if got := program(t, secretEnv(), "check", "--discover", "-c", file); got.code != 1 || strings.Count(got.out, "  differs   ") != 1 {
		t.Errorf("want the keys named, got %d:\n%s", got.code, got.out)
	}
	idp.FailJWKS("")
	idp.EditMetadata(func(m map[string]any) { delete(m, "token_endpoint") })
	if got := program(t, secretEnv(), "check", "--discover", "-c", file); got.code != 1 || strings.Count(got.out, "  differs   ") != 1 || !strings.Contains(got.out, "names no token endpoint") {
		t.Errorf("want the identity provider's endpoint named, got %d:\n%s", got.code, got.out)
	}
}

// The token command shows what is asked for, what came, and what it cannot ask for.
func TestTokenShowsTheRequest(t *testing.T) {
	as := tokenstest.Start(t, proxyClient())
	file := discoverPolicy(t, as, upstreamSaying(t, `{"resource": "URL/mcp", "authorization_servers": ["https://evil.example"]}`))
	got := program(t, secretEnv(), "token", "-c", file, "--upstream", "tools")
	for _, want := range []string{"tools  ok in ", "  requests  scope mcp.read, resource http://127.0.0.1:", "  expires   ", " after it came, refreshed from ", "  differs   the upstream takes tokens of \"https://evil.example\""} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s%s", want, got.out, got.err)
		}
	}
	if got.code != 0 {
		t.Errorf("want 0, since the token came, got %d", got.code)
	}
}

func TestTokenOfUsersIsNotFetched(t *testing.T) {
	as := tokenstest.Start(t, proxyClient())
	file := policyFile(t, fmt.Sprintf(`version: 1
callers:
  people: {jwt: {issuer: https://idp.example, audience: mcp}}
upstreams:
  tools:
    url: https://tools.example
    callers: [people]
    credential: {oauth2: {issuer: %q, grant: token_exchange, client_id: proxy, client_secret: "${SECRET}"}}
`, as.Issuer()))
	got := program(t, secretEnv(), "token", "-c", file)
	for _, want := range []string{"tools  not fetched\n", "each caller gets a token of its own", "grant token_exchange", as.TokenURL()} {
		if !strings.Contains(got.out, want) {
			t.Errorf("want %q in:\n%s%s", want, got.out, got.err)
		}
	}
	if got.code != 0 || as.Requests() != 0 {
		t.Errorf("want 0 and no token request, got %d and %d", got.code, as.Requests())
	}
}

// Progress is said on the error stream, and only when it takes its time.
func TestProgress(t *testing.T) {
	var quick, slow lockedBuffer
	each(&quick, "fetched", 40, func(int) {})
	if quick.String() != "" {
		t.Errorf("want nothing said of quick work, got %q", quick.String())
	}
	var mu sync.Mutex
	seen := map[int]bool{}
	each(&slow, "fetched", fetchers+4, func(i int) {
		mu.Lock()
		seen[i] = true
		mu.Unlock()
		time.Sleep(7 * progressAfter / 10)
	})
	if want := fmt.Sprintf("%d of %d fetched\n", fetchers, fetchers+4); slow.String() != want || len(seen) != fetchers+4 {
		t.Errorf("want %q once all %d were done, got %q, %d", want, fetchers+4, slow.String(), len(seen))
	}
}

// U4: at serve time the comparison is made in the background, logged and shown.
func TestServeWarnsOfAnotherAuthorizationServer(t *testing.T) {
	t.Parallel()
	upstream := upstreamSaying(t, `{"resource": "URL/mcp", "authorization_servers": ["https://evil.example"]}`)
	r := start(t, func(socket, admin, auth string) string {
		return fmt.Sprintf(`version: 1
server: {listen: %q, admin: %q}
callers:
  anyone: {any: true}
upstreams:
  tools:
    url: %q
    discover: true
    callers: [anyone]
    credential: {oauth2: {token_url: "%s/token", client_id: proxy, client_secret: "${SECRET}", resource: "https://other.example"}}
`, socket, admin, upstream, auth)
	})
	r.until(t, "/status", `      "resource_check": {`)
	for _, where := range []string{r.get(t, "/status"), r.log.String()} {
		if !strings.Contains(where, "set credential.oauth2.resource") {
			t.Errorf("want the difference in:\n%s", where)
		}
	}
}
