package policy

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// headers makes headers of name, value, name, value.
func headers(pairs ...string) []Header {
	var out []Header
	for pair := range slices.Chunk(pairs, 2) {
		out = append(out, Header{pair[0], []byte(pair[1])})
	}
	return out
}

// ruled makes an upstream with these headers and this credential.
func ruled(spec HeadersSpec, credential Credential) *Upstream {
	return &Upstream{Headers: NewHeaderRule(spec, credential), Credential: credential}
}

func fixed(names ...string) Credential {
	var c Credential
	for _, n := range names {
		c.Headers = append(c.Headers, SecretHeader{Name: n})
	}
	return c
}

var oauth2 = Credential{OAuth2: &OAuth2{}}

func TestScreenVerdicts(t *testing.T) {
	plain := ruled(HeadersSpec{}, oauth2)
	plain.Origins = []string{"https://app.company.com", "null"}
	keyed := ruled(HeadersSpec{}, oauth2)
	keyed.Callers = []*Caller{sanCaller("x", "a.b"), keyCaller("ci", "k")}
	passing := ruled(HeadersSpec{Pass: []string{"authorization"}}, Credential{})
	for _, c := range []struct {
		title string
		u     *Upstream
		in    []Header
		want  Reason
	}{
		{"no headers", plain, nil, Allowed},
		{"T11 no origin", keyed, headers("host", "x"), Allowed},
		{"T11 listed origin", plain, headers("origin", "https://app.company.com"), Allowed},
		{"T11 origin null, listed", plain, headers("origin", "null"), Allowed},
		{"T11 origin, none listed", keyed, headers("origin", "https://app.company.com"), OriginDenied},
		{"T11 origin of another scheme", plain, headers("origin", "http://app.company.com"), OriginDenied},
		{"T11 origin with a port", plain, headers("origin", "https://app.company.com:443"), OriginDenied},
		{"T11 origin in another case", plain, headers("origin", "https://APP.company.com"), OriginDenied},
		{"T11 origin suffix", plain, headers("origin", "https://app.company.com.evil"), OriginDenied},
		{"T11 empty origin", plain, headers("origin", ""), OriginDenied},
		{"T11 two origins, both listed", plain, headers("origin", "null", "origin", "null"), BadRequest},
		{"T11 two origins, joined", plain, headers("origin", "null,null"), OriginDenied},
		{"T11 Origin in capitals", plain, headers("Origin", "https://evil"), OriginDenied},

		{"attempt 1", plain, headers("x-envoy-attempt-count", "1"), Allowed},
		{"attempt 1000", plain, headers("x-envoy-attempt-count", "1000"), Allowed},
		{"attempt 0", plain, headers("x-envoy-attempt-count", "0"), BadRequest},
		{"attempt 1001", plain, headers("x-envoy-attempt-count", "1001"), BadRequest},
		{"attempt empty", plain, headers("x-envoy-attempt-count", ""), BadRequest},
		{"attempt +1", plain, headers("x-envoy-attempt-count", "+1"), BadRequest},
		{"attempt 1 with a blank", plain, headers("x-envoy-attempt-count", "1 "), BadRequest},
		{"attempt joined", plain, headers("x-envoy-attempt-count", "1,2"), BadRequest},
		{"attempt twice", plain, headers("x-envoy-attempt-count", "1", "x-envoy-attempt-count", "1"), BadRequest},
		{"attempt twice, the first bad", plain, headers("x-envoy-attempt-count", "x", "x-envoy-attempt-count", "1"), BadRequest},
		{"attempt that wraps to 1", plain, headers("x-envoy-attempt-count", "18446744073709551617"), BadRequest},
		{"attempt long", plain, headers("x-envoy-attempt-count", strings.Repeat("1", 40)), BadRequest},

		{"one key", keyed, headers("x-mcp-auth-key", "k"), Allowed},
		{"empty key", keyed, headers("x-mcp-auth-key", ""), Allowed},
		{"two keys", keyed, headers("x-mcp-auth-key", "k", "x-mcp-auth-key", "k"), BadRequest},
		{"two keys, one in capitals", keyed, headers("x-mcp-auth-key", "k", "X-MCP-Auth-Key", "k"), BadRequest},
		{"two keys, both empty", keyed, headers("x-mcp-auth-key", "", "x-mcp-auth-key", ""), BadRequest},
		{"two keys, joined", keyed, headers("x-mcp-auth-key", "k,k"), BadRequest},
		{"two keys where none counts", plain, headers("x-mcp-auth-key", "k", "x-mcp-auth-key", "k"), Allowed},

		{"C1 two authorizations that go anyway", plain, headers("authorization", "a", "authorization", "b"), Allowed},
		{"C1 joined authorizations that go anyway", plain, headers("authorization", "Bearer a,Bearer b"), Allowed},
		{"H7 one that passes", passing, headers("authorization", "Bearer a"), Allowed},
		{"H7 two that pass", passing, headers("authorization", "Bearer a", "authorization", "Bearer a"), BadRequest},
		{"H7 joined", passing, headers("authorization", "Bearer a,Bearer b"), BadRequest},
		{"H7 joined with a blank", passing, headers("authorization", "Bearer a, Bearer b"), BadRequest},
		{"H7 joined with an empty one", passing, headers("authorization", "Bearer a,"), BadRequest},
		{"H7 joined, padding in the second", passing, headers("authorization", "Basic YQ==,Basic Yg=="), BadRequest},
		{"H7 joined with a bare scheme", passing, headers("authorization", "Negotiate,Bearer b"), BadRequest},
		{"H7 parameters of one scheme", passing, headers("authorization", `Digest username="a, b", realm = "r\",x", nc=1`), Allowed},
		{"H7 parameters, then another scheme", passing, headers("authorization", `Digest a="b", Bearer c=`), BadRequest},
		{"H7 a quote without an end", passing, headers("authorization", `Digest a="b, Bearer c`), BadRequest},
		{"H7 a quote with nothing in it", passing, headers("authorization", `Weird a"b`), Allowed},

		{"bad request before origin", plain, headers("origin", "https://evil", "x-envoy-attempt-count", "x"), BadRequest},
	} {
		t.Run(c.title, func(t *testing.T) {
			var sc Screening
			if got := c.u.Screen(&Request{Headers: c.in}, &sc); got != c.want {
				t.Errorf("want %v, got %v", c.want, got)
			}
		})
	}
}

