package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
)

// mcpFilterSince is the first Envoy, 1.N, whose mcp filter compares headers with bodies.
const mcpFilterSince = 40

// largeRetrySince is the first Envoy, 1.N, that keeps more than 1 MiB of a body for
// a second attempt where the policy's limit is higher.
const largeRetrySince = 38

// proofs are the upstreams of ruled that prove a tool, as far as this Envoy can.
func proofs(t *testing.T) []string {
	t.Helper()
	if envoySince(t, mcpFilterSince) {
		return []string{"body", "filtered", "modern"}
	}
	return []string{"body", "modern"}
}

// ruled is a policy with an upstream for each proof, and one without rules.
func ruled(t *testing.T) string {
	t.Helper()
	const rules = `rules: [{names: [harmless, echo]}, {names: [customer], scopes: [customer:read]}, {names: [purge], scopes: [customer:write, purge:all]}]`
	filtered := ""
	if envoySince(t, mcpFilterSince) {
		filtered = `filtered: {url: {{.URL "filtered"}}, tools: {proof: mcp_filter, max_body: 64KiB, RULES}}`
	}
	return strings.NewReplacer("RULES", rules, "FILTERED", strings.ReplaceAll(filtered, "RULES", rules)).Replace(`
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  robot: {key: {sha256: {{.KeySum}}}, scopes: [customer:read]}
defaults:
  callers: [robot]
  credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
upstreams:
  bare: {url: {{.URL "bare"}}}
  body: {url: {{.URL "body"}}, cookies: {allow: [session_id]}, tools: {RULES}}
  small: {url: {{.URL "small"}}, credential: none, tools: {max_body: 64KiB, RULES}}
  large: {url: {{.URL "large"}}, tools: {max_body: 4MiB, RULES}}
  FILTERED
  modern: {url: {{.URL "modern"}}, tools: {proof: headers, RULES}}
`)
}

// executed notes which tools a real server ran.
type executed struct {
	mu  sync.Mutex
	ran []string
}

func (e *executed) take() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := strings.Join(e.ran, " ")
	e.ran = nil
	return out
}

// server is a real MCP server of the go-sdk, each request for itself.
func (e *executed) server() http.Handler {
	s := mcp.NewServer(&mcp.Implementation{Name: "e2e", Version: "0"}, nil)
	for _, name := range []string{"harmless", "purge", "customer", "drop"} {
		mcp.AddTool(s, &mcp.Tool{Name: name}, func(context.Context, *mcp.CallToolRequest, map[string]any) (*mcp.CallToolResult, any, error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.ran = append(e.ran, name)
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "ran " + name}}}, nil, nil
		})
	}
	return mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return s }, &mcp.StreamableHTTPOptions{Stateless: true, JSONResponse: true})
}

// asRobot are the headers of an MCP client that is known by its key.
func asRobot(more ...string) pairs {
	return append(pairs{
		"X-Mcp-Auth-Key", callerKey, "Content-Type", "application/json", "Accept", "application/json, text/event-stream",
		"Authorization", "Bearer " + callerToken,
	}, more...)
}

func toolCall(name string) string {
	return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + name + `","arguments":{}}}`
}

const modernMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"e2e","version":"0"},"io.modelcontextprotocol/clientCapabilities":{}}`

// bypass makes a real server run a tool that is not named where it was looked for.
type bypass struct {
	name    string
	body    string
	headers pairs
	ran     string // what the server runs when nobody asks
}

func bypasses() []bypass {
	const version = "MCP-Protocol-Version"
	modern := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"purge","arguments":{},` + modernMeta + `}}`
	return []bypass{
		{"an older version with a lying name", toolCall("purge"), pairs{version, "2025-11-25", "Mcp-Method", "tools/call", "Mcp-Name", "harmless"}, "purge"},
		{"two names", modern, pairs{version, "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "purge", "Mcp-Name", "harmless"}, "purge"},
		{"two members name", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"harmless","name":"purge","arguments":{}}}`, pairs{version, "2025-11-25"}, "purge"},
		{"a batch behind a list", `[{"jsonrpc":"2.0","id":6,"method":"tools/list"},` + toolCall("purge") + `]`, pairs{version, "2025-03-26", "Mcp-Method", "tools/list"}, "purge"},
	}
}

// TestH6_BypassesOfARealServer: without rules each of them works, or the case
// would show nothing; with rules it is refused, whatever the proof.
func TestH6_BypassesOfARealServer(t *testing.T) {
	r, e := start(t, ruled(t)), new(executed)
	for _, name := range append(proofs(t), "bare") {
		r.up(name).answer(e.server())
	}
	for _, b := range bypasses() {
		t.Run(b.name, func(t *testing.T) {
			if got := r.post("/bare/mcp", b.body, asRobot(b.headers...)...); e.take() != b.ran {
				t.Fatalf("without rules, the server must run %s; got %v", b.ran, got)
			}
			for _, up := range proofs(t) {
				got := r.post("/"+up+"/mcp", b.body, asRobot(b.headers...)...)
				if ran := e.take(); ran != "" || got.status < 400 {
					t.Errorf("%s: the server ran %q: %v", up, ran, got)
				}
			}
		})
	}
}

// TestS1_ToolsByBody holds how a request ends whose body is read, against a real
// server: what is refused runs nothing, and what passes has all that it should.
func TestS1_ToolsByBody(t *testing.T) {
	r, e := start(t, ruled(t)), new(executed)
	r.up("body").answer(e.server())
	pad := strings.Repeat("x", 9<<10)
	for _, tc := range []struct {
		name, body string
		headers    pairs
		status     int
		reason     string
		ran        string
	}{
		{"a tool that a rule names", toolCall("harmless"), nil, 200, "", "harmless"},
		{"by a scope of the caller", toolCall("customer"), nil, 200, "", "customer"},
		{"a list", `{"jsonrpc":"2.0","id":7,"method":"tools/list"}`, nil, 200, "", ""},
		{"S2 9 kB before the name", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":{"pad":"` + pad + `"},"name":"harmless"}}`, nil, 200, "", "harmless"},
		{"S2 9 kB before the name of another", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":{"pad":"` + pad + `"},"name":"drop"}}`, nil, 403, "tool_denied", ""},
		{"S7 a tool that no rule names", toolCall("drop"), nil, 403, "tool_denied", ""},
		{"S6 a scope that the caller lacks", toolCall("purge"), nil, 403, "scope_missing", ""},
		{"S1 another name in the header", toolCall("drop"), pairs{"Mcp-Method", "tools/call", "Mcp-Name", "harmless"}, 400, "header_mismatch", ""},
		{"S3 method twice", `{"jsonrpc":"2.0","id":7,"method":"tools/list","method":"tools/call","params":{"name":"drop"}}`, nil, 403, "tool_unproved", ""},
		{"S4 a member in another case", `{"jsonrpc":"2.0","id":7,"method":"tools/list","Method":"tools/call","params":{"name":"drop"}}`, nil, 403, "tool_unproved", ""},
		{"S4 two documents", toolCall("harmless") + toolCall("drop"), nil, 403, "tool_unproved", ""},
		{"S4 a byte order mark", "\ufeff" + toolCall("harmless"), nil, 403, "tool_unproved", ""},
		{"S4 gzip", toolCall("harmless"), pairs{"Content-Encoding", "gzip"}, 403, "tool_unproved", ""},
		{"S4 a batch with a denied call", "[" + toolCall("harmless") + "," + toolCall("drop") + "]", nil, 403, "tool_denied", ""},
		{"S5 two names", toolCall("harmless"), pairs{"Mcp-Name", "harmless", "Mcp-Name", "harmless"}, 400, "bad_request", ""},
		{"S5 a name where the body has none", `{"jsonrpc":"2.0","id":7,"method":"tools/list"}`, pairs{"Mcp-Name", "harmless"}, 400, "header_mismatch", ""},
		{"no body", "", nil, 403, "tool_unproved", ""},
	} {
		for proto, client := range map[string]*http.Client{"h1": nil, "h2": h2c()} {
			t.Run(proto+" "+tc.name, func(t *testing.T) {
				r.up("body").take()
				got := r.do(t.Context(), client, r.url+"/body/mcp", strings.NewReader(tc.body), asRobot(append(tc.headers, "Cookie", "session_id=s-1; tracking="+canary)...))
				came, ran := r.up("body").take(), e.take()
				if ran != tc.ran {
					t.Errorf("the server ran %q, want %q: %v", ran, tc.ran, got)
				}
				if tc.reason != "" {
					got.refused(t, tc.status, tc.reason)
					checkID(t, got, tc.reason, strings.HasPrefix(tc.body, "{"))
					if len(came) != 0 {
						t.Errorf("%d requests came to the upstream", len(came))
					}
					return
				}
				if got.status != tc.status || len(came) != 1 {
					t.Fatalf("got %v after %d requests", got, len(came))
				}
				a := came[0]
				if claim(strings.TrimPrefix(a.Header.Get("Authorization"), "Bearer "), "client_id") != "alpha-client" ||
					a.Header.Get("Cookie") != "session_id=s-1" || a.Header.Get("X-Mcp-Auth-Key") != "" || a.Header.Get("X-Mcp-Auth-Guard") != "" {
					t.Errorf("want what a reply to the headers would have made of it, got %q", a.Head)
				}
			})
		}
	}
}

