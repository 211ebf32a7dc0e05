package keycloak_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realproxy"
)

// line is Keycloak, the upstreams that trust it, Envoy and the program.
type line struct {
	t     *testing.T
	k     *keycloak
	admin *admin
	dir   string
	proxy *realproxy.Proxy
	urls  map[string]string // of the upstreams' MCP endpoints, by name
	ids   map[string]string // of the clients at Keycloak, by the name of the upstream

	// callers are those of the policy for an upstream; where there is no name, anyone.
	callers map[string]string
}

// newLine starts Keycloak and makes the realm.
func newLine(t *testing.T) *line {
	t.Helper()
	realenvoy.Require(t)
	address, err := realprocess.Address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k := startKeycloak(t, address)
	return &line{t: t, k: k, admin: newRealm(t, k), dir: t.TempDir(), urls: map[string]string{}, ids: map[string]string{}, callers: map[string]string{}}
}

// upstream starts an MCP server that checks the signature and the claims of its
// tokens by itself, and makes a client for it. wrap may stand before the server.
func (l *line) upstream(name string, client object, wrap func(http.Handler) http.Handler) {
	l.t.Helper()
	var inner http.Handler
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner.ServeHTTP(w, r) }))
	l.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	l.urls[name] = s.URL + "/mcp"
	protected, err := mcpserver.NewProtected(mcpserver.Config{
		Issuer: l.k.issuer(), JWKSURL: l.k.endpoint("certs"), Audience: l.urls[name], Scope: "mcp.read", Now: time.Now,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	inner = protected
	if wrap != nil {
		inner = wrap(protected)
	}
	l.ids[name] = l.admin.client(name+"-client", l.urls[name], client)
}

// introspected lets a request pass whose token Keycloak stands by.
func (l *line) introspected(next http.Handler) http.Handler {
	const id, secret = "resource-server", "made-up-secret-of-the-resource-server"
	l.admin.client(id, "none", object{"secret": secret})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		form := url.Values{"token": {strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")}}
		req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, l.k.endpoint("token/introspect"), strings.NewReader(form.Encode()))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		req.SetBasicAuth(id, secret)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		var answer struct{ Active bool }
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || !answer.Active {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			http.Error(w, "not active", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// start runs the program and Envoy. people is how users are known, credentials
// are the OAuth clients of the policy, by upstream.
func (l *line) start(people string, credentials map[string]string) {
	l.t.Helper()
	program, err := realproxy.Build(l.t.Context(), l.t.TempDir())
	if err != nil {
		l.t.Fatal(err)
	}
	var policy strings.Builder
	policy.WriteString("callers: {anyone: {any: true}, people: {jwt: {" + people + "}}}\nupstreams:\n")
	for name, credential := range credentials {
		fmt.Fprintf(&policy, "  %s:\n    url: %s\n    callers: [%s]\n    credential: {oauth2: {%s, client_id: %s-client, scopes: [mcp.read]}}\n",
			name, l.urls[name], cmp.Or(l.callers[name], "anyone"), credential, name)
	}
	l.proxy, err = realproxy.Start(l.t.Context(), realproxy.Config{Program: program, Policy: policy.String(), Dir: l.dir})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(l.finish)
}

// finish ends the program and Envoy, and shows what they said of a failure.
func (l *line) finish() {
	l.proxy.Stop()
	b, err := os.ReadFile(l.proxy.Log)
	if err != nil {
		l.t.Error(err)
	}
	// All secrets here are made up and say so; a JWT begins with the letters of `{"`.
	for _, secret := range []string{"made-up", "made up", "eyJ"} {
		if bytes.Contains(b, []byte(secret)) {
			l.t.Errorf("the program's log has a secret or a token: %q", secret)
		}
	}
	if l.t.Failed() {
		l.t.Logf("the program:\n%s\nkeycloak:\n%s", b[max(0, len(b)-8000):], l.k.tail())
	}
}

// endpoint is where a caller reaches an upstream.
func (l *line) endpoint(name string) string { return l.proxy.URL + "/" + name + "/mcp" }

// file is the path of a file of the policy.
func (l *line) file(name string) string { return filepath.Join(l.dir, name) }

// write replaces a file by rename.
func (l *line) write(name string, content []byte) {
	l.t.Helper()
	if err := os.WriteFile(l.file(name)+".new", content, 0o600); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(l.file(name)+".new", l.file(name)); err != nil {
		l.t.Fatal(err)
	}
}

// requests is how many tokens the program was given for an upstream.
func (l *line) requests(t *testing.T, name string) int {
	t.Helper()
	n, err := l.proxy.Metric(t.Context(), fmt.Sprintf(`mcp_auth_token_requests_total{result="ok",upstream=%q}`, name))
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// bearer is a client's transport that shows a token of the caller, if there is one.
type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+string(b))
	}
	return http.DefaultTransport.RoundTrip(r)
}

// whoami calls an upstream's tool of that name with a real MCP client, which has
// no token but the caller's.
func (l *line) whoami(t *testing.T, name string, caller bearer) mcpserver.Whoami {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "0"}, nil)
	s, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{
		Endpoint: l.endpoint(name), HTTPClient: &http.Client{Transport: caller, Timeout: 30 * time.Second},
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	res, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "whoami"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res.StructuredContent)
	if err != nil {
		t.Fatal(err)
	}
	var who mcpserver.Whoami
	if err := json.Unmarshal(b, &who); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	return who
}

// initialize is a call that every MCP server answers.
const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"0"}}}`

// post sends one call, and returns the status and our reason for a refusal.
func post(ctx context.Context, endpoint, authorization string) (status int, reason string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(initialize))
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Mcp-Auth-Reason")
}

// post sends one call to an upstream through the proxy.
func (l *line) post(ctx context.Context, name string) (status int, reason string) {
	return post(ctx, l.endpoint(name), "")
}

// load calls an upstream 20 times a second until stop is called, which returns
// how many calls there were. Each one that fails fails the test.
func (l *line) load(t *testing.T, name string) (stop func() int) {
	t.Helper()
	end := make(chan struct{})
	var calls sync.WaitGroup
	n := 0
	calls.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			n++
			calls.Go(func() {
				if status, reason := l.post(t.Context(), name); status != http.StatusOK {
					t.Errorf("a call failed: %d %s", status, reason)
				}
			})
		}
	})
	return func() int {
		close(end)
		calls.Wait()
		return n
	}
}

// eventually polls.
func eventually(t *testing.T, what string, within time.Duration, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if yes() {
			return
		}
	}
	t.Fatalf("not within %s: %s", within, what)
}
