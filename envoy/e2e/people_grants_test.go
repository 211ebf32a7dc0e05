package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
)

// byUser adds an upstream for each of the other grants that are about the caller.
const byUser = byToken + `  managed:
    url: "{{.URL "managed"}}"
    callers: [users]
    credential:
      oauth2:
        issuer: "IDP"
        grant: id_jag
        client_id: alpha-client
        client_secret: "${ALPHA_SECRET}"
        idp: {token_url: "{{.TokenURL}}", client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}
  asserted:
    url: "{{.URL "asserted"}}"
    callers: [users]
    credential: {oauth2: {token_url: "{{.TokenURL}}", grant: jwt_bearer, subject: caller, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
`

// user makes a token that can be exchanged.
func (p *people) user(name string, life time.Duration) string {
	return p.show(p.idp.AccessToken(name, life))
}

// as calls the upstream that exchanges tokens as the holder of one.
func (p *people) as(token, body string) reply {
	p.t.Helper()
	return p.post("/own/mcp", body, "Authorization", "Bearer "+token)
}

// TestO15_EachUserItsOwnToken: what a user's call carries is about that user and
// for that upstream, by each grant and both protocols, and costs one exchange.
func TestO15_EachUserItsOwnToken(t *testing.T) {
	p := startPeople(t, byUser)
	alice, bob := p.user("alice", 5*time.Minute), p.user("bob", 5*time.Minute)
	for upstream, cost := range map[string]int{"own": 1, "asserted": 1, "managed": 2} {
		p.up(upstream).answerFunc(whose)
		before := p.idp.Requests()
		for name, token := range map[string]string{"alice": alice, "bob": bob} {
			p.both(func(proto string, get func(string, ...string) reply) {
				for range 3 {
					if got := get("/"+upstream+"/mcp", bearer(token)); got.status != http.StatusOK || got.body != name {
						t.Errorf("%s %s as %s: got %v", proto, upstream, name, got)
					}
				}
			})
		}
		if n := p.idp.Requests() - before; n != 2*cost {
			t.Errorf("%s: want %d token requests for each of two users, got %d", upstream, cost, n)
		}
		came := p.up(upstream).take()
		if got := users(came); len(got) != 12 || slices.Contains(got, "") {
			t.Fatalf("%s: want a user's token on each of 12 requests, got %q", upstream, got)
		}
		if first, last := came[0].Header.Get("Authorization"), came[11].Header.Get("Authorization"); first == last {
			t.Errorf("%s: two users have one token", upstream)
		}
	}
}

// TestO15_UsersAtTheRealServer: the same at a real MCP server, by both ages of MCP.
func TestO15_UsersAtTheRealServer(t *testing.T) {
	p := startPeople(t, byUser)
	protected, err := mcpserver.NewProtected(mcpserver.Config{
		Issuer: p.idp.Issuer(), JWKSURL: p.idp.JWKSURL(), RevocationURL: p.idp.URL() + "/revoked", Audience: p.up("own").url(), Scope: "mcp.read", Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.up("own").answer(protected)
	for _, name := range []string{"alice", "bob"} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			token := p.user(name, 5*time.Minute)
			s := session(t, p.url+"/own/mcp", version, caller{pairs{"Authorization", "Bearer " + token}, &http.Transport{}}, nil)
			var who mcpserver.Whoami
			callTool(t, s, &mcp.CallToolParams{Name: "whoami"}, &who)
			if who.Subject != name || who.ClientID != "alpha-client" {
				t.Errorf("%s %s: got %+v", name, version, who)
			}
			if (name == "alice") == (version == "2025-11-25") { // one user is lent a new token once in 5 s
				p.idp.Revoke()
				callTool(t, s, &mcp.CallToolParams{Name: "whoami"}, &who)
				if who.Subject != name {
					t.Errorf("%s %s, healed: got %+v", name, version, who)
				}
			}
			_ = s.Close()
		}
	}
}

// TestO18_AUsersRevokedTokenHeals: a 401 in the middle of a call costs a user one
// exchange and no failure, and never brings another user's token.
func TestO18_AUsersRevokedTokenHeals(t *testing.T) {
	p := startPeople(t, byUser)
	tokens := map[string]string{}
	for _, name := range []string{"alice", "bob", "carol"} {
		tokens[name] = p.user(name, 5*time.Minute)
	}
	p.up("own").answer(p.guarded(whose))
	for name, token := range tokens {
		if got := p.as(token, "{}"); got.body != name {
			t.Fatalf("%s: got %v", name, got)
		}
	}
	p.up("own").take()
	before := p.idp.Requests()
	p.idp.Revoke()
	var wg sync.WaitGroup
	client := pooled()
	for range 10 {
		for name, token := range tokens {
			wg.Go(func() {
				got, err := p.try(t.Context(), client, p.url+"/own/mcp", strings.NewReader(strings.Repeat("x", 100<<10)), pairs{"Authorization", "Bearer " + token})
				if err != nil || got.status != http.StatusOK || got.body != name {
					t.Errorf("%s: got %v, %v", name, got, err)
				}
			})
		}
	}
	wg.Wait()
	if n := p.idp.Requests() - before; n != len(tokens) {
		t.Errorf("want one exchange for each of %d users, got %d", len(tokens), n)
	}
	t.Logf("%d calls of %d users on revoked tokens: %d attempts, %d exchanges", 30, len(tokens), len(p.up("own").take()), p.idp.Requests()-before)
}

