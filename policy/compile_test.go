package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func mustParse(t *testing.T, file string) *Set {
	t.Helper()
	set, err := Parse(file, readFile(t, file), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestGoodFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("want at least 5 good files, got %d, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			set := mustParse(t, file)
			for _, u := range set.Upstreams {
				if got, reason := set.Lookup(&Request{Name: u.Name}); got != u {
					t.Errorf("want upstream %q by its name, got %v, %v", u.Name, got, reason)
				}
				if got, reason := set.Lookup(&Request{Cluster: u.Cluster}); got != u {
					t.Errorf("want upstream %q by its cluster, got %v, %v", u.Name, got, reason)
				}
			}
		})
	}
}

// shown leaves out the rules, which have tests of their own.
func shown() cmp.Options {
	return cmp.Options{cmpopts.IgnoreTypes(CookieRule{}, HeaderRule{}), cmpopts.IgnoreUnexported(Upstream{}), cmpopts.EquateEmpty()}
}

// TestCompile holds one upstream with every key against what it becomes.
func TestCompile(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "testdata/good/design.yaml")
	callers := map[string]*Caller{}
	for _, c := range set.Callers {
		callers[c.Name] = c
	}
	got, _ := set.Lookup(&Request{Name: "user_aware_server"})
	want := &Upstream{
		Name:       "user_aware_server",
		URL:        "https://user-tools.company.com/mcp",
		Resource:   "https://user-tools.company.com/mcp",
		CA:         "testdata/good/upstream-ca.pem",
		Cluster:    "user-tools",
		Route:      "user-*",
		Listen:     "127.0.0.1:10001",
		RetryOn401: false,
		Callers:    []*Caller{callers["litellm"], callers["ci"]},
		Credential: Credential{OAuth2: &OAuth2{
			TokenURL:        "https://auth.company.com/oauth2/token",
			Grant:           ClientCredentials,
			CA:              "testdata/good/auth-ca.pem",
			ClientID:        "specific-client-id",
			ClientSecret:    SecretRef{SecretText, "${SPECIFIC_SECRET}"},
			AuthMethod:      ClientSecretPost,
			Resource:        "https://user-tools.company.com/",
			Audience:        "https://user-tools.company.com",
			Params:          []Param{{"price", "5$"}, {"tenant", "acme"}},
			DefaultLifetime: 5 * time.Minute,
			MaxLifetime:     24 * time.Hour,
		}},
		Origins:       []string{"https://app.company.com", "null"},
		BindsSessions: true,
	}
	if diff := cmp.Diff(want, got, shown()); diff != "" {
		t.Errorf("upstream (-want +got):\n%s", diff)
	}
	wantServer := Server{
		Listen: "unix:///run/envoy-mcp-auth/grpc.sock", Admin: "127.0.0.1:9441",
		Deadline: 1500 * time.Millisecond, DrainDelay: 3 * time.Second, DrainTimeout: 10 * time.Second, ReadyNeedsTokens: true,
	}
	if diff := cmp.Diff(wantServer, set.Server); diff != "" {
		t.Errorf("server (-want +got):\n%s", diff)
	}
	wantEnvoy := Envoy{
		Listen: "127.0.0.1:10000", PublicURL: "https://mcp.company.com",
		TLS: &TLSSpec{"testdata/good/tls/cert.pem", "testdata/good/tls/key.pem", "testdata/good/tls/ca.pem"},
	}
	if diff := cmp.Diff(wantEnvoy, set.Envoy); diff != "" {
		t.Errorf("envoy (-want +got):\n%s", diff)
	}
}

// TestInheritance holds what an upstream takes from defaults, whole blocks only.
func TestInheritance(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "testdata/good/design.yaml")
	for name, want := range map[string]struct {
		clientID, resource string
		headers            []SecretHeader
		callers            int
	}{
		"protected_server": {clientID: "litellm-proxy", resource: "https://protected-mcp.company.com/mcp", callers: 1},
		"plain":            {clientID: "litellm-proxy", resource: "http://plain.internal:8080/mcp", callers: 1},
		"legacy":           {clientID: "legacy", resource: "", callers: 1},
		"open_server":      {callers: 1},
		"openai":           {headers: []SecretHeader{{"authorization", SecretRef{SecretText, "Bearer ${OPENAI_API_KEY}"}}}, callers: 1},
		"anthropic":        {headers: []SecretHeader{{"x-api-key", SecretRef{SecretEnv, "ANTHROPIC_API_KEY"}}}, callers: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up, reason := set.Lookup(&Request{Name: name})
			if up == nil {
				t.Fatal(reason)
			}
			var clientID, resource string
			if o := up.Credential.OAuth2; o != nil {
				clientID, resource = o.ClientID, o.Resource
			}
			if clientID != want.clientID || resource != want.resource {
				t.Errorf("want client %q and resource %q, got %q and %q", want.clientID, want.resource, clientID, resource)
			}
			if diff := cmp.Diff(want.headers, up.Credential.Headers); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			if len(up.Callers) != want.callers {
				t.Errorf("want %d callers, got %d", want.callers, len(up.Callers))
			}
			if lent := up.Credential.OAuth2 != nil; up.RetryOn401 != lent {
				t.Errorf("retry on 401 is %v, want it where there is a token to renew: %v", up.RetryOn401, lent)
			}
		})
	}
}