// checkID holds that a refusal bears the id of the one request that it is about (T14).
func checkID(t *testing.T, got reply, reason string, one bool) {
	t.Helper()
	want := `"id":null`
	if one && (reason == "tool_denied" || reason == "scope_missing" || reason == "header_mismatch") {
		want = `"id":7`
	}
	if !strings.Contains(got.body, want) {
		t.Errorf("T14: want %s, got %s", want, got.body)
	}
}

// TestH4_ToolsByHeaders: the body is not looked at, so only a version will do
// whose servers compare it.
func TestH4_ToolsByHeaders(t *testing.T) {
	r, e := start(t, ruled(t)), new(executed)
	r.up("modern").answer(e.server())
	call := func(name string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + name + `","arguments":{},` + modernMeta + `}}`
	}
	headers := func(version, name string) pairs {
		return asRobot("MCP-Protocol-Version", version, "Mcp-Method", "tools/call", "Mcp-Name", name)
	}
	if got := r.post("/modern/mcp", call("harmless"), headers("2026-07-28", "harmless")...); got.status != http.StatusOK || e.take() != "harmless" {
		t.Errorf("got %v", got)
	}
	// H4: this is what makes the header a proof.
	if got := r.post("/modern/mcp", call("drop"), headers("2026-07-28", "harmless")...); got.status != http.StatusBadRequest || e.take() != "" {
		t.Errorf("want the server to compare, got %v", got)
	}
	r.post("/modern/mcp", call("drop"), headers("2026-07-28", "drop")...).refused(t, http.StatusForbidden, "tool_denied")
	r.post("/modern/mcp", toolCall("drop"), headers("2025-11-25", "harmless")...).refused(t, http.StatusForbidden, "tool_unproved")
	if ran := e.take(); ran != "" {
		t.Errorf("ran %s", ran)
	}
}

// TestToolsByFilter: Envoy's mcp filter reads the body, and its word comes here.
func TestToolsByFilter(t *testing.T) {
	if !envoySince(t, mcpFilterSince) {
		t.Skip("the mcp filter of this Envoy does not compare headers with bodies: use proof: body")
	}
	r, e := start(t, ruled(t)), new(executed)
	r.up("filtered").answer(e.server())
	for _, tc := range []struct {
		name, body string
		headers    pairs
		status     int
		reason     string
		ran        string
	}{
		{"permitted", toolCall("harmless"), nil, 200, "", "harmless"},
		{"a list", `{"jsonrpc":"2.0","id":7,"method":"tools/list"}`, nil, 200, "", ""},
		{"S7 denied", toolCall("drop"), nil, 403, "tool_denied", ""},
		{"S2 denied behind 9 kB", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"arguments":{"pad":"` + strings.Repeat("x", 9<<10) + `"},"name":"drop"}}`, nil, 403, "tool_denied", ""},
		{"S1 a lying name", toolCall("drop"), pairs{"Mcp-Name", "harmless"}, 400, "header_mismatch", ""},
		// Envoy's own refusals have no reason of ours.
		{"S3 a name twice", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"harmless","name":"drop"}}`, nil, 400, "envoy", ""},
		{"S4 a batch", "[" + toolCall("drop") + "]", nil, 400, "envoy", ""},
		{"S4 text", toolCall("drop"), pairs{"Content-Type", "text/plain"}, 400, "envoy", ""},
		{"too large", toolCall("harmless") + strings.Repeat(" ", 64<<10), nil, 413, "body_too_large", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			headers := asRobot(tc.headers...)
			if len(tc.headers) > 0 && tc.headers[0] == "Content-Type" {
				headers[3] = tc.headers[1]
			}
			got := r.post("/filtered/mcp", tc.body, headers...)
			if ran := e.take(); ran != tc.ran || got.status != tc.status || tc.reason != "envoy" && got.reason() != tc.reason {
				t.Errorf("the server ran %q: %v", ran, got)
			}
		})
	}
}

