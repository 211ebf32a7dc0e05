package extproc

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

const jwtPolicy = `
version: 1
envoy: {public_url: "https://mcp.company.com"}
callers:
  anyone: {any: true}
  ci: {key: {sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}}  # "key"
  admins:   {jwt: {issuer: "${IDP}", audience: "https://mcp.company.com", require_scopes: [mcp.admin, offline_access]}}
  people:   {jwt: {issuer: "${IDP}", audience: ["https://mcp.company.com", "${IDP}"], require_scopes: [mcp.read, mcp.call]}}
  partners: {jwt: {issuer: "${PARTNER}", audience: "https://mcp.company.com"}}
  agents:   {jwt: {issuer: "${IDP}", audience: "https://mcp.company.com", header: x-user-token}}
defaults:
  credential:
    oauth2: {token_url: "${IDP}/token", client_id: cid, client_secret: "${SECRET}"}
upstreams:
  people: {url: "https://people.test/mcp", callers: [people]}
  both:   {url: "https://both.test", callers: [admins, people, partners, agents]}
  mixed:  {url: "https://mixed.test/mcp", callers: [ci, people, anyone]}
  keys:   {url: "https://keys.test/mcp", callers: [ci]}
  ruled:
    url: "https://ruled.test/mcp"
    callers: [people, ci]
    tools:
      implies: {desk: [ticket:read]}
      rules: [{names: ["ticket_*"], scopes: [ticket:read, ticket:create]}, {names: [purge], scopes: [purge]}]
  own:
    url: "https://own.test/mcp"
    callers: [people]
    credential:
      oauth2: {token_url: "${IDP}/token", grant: token_exchange, subject: caller, client_id: cid, client_secret: "${SECRET}"}
`

// jwtRig is a rig whose callers have tokens of two issuers.
type jwtRig struct {
	*rig
	idp, partner *tokenstest.Server
}

func newJWTRig(tb testing.TB, prepare ...func(*jwtRig)) *jwtRig {
	tb.Helper()
	start := func() *tokenstest.Server {
		return tokenstest.Start(tb, tokenstest.Config{Clients: map[string]tokenstest.Client{"cid": {Secret: "s3cret-canary"}}})
	}
	r := &jwtRig{rig: &rig{seen: &observed{}, log: &syncBuffer{}}, idp: start(), partner: start()}
	for _, p := range prepare {
		p(r)
	}
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"IDP": r.idp.Issuer(), "PARTNER": r.partner.Issuer(), "SECRET": "s3cret-canary"}[name]
		return v, ok
	}
	set, err := policy.Parse("policy.yaml", []byte(jwtPolicy), env)
	if err != nil {
		tb.Fatal(err)
	}
	store := secrets.New(secrets.Config{Env: env})
	if err := store.Require(secrets.Of(set)); err != nil {
		tb.Fatal(err)
	}
	cache := tokens.New(tokens.Config{Secrets: store, Now: time.Now})
	tb.Cleanup(cache.Close)
	verifier := tokens.NewVerifier(tokens.VerifierConfig{Now: time.Now})
	tb.Cleanup(verifier.Close)
	r.Server, err = New(Config{Tokens: cache, Verifier: verifier, Secrets: store, Now: time.Now, Log: zerolog.New(r.log), Observe: r.seen})
	if err != nil {
		tb.Fatal(err)
	}
	r.set, set.Server.Deadline = set, time.Minute
	if err := r.Load(set); err != nil {
		tb.Fatal(err)
	}
	return r
}

