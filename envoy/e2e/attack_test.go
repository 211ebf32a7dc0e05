package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// proper fails unless a request carries what its upstream is lent, once, and
// nothing in the place of it.
func (r *rig) proper(t *testing.T, name string, a arrival) {
	t.Helper()
	auth, key := a.lines("authorization"), a.lines("x-api-key")
	switch name {
	case "alpha", "beta":
		if len(auth) != 1 || audience(strings.TrimPrefix(auth[0], "Bearer ")) != r.up(name).url() || len(key) != 0 {
			t.Errorf("%s: want its own token once, got authorization %d times, x-api-key %q", name, len(auth), key)
		}
	case "fixed", "keyed":
		if len(auth) != 0 || !slices.Equal(key, []string{fixedKey}) {
			t.Errorf("%s: want its own key once, got authorization %q and x-api-key %q", name, auth, key)
		}
	default:
		if len(auth) != 0 || len(key) != 0 {
			t.Errorf("%s: want nothing lent, got authorization %q, x-api-key %q", name, auth, key)
		}
	}
	if a.Host != r.up(name).addr {
		t.Errorf("%s: want its own host, got %q", name, a.Host)
	}
}

// lands sends one request and fails unless it arrives at this upstream alone,
// properly, or is refused by Envoy with a 4xx and arrives nowhere.
func (r *rig) lands(t *testing.T, upstream, what string, send func() reply) (arrival, reply) {
	t.Helper()
	got := send()
	var landed arrival
	for name, u := range r.facts.upstreams {
		came := u.take()
		switch {
		case name != upstream && len(came) != 0:
			t.Errorf("%s: arrived at %s: %s", what, name, came[0].Target)
		case name == upstream && got.status == http.StatusOK && len(came) != 1:
			t.Errorf("%s: want one request at %s, got %d", what, name, len(came))
		case name == upstream && got.status != http.StatusOK && len(came) != 0:
			t.Errorf("%s: got %v, but it arrived at %s", what, got, name)
		case name == upstream && len(came) == 1:
			landed = came[0]
			r.proper(t, name, landed)
		}
	}
	if got.status != http.StatusOK && got.status/100 != 4 && got.status != http.StatusNotImplemented && got.status != 0 {
		t.Errorf("%s: want 200 or a refusal, got %v", what, got)
	}
	return landed, got
}

// TestC1_CallersOwnSecrets: whatever a caller sends of its own, in whatever
// form, the upstream gets what the policy lends it.
func TestC1_CallersOwnSecrets(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := start(t, standard)
	bearer := "Bearer " + callerToken
	rows := map[string][]string{
		"one":                      {"authorization: " + bearer},
		"two":                      {"authorization: " + bearer, "authorization: Basic " + canary},
		"comma-joined":             {"authorization: " + bearer + ", " + bearer},
		"leading blanks":           {"authorization:    " + bearer},
		"leading tab":              {"authorization:\t" + bearer},
		"trailing blanks":          {"authorization: " + bearer + "   "},
		"empty, then one":          {"authorization: ", "authorization: " + bearer},
		"another case":             {"AUTHORIZATION: " + bearer},
		"basic":                    {"authorization: Basic " + canary},
		"proxy-authorization":      {"proxy-authorization: " + bearer},
		"x-litellm-api-key":        {"x-litellm-api-key: sk-" + canary},
		"x-api-key":                {"x-api-key: " + canary},
		"x-api-key twice":          {"x-api-key: " + canary, "X-API-Key: " + canary + "2"},
		"x-mcp-auth":               {"x-mcp-auth: " + canary},
		"x-mcp-auth-key":           {"x-mcp-auth-key: " + canary},
		"x-mcp-authx":              {"x-mcp-authx: " + canary},
		"x-mcp-auth-alpha":         {"x-mcp-auth-alpha: " + canary},
		"x-mcp-*-authorization":    {"x-mcp-alpha-authorization: " + bearer, "x-mcp-a-b-c-authorization: " + bearer},
		"x-mcp-*-cookie":           {"x-mcp-alpha-cookie: session_id=" + canary},
		"x-mcp-*-host":             {"x-mcp-alpha-host: " + canary},
		"cookie2":                  {"cookie2: " + canary},
		"all at once":              {"authorization: " + bearer, "x-api-key: " + canary, "x-litellm-api-key: " + canary, "proxy-authorization: " + bearer, "cookie: a=" + canary},
		"x-mcp-auth-reason":        {"x-mcp-auth-reason: " + canary},
		"a header named to remove": {"x-internal: 1"},
	}
	for what, lines := range rows {
		for _, up := range []string{"alpha", "beta", "fixed", "open"} {
			r.both(func(proto string, get func(string, ...string) reply) {
				a, got := r.lands(t, up, proto+" "+what+" to "+up, func() reply { return get("/"+up+"/mcp", lines...) })
				if got.status != http.StatusOK && (proto == "h1" || !strings.Contains(what, "leading") && !strings.Contains(what, "trailing")) {
					t.Errorf("%s %s to %s: want 200, got %v", proto, what, up, got)
				}
				if up == "beta" && len(a.lines("x-internal")) != 0 {
					t.Errorf("%s: want x-internal removed", proto)
				}
			})
		}
	}
}

