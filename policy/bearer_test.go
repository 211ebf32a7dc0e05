package policy

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func jwtCaller(name, header string) *Caller { return &Caller{Name: name, JWT: &JWT{Header: header}} }

// tokened makes an upstream of these callers.
func tokened(credential Credential, callers ...*Caller) *Upstream {
	headers := NewHeaderRule(HeadersSpec{}, credential, tokenHeaders(callers)...)
	return &Upstream{Callers: callers, bearers: bearers(callers), Headers: headers, Credential: credential}
}

func names(callers []*Caller) []string {
	var all []string
	for _, c := range callers {
		all = append(all, c.Name)
	}
	return all
}

func TestTokenOf(t *testing.T) {
	u := tokened(oauth2, keyCaller("ci", "k"), jwtCaller("people", "authorization"), jwtCaller("agents", "x-user-token"),
		jwtCaller("partners", "authorization"), &Caller{Name: "anyone", Any: true})
	both, agents := []string{"people", "partners"}, []string{"agents"}
	for _, c := range []struct {
		title      string
		in         []Header
		candidates []string
		token      string
		why        Reason
	}{
		{"none", headers("x-mcp-auth-key", "k"), nil, "", Allowed},
		{"A9 in authorization", headers("Authorization", "Bearer a.b-c_d~e+f/g=="), both, "a.b-c_d~e+f/g==", Allowed},
		{"A9 scheme in any case", headers("authorization", "bEARER t"), both, "t", Allowed},
		{"A9 several blanks", headers("authorization", "Bearer   t"), both, "t", Allowed},
		{"in a header of its own", headers("x-user-token", "t"), agents, "t", Allowed},
		{"in a header of its own, with the scheme", headers("X-User-Token", "bearer t"), agents, "t", Allowed},
		{"a scheme alone, where it may be a token", headers("x-user-token", "bearer"), agents, "bearer", Allowed},
		{"A9 bare in authorization", headers("authorization", "t"), nil, "", CallerInvalid},
		{"A9 another scheme", headers("authorization", "Basic dTpw"), nil, "", CallerInvalid},
		{"A9 no token", headers("authorization", "Bearer "), nil, "", CallerInvalid},
		{"A9 scheme alone", headers("authorization", "Bearer"), nil, "", CallerInvalid},
		{"A9 padding alone", headers("authorization", "Bearer =="), nil, "", CallerInvalid},
		{"A9 padding within", headers("authorization", "Bearer a=b"), nil, "", CallerInvalid},
		{"A9 a tab", headers("authorization", "Bearer\tt"), nil, "", CallerInvalid},
		{"A9 two words", headers("authorization", "Bearer a b"), nil, "", CallerInvalid},
		{"A9 a trailing blank", headers("authorization", "Bearer a "), nil, "", CallerInvalid},
		{"A9 empty", headers("authorization", ""), nil, "", CallerInvalid},
		{"A9 another character", headers("x-user-token", "a\"b"), nil, "", CallerInvalid},
		{"beside a right key, no token", headers("x-mcp-auth-key", "k", "authorization", "Basic dTpw"), nil, "", CallerInvalid},
	} {
		t.Run(c.title, func(t *testing.T) {
			var sc Screening
			r := &Request{Headers: c.in}
			if why := u.Screen(r, &sc); why != Allowed {
				t.Fatalf("screen: %v", why)
			}
			candidates, token, why := u.TokenOf(&sc)
			if diff := cmp.Diff(c.candidates, names(candidates)); diff != "" || string(token) != c.token || why != c.why {
				t.Errorf("want %q %v, got %q %v; candidates (-want +got):\n%s", c.token, c.why, token, why, diff)
			}
			// A token is never ignored for a weaker proof.
			caller, why := u.Authorize(r, &sc)
			if presented := c.title != "none"; presented != (why == CallerInvalid) || presented != (caller == nil) {
				t.Errorf("without looking at the token: %v %v", caller, why)
			}
		})
	}
}

// Scratch space from another upstream's request has no token of this one.
func TestTokenOfForgetsTheLastRequest(t *testing.T) {
	u, keyed := tokened(oauth2, jwtCaller("people", "authorization")), tokened(oauth2, keyCaller("ci", "k"))
	var sc Screening
	u.Screen(&Request{Headers: headers("authorization", "Bearer t")}, &sc)
	for _, up := range []*Upstream{keyed, u} {
		up.Screen(&Request{}, &sc)
		if candidates, token, why := up.TokenOf(&sc); candidates != nil || token != nil || why != Allowed {
			t.Errorf("want nothing, got %v %q %v", candidates, token, why)
		}
	}
}

