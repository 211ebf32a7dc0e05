package e2e_test

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestA1_CallersByToken: whom a token proves, by both protocols, and that it
// decides alone.
func TestA1_CallersByToken(t *testing.T) {
	p := startPeople(t, byToken)
	alice := p.mint(p.idp, "alice", scopesOfPeople, nil)
	carol := p.mint(p.partner, "carol", "", nil)
	plain := p.mint(p.idp, "bob", "", nil)
	admin := p.mint(p.idp, "root", "mcp.admin offline_access", nil)
	key := "x-mcp-auth-key: " + callerKey
	for _, row := range []struct {
		what, upstream string
		lines          []string
		status         int
		reason         string
	}{
		{"keys found by the issuer's metadata", "alpha", []string{bearer(alice)}, 200, ""},
		{"keys at jwks_url", "fixed", []string{bearer(carol)}, 200, ""},
		{"A9: the scheme in any case", "alpha", []string{"authorization: bEARER " + alice}, 200, ""},
		{"A9: more blanks", "alpha", []string{"authorization: Bearer   " + alice}, 200, ""},
		{"A9: a tab", "alpha", []string{"authorization: Bearer\t" + alice}, 401, "caller_invalid"},
		{"A9: no scheme", "alpha", []string{"authorization: " + alice}, 401, "caller_invalid"},
		{"A9: another scheme", "alpha", []string{"authorization: Basic " + canary}, 401, "caller_invalid"},
		{"A9: not a token", "alpha", []string{"authorization: Bearer " + alice + "%"}, 401, "caller_invalid"},
		{"A9: empty", "alpha", []string{"authorization: Bearer"}, 401, "caller_invalid"},
		{"first of two issuers", "both", []string{bearer(alice)}, 200, ""},
		{"second of two issuers", "both", []string{bearer(carol)}, 200, ""},
		{"a key beside them", "both", []string{key}, 200, ""},
		{"a token decides, not the key", "both", []string{bearer(plain), key}, 403, "scope_missing"},
		{"a bad token decides, not the key", "both", []string{"authorization: Bearer " + canary, key}, 401, "caller_invalid"},
		{"another header, bare", "guest", []string{"x-user-token: " + plain}, 200, ""},
		{"another header, with scheme", "guest", []string{"x-user-token: Bearer " + plain}, 200, ""},
		{"another header, and authorization is of no account", "guest", []string{"x-user-token: " + plain, bearer(canary)}, 200, ""},
		{"authorization, where another header counts", "guest", []string{bearer(plain)}, 401, "caller_unknown"},
		{"another header, where authorization counts", "alpha", []string{"x-user-token: " + alice}, 401, "caller_unknown"},
		{"A1: a token of an issuer for another upstream", "fixed", []string{bearer(alice)}, 401, "caller_invalid"},
		{"A5: one of two scopes", "alpha", []string{bearer(p.mint(p.idp, "bob", "mcp.read", nil))}, 403, "scope_missing"},
		{"A6: scopes to the letter", "alpha", []string{bearer(p.mint(p.idp, "bob", "mcp.read MCP.call", nil))}, 403, "scope_missing"},
		{"all scopes, one is offline_access", "admin", []string{bearer(admin)}, 200, ""},
		{"A8: twice", "alpha", []string{bearer(alice), bearer(alice)}, 400, "bad_request"},
		{"A8: twice, good and bad", "alpha", []string{bearer(alice), bearer(canary)}, 400, "bad_request"},
		{"A8: comma-joined", "alpha", []string{bearer(alice) + ", Bearer " + alice}, 400, "bad_request"},
		{"no token of anybody at an open server", "open", []string{bearer(alice), "x-user-token: " + plain}, 200, ""},
	} {
		p.both(func(proto string, get func(string, ...string) reply) {
			got := get("/"+row.upstream+"/mcp", row.lines...)
			came := p.up(row.upstream).take()
			if got.status != row.status || row.reason != "" && got.reason() != row.reason {
				t.Errorf("%s, %s: want %d %s, got %v", proto, row.what, row.status, row.reason, got)
			}
			if (row.status == 200) != (len(came) == 1) {
				t.Errorf("%s, %s: got %d requests at the upstream", proto, row.what, len(came))
			}
		})
	}
	if n := p.partner.MetadataPaths(); len(n) != 0 {
		t.Errorf("want jwks_url asked and no metadata, got requests for %v", n)
	}
}

