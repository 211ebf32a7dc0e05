package mcpserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

// headers is a round tripper that adds headers to each request.
type headers http.Header

func (h headers) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for name, values := range h {
		r.Header[name] = append(r.Header[name], values...)
	}
	// A stream whose headers never come must end the test.
	transport := &http.Transport{ResponseHeaderTimeout: 10 * time.Second, DisableKeepAlives: true}
	return transport.RoundTrip(r)
}

// limited returns a context that ends a test whose answer does not come.
func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, url, version string, h headers, opts *mcp.ClientOptions) *mcp.ClientSession {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "0"}, opts)
	transport := &mcp.StreamableClientTransport{Endpoint: url + "/mcp", HTTPClient: &http.Client{Transport: h}}
	session, err := client.Connect(limited(t), transport, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	if got := session.InitializeResult().ProtocolVersion; got != version {
		t.Fatalf("want protocol version %s, got %s", version, got)
	}
	return session
}

func callTool(t *testing.T, s *mcp.ClientSession, params *mcp.CallToolParams, out any) {
	t.Helper()
	res, err := s.CallTool(limited(t), params)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res.StructuredContent)
	if err != nil {
		t.Fatal(err)
	}
	if res.IsError {
		t.Fatalf("tool failed: %v", res.Content)
	}
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

func versions() []string { return []string{"2025-11-25", "2026-07-28"} }

func TestWhoami(t *testing.T) {
	t.Parallel()
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			url, _ := i.protected(t)
			token := i.sign(t, i.claims())
			s := connect(t, url, version, headers{
				"Authorization": {"Bearer " + token}, "Cookie": {"a=1; b=2", "broken"}, "X-Tenant": {"acme"},
			}, nil)
			var got mcpserver.Whoami
			callTool(t, s, &mcp.CallToolParams{Name: "whoami"}, &got)
			if !slices.Contains(got.Headers, "x-tenant") {
				t.Errorf("want x-tenant among %q", got.Headers)
			}
			got.Headers = nil
			want := mcpserver.Whoami{
				Subject: "service-1", ClientID: "litellm-proxy", TokenID: "token-1",
				Scopes: []string{"other", scope}, Cookies: []string{"a", "b", "broken"},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// The two ages of MCP differ on the wire: only the older one has sessions.
func TestSessionsBelongToTheOlderAge(t *testing.T) {
	t.Parallel()
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			url, rec := i.protected(t)
			s := connect(t, url, version, headers{"Authorization": {"Bearer " + i.sign(t, i.claims())}}, nil)
			var sum struct{ Sum float64 }
			callTool(t, s, &mcp.CallToolParams{Name: "add", Arguments: map[string]any{"a": 2, "b": 3}}, &sum)
			if sum.Sum != 5 {
				t.Errorf("want 5, got %v", sum.Sum)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			methods, sessions := map[string]int{}, 0
			for _, r := range rec.Requests() {
				methods[r.Method]++
				if r.Header.Get("Mcp-Session-Id") != "" {
					sessions++
				}
			}
			if old := version == "2025-11-25"; old != (methods[http.MethodDelete] == 1) || old != (methods[http.MethodGet] > 0) || old != (sessions > 0) {
				t.Errorf("methods %v, %d requests with a session", methods, sessions)
			}
		})
	}
}

func TestSlowReportsProgressLive(t *testing.T) {
	t.Parallel()
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			url, _ := i.protected(t)
			var mu sync.Mutex
			var arrived []time.Duration
			begin := time.Now()
			opts := &mcp.ClientOptions{ProgressNotificationHandler: func(context.Context, *mcp.ProgressNotificationClientRequest) {
				mu.Lock()
				defer mu.Unlock()
				arrived = append(arrived, time.Since(begin))
			}}
			s := connect(t, url, version, headers{"Authorization": {"Bearer " + i.sign(t, i.claims())}}, opts)
			params := &mcp.CallToolParams{Name: "slow"}
			params.SetProgressToken("p")
			begin = time.Now()
			var out struct{ Steps int }
			callTool(t, s, params, &out)
			took := time.Since(begin)
			mu.Lock()
			defer mu.Unlock()
			if out.Steps != 6 || took < 3*time.Second {
				t.Errorf("want 6 steps in 3 s, got %d in %v", out.Steps, took)
			}
			if len(arrived) < 5 || arrived[0] > 2*time.Second {
				t.Errorf("want progress while it runs, got it at %v", arrived)
			}
		})
	}
}

func TestOpenEchoesToEverybody(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(mcpserver.NewOpen())
	t.Cleanup(server.Close)
	for _, version := range versions() {
		s := connect(t, server.URL, version, nil, nil)
		var got struct{ Text string }
		callTool(t, s, &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "hello"}}, &got)
		if got.Text != "hello" {
			t.Errorf("%s: want hello, got %q", version, got.Text)
		}
	}
}

func TestRecorderKeepsEveryLineAndCountsAll(t *testing.T) {
	t.Parallel()
	var done []mcpserver.Received
	rec := mcpserver.NewRecorder(time.Now, func(r mcpserver.Received) { done = append(done, r) })
	h := rec.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/teapot" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = fmt.Fprint(w, "ok")
	}))
	req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://up.example/teapot?q=1", nil)
	req.Header["Cookie"] = []string{"a=1", "b=2"}
	req.Header["Authorization"] = []string{"Bearer x", "Bearer y"}
	h.ServeHTTP(httptest.NewRecorder(), req)
	got := rec.Requests()
	if len(got) != 1 || len(done) != 1 || done[0].Status != http.StatusTeapot {
		t.Fatalf("recorded %+v, reported %+v", got, done)
	}
	r := got[0]
	if r.Host != "up.example" || r.Path != "/teapot?q=1" || r.Status != http.StatusTeapot {
		t.Errorf("recorded %+v", r)
	}
	if len(r.Header["Cookie"]) != 2 || len(r.Header["Authorization"]) != 2 {
		t.Errorf("want two lines each, got %v", r.Header)
	}
	req.URL.Path = "/"
	for range 10_000 {
		h.ServeHTTP(httptest.NewRecorder(), req)
	}
	if n := len(rec.Requests()); rec.Count() != 10_001 || n > 10_000 || n < 5_000 {
		t.Errorf("want a count of 10001 and at most 10000 kept, got %d and %d", rec.Count(), n)
	}
	if last := rec.Requests()[len(rec.Requests())-1]; last.Status != http.StatusOK {
		t.Errorf("want the implied status 200, got %d", last.Status)
	}
	rec.Reset()
	if rec.Count() != 0 || len(rec.Requests()) != 0 {
		t.Error("Reset left something")
	}
}
