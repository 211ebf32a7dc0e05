package tokens

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// enterprise is an identity provider, and an authorization server that trusts it.
type enterprise struct{ idp, as *tokenstest.Server }

func startEnterprise(t *testing.T) enterprise {
	t.Helper()
	idp := startAS(t, tokenstest.Config{})
	as := startAS(t, tokenstest.Config{Trust: map[string]jose.JSONWebKeySet{idp.Issuer(): idp.Keys()}})
	return enterprise{idp, as}
}

// jag is the credential for an ID-JAG of this enterprise.
func (e enterprise) jag() *policy.OAuth2 {
	return jagSpec(e.as.TokenURL(), e.as.Issuer(), e.idp.TokenURL())
}

// verified is a principal with a real token.
func verified(as *tokenstest.Server, subject string, id bool) *Principal {
	p := Principal{Issuer: as.Issuer(), Subject: subject, Expiry: time.Now().Add(time.Hour), IDToken: id}
	if id {
		return newPrincipal(p, as.IDToken(subject, clientID, time.Hour))
	}
	return newPrincipal(p, as.AccessToken(subject, time.Hour))
}

// subOf returns the sub of a token that a real server issued.
func subOf(t *testing.T, tok *Token) string {
	t.Helper()
	var c struct {
		Subject string `json:"sub"`
	}
	if !segment(strings.Split(string(tok.Authorization()), ".")[1], &c) {
		t.Fatal("the token is no JWT")
	}
	return c.Subject
}

// TestO5_O6_U9_U10_U1_TheRequests: each grant with two users on servers that
// verify what they are shown.
func TestO5_O6_U9_U10_U1_TheRequests(t *testing.T) {
	const exchange, bearer = "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:grant-type:jwt-bearer"
	e := startEnterprise(t)
	asserted := userSpec(e.idp.TokenURL())
	asserted.Grant = policy.JWTBearer
	found := userSpec("")
	found.Issuer = e.idp.Issuer()
	post := userSpec(e.idp.TokenURL())
	post.AuthMethod = policy.ClientSecretPost
	for name, c := range map[string]struct {
		o    *policy.OAuth2
		id   bool
		want map[string]string // of the last request to the identity provider
	}{
		"token_exchange":          {userSpec(e.idp.TokenURL()), false, map[string]string{"grant_type": exchange, "subject_token_type": typeAccessToken, "requested_token_type": typeAccessToken, "scope": "mcp.read mcp.write"}},
		"token_exchange, post":    {post, false, map[string]string{"grant_type": exchange, "client_secret": canary}},
		"token_exchange, ID":      {userSpec(e.idp.TokenURL()), true, map[string]string{"grant_type": exchange, "subject_token_type": typeIDToken, "requested_token_type": typeAccessToken}},
		"token_exchange, issuer":  {found, false, map[string]string{"grant_type": exchange}},
		"jwt_bearer":              {asserted, false, map[string]string{"grant_type": bearer}},
		"id_jag":                  {e.jag(), true, map[string]string{"grant_type": exchange, "subject_token_type": typeIDToken, "requested_token_type": typeIDJAG, "audience": e.as.Issuer(), "scope": "mcp.read mcp.write"}},
		"id_jag, an access token": {e.jag(), false, map[string]string{"subject_token_type": typeAccessToken}},
	} {
		t.Run(name, func(t *testing.T) {
			s := source(t, newCache(t, nil), "a", c.o)
			for _, who := range []string{"alice", "bob"} {
				p := verified(e.idp, who, c.id)
				tok, err := s.TokenFor(t.Context(), p)
				if err != nil {
					t.Fatal(err)
				}
				if got := subOf(t, tok); got != who || s.CachedFor(p) != tok {
					t.Errorf("want a token of %s, got one of %s", who, got)
				}
				log := e.idp.Recorded()
				r := log[len(log)-1]
				c.want["resource"] = "https://mcp.company.com/mcp"
				for name, want := range c.want {
					if got := r.Form[name]; len(got) != 1 || got[0] != want {
						t.Errorf("%s: want %q, got %q", name, want, got)
					}
				}
				shown := r.Form.Get("subject_token") + r.Form.Get("assertion")
				if shown != p.token() || r.Form.Has("actor_token_type") || r.Form.Has("actor_token") || r.Query != "" {
					t.Errorf("want the caller's token shown once, got %v", r.Form)
				}
				if c.o.Grant == policy.IDJAG {
					secondStep(t, e.as)
				}
			}
		})
	}
}

