package envoy_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const challenge = `Bearer resource_metadata="http://x.test/.well-known/oauth-protected-resource/a/mcp", scope="mcp.read"`

// people is a caller that proves itself by a token of that issuer.
func people(issuer string, scopes ...string) *policy.Caller {
	return &policy.Caller{Name: "people", JWT: &policy.JWT{
		Issuer: issuer, Audiences: []string{"https://mcp.company.com/mcp"}, Algorithms: []string{"ES256"},
		Header: "authorization", Profile: policy.ProfileRFC9068, ScopeClaim: "scope", RequireScopes: scopes,
	}}
}

func withJWT(u *policy.Upstream) {
	u.Callers = append(u.Callers, people("https://idp.company.com", "mcp.read", "offline_access"), people("https://idp.partner.com/", "mcp.call"))
}

func jwtEverywhere(s *policy.Set) {
	s.Envoy.PublicURL = "http://" + s.Envoy.Listen
	for _, u := range s.Upstreams {
		withJWT(u)
	}
}

// deny is a refusal as the server writes it.
func deny(status int, headers ...string) func(asked) answer {
	var set []*corev3.HeaderValueOption
	for pair := range slices.Chunk(headers, 2) {
		set = append(set, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: pair[0], RawValue: []byte(pair[1])},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return func(asked) answer {
		return answer{reply: &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
			ImmediateResponse: &extprocv3.ImmediateResponse{
				Status:  &typev3.HttpStatus{Code: typev3.StatusCode(status)},
				Headers: &extprocv3.HeaderMutation{SetHeaders: set}, Body: []byte("ours"),
			},
		}}}
	}
}

// TestA3_OwnChallenge keeps A3 and A4: our challenge reaches the caller as it is,
// on the first attempt and on the second, and no upstream's does.
func TestA3_OwnChallenge(t *testing.T) {
	l := newLab(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="upstream"`)
		w.WriteHeader(http.StatusUnauthorized)
	}, jwtEverywhere)
	for _, status := range []int{401, 403} {
		first := deny(status, "www-authenticate", challenge, envoy.ReasonHeader, "caller_unknown", "content-type", "application/json", "cache-control", "no-store")
		for what, f := range map[string]func(asked) answer{
			"first": first,
			"second": func(a asked) answer {
				if a.headers["x-envoy-attempt-count"] == "2" {
					return first(a)
				}
				return allow(a)
			},
		} {
			for _, url := range []string{l.url + "/a/mcp", l.url + "/bare/x", l.own + "/sse", l.url + "/open/mcp"} {
				if what == "second" && strings.Contains(url, "open") {
					continue // it has no second attempt
				}
				l.set(f)
				got := post(t, url, "{}")
				if got.status != status || got.body != "ours" || !slices.Equal(got.header.Values("Www-Authenticate"), []string{challenge}) ||
					got.header.Get(envoy.ReasonHeader) != "caller_unknown" || got.header.Get("Cache-Control") != "no-store" {
					t.Errorf("%d, %s attempt, %s: got %d %q %v", status, what, url, got.status, got.body, got.header)
				}
			}
		}
	}
}

// TestA3_ForgedReason: what an upstream calls our reason is taken off, and does
// not make its 401 pass for one of ours.
func TestA3_ForgedReason(t *testing.T) {
	status := http.StatusUnauthorized
	l := newLab(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="upstream"`)
		w.Header()["x-mcp-auth-reason"] = []string{"caller_unknown", ""}
		w.Header().Set(envoy.ReasonHeader, "caller_invalid")
		w.WriteHeader(status)
	}, jwtEverywhere)
	for _, url := range []string{l.url + "/a/mcp", l.url + "/bare/x", l.own + "/sse", l.url + "/open/mcp"} {
		got := post(t, url, "{}")
		refused(t, got, http.StatusBadGateway, "upstream_rejected")
		if got.header.Get("Www-Authenticate") != "" || len(got.header.Values(envoy.ReasonHeader)) != 1 {
			t.Errorf("%s: got %v", url, got.header)
		}
	}
	for _, status = range []int{200, 403, 500, 502} {
		for _, url := range []string{l.url + "/a/mcp", l.url + "/open/mcp", l.own + "/sse"} {
			if got := post(t, url, "{}"); got.status != status || got.header.Get(envoy.ReasonHeader) != "" {
				t.Errorf("%d %s: want it to pass without a reason, got %d %v", status, url, got.status, got.header)
			}
		}
	}
}

// TestA2_Metadata keeps A2: the document is where RFC 9728 §3.1 puts it, for the
// very URL that callers use, and no upstream's own gets through.
func TestA2_Metadata(t *testing.T) {
	theirs := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"resource":"theirs"}`)) }
	l := newLab(t, theirs, jwtEverywhere)
	const known = "/.well-known/oauth-protected-resource"
	for at, resource := range map[string]string{
		l.url + known + "/a/mcp":    l.url + "/a/mcp",
		l.url + known + "/open/mcp": l.url + "/open/mcp",
		l.url + known + "/bare":     l.url + "/bare/",
		l.url + known + "/bare/":    l.url + "/bare/",
		l.own + known + "/sse":      l.own + "/sse",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got := read(t, resp)
		var doc map[string]any
		if err := json.Unmarshal([]byte(got.body), &doc); err != nil || got.status != 200 || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: got %d %v %q", at, got.status, got.header, got.body)
		}
		want := map[string]any{
			"resource": resource, "authorization_servers": []any{"https://idp.company.com", "https://idp.partner.com/"},
			"scopes_supported": []any{"mcp.call", "mcp.read"}, "bearer_methods_supported": []any{"header"},
		}
		if diff := cmp.Diff(want, doc); diff != "" {
			t.Errorf("%s (-want +got):\n%s", at, diff)
		}
	}
	for _, at := range []string{
		l.url + known, l.url + known + "/", l.url + known + "/nobody/mcp", l.url + known + "/a", l.url + known + "/a/mcp/x",
		l.url + "/bare" + known, l.url + "/bare" + known + "/mcp", l.own + known, l.own + known + "/other",
	} {
		if got := post(t, at, ""); got.status != http.StatusForbidden || strings.Contains(got.body, "theirs") {
			t.Errorf("%s: want 403, got %d %q", at, got.status, got.body)
		}
	}
	if n := len(l.up.take()); n != 0 {
		t.Errorf("want nothing at the upstreams, got %d requests", n)
	}
}