func TestScreenOfTokens(t *testing.T) {
	people := tokened(oauth2, jwtCaller("people", "authorization"))
	two := tokened(oauth2, jwtCaller("people", "authorization"), jwtCaller("agents", "x-user-token"))
	for _, c := range []struct {
		title string
		u     *Upstream
		in    []Header
		want  Reason
	}{
		{"H7 one", people, headers("authorization", "Bearer a"), Allowed},
		{"H7 two", people, headers("authorization", "Bearer a", "Authorization", "Bearer a"), BadRequest},
		{"H7 two, one empty", people, headers("authorization", "", "authorization", "Bearer a"), BadRequest},
		{"H7 two joined", people, headers("authorization", "Bearer a,Bearer b"), BadRequest},
		{"H7 two in another header", two, headers("x-user-token", "a", "x-user-token", "b"), BadRequest},
		{"A8 one in each header", two, headers("authorization", "Bearer a", "x-user-token", "b"), BadRequest},
		{"A8 the other header decides nothing here", people, headers("authorization", "Bearer a", "x-user-token", "b"), Allowed},
		{"A8 in the query", people, headers(":path", "/mcp?access_token=t"), BadRequest},
		{"A8 in the query, behind others", people, headers(":path", "/mcp?a=b&&c;access_token=t#x"), BadRequest},
		{"A8 in the query, without a value", people, headers(":path", "/mcp?access_token"), BadRequest},
		{"A8 in the query, escaped", people, headers(":path", "/mcp?%61ccess%5Ftoke%6e=t"), BadRequest},
		{"A8 in the query, beside a header", people, headers("authorization", "Bearer a", ":path", "/?access_token=t"), BadRequest},
		{"a longer name", people, headers(":path", "/mcp?access_token2=t&my_access_token=t&access_toke"), Allowed},
		{"a broken escape", people, headers(":path", "/mcp?%zzccess_token=t&%6=a&%"), Allowed},
		{"the name in the path", people, headers(":path", "/access_token=t"), Allowed},
		{"the name as a value", people, headers(":path", "/mcp?a=access_token"), Allowed},
		{"where nobody has a token", ruled(HeadersSpec{}, oauth2), headers(":path", "/mcp?access_token=t", "authorization", "a", "authorization", "b"), Allowed},
	} {
		t.Run(c.title, func(t *testing.T) {
			var sc Screening
			if got := c.u.Screen(&Request{Headers: c.in}, &sc); got != c.want {
				t.Errorf("want %v, got %v", c.want, got)
			}
		})
	}
}

// A10: the caller's token goes on at no upstream, not only at those that read it.
func TestA10_TokenHeadersNeverGoOn(t *testing.T) {
	set := mustParse(t, "testdata/good/users.yaml")
	for _, up := range set.Upstreams {
		for _, name := range []string{"x-user-token", "x-id-token"} {
			if !slices.Contains(up.Headers.Always(), name) {
				t.Errorf("%s: want %s taken off, got %q", up.Name, name, up.Headers.Always())
			}
			if names, _, all := up.Mutable(); !all && !slices.Contains(names, name) {
				t.Errorf("%s: want %s mutable, got %q", up.Name, name, names)
			}
		}
		_, prefixes, _ := up.Inspected()
		if !slices.Contains(prefixes, "x-user_") {
			t.Errorf("%s: want x-user_ shown, got %q", up.Name, prefixes)
		}
		var sc Screening
		up.Screen(&Request{Headers: headers("x-user_token", "t")}, &sc)
		if !slices.Equal(sc.Remove, []string{"x-user_token"}) {
			t.Errorf("%s: want x-user_token removed, got %q", up.Name, sc.Remove)
		}
	}
}

// What a decision reads must be sent here.
func TestInspectedOfTokens(t *testing.T) {
	names, _, _ := tokened(oauth2, jwtCaller("agents", "x-user-token")).Inspected()
	for _, want := range []string{"x-user-token", ":path"} {
		if !slices.Contains(names, want) {
			t.Errorf("want %s, got %q", want, names)
		}
	}
	if names, _, _ := ruled(HeadersSpec{}, oauth2).Inspected(); slices.Contains(names, ":path") {
		t.Errorf("want the path of a request only where a token could be in it, got %q", names)
	}
}

// A1, A4, T15: a caller who could log in is told to, any other is not.
func TestStatusOfTheUpstream(t *testing.T) {
	with, without := tokened(oauth2, jwtCaller("people", "authorization")), tokened(oauth2, keyCaller("ci", "k"))
	for r := range reasonCount {
		want := r.Status()
		if r == CallerUnknown || r == CallerInvalid {
			want = 401
		}
		if got := with.Status(r); got != want {
			t.Errorf("%v: want %d, got %d", r, want, got)
		}
		var none *Upstream
		if without.Status(r) != r.Status() || none.Status(r) != r.Status() {
			t.Errorf("%v: want %d where no caller has a token, got %d and %d", r, r.Status(), without.Status(r), none.Status(r))
		}
	}
	if got, want := string(with.Body(CallerUnknown, nil)), string(RefusalBody(401, CallerUnknown.String(), CallerUnknown.Text())); got != want {
		t.Errorf("want %s, got %s", want, got)
	}
}

func TestTokensAllocateNothing(t *testing.T) {
	u := tokened(oauth2, jwtCaller("people", "authorization"), jwtCaller("agents", "x-user-token"))
	r := &Request{Headers: headers(":path", "/mcp?a=%61", "authorization", "Bearer a.b.c")}
	var sc Screening
	if n := testing.AllocsPerRun(50, func() {
		u.Screen(r, &sc)
		u.TokenOf(&sc)
	}); n != 0 {
		t.Errorf("want no allocation, got %v", n)
	}
}
