package extproc

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"github.com/rs/zerolog"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

func sessionPolicy() string {
	sum := func(key string) string {
		s := sha256.Sum256([]byte(key))
		return hex.EncodeToString(s[:])
	}
	return `
version: 1
callers:
  alice: {key: {sha256: "` + sum("alice") + `"}}
  bob:   {key: {sha256: "` + sum("bob") + `"}}
  carol: {key: {sha256: "` + sum("carol") + `"}}
  anyone: {any: true}
defaults: {callers: [alice, bob, carol], credential: none}
upstreams:
  a: {url: "https://a.test/mcp", cookies: {allow: [c], duplicates: refuse}}
  twin: {url: "https://A.test:443/mcp"}
  other: {url: "https://other.test/mcp"}
  loose: {url: "https://loose.test/mcp", sessions: off}
  crowd: {url: "https://crowd.test/mcp", callers: [anyone]}
  told: {url: "https://told.test/mcp", envoy: {outcomes: response_headers}}
  lent: {url: "https://lent.test/mcp", credential: {oauth2: {token_url: "http://127.0.0.1:1/token", client_id: x, client_secret: {env: SECRET}}}}
`
}

func sessionEnv(string) (string, bool) { return "s3cret-canary of more than 32 characters", true }

// sessionRig is a server whose time stands still unless a test moves it.
type sessionRig struct {
	*rig
	store *secrets.Store
	now   atomic.Int64
}

func newSessionRig(tb testing.TB) *sessionRig {
	tb.Helper()
	r := &sessionRig{rig: &rig{seen: &observed{}, log: &syncBuffer{}}}
	r.now.Store(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC).UnixNano())
	r.store = secrets.New(secrets.Config{Env: sessionEnv})
	set := r.parse(tb, sessionPolicy())
	cache := tokens.New(tokens.Config{Secrets: r.store, Now: time.Now})
	tb.Cleanup(cache.Close)
	var err error
	r.Server, err = New(Config{Tokens: cache, Secrets: r.store, Now: r.clock, Log: zerolog.New(r.log), Observe: r.seen})
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.Load(set); err != nil {
		tb.Fatal(err)
	}
	return r
}

func (r *sessionRig) parse(tb testing.TB, text string) *policy.Set {
	tb.Helper()
	set, err := policy.Parse("policy.yaml", []byte(text), sessionEnv)
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.store.Require(secrets.Of(set)); err != nil {
		tb.Fatal(err)
	}
	return set
}

func (r *sessionRig) clock() time.Time { return time.Unix(0, r.now.Load()) }

func (r *sessionRig) pass(d time.Duration) { r.now.Add(int64(d)) }

// use is a request of a caller; id "" brings none. It returns the reason and our metadata.
func (r *sessionRig) use(tb testing.TB, upstream, caller, id string, more ...string) (string, map[string]any) {
	tb.Helper()
	h := append([]string{"x-mcp-auth-key", caller}, more...)
	if id != "" {
		h = append(h, "mcp-session-id", id)
	}
	meta := described(r.call(tb, upstream, headersRequest(nil, nil, h...)))
	reason, _ := meta["reason"].(string)
	return reason, meta
}

// want fails unless the request ends that way.
func (r *sessionRig) want(tb testing.TB, reason, upstream, caller, id string, more ...string) {
	tb.Helper()
	if got, _ := r.use(tb, upstream, caller, id, more...); got != reason {
		tb.Errorf("%s at %s with %q: want %s, got %s", caller, upstream, id, reason, got)
	}
}

// report hands in an access log entry.
func (r *sessionRig) report(tb testing.TB, e *accesslogv3.HTTPAccessLogEntry) {
	tb.Helper()
	wire, err := proto.Marshal(logOf(e))
	if err != nil {
		tb.Fatal(err)
	}
	var m logMessage
	snap := r.snap.Load()
	m.reset(snap.known)
	if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, &m); err != nil || len(m.entries) != 1 {
		tb.Fatalf("want one entry, got %d, %v", len(m.entries), err)
	}
	r.ended(snap, &m.entries[0])
}

