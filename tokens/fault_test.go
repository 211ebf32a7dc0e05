package tokens

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// verdict is what a fault must come to: a token of some life, or an error.
type verdict struct {
	kind Kind // 0 for a token
	code string
	life time.Duration
}

func good(life time.Duration) verdict { return verdict{life: life} }

// verdicts has a row for each fault that tokenstest knows: faults.md §2.2.
func verdicts() map[tokenstest.Fault]verdict {
	v := map[tokenstest.Fault]verdict{
		"text_plain": good(time.Minute), "no_media_type": good(time.Minute), "bom": good(time.Minute),
		"bearer_upper": good(time.Minute), "case_variant": good(time.Minute), "unknown_members": good(time.Minute),
		"error_null": good(time.Minute), "same_token": good(time.Hour), "set_cookie": good(time.Minute),
		"created": good(time.Minute), "biggest_token": good(5 * time.Minute), "scope_with_line_break": good(time.Minute),
		"no_expires_in": good(5 * time.Minute), "delay_300ms": good(5 * time.Minute),
		"expires_in_zero": good(time.Second), "expires_in_null": good(5 * time.Minute), "expires_in_empty": good(5 * time.Minute),
		"expires_in_minus_one": good(time.Second), "expires_in_minus_wrap": good(time.Second),
		"expires_in_exponent": good(1000 * time.Second), "expires_in_decimal": good(3599*time.Second + 500*time.Millisecond),
		"expires_in_integral_decimal": good(time.Hour), "expires_in_string": good(time.Hour), "expires_in_decimal_string": good(time.Hour),
		"expires_in_1e18": good(24 * time.Hour), "expires_in_epoch": good(24 * time.Hour), "expires_in_overflow": good(24 * time.Hour),
		"expires_in_over_int64": good(24 * time.Hour), "refresh_in": good(time.Hour), "refresh_in_junk": good(time.Hour),

		"error_in_200": {Refused, "invalid_client", 0}, "error_in_200_no_code": {Refused, "error", 0},
		"unknown_error": {Refused, "error", 0}, "long_description": {Refused, "invalid_request", 0},
		"echo_description": {Refused, "invalid_request", 0}, "unauthorized_bare": {Refused, "http_401", 0},
		"forbidden_html": {Refused, "http_403", 0}, "status_400_html": {Refused, "http_400", 0},

		"echo_form": {Unavailable, "http_500", 0}, "status_429": {Unavailable, "http_429", 0}, "retry_after_30": {Unavailable, "http_429", 0},
		"endless_body_503": {Unavailable, "http_503", 0},
		"hang":             {Unavailable, "timeout", 0}, "slow_header": {Unavailable, "timeout", 0}, "slow_body": {Unavailable, "timeout", 0},
		"reset": {Unavailable, "cut_off", 0}, "reset_mid_body": {Unavailable, "cut_off", 0}, "cut_mid_chunk": {Unavailable, "cut_off", 0},
		"not_http": {Unavailable, "unreachable", 0}, "huge_header": {Unavailable, "unreachable", 0}, "endless_1xx": {Unavailable, "unreachable", 0},
		"endless_body": {Refused, "too_big", 0}, "over_limit": {Refused, "too_big", 0},
		"gzip_bomb": {Refused, "encoded", 0}, "gzip_small": {Refused, "encoded", 0},
	}
	for code, list := range map[string]string{
		"not_json":         "html html_as_json empty array null form trailing_data truncated_json no_content deep_json",
		"access_token":     "no_token empty_token number_token crlf_token nul_token space_token non_ascii_token padding_token big_token case_variant_only",
		"token_type":       "mac_type dpop_type n_a_type no_type number_type",
		"duplicate_member": "duplicate_token duplicate_escaped duplicate_unknown",
	} {
		for f := range strings.FieldsSeq(list) {
			v[tokenstest.Fault(f)] = verdict{Refused, code, 0}
		}
	}
	for f := range strings.FieldsSeq("1e400 infinity nan junk hex plus spaces bool object array") {
		v[tokenstest.Fault("expires_in_"+f)] = verdict{Refused, "expires_in", 0}
	}
	for f := range strings.FieldsSeq("huge minus junk date past") {
		v[tokenstest.Fault("retry_after_"+f)] = verdict{Unavailable, "http_503", 0}
	}
	for f := range strings.FieldsSeq("500 502 503 504") {
		v[tokenstest.Fault("status_"+f)] = verdict{Unavailable, "http_" + f, 0}
	}
	for f := range strings.FieldsSeq("301 302 303 307 308") {
		v[tokenstest.Fault("redirect_"+f)] = verdict{Refused, "redirect_refused", 0}
		v[tokenstest.Fault("redirect_"+f+"_same_host")] = verdict{Refused, "redirect_refused", 0}
	}
	for f := range strings.FieldsSeq("invalid_client unauthorized_client unsupported_grant_type invalid_scope invalid_target " +
		"invalid_request invalid_grant temporarily_unavailable server_error") {
		v[tokenstest.Fault(f)] = verdict{Refused, f, 0}
	}
	return v
}

