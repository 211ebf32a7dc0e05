package extproc

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// slowSecrets is a store that gives nothing until it has a value.
type slowSecrets struct{ value atomic.Pointer[policy.Secret] }

func (s *slowSecrets) Secret(policy.SecretRef) (policy.Secret, error) {
	if v := s.value.Load(); v != nil {
		return *v, nil
	}
	return policy.Secret{}, errors.New("sealed")
}

// TestO9StoreIsDownAtStart: a header whose secret is in a store that does not
// answer loads, refuses each call for now, and works by itself later. One whose
// secret is local and missing does not load.
func TestO9StoreIsDownAtStart(t *testing.T) {
	source := &slowSecrets{}
	r := &rig{seen: &observed{}, log: &syncBuffer{}}
	cache := tokens.New(tokens.Config{Secrets: source, Now: time.Now})
	t.Cleanup(cache.Close)
	var err error
	r.Server, err = New(Config{Tokens: cache, Secrets: source, Now: time.Now, Log: zerolog.New(r.log), Observe: r.seen})
	if err != nil {
		t.Fatal(err)
	}
	set := func(secret string) *policy.Set {
		t.Helper()
		set, err := policy.Parse("policy.yaml", []byte("version: 1\n"+
			"secret_stores: {vault: {address: https://vault.test, auth: {token: {file: token}}}}\n"+
			"callers: {anyone: {any: true}}\n"+
			"upstreams: {a: {url: https://a.test, callers: [anyone], credential: {header: {x-api-key: "+secret+"}}}}\n"),
			func(string) (string, bool) { return "x", true })
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	if err := r.Load(set("{file: key}")); err == nil {
		t.Error("a missing local secret loads")
	}
	if err := r.Load(set("{vault: {path: a, key: b}}")); err != nil {
		t.Fatal(err)
	}
	refused := r.call(t, "a", headersRequest(nil, nil))
	im := refused.GetImmediateResponse()
	if im == nil || im.GetStatus().GetCode() != 503 || !strings.Contains(im.String(), policy.TokenUnavailable.String()) {
		t.Errorf("want 503 token_unavailable, got %v", refused)
	}
	bad, good := policy.NewSecret("a\nb"), policy.NewSecret("api-canary")
	source.value.Store(&bad)
	if im := r.call(t, "a", headersRequest(nil, nil)).GetImmediateResponse(); im.GetStatus().GetCode() != 502 {
		t.Errorf("a control character: want 502, got %v", im)
	}
	source.value.Store(&good)
	if got, _ := changes(r.call(t, "a", headersRequest(nil, nil))); got["x-api-key"] != "api-canary" {
		t.Errorf("after the store is back: %v", got)
	}
}
