package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
)

const masterKey = "sk-master-" + canary

// forLiteLLM is a policy whose caller is LiteLLM, known by its key.
const forLiteLLM = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}"}
envoy: {listen: {{.Listen}}}
callers:
  litellm: {key: {sha256: {{.KeySum}}}}
  other: {key: {sha256: "0000000000000000000000000000000000000000000000000000000000000000"}}
defaults:
  callers: [litellm]
upstreams:
  alpha:
    url: {{.URL "alpha"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
    cookies: {allow: [session_id]}
  open: {url: {{.URL "open"}}, credential: none}
  beta:
    url: {{.URL "beta"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: beta-client, client_secret: {file: {{.Dir}}/beta.secret}}}
  denied:
    url: {{.URL "denied"}}
    callers: [other]
    credential: none
`

// litellm starts the real LiteLLM with what we render for it, its master key, and
// the key of the caller litellm.
func (r *rig) litellm(binary string, env ...string) *reallitellm.LiteLLM {
	r.t.Helper()
	dir := filepath.Join(r.dir, "litellm")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	l, err := reallitellm.Start(r.t.Context(), reallitellm.Config{
		Binary:     binary,
		Dir:        dir,
		Env:        append([]string{"LITELLM_MASTER_KEY=" + masterKey, "MCP_AUTH_KEY_LITELLM=" + callerKey}, env...),
		ConfigYAML: append([]byte("general_settings: {master_key: os.environ/LITELLM_MASTER_KEY}\n"), r.run("render", "litellm", "-c", r.policy)...),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(l.Stop)
	return l
}

// TestLiteLLM is the main line with the real LiteLLM in front: rendered
// configuration on both sides, nothing written by hand but its master key.
func TestLiteLLM(t *testing.T) {
	binary := reallitellm.Require(t)
	r := start(t, forLiteLLM)
	r.withServers()
	l := r.litellm(binary, "MCP_AUTH_KEY_OTHER=wrong")
	t.Run("tools are found at its start", func(t *testing.T) {
		if n := len(r.up("alpha").take()); n == 0 {
			t.Error("want LiteLLM's own listing at the upstream, got nothing")
		}
	})
	t.Run("list and call", func(t *testing.T) { r.throughLiteLLM(t, l) })
	for _, h := range []string{"host", "authorization", "cookie", "x-api-key", "x-mcp-auth-guard", "x-envoy-attempt-count", "mcp-upstream", "x-tenant"} {
		t.Run("x-mcp-alpha-"+h+" gains nothing", func(t *testing.T) { r.overLiteLLM(t, l, h) })
	}
	t.Run("its log tells why", func(t *testing.T) {
		if _, err := use(t.Context(), l, "denied", nil); err == nil {
			t.Error("want no tools of a server that refuses LiteLLM")
		}
		r.eventually("the reason is in LiteLLM's log", 5*time.Second, func() bool {
			return strings.Contains(tail(l.Log, 1<<20), "caller_invalid")
		})
		if n := r.up("denied").total(); n != 0 {
			t.Errorf("want nothing at the upstream, got %d requests", n)
		}
	})
	// Its own master key and its caller's headers are LiteLLM's to log; ours are not.
	log := tail(l.Log, 4<<20)
	for _, s := range r.secrets() {
		if s != canary && s != callerKey && strings.Contains(log, s) {
			t.Errorf("a secret of ours is in LiteLLM's log")
		}
	}
}

// throughLiteLLM lists and calls, and looks at what arrived.
func (r *rig) throughLiteLLM(t *testing.T, l *reallitellm.LiteLLM) {
	t.Helper()
	r.up("alpha").take()
	who, err := use(t.Context(), l, "alpha", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(who, "alpha-client") {
		t.Errorf("want the service's identity, got %s", who)
	}
	methods, withCookie := map[string]int{}, map[string]int{}
	for _, a := range r.up("alpha").take() {
		methods[a.Method]++
		if auth := a.lines("authorization"); len(auth) != 1 || audience(strings.TrimPrefix(auth[0], "Bearer ")) != r.up("alpha").url() {
			t.Errorf("%s: want one token for this upstream, got %d lines", a.Method, len(auth))
		}
		// LiteLLM also opens a session of its own, to read the server's instructions:
		// nothing of the caller is in that one.
		switch got := a.lines("cookie"); {
		case len(got) == 0:
		case slices.Equal(got, []string{"session_id=s-1"}):
			withCookie[a.Method]++
		default:
			t.Errorf("%s: want one cookie, got %q", a.Method, got)
		}
		if a.Host != r.up("alpha").addr {
			t.Errorf("want its own host, got %q", a.Host)
		}
	}
	if withCookie["POST"] < 5 || withCookie["GET"] == 0 || withCookie["DELETE"] == 0 {
		t.Errorf("want the caller's sessions with its cookie, got %v of %v", withCookie, methods)
	}
}

// overLiteLLM sends one of the headers by which any client can add to, or
// override, what LiteLLM sends.
func (r *rig) overLiteLLM(t *testing.T, l *reallitellm.LiteLLM, header string) {
	t.Helper()
	value := map[string]string{
		"host": "beta", "authorization": "Bearer " + canary, "cookie": "tracking=" + canary + "; session_id=s-2",
		"x-envoy-attempt-count": "2", "mcp-upstream": "beta", "x-tenant": "acme", "x-mcp-auth-guard": "alpha",
	}[header]
	if value == "" {
		value = canary
	}
	before := r.up("beta").total()
	r.up("alpha").take()
	if _, err := use(t.Context(), l, "alpha", pairs{"x-mcp-alpha-" + header, value}); err != nil {
		t.Errorf("want the call to work as without it, got %v", err)
	}
	came := r.up("alpha").take()
	for _, a := range came {
		auth := a.lines("authorization")
		if len(auth) != 1 || audience(strings.TrimPrefix(auth[0], "Bearer ")) != r.up("alpha").url() || a.Host != r.up("alpha").addr {
			t.Errorf("want the service's token and the upstream's own host, got %d lines and %q", len(auth), a.Host)
		}
	}
	if header == "x-tenant" && len(came[len(came)-1].lines("x-tenant")) != 1 {
		t.Error("want LiteLLM to add the header, or the other cases show nothing")
	}
	if n := r.up("beta").total() - before; n != 0 {
		t.Errorf("want nothing at another upstream, got %d requests", n)
	}
}

// use lists the tools of a server and calls whoami through LiteLLM's gateway.
func use(ctx context.Context, l *reallitellm.LiteLLM, server string, more pairs) (string, error) {
	return useTool(ctx, l, server, &mcp.CallToolParams{Name: "whoami"}, more)
}

// useTool lists the tools of a server and calls one. Its name may have LiteLLM's prefix there.
func useTool(ctx context.Context, l *reallitellm.LiteLLM, server string, call *mcp.CallToolParams, more pairs) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client := mcp.NewClient(&mcp.Implementation{Name: "e2e", Version: "0"}, nil)
	headers := append(pairs{
		"x-litellm-api-key", "Bearer " + masterKey,
		"Cookie", "tracking=" + canary + "; session_id=s-1; token=" + canary,
	}, more...)
	s, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint: l.URL + "/" + server + "/mcp", HTTPClient: &http.Client{Transport: caller{headers, &http.Transport{}}},
		// LiteLLM sends the head of this stream with its first ping, after 15 s.
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }()
	tools, err := s.ListTools(ctx, nil)
	if err != nil {
		return "", err
	}
	for _, tool := range tools.Tools {
		if !strings.HasSuffix(tool.Name, call.Name) {
			continue
		}
		res, err := s.CallTool(ctx, &mcp.CallToolParams{Name: tool.Name, Arguments: call.Arguments})
		if err != nil {
			return "", err
		}
		out := ""
		for _, c := range res.Content {
			if text, ok := c.(*mcp.TextContent); ok {
				out += text.Text
			}
		}
		if res.IsError {
			return "", fmt.Errorf("the tool failed: %s", out)
		}
		return out, nil
	}
	return "", fmt.Errorf("want the tool %s, got %d others", call.Name, len(tools.Tools))
}