// TestT1_T2_T3_O3_O11_O12_O13_EveryFault sends every fault through the real
// client over real connections. Each one costs exactly one request, and no
// secret shows anywhere.
func TestT1_T2_T3_O3_O11_O12_O13_EveryFault(t *testing.T) {
	table := verdicts()
	for _, f := range tokenstest.Faults() {
		if _, ok := table[f]; !ok {
			t.Errorf("fault %s: no verdict", f)
		}
		for _, m := range []policy.AuthMethod{policy.ClientSecretBasic, policy.ClientSecretPost} {
			t.Run(string(f)+"/"+string(m), func(t *testing.T) {
				t.Parallel()
				meet(t, f, m, table[f])
			})
		}
	}
}

func meet(t *testing.T, f tokenstest.Fault, m policy.AuthMethod, want verdict) {
	t.Helper()
	as := startAS(t, tokenstest.Config{})
	as.Fail(f)
	var log buffer
	o := spec(as.TokenURL())
	o.AuthMethod = m
	c := newCache(t, func(c *Config) { c.Log = zerolog.New(&log) })
	// Only what hangs must wait for the deadline; a busy machine may be slow at the rest.
	c.deadline = time.Minute
	if want.code == "timeout" {
		c.deadline = 1500 * time.Millisecond
	}
	s := source(t, c, "a", o)
	start := time.Now()
	tok, err := s.Token(t.Context())
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %s", took)
	}
	switch {
	case want.kind == 0 && err != nil:
		t.Fatalf("want a token, got %v", err)
	case want.kind == 0:
		if tok.Lifetime() != want.life {
			t.Errorf("want a life of %s, got %s", want.life, tok.Lifetime())
		}
		if strings.Contains(string(tok.Authorization()), "wrong") || strings.ContainsAny(tok.Scope(), "\r\n") {
			t.Errorf("took the wrong member: %s %q", tok.Authorization(), tok.Scope())
		}
	default:
		e := failed(t, err)
		if e.Kind != want.kind || e.Code != want.code {
			t.Errorf("want %s %s, got %s %s: %s", want.kind, want.code, e.Kind, e.Code, e.Text)
		}
		if len(e.Text) > 400 || strings.ContainsAny(e.Text, "\r\n") || strings.Contains(e.Text, "<html") {
			t.Errorf("the text is not clean: %q", e.Text)
		}
		noSecret(t, e.Error()+e.Text+log.String()+s.Status().LastError)
	}
	if n := as.Requests(); n != 1 {
		t.Errorf("want 1 token request, got %d", n)
	}
	if n := as.Strayed(); n != 0 {
		t.Errorf("want no request at the other host, got %d", n)
	}
}

// noSecret looks for the canary in its forms.
func noSecret(t *testing.T, text string) {
	t.Helper()
	if (redactor{}).clean(text) != newRedactor(clientID, canary).clean(text) {
		t.Errorf("the secret is in %q", text)
	}
}

// TestT3_SwitchedProtocols: 101 hands over the bare connection, which the end of
// a request's context does not close. The fetch must not wait on it for ever.
func TestT3_SwitchedProtocols(t *testing.T) {
	as := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "h2c")
		w.WriteHeader(http.StatusSwitchingProtocols)
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
	}))
	t.Cleanup(as.Close)
	s := source(t, newCache(t, nil), "a", spec(as.URL))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := s.Token(ctx)
	if e := failed(t, err); e.Code != "http_101" || e.Kind != Refused {
		t.Errorf("want http_101 at once, got %v", err)
	}
}