func TestScreenCollects(t *testing.T) {
	u := ruled(HeadersSpec{}, oauth2)
	sc := Screening{
		Attempt: 9, Authorization: []byte("old"), Key: []byte("old"),
		Cookies: lines("old"), Remove: []string{"old"},
	}
	why := u.Screen(&Request{Headers: headers(
		"cookie", "a=1", "authorization", "Bearer first", "x-envoy-attempt-count", "2", "Cookie", "b=2",
		"authorization", "second", "x-mcp-auth-key", "k1", "x-mcp-auth-key", "k2", "cookie", "",
		"x-mcp-auth-token", "t", "X_Api_Key", "s", "x-mcp-crm-host", "evil", "x-mcp-crm-host", "evil",
	)}, &sc)
	want := Screening{
		Attempt: 2, Authorization: []byte("Bearer first"), Key: []byte("k1"), Cookies: lines("a=1", "b=2", ""),
		Remove: []string{"x-mcp-auth-token", "X_Api_Key", "x-mcp-crm-host", "x-mcp-crm-host"},
	}
	if diff := cmp.Diff(want, sc); diff != "" || why != Allowed {
		t.Errorf("%v, -want +got:\n%s", why, diff)
	}

	u.Screen(&Request{}, &sc)
	if diff := cmp.Diff(Screening{Attempt: 1, Cookies: [][]byte{}, Remove: []string{}}, sc); diff != "" {
		t.Errorf("after an empty request, -want +got:\n%s", diff)
	}
	if old := sc.Cookies[:3]; old[0] != nil || old[1] != nil {
		t.Errorf("the last request's cookies are still held: %q", old)
	}
}