// TestA8_TokenInTheQuery: a token in the URL is refused however its name is
// written, at every upstream of a policy with tokens, and is in no log.
func TestA8_TokenInTheQuery(t *testing.T) {
	p := startPeople(t, byToken)
	alice := p.mint(p.idp, "alice", scopesOfPeople, nil)
	for _, query := range []string{
		"access_token=" + alice, "a=b&access_token=" + alice, "access%5ftoken=" + alice, "%61ccess_token=" + alice,
		"a=b;access_token=" + alice, "access_token",
	} {
		for _, upstream := range []string{"alpha", "both", "guest", "own", "open"} {
			p.both(func(proto string, get func(string, ...string) reply) {
				got := get("/"+upstream+"/mcp?"+query, bearer(alice), "x-mcp-auth-key: "+callerKey)
				if got.status != http.StatusBadRequest || got.reason() != "bad_request" {
					t.Errorf("%s %s ?%.20s: want 400 bad_request, got %v", proto, upstream, query, got)
				}
				if n := len(p.up(upstream).take()); n != 0 {
					t.Errorf("%s %s ?%.20s: want nothing at the upstream, got %d requests", proto, upstream, query, n)
				}
			})
		}
	}
	if got := p.get1("/alpha/mcp?token=1&access_tokens=2&x=access_token", bearer(alice)); got.status != http.StatusOK {
		t.Errorf("another parameter: got %v", got)
	}
}

// TestA4_Challenges: each refusal asks for what would mend it, in one challenge
// that names our own metadata.
func TestA4_Challenges(t *testing.T) {
	p := startPeople(t, byToken)
	p.both(func(proto string, get func(string, ...string) reply) {
		_, metadata := p.at("alpha")
		p.challenged(t, proto+" no token", get("/alpha/mcp"), 401, "caller_unknown",
			`Bearer resource_metadata="`+metadata+`", scope="mcp.read mcp.call"`)
		p.challenged(t, proto+" a bad token", get("/alpha/mcp", bearer(canary)), 401, "caller_invalid", p.invalidToken("alpha", "mcp.read mcp.call"))
		p.challenged(t, proto+" an expired token", get("/alpha/mcp", bearer(p.mint(p.idp, "a", scopesOfPeople, map[string]any{"exp": 1e9}))),
			401, "caller_invalid", p.invalidToken("alpha", "mcp.read mcp.call"))
		// A5: all scopes in one challenge, whatever the token holds already.
		p.challenged(t, proto+" a scope too few", get("/alpha/mcp", bearer(p.mint(p.idp, "a", "mcp.read", nil))), 403, "scope_missing",
			`Bearer error="insufficient_scope", resource_metadata="`+metadata+`", scope="mcp.read mcp.call"`)
		_, metadata = p.at("both")
		p.challenged(t, proto+" different scopes for different callers", get("/both/mcp"), 401, "caller_unknown", `Bearer resource_metadata="`+metadata+`"`)
		_, metadata = p.at("admin")
		p.challenged(t, proto+" A7: no refresh token is asked for", get("/admin/mcp"), 401, "caller_unknown",
			`Bearer resource_metadata="`+metadata+`", scope="mcp.admin"`)
		for _, got := range []reply{get("/nobody/mcp"), get("/alpha/mcp", bearer("x"), bearer("y")), get("/open/mcp", "origin: https://evil.test")} {
			if got.status == http.StatusOK || got.header.Get("Www-Authenticate") != "" {
				t.Errorf("%s: want a refusal that no token mends, without a challenge, got %v %v", proto, got, got.header)
			}
		}
	})
	p.show(canary + "-and-none-else")
	p.untouched()
}

