package secrets

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// fakeVault speaks Vault's documented HTTP: KV version 2, login by AppRole and
// Kubernetes, lookup and renewal of tokens, namespaces, and the 503 of a sealed
// server. Tokens end when their time is over.
type fakeVault struct {
	*httptest.Server

	mu        sync.Mutex
	sealed    bool
	status    int                       // answered to every read, if not 0
	secrets   map[string]map[string]any // by mount/path; nil for a deleted version
	tokens    map[string]time.Time      // by token, when they end
	life      time.Duration             // of new tokens
	maxLife   time.Duration             // of a token in all; 0 for none
	born      map[string]time.Time
	namespace string
	calls     map[string]int // by path, login and renewal
}

func newVaultServer(t *testing.T) *fakeVault {
	t.Helper()
	v := &fakeVault{
		secrets: map[string]map[string]any{"secret/mcp/client": {"key": canarySecret, "number": 7}},
		tokens:  map[string]time.Time{}, born: map[string]time.Time{}, calls: map[string]int{}, life: time.Hour,
	}
	v.Server = httptest.NewTLSServer(v)
	v.Config.ErrorLog = nil
	t.Cleanup(v.Close)
	return v
}

func (v *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	v.calls[path]++
	var body map[string]any
	_ = json.NewDecoder(r.Body).Decode(&body)
	switch {
	case v.sealed:
		v.refuse(w, http.StatusServiceUnavailable, "Vault is sealed")
	case r.Header.Get("X-Vault-Request") != "true":
		v.refuse(w, http.StatusPreconditionFailed, "missing X-Vault-Request")
	case r.Header.Get("X-Vault-Namespace") != v.namespace:
		v.refuse(w, http.StatusForbidden, "permission denied")
	case path == "auth/approle/login" && body["role_id"] == "role" && body["secret_id"] == "sid",
		path == "auth/k8s/one/login" && body["role"] == "mcp" && body["jwt"] == "pod-jwt":
		v.grant(w, v.issue())
	case strings.HasPrefix(path, "auth/") && strings.HasSuffix(path, "/login"):
		v.refuse(w, http.StatusBadRequest, "invalid role or secret ID "+canarySecret)
	case time.Now().After(v.tokens[r.Header.Get("X-Vault-Token")]):
		v.refuse(w, http.StatusForbidden, "permission denied "+canarySecret)
	case path == "auth/token/renew-self":
		v.extend(r.Header.Get("X-Vault-Token"))
		v.grant(w, r.Header.Get("X-Vault-Token"))
	case path == "auth/token/lookup-self":
		left := time.Until(v.tokens[r.Header.Get("X-Vault-Token")])
		v.answer(w, map[string]any{"data": map[string]any{"ttl": int(left.Seconds() + 0.5), "renewable": true}})
	default:
		v.readSecret(w, path)
	}
}

func (v *fakeVault) readSecret(w http.ResponseWriter, path string) {
	mount, rest, ok := strings.Cut(path, "/data/")
	data, known := v.secrets[mount+"/"+rest]
	switch {
	case v.status != 0:
		v.refuse(w, v.status, "no "+canarySecret)
	case !ok || !known:
		v.refuse(w, http.StatusNotFound)
	default:
		meta := map[string]any{"version": 3, "created_time": "2026-01-02T03:04:05Z", "deletion_time": "", "destroyed": false}
		if data == nil {
			meta["deletion_time"] = "2026-01-02T03:04:06Z"
			w.WriteHeader(http.StatusNotFound)
		}
		v.answer(w, map[string]any{"data": map[string]any{"data": data, "metadata": meta}})
	}
}

func (v *fakeVault) issue() string {
	token := fmt.Sprintf("hvs.%s-%d", canarySecret, len(v.born))
	v.born[token] = time.Now()
	v.extend(token)
	return token
}

func (v *fakeVault) extend(token string) {
	end := time.Now().Add(v.life)
	if limit := v.born[token].Add(v.maxLife); v.maxLife > 0 && end.After(limit) {
		end = limit
	}
	v.tokens[token] = end
}

func (v *fakeVault) grant(w http.ResponseWriter, token string) {
	left := int(time.Until(v.tokens[token]).Seconds() + 0.5)
	v.answer(w, map[string]any{"auth": map[string]any{"client_token": token, "lease_duration": left, "renewable": true}})
}

func (v *fakeVault) answer(w http.ResponseWriter, body any) { _ = json.NewEncoder(w).Encode(body) }

func (v *fakeVault) refuse(w http.ResponseWriter, status int, errs ...string) {
	w.WriteHeader(status)
	v.answer(w, map[string]any{"errors": append([]string{}, errs...)})
}

