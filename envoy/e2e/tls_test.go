package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// overTLS is a policy whose upstreams, token endpoint apart, all speak TLS.
const overTLS = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers: {anyone: {any: true}}
defaults: {callers: [anyone]}
upstreams:
  alpha:
    url: {{.SecureURL "alpha"}}
    ca: {{.Dir}}/ca.pem
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
    cookies: {allow: [session_id]}
  open: {url: {{.SecureURL "open"}}, ca: {{.Dir}}/ca.pem, credential: none}
  stranger: {url: {{.SecureURL "stranger"}}, ca: {{.Dir}}/other/ca.pem, credential: none}
`

// TestUpstreamTLS: to an https upstream, over HTTP/2, all is as over HTTP/1.1;
// an upstream that cannot prove its name gets nothing.
func TestUpstreamTLS(t *testing.T) {
	r := newRig(t, overTLS)
	newPKI(t, r.dir+"/other")
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	r.both(func(proto string, get func(string, ...string) reply) {
		a, got := r.lands(t, "alpha", proto, func() reply {
			return get("/alpha/mcp", "authorization: Bearer "+callerToken, "cookie: t="+canary+"; session_id=1")
		})
		if got.status != http.StatusOK || !strings.Contains(a.Head, "HTTP/2.0") || a.Header.Get("Cookie") != "session_id=1" {
			t.Errorf("%s: want HTTP/2 and one cookie at the upstream, got %v and %.100q", proto, got, a.Head)
		}
		if got := get("/stranger/mcp", "cookie: t="+canary); got.status < 500 {
			t.Errorf("%s: a certificate of another authority: want 5xx, got %v", proto, got)
		}
	})
	if n := r.up("stranger").total(); n != 0 {
		t.Errorf("want nothing at an upstream that proves no name, got %d requests", n)
	}
}

// TestC1_Trailers: what a caller sends behind its body is no way around, where
// both sides speak HTTP/2 and trailers could pass.
func TestC1_Trailers(t *testing.T) {
	r := newRig(t, overTLS)
	newPKI(t, r.dir+"/other")
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	for _, up := range []string{"alpha", "open"} {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, r.url+"/"+up+"/mcp", io.MultiReader(bytes.NewReader([]byte("{}"))))
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{
			"X-Api-Key": {canary}, "X-Litellm-Api-Key": {canary}, "X-Mcp-Auth-Key": {canary},
		}
		resp, err := h2c().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: got %d", up, resp.StatusCode)
		}
	}
	for _, up := range []string{"alpha", "open"} {
		for _, f := range auditUpstream(r.up(up)) {
			t.Log(f)
		}
	}
}

// callersByCertificate has one upstream for each kind of caller.
const callersByCertificate = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}, tls: {certificate: {{.Dir}}/tls.crt, private_key: {{.Dir}}/tls.key, client_ca: {{.Dir}}/ca.pem}}
callers:
  anyone: {any: true}
  robot: {key: {sha256: "{{.KeySum}}"}}
  spiffe: {mtls: {san: ["spiffe://company/litellm"]}}
  dns: {mtls: {san: [litellm.company.com]}}
upstreams:
  any: {url: {{.URL "any"}}, callers: [anyone], credential: none}
  keyed: {url: {{.URL "keyed"}}, callers: [robot], credential: {header: {x-api-key: {file: {{.Dir}}/fixed.secret}}}}
  fixed: {url: {{.URL "fixed"}}, callers: [spiffe], credential: {header: {x-api-key: {file: {{.Dir}}/fixed.secret}}}}
  named: {url: {{.URL "named"}}, callers: [dns], credential: none}
  either: {url: {{.URL "either"}}, callers: [robot, spiffe], credential: none}
`

// TestCallers: who may call whom, through the real listener with client
// certificates, over both protocols.
func TestCallers(t *testing.T) {
	for name, line := range map[string]func(*testing.T, string) *rig{"rendered": start, "served": startXDS} {
		t.Run(name, func(t *testing.T) { certified(t, line(t, callersByCertificate)) })
	}
}