func TestT3_AMemoryBoundForHugeAnswers(t *testing.T) {
	for _, f := range []tokenstest.Fault{"gzip_bomb", tokenstest.EndlessBody} {
		as := startAS(t, tokenstest.Config{})
		as.Fail(f)
		s := source(t, newCache(t, nil), "a", spec(as.TokenURL()))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := s.Token(t.Context())
		runtime.ReadMemStats(&after)
		_ = failed(t, err)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
			t.Errorf("%s: allocated %d MiB", f, grown>>20)
		}
	}
}

func TestT4_TLS(t *testing.T) {
	for mode, want := range map[tokenstest.TLSMode]string{
		tokenstest.TLSExpired: "expired", tokenstest.TLSWrongName: "another name", tokenstest.TLSOld: "1.2 or newer", tokenstest.TLSGood: "",
	} {
		as := startAS(t, tokenstest.Config{TLS: mode})
		o := spec(as.TokenURL())
		o.CA = as.CAFile()
		_, err := source(t, newCache(t, nil), "a", o).Token(t.Context())
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", mode, err)
			}
			o.CA = ""
			_, err = source(t, newCache(t, nil), "a", o).Token(t.Context())
			want = "unknown authority"
		}
		if e := failed(t, err); e.Kind != Unavailable || e.Code != "tls" || !strings.Contains(e.Text, want) {
			t.Errorf("%s: want a tls error with %q, got %v", mode, want, e)
		}
		if as.Requests() > 1 {
			t.Errorf("%s: a request went over a bad connection", mode)
		}
	}
}

func TestT4_Unreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a port to find closed
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for url, code := range map[string]string{
		"http://" + l.Addr().String() + "/token": "connection_refused",
		"http://no-such-host.invalid/token":      "dns",
	} {
		_, err := source(t, newCache(t, nil), "a", spec(url)).Token(t.Context())
		if e := failed(t, err); e.Kind != Unavailable || e.Code != code {
			t.Errorf("%s: want unavailable %s, got %v", url, code, e)
		}
	}
}

