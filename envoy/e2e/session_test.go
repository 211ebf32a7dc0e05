package e2e_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

// shared is an upstream with sessions that many people use, each with a token.
const shared = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: {{.Admin}}, drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  people: {jwt: {issuer: "ISSUER", audience: "http://{{.Listen}}"}}
  robot: {key: {sha256: {{.KeySum}}}}
upstreams:
  alpha:
    url: {{.URL "alpha"}}
    callers: [people, robot]
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
`

// sessionRig is a rig for shared, with nothing running but what newRig starts.
func sessionRig(t *testing.T, more string) *rig {
	t.Helper()
	r := newRig(t, shared+more)
	r.up("alpha").answer(mcpserver.NewOpen())
	return r
}

// policyOf writes the policy for the processor at that socket.
func (r *rig) policyOf(name, more, socket, admin string) string {
	r.t.Helper()
	facts := *r.facts
	facts.Socket, facts.Admin = socket, admin
	old := r.facts
	r.facts = &facts
	r.write(name, strings.ReplaceAll(r.fill(shared+more), "ISSUER", r.issuer.Issuer()))
	r.facts = old
	return filepath.Join(r.dir, name)
}

// user is what a person's client sends.
func (r *rig) user(name string) pairs {
	r.t.Helper()
	token, err := r.issuer.Mint(name, r.url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return pairs{"Authorization", "Bearer " + token, "X-Case", name, "Content-Type", "application/json", "Accept", "application/json, text/event-stream"}
}

const (
	pingBody       = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	initializeBody = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"e2e","version":"0"}}}`
)

// in is a request of a user in a session.
func (r *rig) in(method, user, id string) reply {
	r.t.Helper()
	h := append(r.user(user), "Mcp-Session-Id", id, "Mcp-Protocol-Version", "2025-11-25")
	body := strings.NewReader("")
	if method == http.MethodPost {
		body = strings.NewReader(pingBody)
	}
	got, err := r.send(r.t.Context(), nil, method, r.url+"/alpha/mcp", body, h)
	if err != nil {
		r.t.Fatal(err)
	}
	return got
}

// opened is the id of a new session of a user, who does not use it.
func (r *rig) opened(user string) string {
	r.t.Helper()
	got := r.post("/alpha/mcp", initializeBody, r.user(user)...)
	id := got.header.Get("Mcp-Session-Id")
	if got.status != http.StatusOK || id == "" {
		r.t.Fatalf("want a session, got %v", got)
	}
	return id
}

// reached counts what came to the upstream of a user since the last take.
func (r *rig) reached(user string) (n int) {
	for _, a := range r.up("alpha").take() {
		if a.Header.Get("X-Case") == user {
			n++
		}
	}
	return n
}

// stays fails unless the session is alice's and not bob's, in many calls.
func (r *rig) stays(id string) {
	r.t.Helper()
	if err := r.holds(id); err != nil {
		r.t.Error(err)
	}
}

// holds is stays with an error.
func (r *rig) holds(id string) error {
	r.t.Helper()
	r.up("alpha").take()
	for range 10 {
		if got := r.in(http.MethodPost, "alice", id); got.status != http.StatusOK {
			return fmt.Errorf("alice: want 200, got %v", got)
		}
		for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
			if got := r.in(method, "bob", id); !got.isRefusal(http.StatusForbidden, "session_mismatch") {
				return fmt.Errorf("bob: want a session_mismatch, got %v %v", got, got.header)
			}
		}
	}
	if n := r.reached("bob"); n != 0 {
		return fmt.Errorf("want nothing of bob at the upstream, got %d requests", n)
	}
	return nil
}

// TestA11_SessionOfAnother: a real client's session, of which somebody else has
// the id. Nothing of his reaches the upstream, and she goes on.
func TestA11_SessionOfAnother(t *testing.T) {
	r := sessionRig(t, "")
	r.proc = r.serve(r.policyOf("policy.yaml", "", r.facts.Socket, r.facts.Admin), r.facts.Admin)
	r.startEnvoy(r.render())
	alice := session(t, r.url+"/alpha/mcp", "2025-11-25", caller{r.user("alice")[:4], &http.Transport{}}, nil)
	if alice.ID() == "" {
		t.Fatal("want a session")
	}
	echo := func() {
		t.Helper()
		var out struct{ Text string }
		callTool(t, alice, &mcp.CallToolParams{Name: "echo", Arguments: map[string]any{"text": "hello"}}, &out)
	}
	echo()
	r.stays(alice.ID())
	echo()
	got := r.post("/alpha/mcp", pingBody, "X-Mcp-Auth-Key", callerKey, "Mcp-Session-Id", alice.ID())
	got.refused(t, http.StatusForbidden, "session_mismatch")
	r.post("/alpha/mcp", pingBody, append(r.user("alice"), "Mcp-Session-Id", alice.ID(), "Mcp-Session-Id", "other")...).refused(t, http.StatusBadRequest, "bad_request")
	if bob := session(t, r.url+"/alpha/mcp", "2025-11-25", caller{r.user("bob")[:4], &http.Transport{}}, nil); bob.ID() == alice.ID() {
		t.Error("want a session of his own")
	}

	// The program forgets, and alice is the first to use her session again.
	r.proc.signal(syscall.SIGTERM)
	<-r.proc.done
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.waitProcessor(1)
	echo()
	r.stays(alice.ID())

	// After DELETE it is nobody's: the upstream's own 404 comes through.
	if err := alice.Close(); err != nil {
		t.Fatal(err)
	}
	id := alice.ID()
	r.eventually("the end of the session is learnt", 5*time.Second, func() bool {
		return r.in(http.MethodPost, "bob", id).status == http.StatusNotFound
	})
	for _, log := range []string{r.spawned[0].log, r.spawned[1].log} {
		if text := tail(log, 1<<20); strings.Contains(text, id) || !strings.Contains(text, "session_mismatch") {
			t.Errorf("want refusals without the id in %s", log)
		}
	}
}

