package e2e_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

// withServers makes alpha a protected MCP server, and open one that is not.
func (r *rig) withServers() {
	r.t.Helper()
	protected, err := mcpserver.NewProtected(mcpserver.Config{
		Issuer: r.issuer.Issuer(), JWKSURL: r.issuer.JWKSURL(), RevocationURL: r.issuer.URL() + "/revoked",
		Audience: r.up("alpha").url(), Scope: "mcp.read", Now: time.Now,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.up("alpha").answer(protected)
	r.up("open").answer(mcpserver.NewOpen())
}

// caller is a client's transport that adds headers to each request.
type caller struct {
	headers pairs
	next    http.RoundTripper
}

func (c caller) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for i := 0; i+1 < len(c.headers); i += 2 {
		r.Header.Add(c.headers[i], c.headers[i+1])
	}
	return c.next.RoundTrip(r)
}

// session connects a plain MCP client.
func session(t *testing.T, url, version string, transport http.RoundTripper, progress func()) *mcp.ClientSession {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "0"}, &mcp.ClientOptions{
		ProgressNotificationHandler: func(context.Context, *mcp.ProgressNotificationClientRequest) {
			if progress != nil {
				progress()
			}
		},
	})
	s, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{
		Endpoint: url, HTTPClient: &http.Client{Transport: transport},
	}, &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if got := s.InitializeResult().ProtocolVersion; got != version {
		t.Fatalf("want protocol version %s, got %s", version, got)
	}
	return s
}

func callTool(t *testing.T, s *mcp.ClientSession, params *mcp.CallToolParams, out any) {
	t.Helper()
	res, err := s.CallTool(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(res.StructuredContent)
	if err != nil {
		t.Fatal(err)
	}
	if res.IsError {
		t.Fatalf("the tool failed: %v", res.Content)
	}
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
}

// own are the secrets that a careless client sends, and one cookie that may pass.
func own(name string) pairs {
	return pairs{
		"Authorization", "Bearer " + callerToken, "X-Litellm-Api-Key", "sk-" + canary, "X-Mcp-Auth-Key", canary,
		"Cookie", "tracking=" + canary + "; session_id=s-1; token=" + canary, "X-Case", name,
	}
}

// TestMainLine keeps the promise of the whole: a client that knows nothing of
// tokens uses a protected server, by both protocols and both ages of MCP.
func TestMainLine(t *testing.T) {
	r := start(t, standard)
	r.withServers()
	for _, proto := range []string{"h1", "h2"} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			name := proto + " " + version
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				transport := http.RoundTripper(&http.Transport{})
				if proto == "h2" {
					transport = h2c().Transport
				}
				mainLine(t, r, name, version, caller{own(name), transport})
			})
		}
	}
}

func mainLine(t *testing.T, r *rig, name, version string, transport http.RoundTripper) {
	t.Helper()
	var progress spread
	s := session(t, r.url+"/alpha/mcp", version, transport, progress.note)
	tools, err := s.ListTools(t.Context(), nil)
	if err != nil || len(tools.Tools) != 3 {
		t.Fatalf("want 3 tools, got %v, %v", tools, err)
	}
	var who mcpserver.Whoami
	callTool(t, s, &mcp.CallToolParams{Name: "whoami"}, &who)
	if who.ClientID != "alpha-client" || !slices.Equal(who.Cookies, []string{"session_id"}) || !slices.Equal(who.Scopes, []string{"mcp.read"}) {
		t.Errorf("want the service's identity and one cookie, got %+v", who)
	}
	params := &mcp.CallToolParams{Name: "slow"}
	params.SetProgressToken(name)
	begin := time.Now()
	var out struct{ Steps int }
	callTool(t, s, params, &out)
	progress.check(t, begin)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	checkArrivals(t, r, name, version)
}

// checkArrivals holds every request of a case against what it must carry.
func checkArrivals(t *testing.T, r *rig, name, version string) {
	t.Helper()
	methods := map[string]int{}
	for _, a := range r.up("alpha").seen() {
		if a.Header.Get("X-Case") != name {
			continue
		}
		methods[a.Method]++
		if auth := a.lines("authorization"); len(auth) != 1 || audience(strings.TrimPrefix(auth[0], "Bearer ")) != r.up("alpha").url() {
			t.Errorf("%s: want one token for this upstream, got %d lines", a.Method, len(auth))
		}
		if got := a.lines("cookie"); !slices.Equal(got, []string{"session_id=s-1"}) {
			t.Errorf("%s: want one cookie, got %q", a.Method, got)
		}
	}
	old := version < "2026"
	if methods["POST"] < 3 || old != (methods["GET"] > 0) || old != (methods["DELETE"] == 1) {
		t.Errorf("want POST, and GET and DELETE in a session, got %v", methods)
	}
}