// TestU1_Canonical holds the RFC 8707 form of upstream URLs.
func TestU1_Canonical(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://a.example":               "https://a.example",
		"https://a.example/":              "https://a.example",
		"HTTPS://A.Example:443/":          "https://a.example",
		"http://A.example:80/Mcp":         "http://a.example/Mcp",
		"https://a.example:8443/mcp/":     "https://a.example:8443/mcp/",
		"https://a.example:80/mcp":        "https://a.example:80/mcp",
		"https://a.example/%7Euser/a%2Fb": "https://a.example/%7Euser/a%2Fb",
		"http://[::1]:80/mcp":             "http://[::1]/mcp",
	} {
		if got := canonical(url); got != want {
			t.Errorf("canonical(%q): want %q, got %q", url, want, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	want := []string{
		`remote.yaml:4: server.admin: "0.0.0.0:9441" is not loopback, and /status and /metrics ask nobody who they are; use 127.0.0.1, or keep others out by network policy`,
		`remote.yaml:7: envoy.host: this has no effect without route: host; add that, or remove this`,
		`remote.yaml:10: callers.anyone: everybody who reaches Envoy is lent the credential of 1 upstream; use a key or mtls caller unless Envoy is closed to others`,
		`remote.yaml:11: callers.litellm: the rendered Envoy asks for no client certificate, so this caller is never admitted there; set envoy.tls with client_ca, or bring an Envoy that verifies client certificates`,
	}
	set, err := Parse("remote.yaml", readFile(t, "testdata/good/remote.yaml"), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range set.Warnings {
		got = append(got, w.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
	if w := mustParse(t, "testdata/good/design.yaml").Warnings; len(w) != 0 {
		t.Errorf("want no warnings, got %v", w)
	}
}

// TestRelativePaths: a path starts at the policy file, wherever the process was started.
func TestRelativePaths(t *testing.T) {
	t.Parallel()
	set, err := Parse("/etc/mcp/policy.yaml", readFile(t, "testdata/good/design.yaml"), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	up, _ := set.Lookup(&Request{Name: "legacy"})
	if got := up.Credential.OAuth2.ClientSecret; got != (SecretRef{SecretFile, "/etc/mcp/secrets/legacy"}) {
		t.Errorf("want the secret's file beside the policy, got %v", got)
	}
	if set.Envoy.TLS.ClientCA != "/etc/mcp/tls/ca.pem" {
		t.Errorf("want the CA beside the policy, got %q", set.Envoy.TLS.ClientCA)
	}
}

// TestPublicURL: the base of callers' URLs has no slash at its end, and speaks what the listener speaks.
func TestPublicURL(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"minimal":  "http://127.0.0.1:10000",
		"remote":   "https://127.0.0.1:10000",
		"loopback": "https://mcp.example",
	} {
		if got := mustParse(t, "testdata/good/"+file+".yaml").Envoy.PublicURL; got != want {
			t.Errorf("%s: want %q, got %q", file, want, got)
		}
	}
}

func TestQuickText(t *testing.T) {
	t.Parallel()
	env := func(name string) (string, bool) {
		v, ok := map[string]string{
			"MCP_OAUTH2_TOKEN_URL":     "https://auth.example/token",
			"MCP_OAUTH2_CLIENT_ID":     "litellm",
			"MCP_OAUTH2_CLIENT_SECRET": canary,
		}[name]
		return v, ok
	}
	text := QuickText(map[string]string{"b": "https://b.example/$x", "2.a": "http://127.0.0.1:9/mcp"}, "127.0.0.1:9440")
	set, err := Parse("quick", []byte(text), env)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if len(set.Upstreams) != 2 || set.Upstreams[1].URL != "https://b.example/$x" || set.Server.Listen != "127.0.0.1:9440" {
		t.Errorf("want both upstreams and the listener, got %+v", set)
	}
	up := set.Upstreams[0]
	if o := up.Credential.OAuth2; o == nil || o.ClientID != "litellm" || o.Resource != "http://127.0.0.1:9/mcp" || !up.Callers[0].Any {
		t.Errorf("want a token for everybody, got %+v", up)
	}
	hostile := QuickText(map[string]string{"a: {}\n  x": "https://a\n    credential: none"}, "")
	if _, err := Parse("quick", []byte(hostile), env); err == nil || strings.Contains(hostile, "\n    credential: none") {
		t.Errorf("a name or URL wrote YAML of its own:\n%s", hostile)
	}
	if _, err := Parse("quick", []byte(text), os.LookupEnv); err == nil || !strings.Contains(err.Error(), "MCP_OAUTH2_TOKEN_URL is not set") {
		t.Errorf("want a fault that names the variable, got %v", err)
	}
}