// TestC1_KeyTwice: where a key decides, two of them are a refusal.
func TestC1_KeyTwice(t *testing.T) {
	r := start(t, standard)
	for what, lines := range map[string][]string{
		"right and wrong": {"x-mcp-auth-key: " + callerKey, "x-mcp-auth-key: " + canary},
		"wrong and right": {"x-mcp-auth-key: " + canary, "x-mcp-auth-key: " + callerKey},
		"twice right":     {"x-mcp-auth-key: " + callerKey, "x-mcp-auth-key: " + callerKey},
		"comma":           {"x-mcp-auth-key: " + callerKey + "," + callerKey},
	} {
		r.both(func(proto string, get func(string, ...string) reply) {
			got := get("/keyed/mcp", lines...)
			if got.status != http.StatusBadRequest || got.reason() != "bad_request" {
				t.Errorf("%s, %s: want 400 bad_request, got %v", proto, what, got)
			}
		})
	}
	r.untouched()
}

// TestC2_NamingHeaders: no header names the upstream, the policy or the attempt.
func TestC2_NamingHeaders(t *testing.T) {
	r := start(t, standard)
	lines := []string{
		"mcp-upstream: beta", "x-mcp-upstream: beta", "x-upstream: beta", "x-forwarded-host: " + "beta", "x-original-url: /beta/mcp",
		"x-rewrite-url: /beta/mcp", "x-forwarded-uri: /beta/mcp", "x-forwarded-prefix: /beta", "x-envoy-original-path: /beta/mcp",
		"x-envoy-cluster: beta", "x-cluster: beta", "x-route: beta", "xds.cluster-name: beta", "forwarded: host=beta",
		"x-mcp-auth-guard: beta", "x-mcp-auth-guard: alpha", "X-MCP-AUTH-GUARD: open", "x-tenant: beta", "x-envoy-attempt-count: 2", "x-envoy-attempt-count: 99",
		"x-envoy-attempt-count: x", "x-envoy-decorator-operation: beta", "host2: beta", "traceparent: beta", "x-request-id: beta",
		"x-envoy-expected-rq-timeout-ms: 1", "mcp-name: beta", "mcp-method: tools/list", "x-http-method-override: DELETE",
	}
	for _, line := range lines {
		r.both(func(proto string, get func(string, ...string) reply) {
			what := proto + " " + line
			a, got := r.lands(t, "alpha", what, func() reply { return get("/alpha/mcp", line) })
			if got.status != http.StatusOK {
				t.Errorf("%s: want 200, got %v", what, got)
			}
			if n := a.lines("x-envoy-attempt-count"); len(n) == 1 && n[0] != "1" {
				t.Errorf("%s: want attempt 1, got %q", what, n)
			}
		})
	}
	for _, line := range []string{"x_mcp_auth_guard: alpha", "x-mcp_auth-guard: alpha", "x_mcp_auth_key: " + callerKey, "x_api_key: " + canary, "proxy_authorization: " + canary, "mcp_upstream: beta"} {
		r.both(func(proto string, get func(string, ...string) reply) {
			if got := get("/alpha/mcp", line); got.status != http.StatusBadRequest && got.status != 0 {
				t.Errorf("%s %s: want it refused, got %v", proto, line, got)
			}
		})
	}
	if n := len(r.up("alpha").take()); n != 0 {
		t.Errorf("headers with an underscore: want nothing at the upstream, got %d requests", n)
	}
	if n := r.up("keyed").total(); n != 0 {
		t.Errorf("keyed: got %d requests", n)
	}
}