// TestO4_AUsersLargeBody: a body over the retry buffer cannot be sent again. The
// next call of that user, as large as the first, has a new token; others keep theirs.
func TestO4_AUsersLargeBody(t *testing.T) {
	p := startPeople(t, byUser)
	p.up("own").answer(p.guarded(whose))
	large := strings.Repeat("x", 2<<20)
	alice, bob := p.user("alice", 5*time.Minute), p.user("bob", 5*time.Minute)
	for name, token := range map[string]string{"alice": alice, "bob": bob} {
		if got := p.as(token, large); got.status != http.StatusOK || got.body != name {
			t.Fatalf("%s, with a good token: got %v", name, got)
		}
	}
	before := p.idp.Requests()
	p.idp.Revoke()
	p.as(alice, large).refused(t, http.StatusBadGateway, "upstream_rejected")
	p.eventually("the token is dropped", 2*time.Second, func() bool { return p.evicted() == 1 })
	if got := p.as(alice, large); got.status != http.StatusOK || got.body != "alice" {
		t.Errorf("the next call: got %v", got)
	}
	if n := p.idp.Requests() - before; n != 1 {
		t.Errorf("want one exchange, and none for the other user, got %d", n)
	}
	if got := p.as(bob, "{}"); got.body != "bob" {
		t.Errorf("the other user: got %v", got)
	}
}

// TestO5_AnUpstreamThatRefusesAUser: however often one user's calls end in 401, the
// token endpoint is asked seldom, and another user's tokens heal meanwhile.
func TestO5_AnUpstreamThatRefusesAUser(t *testing.T) {
	p := startPeople(t, byUser)
	guarded := p.guarded(whose)
	p.up("own").answerFunc(func(w http.ResponseWriter, r *http.Request) {
		if claim(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), "sub") == "mallory" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		guarded.ServeHTTP(w, r)
	})
	mallory, alice := p.user("mallory", 5*time.Minute), p.user("alice", 5*time.Minute)
	before := p.idp.Requests()
	for i := range 30 {
		body := "{}"
		if i%3 == 2 {
			body = strings.Repeat("x", 2<<20) // by the way of the access log
		}
		p.as(mallory, body).refused(t, http.StatusBadGateway, "upstream_rejected")
	}
	p.eventually("Envoy's log is read", 5*time.Second, func() bool { return p.logged() >= 30 })
	if n := p.idp.Requests() - before; n > 3 {
		t.Errorf("want few exchanges, got %d", n)
	}
	if got := p.as(alice, "{}"); got.body != "alice" {
		t.Errorf("another user: got %v", got)
	}
	p.idp.Revoke()
	if got := p.as(alice, "{}"); got.body != "alice" {
		t.Errorf("another user, healed: got %v", got)
	}
}

// TestO17_UsersThatGetNone: who is refused, and in what words.
func TestO17_UsersThatGetNone(t *testing.T) {
	p := startPeople(t, byUser)
	p.up("own").answerFunc(whose)
	alice, mallory, late := p.user("alice", 5*time.Minute), p.user("mallory", 5*time.Minute), p.user("late", time.Second)
	p.idp.Disable("mallory")
	p.both(func(proto string, get func(string, ...string) reply) {
		get("/own/mcp", bearer(mallory)).refused(t, http.StatusBadGateway, "token_refused")
		p.challenged(t, proto+" a token for another audience", get("/own/mcp", bearer(p.mint(p.idp, "alice", scopesOfPeople, nil))),
			401, "caller_invalid", p.invalidToken("own", ""))
		_, metadata := p.at("own")
		// A4: no token, so no word of an invalid one.
		p.challenged(t, proto+" nobody", get("/own/mcp"), 401, "caller_unknown", `Bearer resource_metadata="`+metadata+`"`)
		p.challenged(t, proto+" a key, where none counts", get("/own/mcp", "x-mcp-auth-key: "+callerKey), 401, "caller_invalid", `Bearer resource_metadata="`+metadata+`"`)
	})
	time.Sleep(1100 * time.Millisecond)
	// Within the clock's tolerance it proves its user still, but nobody would
	// exchange it: only its holder can get another.
	p.challenged(t, "an expired token", p.as(late, "{}"), 401, "caller_invalid", p.invalidToken("own", ""))
	if got := p.as(alice, "{}"); got.body != "alice" {
		t.Errorf("a user in good standing: got %v", got)
	}
	if got := users(p.up("own").take()); !slices.Equal(got, []string{"alice"}) {
		t.Errorf("want one call at the upstream, got %q", got)
	}
}