// change runs f under the server's lock.
func (v *fakeVault) change(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

func (v *fakeVault) count(path string) (n int) {
	v.change(func() { n = v.calls[path] })
	return n
}

// settings returns the settings for this server, with its CA.
func (v *fakeVault) settings(t *testing.T) *policy.VaultStore {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	put(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw})))
	return &policy.VaultStore{Address: v.URL, CA: ca}
}

func (v *fakeVault) appRole(t *testing.T) policy.SecretStores {
	t.Helper()
	st := v.settings(t)
	st.AppRole = policy.VaultAppRole{Mount: "approle", RoleID: "role", SecretID: tempFile(t, "sid\n")}
	return policy.SecretStores{Vault: st}
}

var clientKey = policy.VaultRef("secret", "mcp/client", "key")

func TestVaultLogins(t *testing.T) {
	// What the SDK would take from the environment must not count.
	for name, value := range map[string]string{
		"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "other", "VAULT_NAMESPACE": "other", "VAULT_SKIP_VERIFY": "true",
		"VAULT_HEADERS": `{"x-other": "1"}`, "VAULT_WRAP_TTL": "60",
	} {
		t.Setenv(name, value)
	}
	for name, login := range map[string]func(*policy.VaultStore){
		"approle": func(st *policy.VaultStore) {
			st.AppRole = policy.VaultAppRole{Mount: "approle", RoleID: "role", SecretID: tempFile(t, "sid\n")}
		},
		"kubernetes": func(st *policy.VaultStore) {
			st.Kubernetes = policy.VaultKubernetes{Mount: "k8s/one", Role: "mcp", JWT: tempFile(t, "pod-jwt")}
		},
		"token":     func(st *policy.VaultStore) { st.Token = tempFile(t, "static\n") },
		"namespace": func(st *policy.VaultStore) { st.Token, st.Namespace = tempFile(t, "static"), "team/mcp" },
	} {
		t.Run(name, func(t *testing.T) {
			v := newVaultServer(t)
			v.tokens["static"] = time.Now().Add(time.Hour)
			st := v.settings(t)
			login(st)
			v.namespace = st.Namespace
			s, log := live(t, policy.SecretStores{Vault: st}, clientKey)
			if got := value(t, s, clientKey); got != canarySecret {
				t.Errorf("got %q", got)
			}
			if strings.Contains(log.String(), canarySecret) {
				t.Errorf("a secret is in the log: %s", log)
			}
		})
	}
}

// TestO9VaultSealed: sealed at start, opened, changed, sealed in mid-run.
func TestO9VaultSealed(t *testing.T) {
	v := newVaultServer(t)
	v.sealed = true
	s, log := live(t, v.appRole(t), clientKey)
	if text := why(t, s, clientKey); !strings.Contains(text, "503") || !strings.Contains(text, "unsealed") {
		t.Errorf("sealed at start: %s", text)
	}
	v.change(func() { v.sealed = false })
	until(t, "the first value", holds(s, clientKey, canarySecret))
	v.change(func() { v.secrets["secret/mcp/client"]["key"] = "second\n" })
	until(t, "the second value", holds(s, clientKey, "second"))
	v.change(func() { v.sealed = true })
	until(t, "the outage in the log", func() bool { return strings.Contains(log.String(), "last good value stays") })
	if got := value(t, s, clientKey); got != "second" {
		t.Errorf("sealed in mid-run: %q", got)
	}
	v.change(func() { v.sealed = false; v.secrets["secret/mcp/client"]["key"] = "third" })
	until(t, "the third value", holds(s, clientKey, "third"))
	if n := v.count("auth/approle/login"); n > 4 {
		t.Errorf("%d logins, want one for each try until the first, no more", n)
	}
	if strings.Contains(log.String(), canarySecret) {
		t.Errorf("a secret is in the log: %s", log)
	}
}

// TestVaultRenewsAtTwoThirds: a token of 3 s is renewed and never lapses; one at
// its maximal life is replaced by a login.
func TestVaultRenewsAtTwoThirds(t *testing.T) {
	v := newVaultServer(t)
	v.life, v.maxLife = 3*time.Second, 7*time.Second
	s, log := live(t, v.appRole(t), clientKey)
	until(t, "two renewals and a second login", func() bool {
		return v.count("auth/token/renew-self") >= 2 && v.count("auth/approle/login") >= 2
	})
	v.change(func() { v.secrets["secret/mcp/client"]["key"] = "after" })
	until(t, "the value after it", holds(s, clientKey, "after"))
	if strings.Contains(log.String(), "warn") {
		t.Errorf("a token lapsed: %s", log)
	}
}