func TestANewAuthorityIsTrustedAtTheNextFetch(t *testing.T) {
	one, two := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood}), startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	put := func(from string) {
		pem, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(ca, pem, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(one.CAFile())
	c := newCache(t, nil)
	o := spec(two.TokenURL())
	o.CA = ca
	n := newNetwork(nil)
	if err := n.check(trust{ca: ca}); err != nil {
		t.Fatal(err)
	}
	_, err := source(t, c, "a", o).Token(t.Context())
	if e := failed(t, err); e.Code != "tls" {
		t.Fatalf("want tls, got %v", e)
	}
	put(two.CAFile())
	o.Scopes = nil // another key, so no back-off
	if _, err := source(t, c, "b", o).Token(t.Context()); err != nil {
		t.Errorf("with the new authority: %v", err)
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	o.Scopes = []string{"x"}
	if _, err := source(t, c, "c", o).Token(t.Context()); err != nil {
		t.Errorf("with the file gone, the last authorities must stay: %v", err)
	}
	if err := syscall.Mkfifo(ca, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Scopes = []string{"y"}
	if _, err := source(t, c, "d", o).Token(t.Context()); err != nil {
		t.Errorf("with a pipe in its place, the last authorities must stay: %v", err)
	}
}

func TestO1_O2_O3_U1_T7_TheRequest(t *testing.T) {
	for _, secret := range []string{canary, "plain", "+ % : & =", "p%ä+:~ !", "::", "a\tb"} {
		for _, id := range []string{clientID, "id:1 x"} {
			as := startAS(t, tokenstest.Config{Clients: map[string]tokenstest.Client{id: {Secret: secret, NeedsResource: true}}})
			for _, m := range []policy.AuthMethod{policy.ClientSecretBasic, policy.ClientSecretPost} {
				o := spec(as.TokenURL())
				o.ClientID, o.AuthMethod, o.Audience = id, m, "a & b"
				o.Scopes = []string{"z+1", "a%2"}
				o.Params = []policy.Param{{Name: "empty"}, {Name: "tenant", Value: "ä&=1"}}
				c := newCache(t, func(c *Config) { c.Secrets = &store{secret: secret} })
				if _, err := source(t, c, "a", o).Token(t.Context()); err != nil {
					t.Fatalf("%s, secret %q: %v", m, secret, err)
				}
				log := as.Recorded()
				check(t, log[len(log)-1], m)
			}
		}
	}
}

func check(t *testing.T, r tokenstest.Request, m policy.AuthMethod) {
	t.Helper()
	for name, want := range map[string]string{
		"grant_type": "client_credentials", "scope": "z+1 a%2", "resource": "https://mcp.company.com/mcp",
		"audience": "a & b", "tenant": "ä&=1",
	} {
		if got := r.Form[name]; len(got) != 1 || got[0] != want {
			t.Errorf("%s: want %q once, got %q", name, want, got)
		}
	}
	if r.Form.Has("empty") || r.Query != "" {
		t.Errorf("want no empty parameter and none in the URL, got %q and %q", r.Raw, r.Query)
	}
	basic := r.Header.Get("Authorization") != ""
	if post := r.Form.Has("client_secret"); basic == post || basic != (m == policy.ClientSecretBasic) {
		t.Errorf("%s: want one authentication method, got basic %v, post %v", m, basic, post)
	}
	if r.Header.Get("Accept") != "application/json" || r.Header.Get("Cookie") != "" || r.Header.Get("Accept-Encoding") != "identity" {
		t.Errorf("headers: %v", r.Header)
	}
}

func TestO2_Vector(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	o := spec(as.TokenURL())
	o.ClientID = "id:1 x"
	c := newCache(t, func(c *Config) { c.Secrets = &store{secret: "p%ä+:~ !"} })
	_, _ = source(t, c, "a", o).Token(t.Context())
	r := &http.Request{Header: as.Recorded()[0].Header}
	id, secret, _ := r.BasicAuth()
	if id != "id%3A1+x" || strings.ReplaceAll(secret, "~", "%7E") != "p%25%C3%A4%2B%3A%7E+%21" {
		t.Errorf("got %q : %q", id, secret)
	}
}

func TestO3_NoCookieComesBack(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	as.Fail("set_cookie")
	s := source(t, newCache(t, nil), "a", spec(as.TokenURL()))
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Replace(t.Context(), tok.Authorization())
	for _, r := range as.Recorded() {
		if r.Header.Get("Cookie") != "" {
			t.Error("a cookie of the token endpoint was sent back")
		}
	}
}

func TestMissingSecret(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	for _, st := range []*store{{err: context.DeadlineExceeded}, {secret: ""}} {
		s := source(t, newCache(t, func(c *Config) { c.Secrets = st }), "a", spec(as.TokenURL()))
		_, err := s.Token(t.Context())
		if e := failed(t, err); e.Kind != Unavailable || e.Code != "secret_unavailable" || !s.Tried() {
			t.Errorf("want unavailable secret_unavailable and tried, got %v, %v", e, s.Tried())
		}
	}
	if as.Requests() != 0 {
		t.Error("a request without a secret was sent")
	}
}

func TestSourceRefusesWhatCannotWork(t *testing.T) {
	for want, change := range map[string]func(*policy.OAuth2){
		"absolute":    func(o *policy.OAuth2) { o.TokenURL = "/token" },
		"https":       func(o *policy.OAuth2) { o.TokenURL = "ftp://as/token" },
		"no user":     func(o *policy.OAuth2) { o.TokenURL = "https://u:p@as/token" },
		"fragment":    func(o *policy.OAuth2) { o.TokenURL = "https://as/token#x" },
		"auth_method": func(o *policy.OAuth2) { o.AuthMethod = "" },
		"client_id":   func(o *policy.OAuth2) { o.ClientID = "" },
		"grant_type":  func(o *policy.OAuth2) { o.Params = []policy.Param{{Name: "grant_type", Value: "password"}} },
		"twice":       func(o *policy.OAuth2) { o.Params = []policy.Param{{Name: "a", Value: "1"}, {Name: "a", Value: "2"}} },
		"assertion":   func(o *policy.OAuth2) { o.Grant = policy.JWTBearer },
		"proof":       func(o *policy.OAuth2) { o.AuthMethod = policy.NoClientAuth },
		"both":        func(o *policy.OAuth2) { o.Issuer = "https://as.company.com" },
		"certificate": func(o *policy.OAuth2) { o.AuthMethod = policy.TLSClientAuth },
		"ca":          func(o *policy.OAuth2) { o.CA = "/nonexistent/ca.pem" },
	} {
		o := spec("https://as.company.com/token")
		change(o)
		_, err := newCache(t, nil).Source("up", o)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"up"`) || strings.Contains(err.Error(), "u:p") {
			t.Errorf("want an error about %q, got %v", want, err)
		}
	}
}