// secondStep looks at the last request of an id_jag.
func secondStep(t *testing.T, as *tokenstest.Server) {
	t.Helper()
	log := as.Recorded()
	r := log[len(log)-1]
	if r.Form.Get("grant_type") != jwtBearer || r.Form.Get("resource") == "" || r.Form.Has("requested_token_type") ||
		r.Form.Has("subject_token") || !strings.HasPrefix(r.Header.Get("Authorization"), "Basic ") {
		t.Errorf("step 2: got %v", r.Form)
	}
}

// TestO6_U10_U11_O12_WrongAnswers: nothing but what was asked for is taken, and a
// wrong ID-JAG goes nowhere.
func TestO6_U10_U11_O12_WrongAnswers(t *testing.T) {
	set := func(name string, value any) func(map[string]any) {
		return func(a map[string]any) {
			if a[name] = value; value == nil {
				delete(a, name)
			}
		}
	}
	claim := func(name string, value any) func(*string, map[string]any) {
		return func(_ *string, c map[string]any) { set(name, value)(c) }
	}
	typ := func(s string) func(*string, map[string]any) { return func(typ *string, _ map[string]any) { *typ = s } }
	for name, c := range map[string]struct {
		jag    bool
		answer func(map[string]any)
		idjag  func(*string, map[string]any)
		code   string // "" for a token
	}{
		"as it should be":          {false, nil, nil, ""},
		"no issued_token_type":     {false, set("issued_token_type", nil), nil, "issued_token_type"},
		"null issued_token_type":   {false, func(a map[string]any) { a["issued_token_type"] = nil }, nil, "issued_token_type"},
		"a list of types":          {false, set("issued_token_type", []string{typeAccessToken}), nil, "issued_token_type"},
		"a refresh token":          {false, set("issued_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), nil, "issued_token_type"},
		"an ID-JAG for a token":    {false, set("issued_token_type", typeIDJAG), nil, "issued_token_type"},
		"upper case":               {false, set("issued_token_type", strings.ToUpper(typeAccessToken)), nil, "issued_token_type"},
		"N_A":                      {false, set("token_type", "N_A"), nil, "token_type"},
		"no token_type":            {false, set("token_type", nil), nil, "token_type"},
		"an ID-JAG":                {true, nil, nil, ""},
		"n_a":                      {true, set("token_type", "n_a"), nil, ""},
		"a media type":             {true, nil, typ("application/OAuth-ID-JAG+jwt"), "later"},
		"a list of one":            {true, nil, func(_ *string, c map[string]any) { c["aud"] = []any{c["aud"]} }, "later"},
		"ID-JAG of no issued type": {true, set("issued_token_type", nil), nil, "issued_token_type"},
		"a token for an ID-JAG":    {true, set("issued_token_type", typeAccessToken), nil, "issued_token_type"},
		"an ID-JAG that is Bearer": {true, set("token_type", "Bearer"), nil, "token_type"},
		"not a JWT":                {true, set("access_token", "opaque"), nil, "id_jag"},
		"two parts":                {true, set("access_token", "e30.e30"), nil, "id_jag"},
		"unsigned": {true, func(a map[string]any) {
			jag, _ := a["access_token"].(string)
			a["access_token"] = jag[:strings.LastIndexByte(jag, '.')+1]
		}, nil, "id_jag"},
		"no JSON":          {true, set("access_token", "x.y.z"), nil, "id_jag"},
		"a line break":     {true, set("access_token", "a.b.c\r\nd"), nil, "id_jag"},
		"typ JWT":          {true, nil, typ("JWT"), "id_jag"},
		"typ at+jwt":       {true, nil, typ("at+jwt"), "id_jag"},
		"no audience":      {true, nil, claim("aud", nil), "id_jag"},
		"another audience": {true, nil, claim("aud", "https://other"), "id_jag"},
		"two audiences":    {true, nil, func(_ *string, c map[string]any) { c["aud"] = []any{c["aud"], "https://other"} }, "id_jag"},
	} {
		t.Run(name, func(t *testing.T) {
			e := startEnterprise(t)
			e.idp.EditAnswer(c.answer)
			e.idp.EditIDJAG(c.idjag)
			o := userSpec(e.idp.TokenURL())
			if c.jag {
				o = e.jag()
			}
			s := source(t, newCache(t, nil), "a", o)
			p := verified(e.idp, "alice", c.jag)
			tok, err := s.TokenFor(t.Context(), p)
			switch c.code {
			case "":
				if err != nil || subOf(t, tok) != "alice" {
					t.Errorf("want a token, got %v", err)
				}
			case "later": // this server is stricter than the client, which leaves that to it
				if failed(t, err).Code != "invalid_grant" {
					t.Errorf("got %v", err)
				}
			default:
				if e := failed(t, err); e.Code != c.code || e.Kind != Refused {
					t.Errorf("want %s, got %v", c.code, err)
				}
				if e.as.Requests() != 0 || s.CachedFor(p) != nil {
					t.Error("what was refused went on")
				}
			}
		})
	}
}

// TestU11_AnIDJAGIsShownOnce: one for each access token, and after invalid_grant
// one more, and no third.
func TestU11_AnIDJAGIsShownOnce(t *testing.T) {
	e := startEnterprise(t)
	s := source(t, newCache(t, nil), "a", e.jag())
	p := verified(e.idp, "alice", true)
	tok := heldFor(t, s, p)
	e.as.FailNext(1, "invalid_grant")
	tok, err := s.ReplaceFor(t.Context(), s.Mark(p), tok.Authorization())
	if err != nil || subOf(t, tok) != "alice" || e.idp.Requests() != 3 || e.as.Requests() != 3 {
		t.Errorf("want one new ID-JAG after invalid_grant, got %v with %d and %d requests", err, e.idp.Requests(), e.as.Requests())
	}
	e.as.Fail("invalid_grant")
	_, err = s.TokenFor(t.Context(), verified(e.idp, "bob", true))
	if f := failed(t, err); f.Code != "invalid_grant" || e.idp.Requests() != 5 || e.as.Requests() != 5 {
		t.Errorf("want two tries and no third, got %v with %d and %d requests", err, e.idp.Requests(), e.as.Requests())
	}
	e.as.Fail("invalid_target") // any other refusal is final
	_, err = s.TokenFor(t.Context(), verified(e.idp, "carol", true))
	if f := failed(t, err); f.Code != "invalid_target" || e.idp.Requests() != 6 || e.as.Requests() != 6 {
		t.Errorf("want one try, got %v with %d and %d requests", err, e.idp.Requests(), e.as.Requests())
	}
	seen := map[string]bool{}
	for _, r := range e.as.Recorded() {
		jag := r.Form.Get("assertion")
		if seen[jag] {
			t.Error("an ID-JAG was shown twice")
		}
		seen[jag] = true
	}
}

// TestO17_AUserThatIsRefused: the server's word about one user does not touch
// another.
func TestO17_AUserThatIsRefused(t *testing.T) {
	for grant, code := range map[policy.Grant]string{policy.TokenExchange: "invalid_request", policy.JWTBearer: "invalid_grant", policy.IDJAG: "invalid_request"} {
		e := startEnterprise(t)
		e.idp.Disable("alice")
		o := userSpec(e.idp.TokenURL())
		if o.Grant = grant; grant == policy.IDJAG {
			o = e.jag()
		}
		s := source(t, newCache(t, nil), "a", o)
		for range 3 {
			_, err := s.TokenFor(t.Context(), verified(e.idp, "alice", grant == policy.IDJAG))
			if e := failed(t, err); e.Code != code || e.RetryAfter < userHold {
				t.Errorf("%s: want %s, got %v after %s", grant, code, err, e.RetryAfter)
			}
		}
		if tok := heldFor(t, s, verified(e.idp, "bob", grant == policy.IDJAG)); subOf(t, tok) != "bob" {
			t.Errorf("%s: bob got another's token", grant)
		}
		forged := newPrincipal(Principal{Issuer: "i", Subject: "eve", Expiry: time.Now().Add(time.Hour)}, "e30.e30.e30")
		if _, err := s.TokenFor(t.Context(), forged); err == nil {
			t.Errorf("%s: the server took a token that nobody signed", grant)
		}
	}
}

// TestS4_T2_A10_UserCanary runs each grant through good and bad days at trace
// level, and looks for subject tokens, ID-JAGs and access tokens in all that
// comes out.
func TestS4_T2_A10_UserCanary(t *testing.T) {
	e := startEnterprise(t)
	var log buffer
	var out strings.Builder
	c := newCache(t, func(c *Config) {
		c.Log = zerolog.New(&log).Level(zerolog.TraceLevel)
		c.Observe = func(f Fetch) { _, _ = fmt.Fprintf(&log, "%+v", f) }
	})
	var secrets []string
	faults := []tokenstest.Fault{"", tokenstest.EchoForm, "echo_description", "error_in_200", tokenstest.HTML, tokenstest.Redirect307, "redirect_302_same_host"}
	for i, f := range faults {
		for _, grant := range []policy.Grant{policy.TokenExchange, policy.JWTBearer, policy.IDJAG} {
			o := userSpec(e.idp.TokenURL())
			if o.Grant = grant; grant == policy.IDJAG {
				o = e.jag()
			}
			o.ClientID = clientID
			s := source(t, c, fmt.Sprint("up", i, grant), with(o, func(o *policy.OAuth2) { o.MaxLifetime += time.Duration(i) }))
			e.as.Fail(f)
			if grant != policy.IDJAG {
				e.idp.Fail(f)
			}
			p := verified(e.idp, fmt.Sprint("alice", i), grant == policy.IDJAG)
			tok, err := s.TokenFor(t.Context(), p)
			c.wg.Wait() // what is printed below is at rest
			e.idp.Heal()
			secrets = append(secrets, p.token())
			if tok != nil {
				secrets = append(secrets, strings.TrimPrefix(string(tok.Authorization()), "Bearer "))
			}
			status, jerr := json.Marshal(s.Status())
			if jerr != nil {
				t.Fatal(jerr)
			}
			u := c.users.find(s.entry.crowd.nameOf(p), time.Now())
			fmt.Fprintf(&out, "%v %+v %#v %s %+v %v %+v %s %+v %+v", err, err, err, status, s.Status(), tok, p, s.Mark(p), u, s.entry.crowd)
			// Trouble of one round is not that of the next.
			for _, g := range c.gates {
				g.outage.fail = failure{}
			}
		}
	}
	for _, r := range e.as.Recorded() {
		secrets = append(secrets, r.Form.Get("assertion"))
	}
	shown := out.String() + log.String()
	for _, s := range secrets {
		for _, part := range strings.Split(s, ".")[1:] {
			// What is quoted is cut, so the beginning is enough.
			if part = part[:min(len(part), 40)]; strings.Contains(shown, part) {
				t.Errorf("%q of a token is in the output", part)
			}
		}
	}
	noSecret(t, shown)
	if e.idp.Strayed()+e.as.Strayed() != 0 {
		t.Error("a redirect was followed")
	}
	if !strings.Contains(shown, "redirect_refused") || !strings.Contains(shown, "http_500") || len(secrets) < len(faults)*3 {
		t.Errorf("want the failures to show, got %s", shown)
	}
}

// TestO4_U9_BothClientsProveThemselves: the clients of both steps prove
// themselves each with its own key.
func TestO4_U9_BothClientsProveThemselves(t *testing.T) {
	key := newEd()
	idp := startAS(t, tokenstest.Config{Clients: keyed(key, "")})
	as := startAS(t, tokenstest.Config{Trust: map[string]jose.JSONWebKeySet{idp.Issuer(): idp.Keys()}})
	o := jagSpec(as.TokenURL(), as.Issuer(), "")
	o.IDP = with(signed(idp), func(i *policy.OAuth2) { i.Audience, i.Resource = as.Issuer(), "" })
	c := newCache(t, func(c *Config) { c.Secrets = refStore{"PRIVATE_KEY": pkcs8(key), "CLIENT_SECRET": canary} })
	s := source(t, c, "a", o)
	for _, who := range []string{"alice", "bob"} {
		if tok := heldFor(t, s, verified(idp, who, true)); subOf(t, tok) != who {
			t.Errorf("got a token of %s", subOf(t, tok))
		}
	}
	for _, r := range idp.Recorded() {
		if !r.Form.Has("client_assertion") || r.Header.Get("Authorization") != "" {
			t.Errorf("got %v", r.Form)
		}
	}
}

// TestS4_NoPartOfAUsersTokenIsQuoted: what a server says of the claims is not
// repeated, even without the signature.
func TestS4_NoPartOfAUsersTokenIsQuoted(t *testing.T) {
	w := newUserWorld(t, nil)
	w.as.set(func(f *userAS) {
		f.sick["alice"] = `400{"error":"invalid_request","error_description":"bad claims cl4ims in it"}`
	})
	_, err := w.s.TokenFor(t.Context(), callerWith("alice", "cl4ims", time.Hour))
	if e := failed(t, err); strings.Contains(e.Error(), "cl4ims") || e.Code != "invalid_request" {
		t.Errorf("got %v", err)
	}
}