// TestVaultLogsInAgainOn403: a revoked token costs one login, and a role without
// the right to read does not make a login of every read.
func TestVaultLogsInAgainOn403(t *testing.T) {
	v := newVaultServer(t)
	s, log := live(t, v.appRole(t), clientKey)
	v.change(func() { clear(v.tokens); v.secrets["secret/mcp/client"]["key"] = "after" })
	until(t, "the value after the revocation", holds(s, clientKey, "after"))
	if n := v.count("auth/approle/login"); n != 2 || strings.Contains(log.String(), "warn") {
		t.Errorf("%d logins, want 2; log: %s", n, log)
	}
	v.change(func() { v.status = http.StatusForbidden })
	until(t, "the refusal in the log", func() bool { return strings.Contains(log.String(), "let this process's role read it") })
	time.Sleep(2 * time.Second)
	if n := v.count("auth/approle/login"); n > 3 {
		t.Errorf("%d logins, want no more than 3", n)
	}
	if got := value(t, s, clientKey); got != "after" || strings.Contains(log.String(), canarySecret) {
		t.Errorf("refused in mid-run: %q, log %s", got, log)
	}
}

// TestVaultTokenFileRotates: what Vault Agent writes is used at the next read.
func TestVaultTokenFileRotates(t *testing.T) {
	v := newVaultServer(t)
	v.tokens["first"] = time.Now().Add(time.Hour)
	st := v.settings(t)
	st.Token = tempFile(t, "first")
	s, _ := live(t, policy.SecretStores{Vault: st}, clientKey)
	v.change(func() {
		clear(v.tokens)
		v.tokens["second"] = time.Now().Add(time.Hour)
		v.secrets["secret/mcp/client"]["key"] = "after"
	})
	put(t, st.Token.Name, "second")
	s.Refresh()
	until(t, "a read with the second token", holds(s, clientKey, "after"))
}

func TestVaultFaults(t *testing.T) {
	wrong := func(change func(*policy.VaultStore)) func(*testing.T, *policy.VaultStore) {
		return func(_ *testing.T, st *policy.VaultStore) { change(st) }
	}
	for name, tc := range map[string]struct {
		change func(*testing.T, *policy.VaultStore)
		server func(*fakeVault)
		ref    policy.SecretRef
		want   string
	}{
		"wrong secret_id": {
			change: func(t *testing.T, st *policy.VaultStore) { t.Helper(); st.AppRole.SecretID = tempFile(t, canarySecret) },
			want:   "refuses the login (400)",
		},
		"wrong namespace": {change: wrong(func(st *policy.VaultStore) { st.Namespace = "x" }), want: "refuses the login (403)"},
		"no CA":           {change: wrong(func(st *policy.VaultStore) { st.CA = "" }), want: "certificate is refused"},
		"CA gone":         {change: wrong(func(st *policy.VaultStore) { st.CA += "x" }), want: "cannot be read"},
		"CA is none":      {change: wrong(func(st *policy.VaultStore) { st.CA = st.AppRole.SecretID.Name }), want: "no PEM certificate"},
		"unreachable":     {change: wrong(func(st *policy.VaultStore) { st.Address = "https://127.0.0.1:1" }), want: "connection refused"},
		"wrong path":      {ref: policy.VaultRef("secret", "mcp/none", "key"), want: "not in the store (404)"},
		"wrong mount":     {ref: policy.VaultRef("kv", "mcp/client", "key"), want: "not in the store (404)"},
		"no key":          {ref: policy.VaultRef("secret", "mcp/client", "none"), want: `no key "none"`},
		"a number":        {ref: policy.VaultRef("secret", "mcp/client", "number"), want: "is no string"},
		"throttled":       {server: func(v *fakeVault) { v.status = http.StatusTooManyRequests }, want: "fewer requests (429)"},
		"deleted":         {server: func(v *fakeVault) { v.secrets["secret/mcp/client"] = nil }, want: "deleted"},
		"empty":           {server: func(v *fakeVault) { v.secrets["secret/mcp/client"]["key"] = "\n" }, want: "is empty"},
		"too large": {
			server: func(v *fakeVault) { v.secrets["secret/mcp/client"]["key"] = strings.Repeat(canarySecret, 7000) }, want: "at most 65536",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVaultServer(t)
			if tc.server != nil {
				tc.server(v)
			}
			stores := v.appRole(t)
			if tc.change != nil {
				tc.change(t, stores.Vault)
			}
			ref := tc.ref
			if ref.IsZero() {
				ref = clientKey
			}
			s, log := live(t, stores, ref)
			if text := why(t, s, ref); !strings.Contains(text, tc.want) || strings.Contains(text, canarySecret) {
				t.Errorf("want %q in %q", tc.want, text)
			}
			if strings.Contains(log.String(), canarySecret) {
				t.Errorf("a secret is in the log: %s", log)
			}
		})
	}
}