// spread notes when progress arrived.
type spread struct {
	mu sync.Mutex
	at []time.Time
}

func (s *spread) note() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = append(s.at, time.Now())
}

// check fails unless the events of a 3 s tool came as they were sent.
func (s *spread) check(t *testing.T, begin time.Time) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.at) < 5 {
		t.Errorf("want at least 5 reports of progress, got %d", len(s.at))
		return
	}
	first, last := s.at[0].Sub(begin), s.at[len(s.at)-1].Sub(begin)
	if first > 2*time.Second || last-first < 1500*time.Millisecond {
		t.Errorf("want progress live, got the first after %s and the last after %s", first, last)
	}
}

// TestOpenServerWorksUnchanged shows that an upstream without a credential gets
// what it got before, but for the caller's secrets.
func TestOpenServerWorksUnchanged(t *testing.T) {
	r := start(t, standard)
	r.withServers()
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		s := session(t, r.url+"/open/mcp", version, caller{own(version), &http.Transport{}}, nil)
		var out struct{ Text string }
		callTool(t, s, &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "hello"}}, &out)
		if out.Text != "hello" {
			t.Errorf("want hello, got %q", out.Text)
		}
		_ = s.Close()
	}
	for _, a := range r.up("open").take() {
		for _, name := range []string{"authorization", "cookie", "x-litellm-api-key", "x-mcp-auth-key"} {
			if got := a.lines(name); len(got) != 0 {
				t.Errorf("%s: want no %s, got %q", a.Method, name, got)
			}
		}
		if a.Header.Get("X-Case") == "" || a.Header.Get("User-Agent") == "" {
			t.Errorf("want the other headers untouched, got %v", a.Header)
		}
	}
	if n := r.issuer.Requests(); n > 2 {
		t.Errorf("want at most the two requests of the warm-up, got %d", n)
	}
}

// TestParallelFirstCalls: 200 calls at once, all before the first token came. On a
// machine that cannot have so many under way it is as many as it can: the first to
// wait do not wait for the last, because a call has 1.5 s and the fetch 5 s.
func TestParallelFirstCalls(t *testing.T) {
	var gate *gated
	r := newRig(t, standard, func(r *rig) {
		gate = newGated(t, r.facts.TokenURL)
		r.facts.TokenURL = gate.url
	})
	r.startEnvoy(r.render())                   // first, because the fetch begins with the program
	r.proc = r.launch(r.policy, r.facts.Admin) // not ready: its tokens are at the gate
	r.waitProcessor(1)
	results := r.parallel(200, "/alpha/mcp", func() {
		var waiting uint64
		var begun time.Time
		r.eventually("calls wait for the token", 10*time.Second, func() bool {
			n, _, err := r.envoy.Stat(t.Context(), "cluster.alpha.upstream_rq_active")
			if err != nil || n == 0 {
				return false
			}
			if waiting == 0 {
				begun = time.Now()
			}
			waiting = n
			return n == 200 || time.Since(begun) > 200*time.Millisecond
		})
		gate.open()
		t.Logf("%d calls waited for the token", waiting)
	})
	for i, got := range results {
		if got.status != http.StatusOK {
			t.Fatalf("call %d: got %v", i, got)
		}
	}
	if n := r.issuer.RequestsBy("alpha-client"); n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
	if n := len(r.up("alpha").take()); n != 200 {
		t.Errorf("want 200 requests at the upstream, got %d", n)
	}
}

// parallel sends n calls at once, runs between while they are under way, and
// returns the answers.
func (r *rig) parallel(n int, path string, between func()) []reply {
	r.t.Helper()
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	defer client.CloseIdleConnections()
	results := make([]reply, n)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() {
			var err error
			results[i], err = r.try(r.t.Context(), client, r.url+path, strings.NewReader("{}"), own("parallel"))
			if err != nil {
				r.t.Error(err)
			}
		})
	}
	between()
	wg.Wait()
	return results
}

// gated is a token endpoint behind a gate.
type gated struct {
	url  string
	once sync.Once
	gate chan struct{}
}

func newGated(t *testing.T, endpoint string) *gated {
	t.Helper()
	to, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	g := &gated{gate: make(chan struct{})}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = to.Scheme, to.Host
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		select {
		case <-g.gate:
			proxy.ServeHTTP(w, req)
		case <-req.Context().Done():
		}
	}))
	t.Cleanup(srv.Close)
	g.url = srv.URL + to.Path
	return g
}

func (g *gated) open() { g.once.Do(func() { close(g.gate) }) }