// answered is the entry of a call with that metadata, and the session ids of its
// request and of the answer.
func answered(status uint32, method corev3.RequestMethod, meta map[string]any, used, given string) *accesslogv3.HTTPAccessLogEntry {
	e := logEntry(status, "", meta)
	e.Request.RequestMethod = method
	if used != "" {
		e.Request.RequestHeaders = map[string]string{"mcp-session-id": used}
	}
	if given != "" {
		e.Response.ResponseHeaders["mcp-session-id"] = given
	}
	return e
}

// open is a call without a session that the upstream gives one.
func (r *sessionRig) open(tb testing.TB, upstream, caller, id string) {
	tb.Helper()
	reason, meta := r.use(tb, upstream, caller, "")
	if reason != "allowed" {
		tb.Fatalf("want the first call allowed, got %s", reason)
	}
	r.report(tb, answered(200, corev3.RequestMethod_POST, meta, "", id))
}

// TestA11_ASessionIsOnePrincipals: whom the upstream gave a session has it, and
// nobody else, at any upstream of the same server.
func TestA11_ASessionIsOnePrincipals(t *testing.T) {
	r := newSessionRig(t)
	r.open(t, "a", "alice", "s-1-CANARY")
	for _, upstream := range []string{"a", "twin"} {
		r.want(t, "allowed", upstream, "alice", "s-1-CANARY")
		r.want(t, "session_mismatch", upstream, "bob", "s-1-CANARY")
		r.want(t, "allowed", upstream, "alice", "s-1-CANARY", "mcp-protocol-version", "2026-07-28")
	}
	// Another server has sessions of its own, and ids are compared to the letter.
	r.want(t, "allowed", "other", "bob", "s-1-CANARY")
	r.want(t, "allowed", "a", "bob", "S-1-CANARY")
	r.want(t, "bad_request", "a", "bob", "s-1-CANARY,x")
	r.want(t, "bad_request", "a", "bob", "x", "mcp-session-id", "s-1-CANARY")
	r.want(t, "bad_request", "a", "bob", "", "mcp_session_id", "s-1-CANARY")
	// Where nobody's are bound, nothing is looked at.
	r.want(t, "allowed", "loose", "alice", "s")
	r.want(t, "allowed", "loose", "bob", "s", "mcp-session-id", "a,b")
	if _, meta := r.use(t, "loose", "bob", "s"); meta["session"] != nil {
		t.Errorf("want nothing said of sessions, got %v", meta)
	}
	// Everybody behind a caller of kind any is one principal.
	r.open(t, "crowd", "x", "s")
	r.want(t, "allowed", "crowd", "y", "s")
	if log := r.log.String(); strings.Contains(log, "CANARY") || !strings.Contains(log, "bound to another principal") {
		t.Errorf("want the cause without the id, got %s", log)
	}
}

// TestA11_UsersAreTwoPrincipals: one caller of the policy, two people.
func TestA11_UsersAreTwoPrincipals(t *testing.T) {
	r := newJWTRig(t)
	use := func(upstream, token, id string) string {
		r.call(t, upstream, headersRequest(nil, nil, "authorization", "Bearer "+token, "mcp-session-id", id))
		return r.last(t).Reason.String()
	}
	user := func(name string, claims map[string]any) string {
		all := map[string]any{"sub": name}
		maps.Copy(all, claims)
		return mint(t, r.idp, peoplesScopes, all)
	}
	if got := use("people", user("alice", nil), "s"); got != "allowed" {
		t.Fatalf("got %s", got)
	}
	// A newer token of the same person is the same principal.
	if got := use("people", user("alice", map[string]any{"jti": "another"}), "s"); got != "allowed" {
		t.Errorf("alice's next token: got %s", got)
	}
	if got := use("people", user("bob", nil), "s"); got != "session_mismatch" {
		t.Errorf("bob: got %s", got)
	}
	// The same subject of another issuer is somebody else.
	if got := use("both", mint(t, r.idp, "mcp.read mcp.call", nil), "s"); got != "allowed" {
		t.Fatalf("got %s", got)
	}
	if got := use("both", mint(t, r.partner, "", nil), "s"); got != "session_mismatch" {
		t.Errorf("alice of the partner: got %s", got)
	}
	// The access log brings whom our metadata names.
	meta := described(r.call(t, "people", headersRequest(nil, nil, "authorization", "Bearer "+user("alice", nil))))
	entry := answered(200, corev3.RequestMethod_POST, meta, "", "new")
	wire, err := proto.Marshal(logOf(entry))
	if err != nil {
		t.Fatal(err)
	}
	var m logMessage
	m.reset(r.snap.Load().known)
	m.decode(wire)
	r.ended(r.snap.Load(), &m.entries[0])
	if got := use("people", user("bob", nil), "new"); got != "session_mismatch" {
		t.Errorf("bob in alice's new session: got %s", got)
	}
	if got := use("people", user("alice", nil), "new"); got != "allowed" {
		t.Errorf("alice in her new session: got %s", got)
	}
}

