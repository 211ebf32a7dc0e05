package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

// TestSharedCache: serve uses the shared cache of the policy, shows how it
// stands, follows a reload, and goes on without it.
func TestSharedCache(t *testing.T) {
	redis, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir(), Password: "canary-secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Stop)
	var plain string
	shared := func(prefix string) string {
		return plain + fmt.Sprintf("shared_cache: {redis: %q, password: \"${SECRET}\", key: \"${SECRET}-${SECRET}-${SECRET}\", prefix: %s}\n", redis.URL(), prefix)
	}
	// A store that takes longer than a call waits is left out: then the next token is stored.
	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"canary-token","token_type":"Bearer","expires_in":10}`)
	}))
	t.Cleanup(auth.Close)
	r := start(t, func(socket, admin, _ string) string {
		plain = servePolicy(socket, admin, auth.URL)
		return shared("one")
	})
	r.until(t, "/metrics", `mcp_auth_shared_cache_requests_total{result="stored"} 1`)
	r.until(t, "/metrics", "mcp_auth_shared_cache_up 1")
	if got := r.get(t, "/status"); !strings.Contains(strings.ReplaceAll(got, " ", ""), `"state":"up"`) || strings.Contains(got, "canary") {
		t.Errorf("/status: %s", got)
	}
	db := redis.Client()
	defer db.Close() //nolint:errcheck // nothing is left to lose
	if names, err := db.Keys(t.Context(), "one:token:*").Result(); err != nil || len(names) != 1 {
		t.Errorf("want one token stored, got %v, %v", names, err)
	}
	r.write(t, shared("two"))
	r.until(t, "/metrics", `mcp_auth_config_reloads_total{result="ok"} 2`)
	redis.Stop()
	r.until(t, "/metrics", "mcp_auth_shared_cache_up 0")
	r.until(t, "/readyz", "ready")
	if err := redis.Restart(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.until(t, "/metrics", "mcp_auth_shared_cache_up 1")
	r.write(t, plain)
	r.until(t, "/metrics", `mcp_auth_config_reloads_total{result="ok"} 3`)
	if got := r.get(t, "/metrics") + r.get(t, "/status"); strings.Contains(got, "mcp_auth_shared_cache_up") || strings.Contains(got, `"shared_cache"`) {
		t.Error("want nothing of a shared cache when the policy has none")
	}
}