func certified(t *testing.T, r *rig) {
	t.Helper()
	stranger := newPKI(t, t.TempDir()).client("spiffe://company/litellm", "litellm.company.com")
	good := r.facts.pki.client("spiffe://company/litellm", "litellm.company.com")
	certs := map[string][]tls.Certificate{
		"none": nil, "good": {good}, "other uri": {r.facts.pki.client("spiffe://company/other")},
		"uri as dns": {r.facts.pki.client("", "spiffe.company.litellm")}, "only dns": {r.facts.pki.client("", "litellm.company.com")},
		"longer uri": {r.facts.pki.client("spiffe://company/litellm/x")}, "other authority": {stranger},
	}
	key := pairs{"X-Mcp-Auth-Key", callerKey}
	xfcc := pairs{"X-Forwarded-Client-Cert", "URI=spiffe://company/litellm;DNS=litellm.company.com"}
	rows := []struct {
		upstream, cert string
		headers        pairs
		status         int
		reason         string
	}{
		{"any", "none", nil, 200, ""},
		{"any", "good", nil, 200, ""},
		{"any", "other uri", key, 200, ""},
		{"keyed", "none", key, 200, ""},
		{"keyed", "none", nil, 403, "caller_unknown"},
		{"keyed", "none", pairs{"X-Mcp-Auth-Key", canary}, 403, "caller_invalid"},
		{"keyed", "none", pairs{"X-Mcp-Auth-Key", ""}, 403, "caller_invalid"},
		{"keyed", "none", pairs{"Authorization", "Bearer " + callerKey}, 403, "caller_unknown"},
		{"keyed", "good", nil, 403, "caller_unknown"},
		{"fixed", "good", nil, 200, ""},
		{"fixed", "none", nil, 403, "caller_unknown"},
		{"fixed", "none", xfcc, 403, "caller_unknown"},
		{"fixed", "other uri", nil, 403, "caller_unknown"},
		{"fixed", "other uri", xfcc, 403, "caller_unknown"},
		{"fixed", "uri as dns", nil, 403, "caller_unknown"},
		{"fixed", "only dns", nil, 403, "caller_unknown"},
		{"fixed", "longer uri", nil, 403, "caller_unknown"},
		{"fixed", "none", key, 403, "caller_invalid"},
		{"fixed", "other authority", nil, 0, ""},
		{"named", "only dns", nil, 200, ""},
		{"named", "good", nil, 200, ""},
		{"named", "other uri", nil, 403, "caller_unknown"},
		{"named", "none", nil, 403, "caller_unknown"},
		{"either", "good", nil, 200, ""},
		{"either", "none", key, 200, ""},
		{"either", "other uri", key, 200, ""},
		{"either", "good", pairs{"X-Mcp-Auth-Key", canary}, 200, ""},
		{"either", "other uri", pairs{"X-Mcp-Auth-Key", canary}, 403, "caller_invalid"},
		{"either", "none", nil, 403, "caller_unknown"},
	}
	for _, row := range rows {
		for _, h2 := range []bool{false, true} {
			what := fmt.Sprintf("%s with certificate %s and %d headers, HTTP/2 %t", row.upstream, row.cert, len(row.headers)/2, h2)
			client := &http.Client{Transport: &http.Transport{
				TLSClientConfig: r.facts.pki.trust(certs[row.cert]...), ForceAttemptHTTP2: h2, DisableKeepAlives: true,
			}}
			got, err := r.try(t.Context(), client, strings.Replace(r.url, "http:", "https:", 1)+"/"+row.upstream+"/mcp", strings.NewReader("{}"), row.headers)
			came := r.up(row.upstream).take()
			switch {
			case row.status == 0 && err == nil, row.status != 0 && err != nil:
				t.Errorf("%s: got %v, %v", what, got, err)
			case got.status != row.status || got.reason() != row.reason:
				t.Errorf("%s: want %d %s, got %v", what, row.status, row.reason, got)
			case (row.status == 200) != (len(came) == 1):
				t.Errorf("%s: got %d requests at the upstream", what, len(came))
			}
		}
	}
}