// TestA11_TheLogsWordWins over a first user, and nothing else does: an answer that
// repeats an id, a refusal, or a second gift.
func TestA11_TheLogsWordWins(t *testing.T) {
	r := newSessionRig(t)
	_, hers := r.use(t, "a", "alice", "")
	r.want(t, "allowed", "a", "bob", "stolen") // before the log arrives
	r.want(t, "session_mismatch", "a", "alice", "stolen")
	_, echo := r.use(t, "a", "bob", "stolen")
	r.report(t, answered(200, corev3.RequestMethod_POST, hers, "", "stolen"))
	r.want(t, "allowed", "a", "alice", "stolen")
	r.want(t, "session_mismatch", "a", "bob", "stolen")
	// What the thief's calls were answered arrives later, and says nothing.
	r.report(t, answered(200, corev3.RequestMethod_POST, echo, "stolen", "stolen"))
	r.report(t, answered(200, corev3.RequestMethod_POST, echo, "", "stolen")) // an Envoy that logs no header of requests
	_, his := r.use(t, "a", "bob", "")
	for _, e := range []*accesslogv3.HTTPAccessLogEntry{
		answered(500, corev3.RequestMethod_POST, his, "", "stolen"),
		answered(200, corev3.RequestMethod_POST, his, "", "stolen,x"),
		answered(200, corev3.RequestMethod_POST, his, "", "stolen"), // given twice: the first one counts
		answered(200, corev3.RequestMethod_POST, map[string]any{"upstream": "a", "caller": "bob", "reason": "allowed"}, "", "stolen"),
		answered(200, corev3.RequestMethod_POST, map[string]any{"upstream": "a", "caller": "bob", "reason": "tool_denied", "session": "none"}, "", "stolen"),
		answered(404, corev3.RequestMethod_POST, echo, "stolen", ""), // he has no session to end
		answered(200, corev3.RequestMethod_DELETE, echo, "stolen", ""),
	} {
		r.report(t, e)
		r.want(t, "session_mismatch", "a", "bob", "stolen")
	}
	if log := r.log.String(); strings.Count(log, "used a session before") != 1 || strings.Contains(log, `"stolen"`) {
		t.Errorf("want it said once, without the id, got %s", log)
	}
	r.pass(2 * time.Minute)
	r.report(t, answered(200, corev3.RequestMethod_POST, his, "", "stolen"))
	if log := r.log.String(); !strings.Contains(log, "sessions: off") {
		t.Errorf("want what to do, got %s", log)
	}
}

// TestWhatIsNoGift binds nothing.
func TestWhatIsNoGift(t *testing.T) {
	r := newSessionRig(t)
	_, none := r.use(t, "a", "bob", "")
	refused := func() map[string]any {
		_, meta := r.use(t, "a", "bob", "", "cookie", "c=1; c=2")
		meta["session"] = "none"
		return meta
	}()
	ours := answered(200, corev3.RequestMethod_POST, none, "", "s")
	ours.Response.ResponseHeaders[reasonHeader] = "upstream_rejected"
	for name, e := range map[string]*accesslogv3.HTTPAccessLogEntry{
		"an error":       answered(500, corev3.RequestMethod_POST, none, "", "s"),
		"no answer":      answered(0, corev3.RequestMethod_POST, none, "", "s"),
		"a redirect":     answered(302, corev3.RequestMethod_POST, none, "", "s"),
		"two ids":        answered(200, corev3.RequestMethod_POST, none, "", "s,t"),
		"no id":          answered(200, corev3.RequestMethod_POST, none, "", ""),
		"a refusal":      answered(200, corev3.RequestMethod_POST, refused, "", "s"),
		"our own answer": ours,
		"no word of ours": answered(200, corev3.RequestMethod_POST,
			map[string]any{"upstream": "a", "caller": "bob", "reason": "allowed"}, "", "s"),
	} {
		if r.report(t, e); r.sessions.count.Load() != 0 {
			t.Fatalf("%s: want nothing bound", name)
		}
	}
	r.want(t, "allowed", "a", "alice", "s")
}

