package e2e_test

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// write puts the rows of docs/attachments.md that this run saw in the place of those
// that are there.
var write = flag.Bool("write", false, "write the rows of docs/attachments.md instead of comparing with them")

// attachment is a way to stand in an Envoy.
type attachment struct {
	// name begins its rows in docs/attachments.md.
	name string
	// policy changes the text of the policy, where the attachment needs it to.
	// Nil leaves it.
	policy func(text string) string
	// start runs the program and an Envoy, and returns the address at which a caller
	// finds the MCP endpoint of an upstream.
	start func(r *rig) (endpoint func(upstream string) string)
}

// attachments are all there are. The table has them in this order.
func attachments() []attachment {
	shared := func(r *rig) func(string) string {
		return func(upstream string) string { return r.url + "/" + upstream + "/mcp" }
	}
	return []attachment{
		{name: "render envoy", start: func(r *rig) func(string) string {
			r.proc = r.serve(r.policy, r.facts.Admin)
			r.startEnvoy(r.render())
			return shared(r)
		}},
		{name: "render envoy --patch", start: func(r *rig) func(string) string { return patched(r, free(r.t)) }},
		{name: "serve --xds", start: func(r *rig) func(string) string {
			r.follow()
			return shared(r)
		}},
		{name: "Istio, sidecar", policy: inMesh, start: func(r *rig) func(string) string { return r.istio("sidecar") }},
		{name: "Istio, sidecar, Unix socket", policy: inMesh, start: func(r *rig) func(string) string { return r.istio("socket") }},
		{name: "Istio, sidecar, route level", policy: inMesh, start: func(r *rig) func(string) string { return r.istio("route") }},
		{name: "Istio, egress gateway", policy: inMesh, start: func(r *rig) func(string) string { return r.istio("gateway") }},
		{name: "Istio, egress gateway, route level", policy: inMesh, start: func(r *rig) func(string) string { return r.istio("gateway-route") }},
		{name: "Envoy Gateway", policy: gatewayPolicy, start: gateway("xds.yaml")},
		{name: "Envoy Gateway, --patch-policies", policy: gatewayPolicy, start: gateway("xds-patched.yaml")},
	}
}

// twelve is the policy of the twelve calls: an upstream with nothing to it, one with
// a client and a cookie of its own, and one with tool rules.
const twelve = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  robot: {key: {sha256: {{.KeySum}}}}
defaults:
  callers: [robot]
  credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
upstreams:
  alpha:
    url: {{.URL "alpha"}}
  beta:
    url: {{.URL "beta"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: beta-client, client_secret: {file: {{.Dir}}/beta.secret}}}
    cookies: {allow: [session_id]}
  gamma:
    url: {{.URL "gamma"}}
    tools: {rules: [{names: [harmless]}]}