// TestO4_RetryWithToolRules: the second attempt asks for no body, and the verdict
// of the first one stands. What the upstream streams goes on as it comes.
func TestO4_RetryWithToolRules(t *testing.T) {
	large := envoySince(t, largeRetrySince)
	r := start(t, ruled(t))
	r.up("large").answer(r.guarded(length))
	for _, size := range []int{200, 900 << 10, 4 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if size > 1<<20 && !large {
				t.Skip("this Envoy keeps no body of that size for a second attempt, whatever the policy says")
			}
			r.up("large").take()
			r.do(t.Context(), nil, r.url+"/large/mcp", strings.NewReader(sized(200)), asRobot())
			r.issuer.Revoke()
			got := r.do(t.Context(), nil, r.url+"/large/mcp", strings.NewReader(sized(size)), asRobot("X-Want", "sse"))
			if got.status != http.StatusOK || strings.Count(got.body, fmt.Sprintf(`"length":%d`, size)) != 3 {
				t.Errorf("got %v", got)
			}
			if came := r.up("large").take(); len(came) != 3 {
				t.Errorf("want one call, and one with two attempts, got %d", len(came))
			}
		})
	}
}

// TestSlowBodyWithToolRules: a caller may take its time, and Envoy's
// message_timeout is about our answers alone.
func TestSlowBodyWithToolRules(t *testing.T) {
	t.Parallel()
	r := start(t, ruled(t))
	in, out := io.Pipe()
	go func() {
		text := sized(2000)
		_, _ = io.WriteString(out, text[:1000])
		time.Sleep(4 * time.Second)
		_, _ = io.WriteString(out, text[1000:])
		_ = out.Close()
	}()
	if got := r.do(t.Context(), nil, r.url+"/body/mcp", in, asRobot()); got.status != http.StatusOK {
		t.Errorf("got %v", got)
	}
}

// TestSessionWithToolRules is a whole session of a plain client, with its stream
// of the server's messages and its end.
func TestSessionWithToolRules(t *testing.T) {
	r := start(t, ruled(t))
	server := mcp.NewServer(&mcp.Implementation{Name: "e2e", Version: "0"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "echo"}, func(ctx context.Context, req *mcp.CallToolRequest, _ map[string]any) (*mcp.CallToolResult, any, error) {
		// A message of the server's own on the way, which the client answers.
		err := req.Session.Ping(ctx, nil)
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: fmt.Sprint(err)}}}, nil, nil
	})
	r.up("body").answer(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, nil))
	s := session(t, r.url+"/body/mcp", "2025-11-25", caller{pairs{"X-Mcp-Auth-Key", callerKey}, &http.Transport{}}, nil)
	if tools, err := s.ListTools(t.Context(), nil); err != nil || len(tools.Tools) != 1 {
		t.Errorf("got %v, %v", tools, err)
	}
	res, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "echo"})
	if err != nil || res.IsError || res.Content[0].(*mcp.TextContent).Text != "<nil>" {
		t.Errorf("got %v, %v", res, err)
	}
	if _, err := s.CallTool(t.Context(), &mcp.CallToolParams{Name: "drop"}); err == nil {
		t.Error("want a refusal")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	methods := map[string]int{}
	for _, a := range r.up("body").take() {
		methods[a.Method]++
	}
	if methods["GET"] == 0 || methods["DELETE"] != 1 {
		t.Errorf("want a stream and the end of the session, got %v", methods)
	}
}