// TestOwners: no two principals are one, wherever the border between their parts is.
func TestOwners(t *testing.T) {
	seen := map[owner]bool{}
	all := [][3]string{{"a", "b", "c"}, {"ab", "", "c"}, {"a", "bc", ""}, {"a", "", "bc"}, {"a", "d", "c"}, {"a", "b", "d"}, {"a", "", ""}, {}}
	for _, p := range all {
		seen[ownerOf(p[0], p[1], p[2])] = true
	}
	if len(seen) != len(all) {
		t.Errorf("want %d owners, got %d", len(all), len(seen))
	}
	if ownerOf("readers", "i", "s") != ownerOf("writers", "i", "s") {
		t.Error("A11: want one principal for an issuer's subject, whichever caller its token proves")
	}
}

// TestTheLargestMakesRoom: of servers below half of all, the one with the most.
func TestTheLargestMakesRoom(t *testing.T) {
	r := newSessionRig(t)
	r.sessions.limit = 100
	for upstream, n := range map[string]int{"a": 30, "other": 45, "crowd": 25} {
		for i := range n {
			r.want(t, "allowed", upstream, "alice", fmt.Sprint("s-", i))
		}
	}
	for i := range 10 {
		r.want(t, "allowed", "crowd", "alice", fmt.Sprint("more-", i))
	}
	for url, want := range map[string]int64{"https://a.test/mcp": 30, "https://other.test/mcp": 35, "https://crowd.test/mcp": 35} {
		if got := r.sessions.shelf(url).count.Load(); got != want {
			t.Errorf("%s: want %d, got %d", url, want, got)
		}
	}
}

// TestSessionsEnd by DELETE of their owner, 404 of the upstream, and a day without use.
func TestSessionsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		ends bool
		do   func(r *sessionRig, meta map[string]any)
	}{
		"DELETE": {true, func(r *sessionRig, m map[string]any) {
			r.report(t, answered(204, corev3.RequestMethod_DELETE, m, "s", ""))
		}},
		"DELETE, refused": {false, func(r *sessionRig, m map[string]any) {
			r.report(t, answered(405, corev3.RequestMethod_DELETE, m, "s", ""))
		}},
		"404": {true, func(r *sessionRig, m map[string]any) {
			r.report(t, answered(404, corev3.RequestMethod_POST, m, "s", ""))
		}},
		"404 of another": {false, func(r *sessionRig, m map[string]any) {
			r.report(t, answered(404, corev3.RequestMethod_POST, m, "s-2", ""))
		}},
		"400": {false, func(r *sessionRig, m map[string]any) {
			r.report(t, answered(400, corev3.RequestMethod_POST, m, "s", ""))
		}},
		"a day":           {true, func(r *sessionRig, _ map[string]any) { r.pass(24 * time.Hour) }},
		"less than a day": {false, func(r *sessionRig, _ map[string]any) { r.pass(24*time.Hour - time.Second) }},
		"a thief's use": {false, func(r *sessionRig, _ map[string]any) {
			r.pass(23 * time.Hour)
			r.want(t, "session_mismatch", "a", "bob", "s")
			r.pass(23 * time.Hour)
		}},
		"a reload": {false, func(r *sessionRig, _ map[string]any) { r.reload(t, sessionPolicy()) }},
		"gone for a while": {true, func(r *sessionRig, _ map[string]any) {
			r.reload(t, strings.ReplaceAll(sessionPolicy(), ".test", ".example"))
			r.forget(r.snap.Load()) // no Envoy is behind any more
			r.reload(t, sessionPolicy())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSessionRig(t)
			r.open(t, "a", "alice", "s")
			_, meta := r.use(t, "a", "alice", "s")
			c.do(r, meta)
			if n := r.sessions.count.Load(); c.ends && name != "a day" && n != 0 {
				t.Errorf("want nothing left, got %d", n)
			}
			want := map[bool]string{true: "allowed", false: "session_mismatch"}[c.ends]
			r.want(t, want, "a", "bob", "s")
		})
	}
}