// TestA11_FasterThanTheLog: who uses another's new session before the access log
// tells whose it is loses it then. The log has 2 s for that here, so that he is faster.
func TestA11_FasterThanTheLog(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := sessionRig(t, "")
	r.proc = r.serve(r.policyOf("policy.yaml", "", r.facts.Socket, r.facts.Admin), r.facts.Admin)
	r.startEnvoy(edited(r.render(), func(c config) {
		asMap(at(c.manager(), "access_log", 0, "typed_config", "common_config"))["buffer_flush_interval"] = "2s"
	}))
	bob := r.user("bob")
	won := 0
	for range 4 {
		id := r.opened("alice")
		if got := r.post("/alpha/mcp", pingBody, slices.Concat(bob, pairs{"Mcp-Session-Id", id, "Mcp-Protocol-Version", "2025-11-25"})...); got.status == http.StatusOK {
			won++
		}
		r.eventually("the log tells", 10*time.Second, func() bool { return r.in(http.MethodPost, "alice", id).status == http.StatusOK })
		r.in(http.MethodPost, "bob", id).refused(t, http.StatusForbidden, "session_mismatch")
	}
	t.Logf("bob was faster %d times of 4", won)
	if won == 0 {
		t.Error("want the race tried at least once")
	}
}

// answered runs a step and judges it, unless the shared cache did not answer all of
// it: programs go on without one that takes longer than 20 ms, and do not know then
// what the other knows. It reports whether it did.
func (r *rig) answered(by []*processor, step func() error) bool {
	r.t.Helper()
	missed := func() (n float64) {
		for _, p := range by {
			n += p.sum("mcp_auth_shared_cache_requests_total", `result="timeout"`)
		}
		return n
	}
	before := missed()
	r.eventually("the shared cache is used", 20*time.Second, func() bool {
		return !slices.ContainsFunc(by, func(p *processor) bool { return p.metric("mcp_auth_shared_cache_up") != 1 })
	})
	err := step()
	if n := missed() - before; n > 0 {
		r.t.Logf("not judged: the shared cache did not answer %v times; %v", n, err)
		return false
	}
	if err != nil {
		r.t.Error(err)
	}
	return true
}

// TestA11_Replicas: two programs with a shared cache know the same sessions, and
// still do when both have been started anew. Without the cache they go on.
func TestA11_Replicas(t *testing.T) {
	redis, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Stop)
	more := "shared_cache: {redis: \"" + redis.URL() + "\", key: \"${ALPHA_SECRET}-${ALPHA_SECRET}-${ALPHA_SECRET}\"}\n"
	r := sessionRig(t, more)
	sockets, admins := []string{r.facts.Socket, filepath.Join(r.dir, "q.sock")}, []string{r.facts.Admin, free(t)}
	policies := []string{r.policyOf("policy.yaml", more, sockets[0], admins[0]), r.policyOf("second.yaml", more, sockets[1], admins[1])}
	serve := func() (all []*processor) {
		for i := range policies {
			all = append(all, r.serve(policies[i], admins[i]))
		}
		return all
	}
	both := serve()
	r.startEnvoy(edited(r.render(), func(c config) {
		endpoints := asMap(at(c.cluster("envoy_mcp_auth"), "load_assignment", "endpoints", 0))
		endpoints["lb_endpoints"] = append(endpoints["lb_endpoints"].([]any), map[string]any{
			"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": sockets[1]}}},
		})
	}))
	r.waitProcessor(2)
	var id string
	opens := func() error {
		id = r.opened("alice")
		r.eventually("the log tells", 10*time.Second, func() bool { return r.in(http.MethodPost, "alice", id).status == http.StatusOK })
		return r.holds(id)
	}
	goesOn := func() error {
		r.up("alpha").take()
		for range 4 { // he comes first, and both remember
			if got := r.in(http.MethodPost, "bob", id); !got.isRefusal(http.StatusForbidden, "session_mismatch") {
				return fmt.Errorf("bob after the start: want session_mismatch, got %v", got)
			}
		}
		return r.holds(id)
	}
	anew := func() {
		for _, p := range both {
			p.signal(syscall.SIGTERM)
			<-p.done
		}
		both = serve()
		r.waitProcessor(2)
	}
	for tries := 1; ; tries++ {
		if r.answered(both, opens) {
			if anew(); r.answered(both, goesOn) {
				break
			}
		}
		if tries == 10 {
			t.Fatal("the shared cache did not answer in time in any of 10 tries")
		}
	}

	redis.Stop()
	r.stays(id)
	alone := r.opened("alice")
	r.eventually("a session without the cache", 10*time.Second, func() bool { return r.in(http.MethodPost, "alice", alone).status == http.StatusOK })
	for range 20 {
		if got := r.in(http.MethodPost, "alice", alone); got.status != http.StatusOK || got.took > time.Second {
			t.Errorf("without the cache: got %v after %s", got, got.took)
		}
	}
	for _, p := range both {
		if text := tail(p.log, 1<<20); strings.Contains(text, id) {
			t.Errorf("the id is in %s", p.log)
		}
	}
}