// TestLiteLLMWithToolRules: a tool that the rules keep from LiteLLM is refused at
// once, and both logs name it, while listing and the others work.
func TestLiteLLMWithToolRules(t *testing.T) {
	binary := reallitellm.Require(t)
	r := start(t, `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}"}
envoy: {listen: {{.Listen}}}
callers:
  litellm: {key: {sha256: {{.KeySum}}}, scopes: [math]}
defaults: {callers: [litellm]}
upstreams:
  open: {url: {{.URL "open"}}, credential: none}
  alpha:
    url: {{.URL "alpha"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
    tools: {rules: [{names: [add], scopes: [math]}, {names: [whoami], scopes: [identity]}]}
`)
	r.withServers()
	l := r.litellm(binary)
	for tool, want := range map[string]struct {
		args   map[string]any
		reason string
	}{
		"add":    {map[string]any{"a": 2, "b": 3}, ""},
		"whoami": {map[string]any{}, "scope_missing"},
		"slow":   {map[string]any{}, "tool_denied"},
	} {
		out, err := callByLiteLLM(t, l, "alpha", tool, want.args)
		if want.reason == "" {
			if err != nil || !strings.Contains(out, "5") {
				t.Errorf("%s: got %q, %v", tool, out, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: want a refusal, got %q", tool, out)
		}
		// This LiteLLM drops the body of an answer to a call: it logs status and
		// tool, and our own line says the rest.
		r.eventually("LiteLLM's log names "+tool+" and the status", 5*time.Second, func() bool {
			return slices.ContainsFunc(strings.Split(tail(l.Log, 1<<20), "MCP client call_tool failed"), func(entry string) bool {
				head, _, _ := strings.Cut(entry, "Transport:")
				return strings.Contains(head, "403 Forbidden") && strings.Contains(head, "Tool: "+tool+",")
			})
		})
		if log := tail(r.proc.log, 1<<20); !strings.Contains(log, `"reason":"`+want.reason+`"`) || !strings.Contains(log, `"tool":"`+tool+`"`) {
			t.Errorf("want %s and %s in our log, got %s", want.reason, tool, log)
		}
	}
}

// callByLiteLLM lists the tools of a server, which must be all three, and calls one.
func callByLiteLLM(t *testing.T, l *reallitellm.LiteLLM, server, tool string, args map[string]any) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "0"}, nil)
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:             l.URL + "/" + server + "/mcp",
		HTTPClient:           &http.Client{Transport: caller{pairs{"x-litellm-api-key", "Bearer " + masterKey}, &http.Transport{}}},
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	tools, err := s.ListTools(ctx, nil)
	if err != nil || len(tools.Tools) != 3 {
		t.Fatalf("want all three tools listed, got %v, %v", tools, err)
	}
	for _, found := range tools.Tools {
		if !strings.HasSuffix(found.Name, tool) {
			continue
		}
		res, err := s.CallTool(ctx, &mcp.CallToolParams{Name: found.Name, Arguments: args})
		if err != nil {
			return "", err
		}
		out := fmt.Sprint(res.StructuredContent)
		for _, c := range res.Content {
			if text, ok := c.(*mcp.TextContent); ok {
				out += text.Text
			}
		}
		if res.IsError {
			return "", errors.New(out)
		}
		return out, nil
	}
	t.Fatalf("no tool %s", tool)
	return "", nil
}

// sized makes an allowed call whose body has this many bytes.
func sized(n int) string {
	head := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"pad":"`
	const tail = `"}}}`
	return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
}

// streamed hides the length of a body, so that it is chunked.
type streamed struct{ io.Reader }

// TestLargeBodiesAreRefusedAndNeverHang: with and without a length, by both
// protocols, at and around the limit.
func TestLargeBodiesAreRefusedAndNeverHang(t *testing.T) {
	r := start(t, ruled(t))
	const mib = 1 << 20
	for _, tc := range []struct {
		up   string
		size int
		ok   bool
	}{
		{"small", 64 << 10, true},
		{"small", 64<<10 + 1, false},
		{"small", 3 * mib, false},
		{"body", 900 << 10, true},
		{"body", mib, true},
		{"body", mib + 1, false},
		{"body", mib + 40<<10, false},
		{"body", mib + 100<<10, false},
		{"body", 5 * mib, false},
		{"large", 4 * mib, true},
		{"large", 4*mib + 1, false},
		{"large", 20 * mib, false},
	} {
		for proto, client := range map[string]*http.Client{"h1": nil, "h2": h2c()} {
			for kind, wrap := range map[string]func(io.Reader) io.Reader{
				"with a length": func(r io.Reader) io.Reader { return r },
				"streamed":      func(r io.Reader) io.Reader { return streamed{r} },
			} {
				t.Run(fmt.Sprintf("%s %d %s %s", tc.up, tc.size, proto, kind), func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
					defer cancel()
					r.up(tc.up).take()
					got, err := r.try(ctx, client, r.url+"/"+tc.up+"/mcp", wrap(strings.NewReader(sized(tc.size))), asRobot())
					came := r.up(tc.up).take()
					switch {
					case tc.ok:
						if err != nil || got.status != http.StatusOK || len(came) != 1 || came[0].Body != tc.size {
							t.Errorf("want it to arrive, got %v %v; %d arrivals", got, err, len(came))
						}
					case err != nil:
						t.Fatal(err)
					default:
						got.refused(t, http.StatusRequestEntityTooLarge, "body_too_large")
						if len(came) != 0 || got.took > 10*time.Second {
							t.Errorf("%d arrivals after %s", len(came), got.took)
						}
					}
				})
			}
		}
	}
}