// mint makes a token of that issuer, with a scope and other changes of its claims.
func mint(tb testing.TB, s *tokenstest.Server, scope string, extra map[string]any) string {
	tb.Helper()
	claims := map[string]any{"scope": scope}
	maps.Copy(claims, extra)
	token, err := s.Mint("alice", "https://mcp.company.com", claims)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

const peoplesScopes = "mcp.read mcp.call"

// last is the last decision.
func (r *jwtRig) last(t *testing.T) Decision {
	t.Helper()
	r.seen.mu.Lock()
	defer r.seen.mu.Unlock()
	if len(r.seen.list) == 0 {
		t.Fatal("no decision was seen")
	}
	return r.seen.list[len(r.seen.list)-1]
}

// TestCallersWithTokens: who a token proves, and that nothing else is asked when
// there is one.
func TestCallersWithTokens(t *testing.T) {
	r := newJWTRig(t)
	stranger := tokenstest.Start(t, tokenstest.Config{Issuer: r.idp.Issuer()})
	good := mint(t, r.idp, peoplesScopes, nil)
	for _, tc := range []struct {
		name, upstream string
		headers        []string
		want           policy.Reason
		caller         string
		issuer         *tokenstest.Server
	}{
		{"A1 a good token", "people", []string{"authorization", "Bearer " + good}, policy.Allowed, "people", r.idp},
		{"A9 scheme in any case", "people", []string{"authorization", "bEaReR " + good}, policy.Allowed, "people", r.idp},
		{"first caller that fits", "both", []string{"authorization", "Bearer " + mint(t, r.idp, peoplesScopes+" mcp.admin offline_access", nil)}, policy.Allowed, "admins", r.idp},
		{"J7 second caller of the issuer", "both", []string{"authorization", "Bearer " + good}, policy.Allowed, "people", r.idp},
		{"J7 another issuer", "both", []string{"authorization", "Bearer " + mint(t, r.partner, "", nil)}, policy.Allowed, "partners", r.partner},
		{"another header", "both", []string{"x-user-token", mint(t, r.idp, "", nil)}, policy.Allowed, "agents", r.idp},
		{"no scope of its caller", "both", []string{"authorization", "Bearer " + mint(t, r.idp, "other", nil)}, policy.ScopeMissing, "admins", r.idp},
		{"A5 one of two scopes", "people", []string{"authorization", "Bearer " + mint(t, r.idp, "mcp.read", nil)}, policy.ScopeMissing, "people", r.idp},
		{"A6 scopes in other case", "people", []string{"authorization", "Bearer " + mint(t, r.idp, "MCP.read mcp.call", nil)}, policy.ScopeMissing, "people", r.idp},
		{"A4 no token", "people", nil, policy.CallerUnknown, "", nil},
		{"A9 another scheme", "people", []string{"authorization", "Basic dTpw"}, policy.CallerInvalid, "", nil},
		{"A9 no JWT", "people", []string{"authorization", "Bearer sk-c4n4ry"}, policy.CallerInvalid, "", nil},
		{"A1 other audience", "people", []string{"authorization", "Bearer " + mint(t, r.idp, peoplesScopes, map[string]any{"aud": "x"})}, policy.CallerInvalid, "", nil},
		{"A1 expired", "people", []string{"authorization", "Bearer " + mint(t, r.idp, peoplesScopes, map[string]any{"exp": 1})}, policy.CallerInvalid, "", nil},
		{"J7 issuer of another upstream", "people", []string{"authorization", "Bearer " + mint(t, r.partner, peoplesScopes, nil)}, policy.CallerInvalid, "", nil},
		{"a forged signature", "people", []string{"authorization", "Bearer " + mint(t, stranger, peoplesScopes, nil)}, policy.CallerInvalid, "", nil},
		{"A8 two tokens", "both", []string{"authorization", "Bearer " + good, "x-user-token", good}, policy.BadRequest, "", nil},
		{"A8 in the query", "people", []string{":path", "/mcp?access_token=" + good}, policy.BadRequest, "", nil},
		{"A8 in the query of another upstream", "keys", []string{":path", "/mcp?access_token=" + good, "x-mcp-auth-key", "key"}, policy.BadRequest, "", nil},
		{"a token counts before any", "mixed", []string{"authorization", "Bearer " + good}, policy.Allowed, "people", r.idp},
		{"a bad token beside any", "mixed", []string{"authorization", "Bearer x.y.z"}, policy.CallerInvalid, "", nil},
		{"a bad token beside a key", "mixed", []string{"authorization", "Bearer x.y.z", "x-mcp-auth-key", "key"}, policy.CallerInvalid, "", nil},
		{"a token without scopes beside a key", "mixed", []string{"authorization", "Bearer " + mint(t, r.idp, "", nil), "x-mcp-auth-key", "key"}, policy.ScopeMissing, "people", r.idp},
		{"a key alone", "mixed", []string{"x-mcp-auth-key", "key"}, policy.Allowed, "ci", nil},
		{"neither", "mixed", nil, policy.Allowed, "anyone", nil},
		{"a token where nobody has one", "keys", []string{"authorization", "Bearer " + good, "x-mcp-auth-key", "key"}, policy.Allowed, "ci", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp := r.call(t, tc.upstream, headersRequest(nil, nil, tc.headers...))
			d := r.last(t)
			issuer, subject := "", ""
			if tc.issuer != nil {
				issuer, subject = tc.issuer.Issuer(), "alice"
			}
			if d.Reason != tc.want || d.Caller != tc.caller || d.Issuer != issuer || d.Subject != subject {
				t.Fatalf("want %v for %q of %q %q, got %+v", tc.want, tc.caller, issuer, subject, d)
			}
			set, removed := changes(resp)
			if tc.want == policy.Allowed && (!strings.HasPrefix(set["authorization"], "Bearer ey") || strings.Contains(set["authorization"], good)) {
				t.Errorf("J8: want our own token, got %q", set["authorization"])
			}
			if tc.upstream == "both" && tc.want == policy.Allowed && !removed["x-user-token"] {
				t.Error("J8: x-user-token goes on")
			}
			for i := 1; i < len(tc.headers); i += 2 {
				token := strings.TrimPrefix(tc.headers[i], "Bearer ")
				if tc.headers[i-1] != "x-mcp-auth-key" && len(token) > 4 && (strings.Contains(resp.String(), token) || strings.Contains(r.log.String(), token)) {
					t.Error("the caller's token is in the answer or the log")
				}
			}
		})
	}
	if log := r.log.String(); !strings.Contains(log, "its aud is") || !strings.Contains(log, "expired") {
		t.Errorf("the log does not say why: %s", log)
	}
}