func TestScreenTellsAnEmptyKeyFromNone(t *testing.T) {
	u := ruled(HeadersSpec{}, oauth2)
	var sc Screening
	u.Screen(&Request{Headers: []Header{{Name: "x-mcp-auth-key"}}}, &sc)
	if sc.Key == nil || len(sc.Key) != 0 {
		t.Errorf("want an empty key, got %v", sc.Key)
	}
	u.Screen(&Request{Headers: headers("x-mcp-auth", "k", "x_mcp_auth_key", "k")}, &sc)
	if sc.Key != nil {
		t.Errorf("want no key, got %q", sc.Key)
	}
}

// screenCheck holds the shapes that a header rule can have, and a plain reading
// of each.
type screenCheck struct {
	upstreams []*Upstream
	specs     []HeadersSpec
	sets      [][]string // the headers that a reply writes
	naive     naiveRule
}

func newScreenCheck() *screenCheck {
	// The zero rule comes first.
	c := &screenCheck{[]*Upstream{{}}, []HeadersSpec{{}}, [][]string{nil}, newNaiveRule()}
	add := func(spec HeadersSpec, credential Credential, set ...string) {
		c.upstreams = append(c.upstreams, ruled(spec, credential))
		c.specs = append(c.specs, spec)
		c.sets = append(c.sets, set)
	}
	none := Credential{}
	add(HeadersSpec{}, none)
	add(HeadersSpec{}, oauth2, "authorization")
	add(HeadersSpec{}, fixed("x-api-key", "x-org"), "x-api-key", "x-org")
	add(HeadersSpec{Remove: []string{"x-tenant", "x-org", "x-mcp-trace-*", "user_agent"}}, fixed("authorization", "x-org"), "authorization", "x-org")
	add(HeadersSpec{Remove: []string{"x-trace-*", "te*", "host", "x-envoy-*", "cookie", "content-length"}}, oauth2, "authorization")
	add(HeadersSpec{Remove: []string{"*"}}, oauth2, "authorization")
	add(HeadersSpec{Allow: []string{"x-tenant", "x-team-*", "authorization", "x-mcp-*"}}, oauth2, "authorization")
	add(HeadersSpec{Allow: []string{"x-tenant"}, Remove: []string{"accept", "x-ten*"}}, fixed("x-api-key"), "x-api-key")
	add(HeadersSpec{Pass: []string{"authorization", "x-api-key"}}, none)
	add(HeadersSpec{Pass: []string{"authorization", "proxy-authorization"}, Remove: []string{"authorization"}, Allow: []string{"x-a"}}, none)
	add(HeadersSpec{Pass: []string{"authorization", "x-api-key"}, Remove: []string{"auth*"}}, none)
	return c
}

// naive readings of the lists, for the fuzz test.
type naiveRule struct {
	secret, needed, untouchable *regexp.Regexp
}

func newNaiveRule() naiveRule {
	return naiveRule{
		secret: regexp.MustCompile(`^(authorization|proxy-authorization|x-litellm-(api-)?key|(x-|x-goog-)?api-key|ocp-apim-subscription-key|cookie2|` +
			`x-mcp-auth.*|x-mcp-(.*-)?(authorization|cookie|host|key))$`),
		needed: regexp.MustCompile(`^(content-type|content-encoding|te|expect|accept|accept-encoding|accept-language|` +
			`user-agent|cache-control|last-event-id|mcp-session-id|mcp-protocol-version|mcp-method|mcp-name|mcp-param-.*|` +
			`origin|x-request-id|x-forwarded-proto|x-forwarded-for|traceparent|tracestate|connection|upgrade|keep-alive)$`),
		untouchable: regexp.MustCompile(`^(:.*|host|x-envoy-.*|content-length|transfer-encoding|cookie|x-mcp-auth-guard)$`),
	}
}