// TestO15_AReplicaThatDoesNotKnowTheUser: the second attempt comes to a program
// that never saw the caller's token. It must not lend anything, and says to try
// again; the next call brings the token, and all is well.
func TestO15_AReplicaThatDoesNotKnowTheUser(t *testing.T) {
	p := startPeople(t, byUser)
	alice := p.user("alice", 5*time.Minute)
	refuse, go1 := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p.up("own").answerFunc(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() {
			close(go1)
			<-refuse
			w.WriteHeader(http.StatusUnauthorized)
		})
		whose(w, r)
	})
	answer := make(chan reply)
	go func() {
		got, err := p.try(t.Context(), nil, p.url+"/own/mcp", strings.NewReader("{}"), pairs{"Authorization", "Bearer " + alice})
		if err != nil {
			t.Error(err)
		}
		answer <- got
	}()
	<-go1
	p.proc.kill()
	p.proc = p.serve(p.policy, p.facts.Admin)
	p.eventually("Envoy calls the other program", 10*time.Second, func() bool { return p.post("/open/mcp", "{}").status == http.StatusOK })
	close(refuse)
	got := <-answer
	got.refused(t, http.StatusServiceUnavailable, "token_unavailable")
	if got.header.Get("Retry-After") == "" {
		t.Errorf("want retry-after, got %v", got.header)
	}
	if n := len(p.up("own").take()); n != 1 {
		t.Errorf("want one attempt at the upstream, got %d", n)
	}
	if got := p.as(alice, "{}"); got.body != "alice" {
		t.Errorf("the next call: got %v", got)
	}
}

// TestA10_NoTokenGetsThrough: whatever dies, hangs or refuses while calls with
// tokens run, no upstream gets a token of a caller. The scan at the end of the
// case says so, of every byte that reached any of them.
func TestA10_NoTokenGetsThrough(t *testing.T) {
	t.Parallel() // it waits more than it works
	p := startPeople(t, byUser)
	alice, user := p.mint(p.idp, "alice", scopesOfPeople, nil), p.user("bob", 5*time.Minute)
	plain := p.mint(p.idp, "guest", "", nil)
	all := map[string]pairs{
		"alpha": {"Authorization", "Bearer " + alice}, "own": {"Authorization", "Bearer " + user}, "managed": {"Authorization", "Bearer " + user},
		"both": {"Authorization", "Bearer " + alice}, "guest": {"X-User-Token", plain, "Authorization", "Bearer " + alice},
		"open": {"Authorization", "Bearer " + alice, "X-User-Token", plain, "X_User_Token", plain}, "fixed": {"Authorization", "Bearer " + alice, "Cookie", "t=" + alice},
	}
	clients := []*http.Client{pooled(), h2c()}
	n, fine := 0, 0
	calls := func(what string) {
		t.Helper()
		var wg sync.WaitGroup
		var mu sync.Mutex
		for upstream, headers := range all {
			for _, client := range clients {
				for _, size := range []int{2, 100 << 10, 2 << 20} {
					wg.Go(func() {
						got, err := p.try(t.Context(), client, p.url+"/"+upstream+"/mcp", strings.NewReader(strings.Repeat("x", size)), headers)
						mu.Lock()
						defer mu.Unlock()
						if n++; err == nil && got.status == http.StatusOK {
							fine++
						}
					})
				}
			}
		}
		wg.Wait()
		t.Logf("%s: %d calls so far, %d of them good", what, n, fine)
	}
	calls("all is well")
	for _, upstream := range []string{"alpha", "own", "managed"} {
		p.up(upstream).answer(p.guarded(whose))
	}
	p.idp.Revoke()
	calls("401 retries")
	p.idp.Revoke()
	p.idp.Fail("invalid_client")
	calls("refused token requests")
	p.idp.Fail("hang")
	calls("token requests hang")
	p.idp.Heal()
	p.proc.signal(syscall.SIGSTOP)
	calls("the program hangs")
	p.proc.signal(syscall.SIGCONT)
	go func() {
		time.Sleep(20 * time.Millisecond)
		p.proc.signal(syscall.SIGKILL)
	}()
	calls("kill -9")
	<-p.proc.done
	calls("the program is gone")
	p.proc = p.serve(p.policy, p.facts.Admin)
	for name, u := range p.facts.upstreams {
		u.answerFunc(fine200(name))
	}
	p.eventually("calls go on", 10*time.Second, func() bool { return p.post("/alpha/mcp", "{}", all["alpha"]...).status == http.StatusOK })
	before := fine
	calls("all is well again")
	if fine-before < n/16 {
		t.Errorf("want calls to work again, got %d good ones", fine-before)
	}
}

func fine200(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, name) }
}