func (r *sessionRig) reload(tb testing.TB, text string) {
	tb.Helper()
	if err := r.Load(r.parse(tb, text)); err != nil {
		tb.Fatal(err)
	}
}

// TestA11_AReloadDuringInitialize: when its caller was renamed before the access log
// told, a session is nobody's, not that of a principal without a name whom nobody is.
func TestA11_AReloadDuringInitialize(t *testing.T) {
	r := newSessionRig(t)
	_, alice := r.use(t, "a", "alice", "")
	_, anyone := r.use(t, "crowd", "", "")
	text := strings.Replace(sessionPolicy(), "  alice: {", "  alicia: {", 1)
	text = strings.Replace(text, "[alice, ", "[alicia, ", 1)
	r.reload(t, strings.ReplaceAll(text, "anyone", "everybody"))
	r.report(t, answered(200, corev3.RequestMethod_POST, alice, "", "hers"))
	r.report(t, answered(200, corev3.RequestMethod_POST, anyone, "", "theirs"))
	if n := r.sessions.count.Load(); n != 0 {
		t.Errorf("want nothing bound, got %d", n)
	}
	r.want(t, "allowed", "a", "alice", "hers")
	r.want(t, "session_mismatch", "a", "bob", "hers")
	r.want(t, "allowed", "crowd", "", "theirs")
	// Whom the policy still has, the log is believed about: everybody is one principal.
	r.open(t, "crowd", "", "another")
	r.want(t, "allowed", "crowd", "bob", "another")
	r.open(t, "a", "bob", "his")
	r.want(t, "session_mismatch", "a", "alice", "his")
}

// TestARefusedRequestTakesNoSession, whatever it is refused for.
func TestARefusedRequestTakesNoSession(t *testing.T) {
	r := newSessionRig(t)
	r.want(t, "bad_request", "a", "bob", "s", "cookie", "c=1; c=2")
	r.want(t, "allowed", "a", "alice", "s")
	r.want(t, "token_unavailable", "lent", "bob", "s")
	r.want(t, "token_unavailable", "lent", "alice", "s")
	if n := r.sessions.count.Load(); n != 1 {
		t.Errorf("want one binding, got %d", n)
	}
}

// TestRetryKeepsTheVerdict: attempt 2 goes by the verdict of attempt 1.
func TestRetryKeepsTheVerdict(t *testing.T) {
	r := newSessionRig(t)
	_, meta := r.use(t, "a", "bob", "s")
	r.open(t, "a", "alice", "s") // taken between the attempts
	again := described(r.call(t, "a", headersRequest(nil, meta, "x-envoy-attempt-count", "2", "mcp-session-id", "s")))
	if again["reason"] != "allowed" || again["session"] != "sent" || again["caller"] != "bob" {
		t.Errorf("got %v", again)
	}
	again = described(r.call(t, "a", headersRequest(nil, nil, "x-envoy-attempt-count", "2", "mcp-session-id", "s")))
	if again["reason"] != "caller_unknown" {
		t.Errorf("without the verdict: got %v", again)
	}
}

// TestOneFirstUser: of many principals at once, one gets the session.
func TestOneFirstUser(t *testing.T) {
	r := newSessionRig(t)
	for i := range 50 {
		id := fmt.Sprint("s-", i)
		var wg sync.WaitGroup
		var allowed [3]atomic.Int64
		for p, caller := range []string{"alice", "bob", "carol"} {
			for range 4 {
				wg.Go(func() {
					if got, _ := r.use(t, "a", caller, id); got == "allowed" {
						allowed[p].Add(1)
					}
				})
			}
		}
		wg.Wait()
		winners := 0
		for p := range allowed {
			if n := allowed[p].Load(); n == 4 {
				winners++
			} else if n != 0 {
				t.Fatalf("want all or nothing, got %d of 4", n)
			}
		}
		if winners != 1 {
			t.Fatalf("want one winner, got %d", winners)
		}
	}
}