// TestChallenges keeps A4, A5 and A7.
func TestA4_A5_A7_Challenges(t *testing.T) {
	r := newJWTRig(t)
	const peoples = `resource_metadata="https://mcp.company.com/.well-known/oauth-protected-resource/people/mcp", scope="mcp.read mcp.call"`
	const boths = `resource_metadata="https://mcp.company.com/.well-known/oauth-protected-resource/both"`
	for _, tc := range []struct {
		name, upstream string
		headers        []string
		status         int
		want           string
	}{
		{"A4 no credentials, no error", "people", nil, 401, "Bearer " + peoples},
		{"A4 bad token", "people", []string{"authorization", "Bearer x"}, 401, `Bearer error="invalid_token", ` + peoples},
		{"A4 a bad key is no bad token", "people", []string{"x-mcp-auth-key", "x"}, 401, "Bearer " + peoples},
		{
			"A5 all scopes in one", "people",
			[]string{"authorization", "Bearer " + mint(t, r.idp, "mcp.read", nil)},
			403,
			`Bearer error="insufficient_scope", ` + peoples,
		},
		{"several callers", "both", nil, 401, "Bearer " + boths},
		{
			"A7 no offline_access", "both",
			[]string{"authorization", "Bearer " + mint(t, r.idp, "x", nil)},
			403,
			`Bearer error="insufficient_scope", ` + boths + `, scope="mcp.admin"`,
		},
		{"A8 bad request", "both", []string{"authorization", "Bearer a", "x-user-token", "b"}, 400, ""},
		{"T11 origin", "people", []string{"origin", "https://evil.test"}, 403, ""},
		{"T15 nobody has a token here", "keys", nil, 403, ""},
		{"T15 nobody has a token here, bad key", "keys", []string{"x-mcp-auth-key", "x"}, 403, ""},
		{"no upstream", "none", nil, 403, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp := r.call(t, tc.upstream, headersRequest(nil, nil, tc.headers...))
			set, _ := changes(resp)
			if got := int(resp.GetImmediateResponse().GetStatus().GetCode()); got != tc.status || set["www-authenticate"] != tc.want {
				t.Errorf("want %d %s, got %d %s", tc.status, tc.want, got, set["www-authenticate"])
			}
		})
	}
}

