package tokens

import (
	"bytes"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// discovered is a credential that knows the issuer alone.
func discovered(issuer string) *policy.OAuth2 {
	o := spec("")
	o.Issuer, o.AuthMethod = issuer, ""
	return o
}

// TestU2_WhereMetadataIsLookedFor: the three forms in their order, and only a 404
// leads on.
func TestU2_WhereMetadataIsLookedFor(t *testing.T) {
	const oauth, openid = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
	for name, c := range map[string]struct {
		path, form string
		want       []string
		good       bool
	}{
		"root, oauth":               {"", "oauth", []string{oauth}, true},
		"root, openid":              {"", "openid", []string{oauth, openid}, true},
		"root, none":                {"", "none", []string{oauth, openid}, false},
		"slash, openid":             {"/", "openid", []string{oauth, openid}, true},
		"path, oauth":               {"/tenant/v2.0", "oauth", []string{oauth + "/tenant/v2.0"}, true},
		"path, openid":              {"/t", "openid", []string{oauth + "/t", openid + "/t"}, true},
		"path, appended":            {"/t", "appended", []string{oauth + "/t", openid + "/t", "/t" + openid}, true},
		"path with slash, appended": {"/t/", "appended", []string{oauth + "/t", openid + "/t", "/t" + openid}, true},
		"path, none":                {"/t", "none", []string{oauth + "/t", openid + "/t", "/t" + openid}, false},
	} {
		t.Run(name, func(t *testing.T) {
			as := startAS(t, tokenstest.Config{IssuerPath: c.path, MetadataForms: []string{c.form}})
			s := source(t, newCache(t, nil), "a", discovered(as.Issuer()))
			_, err := s.Token(t.Context())
			if c.good != (err == nil) || err != nil && failed(t, err).Code != "no_metadata" {
				t.Errorf("want a token: %v, got %v", c.good, err)
			}
			if got := as.MetadataPaths(); !slices.Equal(got, c.want) {
				t.Errorf("want %q, got %q", c.want, got)
			}
		})
	}
}

// TestU2_U3_S1_BadMetadata: none of it leads to a token request, and no form of
// it leads on to another form.
func TestU2_U3_S1_BadMetadata(t *testing.T) {
	set := func(name string, value any) func(map[string]any) {
		return func(m map[string]any) { m[name] = value }
	}
	for name, c := range map[string]struct {
		fault tokenstest.Fault
		edit  func(map[string]any)
		kind  Kind
		code  string
	}{
		"down":            {tokenstest.Status503, nil, Unavailable, "http_503"},
		"hang":            {tokenstest.Hang, nil, Unavailable, "timeout"},
		"reset":           {tokenstest.Reset, nil, Unavailable, "cut_off"},
		"forbidden":       {"forbidden_html", nil, Refused, "http_403"},
		"redirect":        {tokenstest.Redirect307, nil, Refused, "redirect_refused"},
		"html":            {tokenstest.HTML, nil, Refused, "not_json"},
		"too big":         {tokenstest.EndlessBody, nil, Refused, "too_big"},
		"packed":          {"gzip_bomb", nil, Refused, "encoded"},
		"other issuer":    {"", set("issuer", "https://evil.example"), Refused, "issuer_mismatch"},
		"no issuer":       {"", set("issuer", nil), Refused, "issuer_mismatch"},
		"no endpoint":     {"", set("token_endpoint", nil), Refused, "token_endpoint"},
		"relative":        {"", set("token_endpoint", "/token"), Refused, "token_endpoint"},
		"plain http":      {"", set("token_endpoint", "http://as.example/token"), Refused, "token_endpoint"},
		"with a password": {"", set("token_endpoint", "https://u:p@as.example/token"), Refused, "token_endpoint"},
		"file":            {"", set("token_endpoint", "file:///etc/passwd"), Refused, "token_endpoint"},
		"bad alias":       {"", set("mtls_endpoint_aliases", map[string]string{"token_endpoint": "http://x.example"}), Refused, "token_endpoint"},
		"bad methods":     {"", set("token_endpoint_auth_methods_supported", "client_secret_basic"), Refused, "metadata"},
		"private":         {"", set("token_endpoint", "https://169.254.169.254/token"), Refused, "private_address"},
		"private name":    {"", set("token_endpoint", "https://localhost:1/token"), Refused, "private_address"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			as := startAS(t, tokenstest.Config{})
			as.FailMetadata(c.fault)
			as.EditMetadata(c.edit)
			cache := newCache(t, nil)
			cache.deadline = time.Minute
			if c.code == "timeout" {
				cache.deadline = 1500 * time.Millisecond
			}
			s := source(t, cache, "a", discovered(as.Issuer()))
			_, err := s.Token(t.Context())
			e := failed(t, err)
			if e.Kind != c.kind || e.Code != c.code || strings.Contains(e.Text, "u:p") {
				t.Errorf("want %s %s, got %v", c.kind, c.code, e)
			}
			noSecret(t, e.Text)
			if as.Requests()+as.Strayed() != 0 || len(as.MetadataPaths()) != 1 {
				t.Errorf("want 1 request for metadata and none for a token, got %q and %d", as.MetadataPaths(), as.Requests())
			}
		})
	}
}