// TestA2_MetadataServed: the document that the challenge names is there, is about
// the very URL that the caller uses, and is ours.
func TestA2_MetadataServed(t *testing.T) {
	p := startPeople(t, byToken)
	p.show("no-caller-shows-a-token-here")
	for name := range p.facts.upstreams {
		p.up(name).answerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Www-Authenticate", `Bearer resource_metadata="https://theirs.test/x"`)
			_, _ = w.Write([]byte(`{"resource":"https://theirs.test","authorization_servers":["https://theirs.test"]}`))
		})
	}
	for name, want := range map[string]map[string]any{
		"alpha": {"authorization_servers": []any{p.idp.Issuer()}, "scopes_supported": []any{"mcp.call", "mcp.read"}},
		"admin": {"authorization_servers": []any{p.idp.Issuer()}, "scopes_supported": []any{"mcp.admin"}},
		"fixed": {"authorization_servers": []any{p.partner.Issuer()}},
	} {
		resource, metadata := p.at(name)
		want["resource"], want["bearer_methods_supported"] = resource, []any{"header"}
		p.both(func(proto string, get func(string, ...string) reply) {
			got := get(strings.TrimPrefix(metadata, p.url))
			var doc map[string]any
			if err := json.Unmarshal([]byte(got.body), &doc); err != nil || got.status != http.StatusOK || got.header.Get("Content-Type") != "application/json" {
				t.Fatalf("%s %s: got %v %v", proto, name, got, got.header)
			}
			if diff := cmp.Diff(want, doc); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", proto, name, diff)
			}
		})
		// Without a token nobody gets through to the upstream's own.
		if got := p.get1("/" + name + "/mcp/.well-known/oauth-protected-resource"); got.status != http.StatusUnauthorized || strings.Contains(got.body, "theirs") {
			t.Errorf("%s: got %v", name, got)
		}
	}
	p.untouched()
}

// TestA3_UpstreamsOwnChallenge: what an upstream asks for is for us. A caller would
// be sent to an authorization server whose tokens we refuse.
func TestA3_UpstreamsOwnChallenge(t *testing.T) {
	p := startPeople(t, byToken)
	alice := p.mint(p.idp, "alice", scopesOfPeople, nil)
	status := 0
	for _, name := range []string{"alpha", "both"} {
		p.up(name).answerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Www-Authenticate", `Bearer error="invalid_token", resource_metadata="https://theirs.test/x"`)
			w.Header().Set("X-Mcp-Auth-Reason", "caller_invalid")
			w.WriteHeader(status)
		})
		for status = range map[int]bool{401: true, 403: true, 200: true} {
			p.both(func(proto string, get func(string, ...string) reply) {
				got := get("/"+name+"/mcp", bearer(alice))
				want := status
				if status == http.StatusUnauthorized {
					want = http.StatusBadGateway
					got.refused(t, want, "upstream_rejected")
				}
				if got.status != want || got.header.Get("Www-Authenticate") != "" {
					t.Errorf("%s %s answers %d: want %d without a challenge, got %v %v", proto, name, status, want, got, got.header)
				}
			})
		}
	}
}

// byTokenOrCertificate has upstreams that know callers by certificate and by token.
const byTokenOrCertificate = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: "{{.Listen}}", tls: {certificate: "{{.Dir}}/tls.crt", private_key: "{{.Dir}}/tls.key", client_ca: "{{.Dir}}/ca.pem"}}
callers:
  people: {jwt: {issuer: "IDP", audience: "https://mcp.company.com", require_scopes: [mcp.read]}}
  spiffe: {mtls: {san: ["spiffe://company/litellm"]}}
  guests: {jwt: {issuer: "IDP", audience: "https://mcp.company.com", header: x-user-token}}