// TestIssuerDown: without keys a token is neither good nor bad; the wait ends
// with server.deadline, and all that a decision waits for shares that time.
func TestJ10_IssuerDown(t *testing.T) {
	r := newJWTRig(t, func(r *jwtRig) {
		r.partner.FailMetadata(tokenstest.Hang)
		r.idp.Fail(tokenstest.Hang)
	})
	r.call(t, "both", headersRequest(nil, nil, "authorization", "Bearer "+mint(t, r.idp, "", nil))) // reads its keys
	r.hurry(t)
	start := time.Now()
	resp := r.call(t, "both", headersRequest(nil, nil, "authorization", "Bearer "+mint(t, r.partner, "", nil)))
	if took := time.Since(start); took < 250*time.Millisecond || took > 2*time.Second {
		t.Errorf("want the wait to end after 300ms, got %s", took)
	}
	checkRefusal(t, resp, policy.IssuerUnavailable, true)
	if d := r.last(t); d.Caller != "" || d.Subject != "" {
		t.Errorf("nobody was proved, got %+v", d)
	}
	// The other issuer is well, but not its token endpoint.
	r.call(t, "both", headersRequest(nil, nil, "x-user-token", mint(t, r.idp, "", nil)))
	if d := r.last(t); d.Reason != policy.TokenUnavailable || d.Caller != "agents" {
		t.Errorf("want a verified caller and no token, got %+v", d)
	}
}

// TestRetryOfACallerWithAToken: attempt 2 goes by the verdict of attempt 1, and
// the caller's own token, which is no longer on the request, is exchanged again.
func TestRetryOfACallerWithAToken(t *testing.T) {
	r := newJWTRig(t)
	for _, upstream := range []string{"people", "own"} {
		t.Run(upstream, func(t *testing.T) {
			first := r.call(t, upstream, headersRequest(nil, nil, "authorization", "Bearer "+mint(t, r.idp, peoplesScopes, map[string]any{"sub": "bob", "aud": r.idp.Issuer()})))
			set, _ := changes(first)
			said := described(first)
			if said["caller"] != "people" || said["issuer"] != r.idp.Issuer() || said["subject"] != "bob" || (said["mark"] != nil) != (upstream == "own") {
				t.Fatalf("metadata: got %v", said)
			}
			second := r.call(t, upstream, headersRequest(nil, said, "authorization", set["authorization"], "x-envoy-attempt-count", "2"))
			renewed, _ := changes(second)
			if renewed["authorization"] == "" || renewed["authorization"] == set["authorization"] {
				t.Errorf("want another token, got %v: %s", second, r.log)
			}
			if d := r.last(t); d.Caller != "people" || d.Subject != "bob" || d.Issuer != r.idp.Issuer() || d.Attempt != 2 {
				t.Errorf("got %+v", d)
			}
			again := described(second)
			if again["mark"] != said["mark"] || again["subject"] != "bob" {
				t.Errorf("attempt 3 would not know: %v", again)
			}
			for name, forged := range map[string]map[string]any{
				"no verdict":          nil,
				"a refusal":           {"upstream": upstream, "caller": "people", "reason": "scope_missing"},
				"of another upstream": {"upstream": "mixed", "caller": "people", "reason": "allowed"},
			} {
				r.call(t, upstream, headersRequest(nil, forged, "authorization", "Bearer "+mint(t, r.idp, peoplesScopes, nil), "x-envoy-attempt-count", "2"))
				if d := r.last(t); d.Reason != policy.CallerUnknown {
					t.Errorf("%s: want caller_unknown, got %v", name, d.Reason)
				}
			}
		})
	}
	r.call(t, "own", headersRequest(nil, map[string]any{"upstream": "own", "caller": "people", "reason": "allowed", "mark": "x"}, "x-envoy-attempt-count", "2"))
	if d := r.last(t); d.Reason != policy.TokenUnavailable || d.Token != "" {
		t.Errorf("a mark of nobody: got %+v", d)
	}
}