// TestSessionModel: whatever the order of calls, answers and hours, what a model
// says of each request comes true; and while a session is known to be somebody's,
// nobody else passes with it.
func TestSessionModel(t *testing.T) {
	type known struct {
		who   string
		given bool
		used  time.Time
	}
	rapid.Check(t, func(rt *rapid.T) {
		r := newSessionRig(t)
		model := map[string]*known{}
		alive := func(id string) *known {
			if k := model[id]; k != nil && r.clock().Sub(k.used) < idleSession {
				return k
			}
			delete(model, id)
			return nil
		}
		metas := map[string]map[string]any{} // of allowed requests, which the log may bring at any later time
		caller := rapid.SampledFrom([]string{"alice", "bob", "carol"})
		session := rapid.SampledFrom([]string{"s-1", "s-2", "s-3"})
		upstream := rapid.SampledFrom([]string{"a", "twin"})
		rt.Repeat(map[string]func(*rapid.T){
			"use": func(rt *rapid.T) {
				who, id := caller.Draw(rt, "who"), session.Draw(rt, "id")
				got, meta := r.use(t, upstream.Draw(rt, "upstream"), who, id)
				k, want := alive(id), "allowed"
				if k == nil {
					k = &known{who: who}
					model[id] = k
				} else if k.who != who {
					want = "session_mismatch"
				}
				k.used = r.clock()
				if got != want {
					rt.Fatalf("%s with %s: want %s, got %s", who, id, want, got)
				}
				metas[who+" "+id+" "+got] = meta
			},
			"give": func(rt *rapid.T) {
				who, id := caller.Draw(rt, "who"), session.Draw(rt, "id")
				r.open(t, upstream.Draw(rt, "upstream"), who, id)
				k := alive(id)
				switch {
				case k == nil:
					model[id] = &known{who, true, r.clock()}
				case k.who == who || !k.given:
					k.who, k.given = who, true
				}
			},
			"echo, end": func(rt *rapid.T) {
				who, id := caller.Draw(rt, "who"), session.Draw(rt, "id")
				verdict := rapid.SampledFrom([]string{"allowed", "session_mismatch"}).Draw(rt, "verdict")
				status := rapid.SampledFrom([]uint32{200, 404, 401, 500}).Draw(rt, "status")
				method := rapid.SampledFrom([]corev3.RequestMethod{corev3.RequestMethod_POST, corev3.RequestMethod_DELETE}).Draw(rt, "method")
				meta := metas[who+" "+id+" "+verdict]
				if meta == nil {
					rt.Skip("no such request")
				}
				r.report(t, answered(status, method, meta, id, id))
				if k := model[id]; k != nil && k.who == who && verdict == "allowed" && (status == 404 || status == 200 && method == corev3.RequestMethod_DELETE) {
					delete(model, id)
				}
			},
			"hours": func(rt *rapid.T) {
				r.pass(time.Duration(rapid.IntRange(1, 30).Draw(rt, "hours")) * time.Hour)
			},
			"": func(rt *rapid.T) {
				sum := int64(0)
				for _, s := range *r.sessions.list.Load() {
					sum += s.count.Load()
				}
				if n := r.sessions.count.Load(); n != sum {
					rt.Fatalf("want a count of %d, got %d", sum, n)
				}
			},
		})
	})
}

// TestSessionsAreBounded: a flood at one upstream, of made-up ids or of sessions
// that are given, costs no other upstream's, and made-up ids cost none that was given.
func TestSessionsAreBounded(t *testing.T) {
	r := newSessionRig(t)
	r.sessions.limit = 1000
	r.open(t, "a", "alice", "given")
	r.want(t, "allowed", "a", "alice", "used")
	r.open(t, "other", "alice", "given")
	r.want(t, "allowed", "other", "alice", "used")
	for i := range 3000 {
		r.pass(time.Second)
		r.want(t, "allowed", "a", "bob", fmt.Sprint("flood-", i))
	}
	if n := r.sessions.count.Load(); n != 1000 {
		t.Errorf("want 1000 bindings, got %d", n)
	}
	r.want(t, "session_mismatch", "a", "bob", "given")
	r.want(t, "session_mismatch", "other", "bob", "given")
	r.want(t, "session_mismatch", "other", "bob", "used")
	r.want(t, "allowed", "a", "carol", "used") // forgotten: whose who uses it next
	r.want(t, "session_mismatch", "a", "carol", "flood-2500")
	for i := range 3000 {
		r.pass(time.Second)
		r.open(t, "a", "bob", fmt.Sprint("open-", i))
	}
	r.want(t, "session_mismatch", "other", "bob", "given")
	r.want(t, "session_mismatch", "other", "bob", "used")
	r.want(t, "session_mismatch", "a", "carol", "open-2999")
	r.want(t, "allowed", "a", "carol", "open-0")
	r.want(t, "allowed", "a", "carol", "given") // the oldest of many
	if n := r.sessions.count.Load(); n != 1000 {
		t.Errorf("want 1000 bindings, got %d", n)
	}
	if log := r.log.String(); !strings.Contains(log, "more sessions than can be remembered") || strings.Count(log, "more sessions than") > 101 {
		t.Error("want it said, and once a minute")
	}
}