// TestC3_Authority: the upstream is the path's, whatever the authority says, and
// it gets its own.
func TestC3_Authority(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := start(t, standard)
	beta := r.up("beta").addr
	for host, want := range map[string]int{
		"a.test": 200, "a.test:443": 200, "A.TEST": 200, "a.test.": 200, "a.test.:80": 200, "a.test:": 200, "beta": 200, beta: 200,
		"localhost": 200, "[::1]": 200, "[::1]:80": 200, "127.0.0.1": 200, "xn--a.test": 200, "a.test:99999": 200, "a.test:0": 200,
		"user@a.test": 0, "a.test@b.test": 0, "a b": 0, "a/b": 0, "a.test,b.test": 0, "": 0, "a\tb": 0, "a?b": 0, "a#b": 0,
	} {
		for _, proto := range []string{"h1", "h2", "absolute-form"} {
			what := fmt.Sprintf("%s authority %q", proto, host)
			_, got := r.lands(t, "alpha", what, func() reply {
				switch proto {
				case "h1":
					return r.h1("GET /alpha/mcp HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n")
				case "absolute-form":
					return r.h1("GET http://" + host + "/alpha/mcp HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n")
				}
				return r.h2(pairs{":method", "GET", ":scheme", "http", ":authority", host, ":path", "/alpha/mcp"})
			})
			if want == http.StatusOK && proto != "absolute-form" && got.status != want {
				t.Errorf("%s: want 200, got %v", what, got)
			}
		}
	}
	for what, raw := range map[string]string{
		"two Host lines":                "GET /alpha/mcp HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\nConnection: close\r\n\r\n",
		"no Host":                       "GET /alpha/mcp HTTP/1.1\r\nConnection: close\r\n\r\n",
		"no Host, HTTP/1.0":             "GET /alpha/mcp HTTP/1.0\r\n\r\n",
		"absolute-form, other Host":     "GET http://beta/alpha/mcp HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n",
		"authority-form":                "GET alpha:80 HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n",
		"CONNECT":                       "CONNECT " + beta + " HTTP/1.1\r\nHost: " + beta + "\r\n\r\n",
		"absolute-form, no path":        "GET http://alpha HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n",
		"absolute-form, another scheme": "GET ftp://a.test/alpha/mcp HTTP/1.1\r\nHost: alpha\r\nConnection: close\r\n\r\n",
	} {
		r.lands(t, "alpha", what, func() reply { return r.h1(raw) })
	}
	r.lands(t, "alpha", "h2, host and :authority differ", func() reply {
		return r.h2(pairs{":method", "GET", ":scheme", "http", ":authority", "a.test", ":path", "/alpha/mcp", "host", "beta"})
	})
}

// TestC4_Paths: what the router matched is what the upstream gets, with the
// credential of that upstream and of no other.
func TestC4_Paths(t *testing.T) {
	r := start(t, standard)
	rows := []struct {
		path, upstream, target string
		status                 int
	}{
		{"/alpha/mcp", "alpha", "/mcp", 200},
		{"/alpha/mcp?x=1&y=/beta/mcp", "alpha", "/mcp?x=1&y=/beta/mcp", 200},
		{"/alpha/mcp/", "alpha", "/mcp/", 200},
		{"/alpha/mcp/x?q", "alpha", "/mcp/x?q", 200},
		{"//alpha//mcp", "alpha", "/mcp", 200},
		{"/./alpha/./mcp", "alpha", "/mcp", 200},
		{"/beta/../alpha/mcp", "alpha", "/mcp", 200},
		{"/alpha/mcp/../../beta/mcp", "beta", "/mcp", 200},
		{"/alpha/mcp/%2e%2e/%2e%2e/beta/mcp", "beta", "/mcp", 200},
		{"/alpha/mcp/.%2e/mcp/x", "alpha", "/mcp/x", 200},
		{`/alpha\mcp`, "alpha", "/mcp", 200},
		{`/alpha/mcp\..\..\beta\mcp`, "beta", "/mcp", 200},
		{"/alpha/mcp/%252e%252e/x", "", "", 403},
		{"/alpha/mcp/%2562", "alpha", "/mcp/%2562", 200},
		{"/alpha/mcp/x;y=1", "alpha", "/mcp/x;y=1", 200},
		{"/alpha/mcp;x", "", "", 403},
		{"/alpha;x/mcp", "", "", 403},
		{"/alpha/mcp/..;/beta", "", "", 403},
		{"/alpha/mcpx", "", "", 403},
		{"/alpha/mcp/../secret", "", "", 403},
		{"/ALPHA/mcp", "", "", 403},
		{"/alpha/MCP", "", "", 403},
		{"/alpha", "", "", 403},
		{"/", "", "", 403},
		{"/nobody/mcp", "", "", 403},
		{"/..", "", "", 403},
		{"/../../alpha/mcp", "alpha", "/mcp", 200},
		{"/alpha%2fmcp", "", "", 400},
		{"/alpha/mcp%2f..%2f..%2fbeta", "", "", 400},
		{"/alpha/mcp%5cx", "", "", 400},
		{"/alpha/mcp%00", "", "", 400},
		{"/alpha/mcp#frag", "", "", 400},
		{"*", "", "", 404},
		{"/alpha/mcp%zz", "", "", 403},
	}
	for _, row := range rows {
		r.both(func(proto string, get func(string, ...string) reply) {
			what := proto + " " + row.path
			a, got := r.lands(t, row.upstream, what, func() reply { return get(row.path, "authorization: Bearer "+callerToken) })
			refused := got.status/100 == 4 || got.status == 0
			if got.status != row.status && (row.status/100 != 4 || !refused) {
				t.Errorf("%s: want %d, got %v", what, row.status, got)
			}
			if row.status == 200 && a.Target != row.target {
				t.Errorf("%s: want %s at the upstream, got %s", what, row.target, a.Target)
			}
			if row.status == http.StatusForbidden && got.status == http.StatusForbidden {
				got.refused(t, http.StatusForbidden, "no_policy")
			}
		})
	}
}