func anyCase(s string) string { return strings.ToLower(s) }

func asHyphens(s string) string { return strings.ReplaceAll(anyCase(s), "_", "-") }

// inList matches as the policy file words it: a trailing * stands for any rest.
// fold is how patterns are read.
func inList(list []string, name string, fold func(string) string) bool {
	return slices.ContainsFunc(list, func(p string) bool {
		prefix, ok := strings.CutSuffix(fold(p), "*")
		return p == anyCase(name) || ok && strings.HasPrefix(fold(name), prefix)
	})
}

// goesOn says what the rules want of one header.
func (n *naiveRule) goesOn(spec HeadersSpec, set []string, name string) bool {
	switch {
	case n.untouchable.MatchString(anyCase(name)), slices.Contains(set, anyCase(name)):
		return true
	case inList(spec.Remove, name, asHyphens):
		return false
	case slices.Contains(spec.Pass, anyCase(name)):
		return true
	case n.secret.MatchString(asHyphens(name)):
		return false
	}
	return len(spec.Allow) == 0 || n.needed.MatchString(anyCase(name)) || inList(spec.Allow, name, anyCase)
}

// forwarded is what Envoy shows us under the rules Inspected asks for.
func forwarded(u *Upstream, all []Header) []Header {
	names, prefixes, everything := u.Inspected()
	var out []Header
	for _, h := range all {
		hasPrefix := func(p string) bool { return strings.HasPrefix(anyCase(h.Name), p) }
		if everything || slices.Contains(names, anyCase(h.Name)) || slices.ContainsFunc(prefixes, hasPrefix) {
			out = append(out, h)
		}
	}
	return out
}

// run does to the headers what Envoy does with the reply and looks at
// what is left. Whatever Envoy did not show us must come out the same.
func (c *screenCheck) run(t *testing.T, in []Header) {
	t.Helper()
	for i, u := range c.upstreams {
		for _, seen := range [][]Header{in, forwarded(u, in)} {
			var sc Screening
			u.Screen(&Request{Headers: seen}, &sc)
			removed := map[string]bool{}
			for _, name := range slices.Concat(sc.Remove, u.Headers.Always()) {
				removed[anyCase(name)] = true
				if c.naive.untouchable.MatchString(anyCase(name)) || slices.Contains(c.sets[i], anyCase(name)) {
					t.Fatalf("rule %d removes %q, which is not for a removal", i, name)
				}
				if !mutable(u, name) {
					t.Fatalf("rule %d removes %q, and the mutation rules forbid it", i, name)
				}
			}
			for _, name := range sc.Remove {
				// The zero rule has no list of its own and says some twice.
				if i > 0 && slices.Contains(u.Headers.Always(), name) {
					t.Fatalf("rule %d names %q, which is removed anyway", i, name)
				}
			}
			for _, h := range in {
				if want := c.naive.goesOn(c.specs[i], c.sets[i], h.Name); want == removed[anyCase(h.Name)] {
					t.Fatalf("rule %d: %q goes on: want %v, got %v", i, h.Name, want, !want)
				}
			}
		}
	}
}

func mutable(u *Upstream, name string) bool {
	names, prefixes, all := u.Mutable()
	return all || slices.Contains(names, anyCase(name)) ||
		slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(anyCase(name), p) })
}