// TestNoIDIsKept: what a process remembers holds no id.
func TestNoIDIsKept(t *testing.T) {
	r := newSessionRig(t)
	r.open(t, "a", "alice", "s-1-CANARY")
	r.want(t, "allowed", "a", "alice", "s-2-CANARY")
	two := newSessionRig(t)
	a, b := r.sessions.shelf("https://a.test/mcp"), two.sessions.shelf("https://a.test/mcp")
	if a.name([]byte("s")) == b.name([]byte("s")) || a.name([]byte("s")) == r.sessions.shelf("https://other.test/mcp").name([]byte("s")) {
		t.Error("want a key for each process and each server")
	}
	if log := r.log.String(); strings.Contains(log, "CANARY") {
		t.Errorf("got %s", log)
	}
	r.want(t, "session_mismatch", "a", "bob", "s-2-CANARY")
	for _, d := range r.seen.list {
		if strings.Contains(fmt.Sprintf("%+v", d), "CANARY") {
			t.Errorf("got %+v", d)
		}
	}
}

// BenchmarkSessions measures a look at a full table, from many goroutines.
func BenchmarkSessions(b *testing.B) {
	ss := newSessions()
	s := ss.shelf("https://a.test/mcp")
	who := ownerOf("people", "https://idp.company.com", "alice")
	ids := make([][]byte, maxSessions)
	now := time.Now()
	for i := range ids {
		ids[i] = fmt.Appendf(nil, "0b9ac637-0000-4000-8000-%012d", i)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, id := range ids {
		s.claim(s.name(id), who, false, now)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if st, _, _ := s.look(s.name(ids[i%len(ids)]), ownerOf("people", "https://idp.company.com", "alice"), now); st != own {
				b.Error("want it known")
			}
		}
	})
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(ids)), "B/binding")
}

// BenchmarkSessionFlood is a new session in a full table, among 10,000 upstreams:
// the dearest case, in which the one with the most is looked for.
func BenchmarkSessionFlood(b *testing.B) {
	ss := newSessions()
	ss.limit = 20_000
	now := time.Now()
	var list []*shelf
	who := ownerOf("a", "", "")
	for i := range 10_000 {
		s := ss.shelf(fmt.Sprintf("https://%d.test/mcp", i))
		list = append(list, s)
		s.claim(s.name([]byte("1")), who, true, now)
		s.claim(s.name([]byte("2")), who, true, now)
	}
	ss.list.Store(&list)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s := list[i%len(list)]
		s.claim(s.name(fmt.Appendf(nil, "%d", i)), who, false, now)
	}
}

// BenchmarkProcessSession is a call in a session, beside BenchmarkProcess.
func BenchmarkProcessSession(b *testing.B) {
	r := newRig(b)
	r.cfg.Observe = nil
	s := newSessionStream(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Process(s); err != nil {
			b.Fatal(err)
		}
	}
}

func newSessionStream(tb testing.TB) *benchStream {
	tb.Helper()
	return newBenchStream(tb, "mcp-session-id", "0b9ac637-0000-4000-8000-000000000000")
}

// TestProcessAllocationsOfASession: none more than without one.
func TestProcessAllocationsOfASession(t *testing.T) {
	r := newRig(t)
	r.cfg.Observe = nil
	s := newSessionStream(t)
	if n := testing.AllocsPerRun(200, func() {
		if err := r.Process(s); err != nil {
			t.Fatal(err)
		}
	}); n > 12 {
		t.Errorf("a call allocates %v times, want at most 12", n)
	}
}