defaults: {credential: none}
upstreams:
  alpha: {url: "{{.URL "alpha"}}", callers: [spiffe, people]}
  guest: {url: "{{.URL "guest"}}", callers: [guests, spiffe]}
  cert:  {url: "{{.URL "cert"}}", callers: [spiffe]}
`

// TestCallersByTokenAndCertificate: a token that is shown decides, whatever the
// certificate proves; without one, the certificate does.
func TestCallersByTokenAndCertificate(t *testing.T) {
	p := startPeople(t, byTokenOrCertificate)
	alice, plain := p.mint(p.idp, "alice", "mcp.read", nil), p.mint(p.idp, "bob", "", nil)
	good, other := p.facts.pki.client("spiffe://company/litellm"), p.facts.pki.client("spiffe://company/other")
	old := p.mint(p.idp, "alice", "mcp.read", map[string]any{"exp": 1e9})
	for _, row := range []struct {
		what, upstream string
		cert           []tls.Certificate
		headers        pairs
		status         int
		reason         string
	}{
		{"certificate", "alpha", []tls.Certificate{good}, nil, 200, ""},
		{"token", "alpha", nil, pairs{"Authorization", "Bearer " + alice}, 200, ""},
		{"both", "alpha", []tls.Certificate{good}, pairs{"Authorization", "Bearer " + alice}, 200, ""},
		{"token, and a stranger's certificate", "alpha", []tls.Certificate{other}, pairs{"Authorization", "Bearer " + alice}, 200, ""},
		{"certificate, and an expired token", "alpha", []tls.Certificate{good}, pairs{"Authorization", "Bearer " + old}, 401, "caller_invalid"},
		{"certificate, and another secret", "alpha", []tls.Certificate{good}, pairs{"Authorization", "Bearer sk-" + canary}, 401, "caller_invalid"},
		{"certificate, and a token with too few scopes", "alpha", []tls.Certificate{good}, pairs{"Authorization", "Bearer " + plain}, 403, "scope_missing"},
		{"neither", "alpha", nil, nil, 401, "caller_unknown"},
		{"a stranger's certificate", "alpha", []tls.Certificate{other}, nil, 401, "caller_unknown"},
		{"certificate, where the token is elsewhere", "guest", []tls.Certificate{good}, pairs{"Authorization", "Bearer " + old}, 200, ""},
		{"token elsewhere", "guest", nil, pairs{"X-User-Token", plain}, 200, ""},
		{"expired token elsewhere, and a certificate", "guest", []tls.Certificate{good}, pairs{"X-User-Token", old}, 401, "caller_invalid"},
		{"token, where only certificates count", "cert", nil, pairs{"Authorization", "Bearer " + alice}, 403, "caller_unknown"},
		{"certificate, where only certificates count", "cert", []tls.Certificate{good}, pairs{"Authorization", "Bearer " + alice}, 200, ""},
	} {
		for _, h2 := range []bool{false, true} {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: p.facts.pki.trust(row.cert...), ForceAttemptHTTP2: h2, DisableKeepAlives: true}}
			got := p.do(t.Context(), client, strings.Replace(p.url, "http:", "https:", 1)+"/"+row.upstream+"/mcp", strings.NewReader("{}"), row.headers)
			came := p.up(row.upstream).take()
			if got.status != row.status || got.reason() != row.reason || (row.status == 200) != (len(came) == 1) {
				t.Errorf("%s, HTTP/2 %t: want %d %s, got %v and %d requests at the upstream", row.what, h2, row.status, row.reason, got, len(came))
			}
			if challenged := got.header.Get("Www-Authenticate") != ""; challenged != slices.Contains([]string{"caller_unknown", "caller_invalid", "scope_missing"}, row.reason) && row.upstream != "cert" {
				t.Errorf("%s: challenge %t: %v", row.what, challenged, got.header)
			}
		}
	}
}