// TestU3_TheIssuerIsComparedToTheLetter: no slash, case or port is made equal.
func TestU3_TheIssuerIsComparedToTheLetter(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	for _, issuer := range []string{as.Issuer() + "/", strings.Replace(as.Issuer(), "http", "HTTP", 1)} {
		_, err := source(t, newCache(t, nil), "a", discovered(issuer)).Token(t.Context())
		if err == nil || failed(t, err).Code != "issuer_mismatch" && !strings.HasPrefix(issuer, "HTTP") {
			t.Errorf("%s: want issuer_mismatch, got %v", issuer, err)
		}
	}
	if as.Requests() != 0 {
		t.Error("U4: the credential went to another issuer")
	}
}

// TestS1_AllowPrivate: the switch, and the issuer's own host, which needs none.
func TestS1_AllowPrivate(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	elsewhere := strings.Replace(as.TokenURL(), "127.0.0.1", "localhost", 1)
	as.EditMetadata(func(m map[string]any) { m["token_endpoint"] = elsewhere })
	o := discovered(as.Issuer())
	o.AllowPrivate = true
	s := source(t, newCache(t, nil), "a", o)
	if _, err := s.Token(t.Context()); err != nil || s.Status().Endpoint != elsewhere {
		t.Errorf("want a token from %s, got %v from %s", elsewhere, err, s.Status().Endpoint)
	}
}

func TestS1_PrivateAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.1": true, "172.16.0.1": true, "192.168.1.1": true, "127.0.0.1": true, "169.254.169.254": true, "100.64.0.1": true,
		"0.0.0.0": true, "224.0.0.1": true, "255.255.255.255": true, "198.18.0.1": true, "::1": true, "::": true, "fe80::1%eth0": true,
		"fc00::1": true, "fd00:ec2::254": true, "::ffff:10.0.0.1": true, "64:ff9b::a00:1": true, "2002:a00:1::": true,
		"::10.0.0.1": true, "::ffff:0:10.0.0.1": true, "2001::1": true, "2001:0:a00:1::": true, "64:ff9b:1::a00:1": true, "2001:4860::8888": false,
		"93.184.215.14": false, "2606:4700::1": false, "172.32.0.1": false, "::ffff:93.184.215.14": false, "64:ff9b::5db8:d70e": false,
	} {
		if got := isPrivate(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: want private %v, got %v", text, want, got)
		}
	}
}

