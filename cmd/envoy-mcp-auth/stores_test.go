package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// sealable is a Vault with one secret that can be sealed.
func sealable(t *testing.T) (address string, sealed *atomic.Bool) {
	t.Helper()
	sealed = &atomic.Bool{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case sealed.Load():
			http.Error(w, `{"errors":["Vault is sealed"]}`, http.StatusServiceUnavailable)
		case r.URL.Path == "/v1/auth/token/lookup-self":
			_, _ = fmt.Fprint(w, `{"data":{"ttl":0}}`)
		default:
			_, _ = fmt.Fprint(w, `{"data":{"data":{"key":"canary-vault"},"metadata":{"version":1,"created_time":"2026-01-02T03:04:05Z","deletion_time":"","destroyed":false}}}`)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, sealed
}

func vaultPolicy(t *testing.T, vault string) func(socket, admin, auth string) string {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("canary-login"), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(socket, admin, auth string) string {
		return strings.Replace(servePolicy(socket, admin, auth), `"${SECRET}"`, "{vault: {path: mcp, key: key}}", 1) +
			fmt.Sprintf("secret_stores: {vault: {address: %q, auth: {token: {file: %q}}}}\n", vault, token)
	}
}

// TestO9SealedAtStart: the process starts, says which secret it waits for, and
// goes on by itself.
func TestO9SealedAtStart(t *testing.T) {
	vault, sealed := sealable(t)
	sealed.Store(true)
	r := launch(t, vaultPolicy(t, vault))
	r.until(t, "/readyz", "not ready: secret {vault: {mount: secret, path: mcp, key: key}} is not there: the store is not able to answer (503)")
	sealed.Store(false)
	r.until(t, "/readyz", "ready")
	sealed.Store(true)
	if got := r.get(t, "/readyz"); !strings.HasPrefix(got, "ready") {
		t.Errorf("sealed in mid-run: %s", got)
	}
}

func TestCheckReadsStores(t *testing.T) {
	vault, sealed := sealable(t)
	file := policyFile(t, vaultPolicy(t, vault)("unix:///s", "127.0.0.1:1", "http://127.0.0.1:1"))
	if got := program(t, nil, "check", "-c", file); got.code != 0 {
		t.Errorf("open: %+v", got)
	}
	sealed.Store(true)
	got := program(t, nil, "check", "-c", file)
	if got.code != 1 || !strings.Contains(got.out, "path: mcp") || !strings.Contains(got.out, "503") || strings.Contains(got.out+got.err, "canary") {
		t.Errorf("sealed: %+v", got)
	}
}