// Every denied name in every spelling of dash, underscore and case, with the
// plain forms beside it.
func TestC2_EverySpellingOfASecretHeader(t *testing.T) {
	check := newScreenCheck()
	for _, name := range []string{
		"authorization", "proxy-authorization", "x-litellm-api-key", "x-api-key", "x-mcp-auth", "x-mcp-auth-key",
		"x-mcp-auth-token", "x-mcp-authorization", "x-mcp-crm-authorization", "x-mcp-crm-cookie", "x-mcp-crm-host",
		"x-mcp-a-b-cookie", "x-mcp--host", "cookie2",
		// Whatever LiteLLM takes a key of its own in.
		"api-key", "x-goog-api-key", "ocp-apim-subscription-key", "x-litellm-key",
		"x-mcp-crm-x-litellm-api-key", "x-mcp-crm-api-key", "x-mcp-crm-ocp-apim-subscription-key",
	} {
		for _, spelling := range spellings(name) {
			check.run(t, headers(spelling, "v"))
			check.run(t, headers(strings.ToUpper(spelling), "v", spelling, "w"))
		}
	}
}

func spellings(name string) []string {
	head, tail, found := strings.Cut(name, "-")
	if !found {
		return []string{name}
	}
	var out []string
	for _, rest := range spellings(tail) {
		out = append(out, head+"-"+rest, head+"_"+rest)
	}
	return out
}

func TestScreenKeepsWhatMustGoOn(t *testing.T) {
	for _, name := range []string{
		":authority", ":path", "host", "content-type", "content-length", "content-encoding", "transfer-encoding", "te",
		"expect", "accept", "accept-encoding", "accept-language", "user-agent", "cache-control", "last-event-id",
		"mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name", "mcp-param-region", "x-request-id",
		"x-envoy-original-path", "x-forwarded-proto", "x-forwarded-for", "traceparent", "tracestate", "connection", "upgrade", "keep-alive",
	} {
		for _, u := range []*Upstream{ruled(HeadersSpec{}, oauth2), ruled(HeadersSpec{Allow: []string{"x-tenant"}}, oauth2)} {
			for _, spelling := range []string{name, strings.ToUpper(name)} {
				var sc Screening
				u.Screen(&Request{Headers: headers(spelling, "v")}, &sc)
				if len(sc.Remove) != 0 {
					t.Errorf("T3: %q is removed", spelling)
				}
			}
		}
	}
}

func FuzzScreen(f *testing.F) {
	f.Add("authorization: Bearer x\ncookie: a=1\nX_Api_Key: y\nx-mcp-crm-host: evil")
	f.Add("x-tenant: a\nx_tenant: b\nbaggage: c\nx-trace-id: d\nte: trailers\nX-Mcp-Auth-Guard: e\nx_mcp_auth_guard: f")
	f.Add("x-envoy-attempt-count: 2\norigin: null\norigin: x\nx-mcp-auth-key: \nx-mcp-auth-key: k")
	f.Add("x-mcp-authority: 1\nx-mcp-cookie: 2\nx-mcp-host: 3\nx-mcp-hosts: 4\nx-ten: 5\n:path: /\nauthorization: a,b")
	check := newScreenCheck()
	f.Fuzz(func(t *testing.T, text string) {
		var in []Header
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			if !isFieldName(name) {
				continue
			}
			in = append(in, Header{name, []byte(value)})
		}
		check.run(t, in)
	})
}

// isFieldName holds for what Envoy lets through as a header name.
func isFieldName(name string) bool {
	rest := strings.TrimPrefix(name, ":")
	return rest != "" && !strings.ContainsFunc(rest, func(r rune) bool {
		return r >= 0x7f || r <= ' ' || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	})
}

// decision is what the request path asks of this package.
func decision(s *Set, r *Request, sc *Screening, buf []byte) (Reason, CookieResult) {
	u, why := s.Lookup(r)
	if why != Allowed {
		return why, CookieResult{}
	}
	if why = u.Screen(r, sc); why != Allowed {
		return why, CookieResult{}
	}
	if _, why = u.Authorize(r, sc); why != Allowed {
		return why, CookieResult{}
	}
	return Allowed, u.Cookies.Filter(buf, sc.Cookies)
}