// TestEachUserItsOwnToken: two users at one upstream, and no token of the one
// for the other.
func TestEachUserItsOwnToken(t *testing.T) {
	r := newJWTRig(t)
	lent := map[string]string{}
	for range 2 {
		for _, user := range []string{"alice", "bob"} {
			token := mint(t, r.idp, peoplesScopes, map[string]any{"sub": user, "aud": r.idp.Issuer()})
			set, _ := changes(r.call(t, "own", headersRequest(nil, nil, "authorization", "Bearer "+token)))
			if set["authorization"] == "" || strings.Contains(set["authorization"], token) {
				t.Fatalf("%s: got %q: %s", user, set["authorization"], r.log)
			}
			for other, theirs := range lent {
				if other != user && theirs == set["authorization"] {
					t.Errorf("%s is lent the token of %s", user, other)
				}
			}
			lent[user] = set["authorization"]
		}
	}
}

// TestO18_TheOutcomeEvictsAUsersToken: the access log's entry about one user's call
// drops that user's token, and no other's.
func TestO18_TheOutcomeEvictsAUsersToken(t *testing.T) {
	r := newJWTRig(t)
	_, st := logClient(t, r.rig)
	shown := map[string]string{}
	for _, user := range []string{"alice", "bob"} {
		shown[user] = mint(t, r.idp, peoplesScopes, map[string]any{"sub": user, "aud": r.idp.Issuer()})
	}
	call := func(user string) map[string]any {
		return described(r.call(t, "own", headersRequest(nil, nil, "authorization", "Bearer "+shown[user])))
	}
	alice, bob := call("alice"), call("bob")
	with := func(token any) *accesslogv3.HTTPAccessLogEntry {
		return logEntry(502, "upstream_rejected", map[string]any{"upstream": "own", "caller": "people", "reason": "allowed", "token": token})
	}
	send(t, st, logOf(with(""), with("ffffffff")))
	eventually(t, "both are read", func() bool { return r.LogStats().Calls == 2 })
	if r.LogStats().Evicted != 0 {
		t.Error("want no token dropped by what names none")
	}
	send(t, st, logOf(with(alice["token"]), with(alice["token"])))
	eventually(t, "both are read", func() bool { return r.LogStats().Calls == 4 })
	if n := r.LogStats().Evicted; n != 1 {
		t.Errorf("want one token dropped, got %d", n)
	}
	if again := call("alice"); again["token"] == alice["token"] || again["mark"] != alice["mark"] {
		t.Errorf("want a new token for alice, got %v after %v", again, alice)
	}
	if again := call("bob"); again["token"] != bob["token"] {
		t.Errorf("want bob's kept, got %v after %v", again, bob)
	}
}

func TestPolicyWithTokensNeedsAVerifier(t *testing.T) {
	r := newJWTRig(t)
	set := r.snap.Load().set
	s, err := New(Config{Tokens: r.cfg.Tokens, Secrets: r.cfg.Secrets, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	gate := func() { t.Error("the gate follows a policy that is not in force") }
	if err := s.LoadAfter(set, gate); err == nil || !strings.Contains(err.Error(), "Verifier") {
		t.Errorf("want an error that names the Verifier, got %v", err)
	}
}

// TestWeightier: the log gets the error of the rule that the token is for.
func TestWeightier(t *testing.T) {
	issuer, expired := &tokens.InvalidTokenError{Code: "issuer"}, &tokens.InvalidTokenError{Code: "expired"}
	audience, none := &tokens.InvalidTokenError{Code: "audience"}, &tokens.Error{Kind: tokens.Unavailable}
	order := []error{nil, issuer, audience, expired, none}
	for i, light := range order {
		for _, heavy := range order[i:] {
			if got := weightier(light, heavy); !errors.Is(got, heavy) {
				t.Errorf("%v and %v: got %v", light, heavy, got)
			}
			if got := weightier(heavy, light); !errors.Is(got, heavy) {
				t.Errorf("%v and %v: got %v", heavy, light, got)
			}
		}
	}
}
