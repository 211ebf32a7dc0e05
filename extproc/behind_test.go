package extproc

import (
	"strings"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/metadata"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// leads makes a call through a cluster that leads to these urls.
func (r *rig) leads(t *testing.T, urls ...string) *extprocv3.ProcessingResponse {
	t.Helper()
	s := newStream(t, []string{"fixed"}, headersRequest(nil, nil, "x-envoy-attempt-count", "1"))
	s.ctx = metadata.NewIncomingContext(t.Context(), metadata.MD{upstreamKey: {"fixed"}, urlKey: urls})
	if err := r.Process(s); err != nil || len(s.sent) != 1 {
		t.Fatalf("%d replies, %v", len(s.sent), err)
	}
	return s.sent[0]
}

// TestL6_EnvoyBehindThePolicy: an upstream moved, and Envoy still has the cluster
// that leads to the old url. No host is lent what is for the other.
func TestL6_EnvoyBehindThePolicy(t *testing.T) {
	const here, there = "http://127.0.0.1:4/v1", "http://127.0.0.1:44/v1"
	r := newRig(t)
	key := func(urls ...string) string {
		set, _ := changes(r.leads(t, urls...))
		return set["x-api-key"]
	}
	if got := key(here); got != "api-canary" {
		t.Fatalf("got %q", got)
	}
	if got := key(there); got != "" {
		t.Errorf("a cluster that leads elsewhere was lent %q", got)
	}
	moved := strings.NewReplacer(here, there, `"${API_KEY}"`, `"${SECRET}"`).Replace(testPolicy)
	set, err := policy.Parse("policy.yaml", []byte(moved), testEnv(r.auth.URL))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Load(set); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, want string
		urls       []string
	}{
		{"Envoy has the new cluster", "s3cret-canary", []string{there}},
		{"Envoy is behind", "api-canary", []string{here}},
		{"the cluster leads to neither", "", []string{"http://127.0.0.1:5/v1"}},
		{"two urls", "", []string{there, here}},
	} {
		if got := key(c.urls...); got != c.want {
			t.Errorf("%s: want %q, got %q", c.what, c.want, got)
		}
	}
	if err := r.Load(set); err != nil { // nothing moves, and Envoy is as far behind as it was
		t.Fatal(err)
	}
	if got := key(here); got != "api-canary" {
		t.Errorf("a reload more, and Envoy is behind: got %q", got)
	}
	r.forget(r.snap.Load())
	if got := key(here); got != "" || key(there) != "s3cret-canary" {
		t.Errorf("an Envoy that stays behind: got %q", got)
	}
}

// TestA11_SessionsOfTheURLBefore: while an Envoy is behind, what is known of sessions at
// the old url holds there.
func TestA11_SessionsOfTheURLBefore(t *testing.T) {
	r := newSessionRig(t)
	r.want(t, "allowed", "a", "alice", "hers")
	moved := strings.NewReplacer("https://a.test/mcp", "https://moved.test/mcp", "https://A.test:443/mcp", "https://moved.test:443/mcp").Replace(sessionPolicy())
	if err := r.Load(r.parse(t, moved)); err != nil {
		t.Fatal(err)
	}
	behind := func(caller string) any {
		s := newStream(t, []string{"a"}, headersRequest(nil, nil, "x-mcp-auth-key", caller, "mcp-session-id", "hers"))
		s.ctx = metadata.NewIncomingContext(t.Context(), metadata.MD{upstreamKey: {"a"}, urlKey: {"https://a.test/mcp"}})
		if err := r.Process(s); err != nil || len(s.sent) != 1 {
			t.Fatalf("%d replies, %v", len(s.sent), err)
		}
		return described(s.sent[0])["reason"]
	}
	if got := behind("bob"); got != "session_mismatch" {
		t.Errorf("her session, and bob: got %v", got)
	}
	if got := behind("alice"); got != "allowed" {
		t.Errorf("her session, and alice: got %v", got)
	}
	r.forget(r.snap.Load())
	if got := behind("alice"); got != "no_policy" {
		t.Errorf("an Envoy that stays behind: got %v", got)
	}
}