`

// TestAttachments: the same twelve calls through each attachment, in the real Envoy:
// three upstreams, and for each a list of its tools, a call of one, a call that is
// refused, and a call with a token that was revoked a moment ago.
func TestAttachments(t *testing.T) {
	page := readAttachments(t)
	for _, a := range attachments() {
		t.Run(a.name, func(t *testing.T) {
			text := twelve
			if a.policy != nil {
				text = a.policy(text)
			}
			r := newRig(t, text)
			page.settle(t, a.name, r.twelve(t, a.name, a.start(r)))
		})
	}
	if *write {
		page.write(t)
	}
}

// refusal is a call that is refused.
type refusal struct {
	reason, tool string
	headers      pairs
}

// refusals are the calls that each upstream of twelve refuses.
func refusals() map[string]refusal {
	return map[string]refusal{
		"alpha": {"caller_unknown", "harmless", asRobot()[2:]},
		"beta":  {"origin_denied", "harmless", asRobot("Origin", "https://evil.test")},
		"gamma": {"tool_denied", "purge", asRobot()},
	}
}

// twelve makes the calls and returns the rows of the table. What must hold for every
// attachment fails the test; in what they differ is in the row.
func (r *rig) twelve(t *testing.T, name string, endpoint func(string) string) (rows []string) {
	t.Helper()
	upstreams := []string{"alpha", "beta", "gamma"}
	for _, up := range upstreams {
		rows = append(rows, fmt.Sprintf("| %s | %s |", name, up))
	}
	note := func(i int, word string) { rows[i] += " " + word + " |" }
	careless := asRobot("Cookie", "tracking="+canary+"; session_id=s-1", "X-Litellm-Api-Key", "sk-"+canary)
	for i, up := range upstreams {
		ran := &executed{}
		r.up(up).answer(r.guarded(ran.server().ServeHTTP))
		list, came := r.through(endpoint, up, `{"jsonrpc":"2.0","id":6,"method":"tools/list"}`, careless)
		if list.status != http.StatusOK || !strings.Contains(list.body, `"harmless"`) || len(came) != 1 {
			t.Fatalf("%s: list: got %v in %d arrivals", up, list, len(came))
		}
		r.hasToken(t, up, came[0])
		note(i, list.word())

		call, came := r.through(endpoint, up, toolCall("harmless"), careless)
		if call.status != http.StatusOK || ran.take() != "harmless" || len(came) != 1 {
			t.Fatalf("%s: call: got %v in %d arrivals", up, call, len(came))
		}
		r.hasToken(t, up, came[0])
		note(i, call.word())

		want := refusals()[up]
		refused, came := r.through(endpoint, up, toolCall(want.tool), want.headers)
		refused.refused(t, http.StatusForbidden, want.reason)
		if len(came) != 0 {
			t.Errorf("%s: a call that was refused arrived", up)
		}
		note(i, refused.word())
	}
	r.issuer.Revoke()
	for i, up := range upstreams {
		revoked, came := r.through(endpoint, up, toolCall("harmless"), careless)
		r.eventually(up+": a call after the one with the revoked token", 5*time.Second, func() bool {
			next, _ := r.through(endpoint, up, toolCall("harmless"), careless)
			return next.status == http.StatusOK
		})
		note(i, revoked.fate(len(came)))
	}
	return rows
}

// through makes a call and returns the answer, and what arrived at the upstream.
func (r *rig) through(endpoint func(string) string, up, body string, headers pairs) (reply, []arrival) {
	r.t.Helper()
	r.up(up).take()
	got := r.do(r.t.Context(), nil, endpoint(up), strings.NewReader(body), headers)
	return got, r.up(up).take()
}

// hasToken checks that a call has the token of its upstream, once, and nothing of the
// caller's that is not for it.
func (r *rig) hasToken(t *testing.T, up string, a arrival) {
	t.Helper()
	auth, cookies := a.lines("authorization"), a.lines("cookie")
	if len(auth) != 1 || audience(strings.TrimPrefix(auth[0], "Bearer ")) != r.up(up).url() {
		t.Errorf("%s: want its own token once, got authorization %d times", up, len(auth))
	}
	if want := map[string][]string{"beta": {"session_id=s-1"}}[up]; !slices.Equal(cookies, want) {
		t.Errorf("%s: want cookies %q, got %q", up, want, cookies)
	}
	if a.Host != r.up(up).addr {
		t.Errorf("%s: want its own host, got %q", up, a.Host)
	}
	if a.Header.Get("X-Mcp-Auth-Key") != "" {
		t.Errorf("%s: the caller's key went on", up)
	}
}

// word is an answer as the table has it.
func (r reply) word() string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", r.status, r.reason()))
}

// fate is what became of a call with a revoked token that came to the upstream so
// many times.
func (r reply) fate(attempts int) string {
	if r.status == http.StatusOK && attempts == 2 {
		return "200, at the second attempt"
	}
	return r.word() + ", the next call 200"
}

// table is docs/attachments.md: text, and rows of attachments.
type table struct {
	lines []string
	seen  map[string][]string // what this run saw, by attachment
}

const attachmentsPage = "../../docs/attachments.md"

func readAttachments(t *testing.T) *table {
	t.Helper()
	b, err := os.ReadFile(attachmentsPage)
	if err != nil {
		t.Fatal(err)
	}
	return &table{lines: strings.Split(string(b), "\n"), seen: map[string][]string{}}
}

// settle compares what was seen of an attachment with the page.
func (p *table) settle(t *testing.T, name string, rows []string) {
	t.Helper()
	if p.seen[name] = rows; *write || t.Failed() {
		return
	}
	var have []string
	for _, line := range p.lines {
		if strings.HasPrefix(line, "| "+name+" |") {
			have = append(have, line)
		}
	}
	if !slices.Equal(have, rows) {
		t.Errorf("%s says otherwise; go test ./envoy/e2e -run TestAttachments -write writes it anew:\npage:\n%s\nseen:\n%s",
			attachmentsPage, strings.Join(have, "\n"), strings.Join(rows, "\n"))
	}
}

// write writes the page with what was seen, in the order of attachments. Rows of
// those that did not run stay.
func (p *table) write(t *testing.T) {
	t.Helper()
	top := slices.IndexFunc(p.lines, func(l string) bool { return strings.HasPrefix(l, "| --- | --- |") }) + 1
	end := top
	for end < len(p.lines) && strings.HasPrefix(p.lines[end], "|") {
		end++
	}
	var rows []string
	for _, a := range attachments() {
		if p.seen[a.name] != nil {
			rows = append(rows, p.seen[a.name]...)
			continue
		}
		for _, line := range p.lines[top:end] {
			if strings.HasPrefix(line, "| "+a.name+" |") {
				rows = append(rows, line)
			}
		}
	}
	text := strings.Join(slices.Concat(p.lines[:top], rows, p.lines[end:]), "\n")
	if err := os.WriteFile(attachmentsPage, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
