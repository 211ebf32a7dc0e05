package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
)

const fixedToken = "fixed-token-of-the-file-SVC"

// ownLiteLLM is the configuration of somebody whose LiteLLM calls its servers
// directly, with their secrets in it.
const ownLiteLLM = `
general_settings:
  master_key: os.environ/LITELLM_MASTER_KEY

mcp_servers:
  Fixed:
    url: {{.URL "fixed"}}
    auth_type: bearer_token
    auth_value: ` + fixedToken + ` # in the file
    description: Has a fixed token
  alpha:
    url: {{.URL "alpha"}}
    auth_type: oauth2
    oauth2_flow: client_credentials
    token_url: {{.TokenURL}}
    client_id: alpha-client
    client_secret: os.environ/ALPHA_SECRET
    scopes: [mcp.read]
    upstream_resource: auto
    extra_headers: [Cookie]
    allowed_tools: [whoami]
  open:
    url: {{.URL "open"}}
    extra_headers: [Cookie, Authorization, x-tenant]
    static_headers: {X-Team: blue}

litellm_settings:
  num_retries: 1
`

// TestImportedLiteLLM: from a LiteLLM that calls its servers directly to one that
// calls all of them through Envoy, by nothing but what the import wrote.
func TestImportedLiteLLM(t *testing.T) {
	binary := reallitellm.Require(t)
	r := newRig(t, ownLiteLLM)
	r.withServers()
	r.up("fixed").key = fixedToken
	r.lent = append(r.lent, fixedToken)
	r.up("fixed").answer(onlyWith("Bearer "+fixedToken, mcpserver.NewOpen()))
	config := r.imported()
	for _, secret := range []string{fixedToken, alphaSecret, "alpha-client", r.facts.TokenURL, r.up("alpha").addr} {
		if strings.Contains(config, secret) {
			t.Errorf("LiteLLM's new configuration still has %q", secret)
		}
	}
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	key, err := os.ReadFile(filepath.Join(r.dir, "litellm.key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := reallitellm.Start(t.Context(), reallitellm.Config{
		Binary: binary, Dir: t.TempDir(), ConfigYAML: []byte(config),
		Env: []string{"LITELLM_MASTER_KEY=" + masterKey, "MCP_AUTH_KEY_LITELLM=" + strings.TrimSpace(string(key))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)

	t.Run("oauth2", func(t *testing.T) { r.throughLiteLLM(t, l) })
	t.Run("a fixed token", func(t *testing.T) {
		r.echoes(t, l, "fixed", "Fixed")
		for _, a := range r.up("fixed").take() {
			if got := a.lines("authorization"); !slices.Equal(got, []string{"Bearer " + fixedToken}) {
				t.Errorf("%s: want the token of the policy alone, got %d lines", a.Method, len(got))
			}
		}
	})
	t.Run("cookies, and headers that stay with LiteLLM", func(t *testing.T) {
		r.echoes(t, l, "open", "open", "x-tenant", "acme", "Authorization", "Bearer "+canary)
		cookies := 0
		for _, a := range r.up("open").take() {
			if got := a.lines("x-team"); !slices.Equal(got, []string{"blue"}) || len(a.lines("authorization")) != 0 || len(a.lines("x-mcp-auth-key")) != 0 {
				t.Errorf("%s: want LiteLLM's own header and no key of anybody, got %q and %d of authorization", a.Method, got, len(a.lines("authorization")))
			}
			if got := a.lines("cookie"); slices.Equal(got, []string{"session_id=s-1"}) && slices.Equal(a.lines("x-tenant"), []string{"acme"}) {
				cookies++
			} else if len(got) > 0 {
				t.Errorf("%s: want the one cookie that was named, got %q", a.Method, got)
			}
		}
		if cookies < 5 {
			t.Errorf("want the cookie and the tenant on the caller's requests, got them on %d", cookies)
		}
	})
	t.Run("a tool that is not allowed", func(t *testing.T) {
		headers := []string{"content-type", "application/json", "accept", "application/json, text/event-stream", "x-mcp-auth-key", strings.TrimSpace(string(key))}
		r.post("/alpha/mcp", toolCall("add"), headers...).refused(t, http.StatusForbidden, "tool_denied")
	})
	if log := tail(l.Log, 4<<20); strings.Contains(log, fixedToken) || strings.Contains(log, alphaSecret) {
		t.Error("a secret that was taken out of LiteLLM is in its log")
	}
}

// imported runs the import on what the rig was given, which is no policy, and
// returns LiteLLM's new configuration.
func (r *rig) imported() string {
	r.t.Helper()
	at := func(name string) string { return filepath.Join(r.dir, name) }
	if err := os.Rename(r.policy, at("config.yaml")); err != nil {
		r.t.Fatal(err)
	}
	r.env = append(r.env, "FIXED_MCP_TOKEN="+fixedToken)
	r.run("import", "litellm", at("config.yaml"), "-o", r.policy, "--litellm-out", at("new.yaml"), "--key-file", at("litellm.key"),
		"--cookie", "session_id", "--listen", "unix://"+r.facts.Socket, "--envoy-listen", r.facts.Listen)
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			r.t.Fatal(err)
		}
		return string(b)
	}
	text := read(r.policy)
	if strings.Contains(text, fixedToken) {
		r.t.Error("the policy has the token of the file")
	}
	// Tests run side by side, and the import has no flag for what nobody else minds.
	r.write("policy.yaml", strings.Replace(text, "server:\n", "server:\n  admin: "+r.facts.Admin+"\n  drain_delay: 100ms\n", 1))
	return read(at("new.yaml"))
}

// onlyWith refuses requests without that authorization.
func onlyWith(authorization string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != authorization {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// echoes calls the tool echo of a server through LiteLLM, which calls it so.
func (r *rig) echoes(t *testing.T, l *reallitellm.LiteLLM, name, server string, more ...string) {
	t.Helper()
	r.up(name).take()
	got, err := useTool(t.Context(), l, server, &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "hello"}}, more)
	if err != nil || !strings.Contains(got, "hello") {
		t.Errorf("want hello, got %q, %v", got, err)
	}
}