// TestC5_ConnectionNominates: a caller cannot have our header taken off as
// hop-by-hop.
func TestC5_ConnectionNominates(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := start(t, standard)
	for _, value := range []string{
		"authorization", "Authorization, close", "cookie", "authorization, cookie, x-mcp-auth-guard", "x-mcp-auth-guard", "x-api-key", "x-envoy-attempt-count",
	} {
		for _, up := range []string{"alpha", "fixed"} {
			what := "Connection: " + value + " to " + up
			a, got := r.lands(t, up, what, func() reply {
				return r.h1("GET /" + up + "/mcp HTTP/1.1\r\nHost: x\r\nConnection: " + value + "\r\nauthorization: Bearer " + callerToken +
					"\r\ncookie: session_id=1; t=" + canary + "\r\n\r\n")
			})
			if got.status != http.StatusOK {
				t.Logf("%s: refused with %v", what, got)
			}
			if c := a.lines("cookie"); len(c) > 1 || len(c) == 1 && c[0] != "session_id=1" {
				t.Errorf("%s: got cookie %q", what, c)
			}
		}
	}
	r.lands(t, "alpha", "h2 connection", func() reply { return r.get2("/alpha/mcp", "connection: authorization") })
	r.lands(t, "alpha", "h2 te", func() reply { return r.get2("/alpha/mcp", "te: authorization") })
}

// TestC6_EnvoyHeaders: what steers Envoy does not come from a caller.
func TestC6_EnvoyHeaders(t *testing.T) {
	r := start(t, standard)
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(50 * time.Millisecond)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	r.both(func(proto string, get func(string, ...string) reply) {
		got := get("/alpha/mcp",
			"x-envoy-retry-on: 5xx,retriable-status-codes", "x-envoy-retriable-status-codes: 503", "x-envoy-max-retries: 5",
			"x-envoy-retry-grpc-on: cancelled", "x-envoy-upstream-rq-timeout-ms: 1", "x-envoy-upstream-rq-per-try-timeout-ms: 1",
			"x-envoy-hedge-on-per-try-timeout: true", "x-envoy-upstream-alt-stat-name: "+canary, "x-envoy-decorator-operation: "+canary,
			"x-envoy-force-trace: true", "x-envoy-internal: true", "x-envoy-ip-tags: "+canary, "x-envoy-original-path: /"+canary,
			"x-envoy-original-host: "+canary, "x-envoy-external-address: "+canary, "x-envoy-peer-metadata: "+canary,
			"x-envoy-downstream-service-cluster: "+canary, "x-forwarded-client-cert: URI=spiffe://"+canary, "x-envoy-attempt-count: 7")
		came := r.up("alpha").take()
		if got.status != http.StatusServiceUnavailable || len(came) != 1 {
			t.Errorf("%s: want one attempt and its 503, got %v after %d", proto, got, len(came))
		}
		for _, a := range came {
			for _, name := range []string{"x-envoy-retry-on", "x-envoy-max-retries", "x-envoy-upstream-rq-timeout-ms", "x-forwarded-client-cert", "x-envoy-internal"} {
				if got := a.lines(name); len(got) != 0 {
					t.Errorf("%s: %s reached the upstream: %q", proto, name, got)
				}
			}
		}
	})
}