// litellmRequest is a tool call as LiteLLM sends it, with two cookie lines.
func litellmRequest(name, key string) *Request {
	return &Request{
		Name: name,
		Headers: headers(
			":authority", "127.0.0.1:20010", ":path", "/mcp", ":method", "POST", ":scheme", "http",
			"accept-encoding", "gzip, deflate", "user-agent", "python-httpx2/2.16.2",
			"accept", "application/json, text/event-stream", "content-type", "application/json", "content-length", "152",
			"mcp-session-id", "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "mcp-protocol-version", "2025-11-25",
			"cookie", "session_id=abc; tracking=zzz", "cookie", "user_context=u; token=secret",
			"x-mcp-auth-key", key, "x-request-id", "0b9ac637-9d2f-4c3c-8d6e-3f0f6a1c2b3d",
		),
	}
}

func decisionSet(upstreams int, spec HeadersSpec, duplicates string) *Set {
	s := manyUpstreams(upstreams)
	for _, u := range s.Upstreams {
		u.Credential = oauth2
		u.Callers = []*Caller{sanCaller("litellm", "spiffe://company/litellm"), keyCaller("ci", "old", "k")}
		u.Headers = NewHeaderRule(spec, oauth2)
		u.Cookies = NewCookieRule(CookiesSpec{Allow: []string{"session_id", "user_context"}, Duplicates: duplicates})
	}
	return s
}

func TestDecisionDoesNotAllocate(t *testing.T) {
	for title, spec := range map[string]HeadersSpec{
		"plain":  {},
		"remove": {Remove: []string{"x-tenant", "x-trace-*"}},
		"allow":  {Allow: []string{"x-tenant", "x-team-*"}},
	} {
		for _, duplicates := range []string{"keep", "first", "refuse"} {
			s := decisionSet(1000, spec, duplicates)
			for _, r := range []*Request{
				litellmRequest("up-00500", "k"),
				litellmRequest("up-00500", "wrong"),
				litellmRequest("up-00500", "k,k"),
				litellmRequest("unknown", "k"),
				{Name: "up-00500", Headers: headers("authorization", "Bearer sk", "X_Api_Key", "k", "x-mcp-a-cookie", "c", "origin", "o")},
				{Route: "route-00500/x", URISAN: "spiffe://company/litellm"},
			} {
				var sc Screening
				buf := make([]byte, 0, 512)
				if n := testing.AllocsPerRun(50, func() { decision(s, r, &sc, buf) }); n != 0 {
					t.Errorf("%s, duplicates %s, %+v: want 0 allocations, got %v", title, duplicates, r, n)
				}
			}
		}
	}
}

func TestDecisionOfALiteLLMCall(t *testing.T) {
	s := decisionSet(3, HeadersSpec{}, "keep")
	var sc Screening
	why, cookies := decision(s, litellmRequest("up-00001", "k"), &sc, nil)
	if why != Allowed || cookies.Edit != CookieSet || !bytes.Equal(cookies.Value, []byte("session_id=abc; user_context=u")) {
		t.Errorf("got %v, %s %q", why, cookies.Edit.label(), cookies.Value)
	}
}

func BenchmarkDecision(b *testing.B) {
	for _, c := range []struct {
		name      string
		upstreams int
		spec      HeadersSpec
	}{
		{"1_upstream", 1, HeadersSpec{}},
		{"10000_upstreams", 10_000, HeadersSpec{}},
		{"default_drop", 1, HeadersSpec{Allow: []string{"x-tenant", "x-team-*"}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := decisionSet(c.upstreams, c.spec, "keep")
			r := litellmRequest(fmt.Sprintf("up-%05d", c.upstreams/2), "k")
			var sc Screening
			buf := make([]byte, 0, 512)
			b.ReportAllocs()
			for b.Loop() {
				if why, _ := decision(s, r, &sc, buf); why != Allowed {
					b.Fatal(why)
				}
			}
		})
	}
}
