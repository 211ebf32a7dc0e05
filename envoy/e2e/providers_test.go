package e2e_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// many is the line of examples/providers with its own two files: LiteLLM, two LLM
// providers and two MCP servers, on loopback.
type many struct {
	*rig

	providers map[string]*provider
	litellm   *reallitellm.LiteLLM
	read      int // bytes of the audit
}

// example reads a file of examples/providers, and puts what is on loopback in the
// place of what is not.
func example(t *testing.T, name string, swaps ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "examples", "providers", name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i+1 < len(swaps); i += 2 {
		if !strings.Contains(text, swaps[i]) {
			t.Fatalf("want %q in %s", swaps[i], name)
		}
		text = strings.ReplaceAll(text, swaps[i], swaps[i+1])
	}
	return text
}

func startMany(t *testing.T) *many {
	t.Helper()
	binary := reallitellm.Require(t)
	text := example(t, "policy.yaml",
		"version: 1\n", "version: 1\nserver: {listen: \"unix://{{.Socket}}\", admin: \"{{.Admin}}\"}\nenvoy: {listen: \"{{.Listen}}\"}\naudit: {file: \"{{.Dir}}/audit.jsonl\"}\n",
		"https://api.openai.com", `http://{{.Addr "openai"}}`,
		"https://api.anthropic.com", `http://{{.Addr "anthropic"}}`,
		"https://tickets-mcp.company.com/mcp", `{{.URL "tickets"}}`,
		"https://docs-mcp.company.com/mcp", `{{.URL "docs"}}`,
		"https://auth.company.com/oauth2/token", "{{.TokenURL}}",
		"client_id: litellm-proxy", "client_id: alpha-client",
	)
	m := &many{providers: map[string]*provider{
		"openai": {kind: "openai", key: "sk-openai-SVC"}, "anthropic": {kind: "anthropic", key: "sk-ant-SVC"},
	}}
	m.rig = newRig(t, text, func(r *rig) {
		r.env = []string{
			"MCP_AUTH_KEY_SHA256=" + r.facts.KeySum, "MCP_OAUTH2_CLIENT_SECRET=" + alphaSecret,
			"OPENAI_API_KEY=" + m.providers["openai"].key, "ANTHROPIC_API_KEY=" + m.providers["anthropic"].key,
		}
	})
	for name, p := range m.providers {
		m.up(name).key = p.key
		m.lent = append(m.lent, p.key)
		m.up(name).answer(p)
	}
	m.mcpServers()
	m.proc = m.serve(m.policy, m.facts.Admin)
	m.startEnvoy(m.render())
	l, err := reallitellm.Start(t.Context(), reallitellm.Config{
		Binary: binary, Dir: m.dir,
		Env: []string{"LITELLM_MASTER_KEY=" + masterKey, "MCP_AUTH_KEY_LITELLM=" + callerKey},
		ConfigYAML: []byte(example(t, "litellm.yaml", "http://127.0.0.1:10000", m.url,
			"router_settings:\n", "router_settings:\n  cooldown_time: 1\n")),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	m.litellm = l
	return m
}

func (m *many) mcpServers() {
	m.t.Helper()
	protected, err := mcpserver.NewProtected(mcpserver.Config{
		Issuer: m.issuer.Issuer(), JWKSURL: m.issuer.JWKSURL(), RevocationURL: m.issuer.URL() + "/revoked",
		Audience: m.up("tickets").url(), Scope: "mcp.read", Now: time.Now,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.up("tickets").answer(protected)
	m.up("docs").answer(mcpserver.NewOpen())
}

// chatOf names the group of litellm.yaml whose first deployment is at that provider.
func chatOf(provider string) string {
	return map[string]string{"openai": "chat", "anthropic": "writing"}[provider]
}

func otherThan(provider string) string {
	return map[string]string{"openai": "anthropic", "anthropic": "openai"}[provider]
}

// ask sends a request to LiteLLM as one of its users, with what a user may have on.
func (m *many) ask(method, path, body string, headers ...string) reply {
	m.t.Helper()
	headers = append(headers, "Authorization", "Bearer "+masterKey, "Cookie", "tracking="+canary, "X-Api-Key", canary)
	if strings.HasPrefix(body, "{") {
		headers = append(headers, "Content-Type", "application/json")
	}
	got, err := m.send(m.t.Context(), nil, method, m.litellm.URL+path, strings.NewReader(body), headers)
	if err != nil {
		m.t.Fatal(err)
	}
	return got
}

// chat asks for a completion; more are further members of the request.
func (m *many) chat(model, more string) reply {
	m.t.Helper()
	return m.ask(http.MethodPost, "/v1/chat/completions", `{"model":"`+model+`","messages":[{"role":"user","content":"hi"}]`+more+`}`)
}

// direct asks Envoy, past LiteLLM.
func (m *many) direct(provider string, headers ...string) reply {
	m.t.Helper()
	return m.post("/"+provider+"/v1/files", "{}", headers...)
}

// result is what a scenario came to, in words that are the same for every provider.
type result struct {
	Status    int
	Reason    string             // why we refused, where the answer says so
	Arrived   []string           // at the provider
	Elsewhere int                // requests at the other one
	Decisions map[string]float64 // of this server, by reason
}

// scenario is done at each provider in turn.
type scenario struct {
	title string
	fails int // what the provider answers, if not as it should
	do    func(m *many, provider string) reply
	says  string // is in the answer
	want  result
}

// scenarios read, write, and are not permitted.
func scenarios() []scenario {
	file := "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n" +
		"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nmade up\r\n--b--\r\n"
	chat := func(more string) func(*many, string) reply {
		return func(m *many, p string) reply { return m.chat(chatOf(p), more) }
	}
	well := func(arrived string) result {
		return result{Status: http.StatusOK, Arrived: []string{arrived}, Decisions: map[string]float64{"allowed": 1}}
	}
	refused := func(reason, shown string) result {
		return result{Status: http.StatusForbidden, Reason: shown, Decisions: map[string]float64{reason: 1}}
	}
	failed := func(status int, shown string) result {
		return result{Status: status, Reason: shown, Arrived: []string{"POST CHAT its key"}, Decisions: map[string]float64{"allowed": 1}}
	}
	return []scenario{
		{"a chat", 0, chat(""), `"content":"made up"`, well("POST CHAT its key")},
		{"a chat that streams", 0, chat(`,"stream":true`), `"content":" up"`, well("POST CHAT its key")},
		{"the models", 0, func(m *many, p string) reply { return m.ask(http.MethodGet, "/providers/"+p+"/models", "") }, "model-1", well("GET /v1/models its key")},
		{"a file is made", 0, func(m *many, p string) reply {
			return m.ask(http.MethodPost, "/providers/"+p+"/files", file, "Content-Type", "multipart/form-data; boundary=b")
		}, "file-1", well("POST /v1/files its key")},
		{"a file is deleted", 0, func(m *many, p string) reply { return m.ask(http.MethodDelete, "/providers/"+p+"/files/file-1", "") }, "deleted", well("DELETE /v1/files/file-1 its key")},
		{"keys of a user's own", 0, chat(`,"api_key":"` + canary + `","headers":{"authorization":"Bearer ` + canary + `","x-api-key":"` + canary + `"}`), "made up", well("POST CHAT its key")},
		{"a user in the place of LiteLLM", 0, chat(`,"extra_headers":{"x-mcp-auth-key":"` + canary + `"}`), "credential is not valid", refused("caller_invalid", "")},
		{"a user who takes LiteLLM's key off", 0, chat(`,"extra_headers":{"x-other":"1"}`), "caller is not known", refused("caller_unknown", "")},
		{"a key of a user's own, past the models", 0, func(m *many, p string) reply {
			return m.ask(http.MethodGet, "/providers/"+p+"/models", "", "x-pass-x-mcp-auth-key", canary)
		}, "", refused("caller_invalid", "caller_invalid")},
		{"a user who leaves the path of a pass-through", 0, func(m *many, p string) reply {
			return m.ask(http.MethodGet, "/providers/"+otherThan(p)+"/..%5c..%5c"+p+"%5cv1%5cmodels", "")
		}, "model-1", well("GET /v1/models its key")},
		{"nobody, past LiteLLM", 0, func(m *many, p string) reply {
			return m.direct(p, "Authorization", "Bearer "+canary, "X-Api-Key", canary)
		}, "", refused("caller_unknown", "caller_unknown")},
		{"somebody else, past LiteLLM", 0, func(m *many, p string) reply { return m.direct(p, "X-Mcp-Auth-Key", canary) }, "", refused("caller_invalid", "caller_invalid")},
		{"its key is refused", http.StatusUnauthorized, chat(""), "upstream refused the service credential", failed(http.StatusBadGateway, "")},
		{"it forbids", http.StatusForbidden, chat(""), "answers 403", failed(http.StatusForbidden, "")},
		{"it finds fault", http.StatusBadRequest, chat(""), "answers 400", failed(http.StatusBadRequest, "")},
	}
}

// TestManyProviders runs examples/providers, with LiteLLM as it is.
func TestManyProviders(t *testing.T) {
	m := startMany(t)
	m.audited("openai") // LiteLLM asks for its models when it starts
	for _, s := range scenarios() {
		t.Run(s.title, func(t *testing.T) {
			lines := map[string][]string{}
			for name := range m.providers {
				got := m.play(t, s, name)
				if diff := cmp.Diff(s.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
				lines[name] = m.audited(name)
			}
			if diff := cmp.Diff(lines["openai"], lines["anthropic"]); diff != "" || len(lines["openai"]) < 2 {
				t.Errorf("want the same lines in the audit, got %d (-openai +anthropic):\n%s", len(lines["openai"]), diff)
			}
		})
	}
	m.run("audit", "verify", filepath.Join(m.dir, "audit.jsonl"))
	t.Run("a stream comes as it is sent", m.streams)
	t.Run("MCP servers beside them", func(t *testing.T) {
		who, err := use(t.Context(), m.litellm, "tickets", nil)
		if err != nil || !strings.Contains(who, "alpha-client") {
			t.Errorf("want the service's identity, got %q, %v", who, err)
		}
		if m.up("docs").total() == 0 {
			t.Error("want LiteLLM to have listed the tools of docs")
		}
	})
	t.Run("who has no key of LiteLLM", m.stranger)
	for name := range m.providers {
		t.Run("fails over from "+name, func(t *testing.T) { m.failsOver(t, name) })
	}
	log := tail(m.litellm.Log, 4<<20)
	for _, key := range m.lent {
		if strings.Contains(log, key) {
			t.Error("a provider's key is in LiteLLM's log")
		}
	}
}

// play runs one scenario at one provider.
func (m *many) play(t *testing.T, s scenario, name string) result {
	t.Helper()
	p := m.providers[name]
	m.forget()
	before := m.decisions(name)
	p.fail(s.fails)
	got := s.do(m, name)
	p.fail(0)
	if !strings.Contains(got.body, s.says) {
		t.Errorf("%s: want %q in the answer, got %v", name, s.says, got)
	}
	out := result{Status: got.status, Reason: got.header.Get("X-Mcp-Auth-Reason"), Elsewhere: len(m.up(otherThan(name)).take()), Decisions: map[string]float64{}}
	for _, a := range m.up(name).take() {
		out.Arrived = append(out.Arrived, p.told(a))
	}
	for reason, n := range m.decisions(name) {
		if n -= before[reason]; n != 0 {
			out.Decisions[reason] = n
		}
	}
	return out
}

// audited returns what the audit says about an upstream since the last time, less
// what no two calls share and how long the bodies were.
func (m *many) audited(name string) []string {
	m.t.Helper()
	var lines []string
	m.eventually("each decision has its outcome in the audit", 10*time.Second, func() bool {
		text, err := os.ReadFile(filepath.Join(m.dir, "audit.jsonl"))
		if err != nil {
			m.t.Fatal(err)
		}
		whole := 1 + bytes.LastIndexByte(text, '\n')
		var ended bool
		if lines, ended = alike(string(text[m.read:whole]), name); ended {
			m.read = whole
		}
		return ended
	})
	return lines
}

// alike cuts lines of the audit down to what they should have in common. ended
// is whether each call that was decided on has ended.
func alike(text, upstream string) (lines []string, ended bool) {
	open := map[any]bool{}
	for line := range strings.Lines(text) {
		said := map[string]any{}
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			return []string{err.Error()}, true
		}
		if said["upstream"] != upstream {
			continue
		}
		open[said["request_id"]] = said["kind"] == "decision"
		for _, member := range []string{"time", "request_id", "upstream", "duration", "own", "sent", "received", "seq", "prev", "hash"} {
			delete(said, member)
		}
		lines = append(lines, fmt.Sprint(said)) // in the order of the members' names
	}
	for _, waiting := range open {
		if waiting {
			return nil, false
		}
	}
	return lines, true
}

// forget lets go of what arrived so far.
func (m *many) forget() {
	for name := range m.providers {
		m.up(name).take()
	}
}

// decisions reads how many this server made for an upstream, by reason.
func (m *many) decisions(name string) map[string]float64 {
	out := map[string]float64{}
	for _, reason := range policy.Reasons() {
		if n := m.proc.metric(fmt.Sprintf("mcp_auth_decisions_total{reason=%q,upstream=%q}", reason, name)); n > 0 {
			out[reason.String()] = n
		}
	}
	return out
}

// streams reads the first word of a stream while the provider holds the second back.
func (m *many) streams(t *testing.T) {
	for name, p := range m.providers {
		p.gate = make(chan struct{})
		body := `{"model":"` + chatOf(name) + `","stream":true,"messages":[{"role":"user","content":"hi"}]}`
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.litellm.URL+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Authorization": {"Bearer " + masterKey}, "Content-Type": {"application/json"}}
		resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(resp.Body)
		first, rest := false, false
		for lines.Scan() {
			if !first && strings.Contains(lines.Text(), `"content":"made"`) {
				first = true
				close(p.gate)
			}
			rest = rest || strings.Contains(lines.Text(), `"content":" up"`)
		}
		_ = resp.Body.Close()
		if !first || !rest || lines.Err() != nil {
			t.Errorf("%s: want one word and then the other, got %t, %t, %v", name, first, rest, lines.Err())
		}
		p.gate = nil
	}
}

// stranger has no key of LiteLLM. Without a database LiteLLM cannot even say so well.
func (m *many) stranger(t *testing.T) {
	m.forget()
	for name := range m.providers {
		for _, path := range []string{"/providers/" + name + "/models", "/v1/models"} {
			got, err := m.send(t.Context(), nil, http.MethodGet, m.litellm.URL+path, nil, pairs{"Authorization", "Bearer sk-other"})
			if err != nil || got.status < 400 {
				t.Errorf("%s: want a refusal, got %v, %v", path, got, err)
			}
		}
		if n := len(m.up(name).take()); n != 0 {
			t.Errorf("want nothing at %s, got %d requests", name, n)
		}
	}
}

// failsOver has one provider fail, and looks where LiteLLM goes on. It does so for
// what is the provider's own fault, and never for a credential.
func (m *many) failsOver(t *testing.T, name string) {
	t.Helper()
	for _, row := range []struct {
		fails int
		over  bool
	}{
		{http.StatusTooManyRequests, true},
		{http.StatusInternalServerError, true},
		{http.StatusUnauthorized, false},
		{http.StatusForbidden, false},
		{http.StatusBadGateway, false},
		{http.StatusServiceUnavailable, false},
	} {
		for _, more := range []string{"", `,"stream":true`} {
			m.settle(name)
			m.providers[name].fail(row.fails)
			got := m.chat(chatOf(name), more)
			m.providers[name].fail(0)
			asked, elsewhere := len(m.up(name).take()), len(m.up(otherThan(name)).take())
			if asked != 1 || row.over != (elsewhere == 1) || row.over != (got.status == http.StatusOK) {
				t.Errorf("%s answers %d%s: want it asked once and to go over %t, got %d requests there, %d elsewhere, %v", name, row.fails, more, row.over, asked, elsewhere, got)
			}
		}
	}
	// What LiteLLM calls fallbacks makes no difference between one error and another.
	m.settle(name)
	m.providers[name].fail(http.StatusUnauthorized)
	defer m.providers[name].fail(0)
	got := m.chat(chatOf(name), `,"fallbacks":["`+chatOf(otherThan(name))+`"]`)
	if n := len(m.up(otherThan(name)).take()); n != 1 || got.status != http.StatusOK {
		t.Errorf("want fallbacks to go over after any error, or docs/providers.md is wrong: got %d requests elsewhere, %v", n, got)
	}
}

// settle waits until LiteLLM asks a provider again that it had left alone.
func (m *many) settle(name string) {
	m.t.Helper()
	m.eventually("LiteLLM asks "+name+" again", 30*time.Second, func() bool {
		m.forget()
		return m.chat(chatOf(name), "").status == http.StatusOK && len(m.up(name).take()) == 1
	})
	m.forget()
}