// TestU5_TheServerDecides how the client authenticates, and never by trial.
func TestU5_TheServerDecides(t *testing.T) {
	key := newEC(elliptic.P256())
	both := map[string]tokenstest.Client{clientID: {Secret: canary, Keys: []jose.JSONWebKey{{Key: key.Public()}}}}
	for name, c := range map[string]struct {
		offered    []string
		configured policy.AuthMethod
		key        bool
		want       string // the method, or words of the error
	}{
		"the key first":          {[]string{"client_secret_basic", "private_key_jwt"}, "", true, "private_key_jwt"},
		"no key":                 {[]string{"private_key_jwt", "client_secret_post", "client_secret_basic"}, "", false, "client_secret_basic"},
		"post alone":             {[]string{"client_secret_post"}, "", true, "client_secret_post"},
		"not said":               {nil, "", true, "client_secret_basic"},
		"not said, configured":   {nil, policy.ClientSecretPost, false, "client_secret_post"},
		"configured":             {[]string{"client_secret_basic", "client_secret_post"}, policy.ClientSecretPost, true, "client_secret_post"},
		"configured, not taken":  {[]string{"client_secret_basic", "tls_client_auth"}, policy.ClientSecretPost, true, "client_secret_post, and "},
		"nothing that we have":   {[]string{"private_key_jwt"}, "", false, "takes private_key_jwt"},
		"offered and we are not": {[]string{}, "", true, "private_key_jwt or client_secret_basic or client_secret_post"},
	} {
		t.Run(name, func(t *testing.T) {
			as := startAS(t, tokenstest.Config{Clients: both})
			as.EditMetadata(func(m map[string]any) {
				if delete(m, "token_endpoint_auth_methods_supported"); c.offered != nil {
					m["token_endpoint_auth_methods_supported"] = c.offered
				}
			})
			o := discovered(as.Issuer())
			o.AuthMethod = c.configured
			if c.key {
				o.PrivateKey = keyRef()
			}
			s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = refStore{"PRIVATE_KEY": pkcs8(key), "CLIENT_SECRET": canary} }), "a", o)
			_, err := s.Token(t.Context())
			if err != nil {
				if e := failed(t, err); e.Code != "auth_method" || !strings.Contains(e.Text, c.want) || as.Requests() != 0 {
					t.Errorf("want %q and no request, got %v and %d", c.want, err, as.Requests())
				}
				return
			}
			st := s.Status()
			if st.AuthMethod != c.want || st.Endpoint != as.TokenURL() || st.Issuer != as.Issuer() || len(st.Offered) != len(c.offered) ||
				!strings.HasSuffix(st.Metadata, "/.well-known/oauth-authorization-server") {
				t.Errorf("want %s, got %+v", c.want, st)
			}
			r := as.Recorded()[0]
			if got := r.Form.Has("client_assertion"); got != (c.want == "private_key_jwt") || r.Form.Has("client_secret") != (c.want == "client_secret_post") {
				t.Errorf("want %s, got %v", c.want, r.Form)
			}
		})
	}
}

// TestO4_TheServersAlgorithms: what it does not take is not sent.
func TestO4_TheServersAlgorithms(t *testing.T) {
	key := newRSA(t)
	for offered, want := range map[string]string{"RS256": "RS256", "PS256 ES256": "PS256", "ES256": ""} {
		as := startAS(t, tokenstest.Config{Clients: keyed(key, "")})
		as.EditMetadata(func(m map[string]any) {
			m["token_endpoint_auth_signing_alg_values_supported"] = strings.Fields(offered)
		})
		o := discovered(as.Issuer())
		o.ClientSecret, o.PrivateKey = policy.SecretRef{}, keyRef()
		_, err := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = refStore{"PRIVATE_KEY": pkcs8(key)} }), "a", o).Token(t.Context())
		if want == "" {
			if e := failed(t, err); e.Code != "key_unusable" || !strings.Contains(e.Text, "takes ES256") || as.Requests() != 0 {
				t.Errorf("%s: got %v", offered, e)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", offered, err)
		}
		if _, err := jose.ParseSignedCompact(as.Recorded()[0].Form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(want)}); err != nil {
			t.Errorf("%s: want %s: %v", offered, want, err)
		}
	}
}

// TestO8_TheAlias: only the alias asks for certificates here.
func TestO8_TheAlias(t *testing.T) {
	key := newEC(elliptic.P256())
	cert := newCertificate(t, "a", key, nil, nil)
	as := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood, MTLS: true, Clients: map[string]tokenstest.Client{
		clientID: {Certificates: []*x509.Certificate{cert}},
	}})
	as.EditMetadata(func(m map[string]any) {
		m["token_endpoint_auth_methods_supported"] = []string{"client_secret_basic", "self_signed_tls_client_auth"}
	})
	o := discovered(as.Issuer())
	o.CA, o.Certificate = as.CAFile(), filepath.Join(t.TempDir(), "cert.pem")
	o.ClientSecret, o.PrivateKey = policy.SecretRef{}, keyRef()
	write(t, o.Certificate, inCertPEM(cert))
	s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = refStore{"PRIVATE_KEY": pkcs8(key)} }), "a", o)
	if _, err := s.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := s.Status(); st.Endpoint != as.MTLSTokenURL() || st.AuthMethod != "self_signed_tls_client_auth" {
		t.Errorf("want the alias, got %+v", st)
	}
}

