package secrets

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// fakeGoogle speaks the documented HTTP of Secret Manager's access method and of
// the token endpoint that a service account's key names.
type fakeGoogle struct {
	*httptest.Server

	mu     sync.Mutex
	values map[string]string // by resource name with its version
	status int               // answered to every read, if not 0
	login  int               // answered to every login, if not 0
	spoil  bool              // the checksum
	logins int
}

func newGoogle(t *testing.T) *fakeGoogle {
	t.Helper()
	g := &fakeGoogle{values: map[string]string{
		"projects/p/secrets/s/versions/latest":             canarySecret + "\n",
		"projects/p/secrets/s/versions/1":                  "one",
		"projects/p/locations/eu/secrets/s/versions/alias": "regional",
	}}
	g.Server = httptest.NewServer(g)
	t.Cleanup(g.Close)
	return g
}

func (g *fakeGoogle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.URL.Path == "/token" {
		g.logins++
		if g.login != 0 || r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
			http.Error(w, `{"error":"invalid_grant","error_description":"`+canarySecret+`"}`, max(g.login, http.StatusBadRequest))
			return
		}
		w.Header().Set("content-type", "application/json")
		_, _ = w.Write([]byte(`{"access_token":"ya29.` + canarySecret + `","token_type":"Bearer","expires_in":3600}`))
		return
	}
	name, isAccess := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/v1/"), ":access")
	value, ok := g.values[name]
	status := g.status
	switch {
	case status != 0:
	case r.Header.Get("authorization") != "Bearer ya29."+canarySecret:
		status = http.StatusUnauthorized
	case !isAccess || !ok:
		status = http.StatusNotFound
	}
	w.Header().Set("content-type", "application/json")
	if status != 0 {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": status, "message": "no " + canarySecret}})
		return
	}
	sum := int64(crc32.Checksum([]byte(value), crc32.MakeTable(crc32.Castagnoli)))
	if g.spoil {
		sum++
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"name":    name,
		"payload": map[string]any{"data": base64.StdEncoding.EncodeToString([]byte(value)), "dataCrc32c": strconv.FormatInt(sum, 10)},
	})
}

func (g *fakeGoogle) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// stores returns the settings for this server, with a key of its own.
func (g *fakeGoogle) stores(t *testing.T) policy.SecretStores {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "k", "client_email": "mcp@p.test", "token_uri": g.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	return policy.SecretStores{GCP: &policy.GCPStore{Endpoint: g.URL + "/", Credentials: tempFile(t, string(text))}}
}

var googleKey = policy.GCPRef("projects/p/secrets/s", "latest")

// TestO9GoogleRotatesAndFails: versions, rotation, an outage in mid-run.
func TestO9GoogleRotatesAndFails(t *testing.T) {
	g := newGoogle(t)
	one, regional := policy.GCPRef("projects/p/secrets/s", "1"), policy.GCPRef("projects/p/locations/eu/secrets/s", "alias")
	s, log := live(t, g.stores(t), googleKey, one, regional)
	for ref, want := range map[policy.SecretRef]string{googleKey: canarySecret, one: "one", regional: "regional"} {
		if got := value(t, s, ref); got != want {
			t.Errorf("%s: want %q, got %q", ref, want, got)
		}
	}
	g.change(func() { g.values["projects/p/secrets/s/versions/latest"] = "second" })
	until(t, "the second value", holds(s, googleKey, "second"))
	g.change(func() { g.status = http.StatusTooManyRequests })
	until(t, "the throttling in the log", func() bool { return strings.Contains(log.String(), "last good value stays") })
	if got := value(t, s, googleKey); got != "second" {
		t.Errorf("throttled in mid-run: %q", got)
	}
	g.change(func() { g.status = 0; g.values["projects/p/secrets/s/versions/latest"] = "third" })
	until(t, "the third value", holds(s, googleKey, "third"))
	if strings.Contains(log.String(), canarySecret) {
		t.Errorf("a secret is in the log: %s", log)
	}
}

func TestGoogleFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		server func(*fakeGoogle)
		stores func(*testing.T, *policy.GCPStore)
		ref    policy.SecretRef
		want   string
	}{
		"down at start": {server: func(g *fakeGoogle) { g.status = 503 }, want: "503"},
		"refused":       {server: func(g *fakeGoogle) { g.status = 403 }, want: "refuses the read (403)"},
		"no login":      {server: func(g *fakeGoogle) { g.login = 400 }, want: "refuses the login (400)"},
		"login down":    {server: func(g *fakeGoogle) { g.login = 503 }, want: "503"},
		"spoilt":        {server: func(g *fakeGoogle) { g.spoil = true }, want: "changed on its way"},
		"renamed":       {ref: policy.GCPRef("projects/p/secrets/none", "latest"), want: "not in the store (404)"},
		"unreachable": {
			stores: func(_ *testing.T, st *policy.GCPStore) { st.Endpoint = "http://127.0.0.1:1/" }, want: "connection refused",
		},
		"no key": {
			stores: func(t *testing.T, st *policy.GCPStore) { t.Helper(); st.Credentials = tempFile(t, "{"+canarySecret) }, want: "no key of a service account",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGoogle(t)
			stores := g.stores(t)
			if tc.server != nil {
				tc.server(g)
			}
			if tc.stores != nil {
				tc.stores(t, stores.GCP)
			}
			ref := tc.ref
			if ref.IsZero() {
				ref = googleKey
			}
			s, log := live(t, stores, ref)
			if text := why(t, s, ref); !strings.Contains(text, tc.want) || strings.Contains(text+log.String(), canarySecret) {
				t.Errorf("want %q in %q; log: %s", tc.want, text, log)
			}
		})
	}
}

// TestGoogleKeyRotates: a new service account's key is used at the next read.
func TestGoogleKeyRotates(t *testing.T) {
	g := newGoogle(t)
	stores, other := g.stores(t), g.stores(t)
	s, _ := live(t, stores, googleKey)
	next, err := os.ReadFile(other.GCP.Credentials.Name)
	if err != nil {
		t.Fatal(err)
	}
	put(t, stores.GCP.Credentials.Name, string(next))
	s.Refresh()
	until(t, "a login with the new key", func() (again bool) {
		g.change(func() { again = g.logins == 2 })
		return again
	})
}