// site is an issuer without a network, for fake time. Its token endpoint is a fake.
type site struct {
	*fake
	mu       sync.Mutex
	status   int
	endpoint string
	asked    []time.Time
	hosts    []string // of the token requests
}

func (s *site) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	if r.Method == http.MethodPost {
		s.hosts = append(s.hosts, r.URL.Host)
		s.mu.Unlock()
		return s.fake.RoundTrip(r)
	}
	s.asked = append(s.asked, time.Now())
	s.mu.Unlock()
	time.Sleep(20 * time.Millisecond) // for others to ask meanwhile
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := json.Marshal(map[string]any{"issuer": "https://as.test", "token_endpoint": s.endpoint})
	return &http.Response{
		StatusCode: s.status, Header: http.Header{}, Request: r, ProtoMajor: 1, ProtoMinor: 1, Body: io.NopCloser(bytes.NewReader(body)),
	}, nil
}

func (s *site) looks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func (s *site) answer(status int, endpoint string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status, s.endpoint = status, endpoint
}

func newSite(t *testing.T) (*site, *Cache) {
	t.Helper()
	s := &site{fake: newFake(), status: 200, endpoint: "https://as.test/token"}
	s.life = 5 * time.Minute
	return s, newCache(t, func(c *Config) { c.Transport = s })
}

func issued(name string) *policy.OAuth2 {
	o := discovered("https://as.test")
	o.Resource = "https://" + name
	return o
}

// TestMetadataIsSharedAndRefreshed: one look for all credentials of an issuer,
// one more in an hour, and the last good one stays while the server is ill.
func TestMetadataIsSharedAndRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as, c := newSite(t)
		for _, name := range []string{"a", "b", "c"} {
			source(t, c, name, issued(name))
		}
		c.Warm(t.Context())
		time.Sleep(time.Second)
		if n, m := as.looks(), as.requests(); n != 1 || m != 3 {
			t.Fatalf("want 1 look for 3 tokens, got %d for %d", n, m)
		}
		time.Sleep(50 * time.Minute)
		if n := as.looks(); n != 1 {
			t.Errorf("want no look before 54 minutes, got %d", n-1)
		}
		as.answer(500, "")
		time.Sleep(6 * time.Hour)
		s := source(t, c, "a", issued("a"))
		if n := as.looks(); n < 10 || n > 400 {
			t.Errorf("want looks at a pace of a minute or more, got %d", n)
		}
		for i := 1; i < len(as.asked); i++ {
			if as.asked[i].Sub(as.asked[i-1]) < metadataPause*9/10 {
				t.Errorf("two looks within %s", as.asked[i].Sub(as.asked[i-1]))
			}
		}
		if s.Cached() == nil {
			t.Error("the last good metadata must stay")
		}
	})
}

// TestMetadataMoves: an endpoint that is gone makes the next fetch look again.
func TestMetadataMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as, c := newSite(t)
		s := source(t, c, "a", issued("a"))
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		as.answer(200, "https://new.test/token")
		as.set(func(f *fake) { f.status = 404 })
		time.Sleep(4*time.Minute + 30*time.Second) // the refresh fails
		as.set(func(f *fake) { f.status = 0 })
		time.Sleep(2 * time.Minute)
		if s.Cached() == nil || as.hosts[len(as.hosts)-1] != "new.test" || as.looks() != 2 {
			t.Errorf("want the new endpoint after 1 more look, got %q after %d", as.hosts, as.looks()-1)
		}
	})
}

// TestT8_HerdWithoutMetadata: a thousand callers and an issuer that is down
// share one look, and its failures back off like those of a token endpoint.
func TestT8_HerdWithoutMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as, c := newSite(t)
		as.answer(503, "")
		s := source(t, c, "a", issued("a"))
		_, errs := stampede(t.Context(), s)
		if n := as.looks(); n != 1 || !one(errs) || as.requests() != 0 {
			t.Errorf("want 1 look, got %d, %v", n, errs)
		}
		calls, failures, _, _ := load(s, 100*time.Millisecond, time.Hour)
		if n := as.looks(); n > 800 || calls != failures {
			t.Errorf("want 800 looks at most in an hour, got %d; %d of %d calls failed", n, failures, calls)
		}
		as.answer(200, "https://as.test/token")
		time.Sleep(5 * time.Second)
		if _, err := s.Token(t.Context()); err != nil {
			t.Errorf("5 s after the outage: %v", err)
		}
	})
}
