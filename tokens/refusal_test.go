package tokens

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// TestO1_HowARequestIsMade: by POST, as a form in UTF-8, on one path.
func TestO1_HowARequestIsMade(t *testing.T) {
	as := newFake()
	var seen []string
	look := roundTrip(func(r *http.Request) (*http.Response, error) {
		seen = append(seen, r.Method, r.Header.Get("Content-Type"), r.URL.String())
		return as.RoundTrip(r)
	})
	s := source(t, newCache(t, func(c *Config) { c.Transport = look }), "a", res("a"))
	if _, err := s.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "POST application/x-www-form-urlencoded https://as.test/token" {
		t.Errorf("got %s", got)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestO7_InvalidTarget is the word about one resource at one server: it is not
// asked again soon, and no other resource pays for it.
func TestO7_InvalidTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.status, w.as.body = 400, `{"error":"invalid_target"}`
		bad := source(t, w.cache, "a", res("unknown.test"))
		_, err := bad.Token(t.Context())
		if e := failed(t, err); e.Kind != Refused || e.Code != "invalid_target" || e.RetryAfter < 10*time.Second {
			t.Errorf("want invalid_target for a while, got %v, after %s", e, e.RetryAfter)
		}
		w.as.set(func(f *fake) { f.status = 0 })
		for _, name := range []string{"known.test", "corrected.test"} {
			if _, err := source(t, w.cache, name, res(name)).Token(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		elsewhere := res("unknown.test")
		elsewhere.TokenURL = "https://other.test/token"
		if _, err := source(t, w.cache, "b", elsewhere).Token(t.Context()); err != nil {
			t.Errorf("the same resource at another server: %v", err)
		}
		if _, err := bad.Token(t.Context()); failed(t, err).Code != "invalid_target" {
			t.Errorf("want the failure kept, got %v", err)
		}
		if n := w.as.requests(); n != 4 {
			t.Errorf("want 4 requests, got %d", n)
		}
	})
}

// TestO9_DPoP: this client makes no proofs, so a token that needs one is refused,
// and what was in place before goes on. It is never sent as Bearer.
func TestO9_DPoP(t *testing.T) {
	for _, kind := range []string{"DPoP", "dpop", "DPOP", "Bearer DPoP", "DPoP Bearer", " Bearer"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s := source(t, w.cache, "a", res("a"))
			old, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.as.set(func(f *fake) {
				f.status, f.body = 200, fmt.Sprintf(`{"access_token":"bound","token_type":%q,"expires_in":60}`, kind)
			})
			for time.Now().Before(old.Expiry()) {
				if got, err := s.Token(t.Context()); err != nil || got != old {
					t.Fatalf("%q: want the old token while it lives, got %v, %v", kind, got, err)
				}
				time.Sleep(time.Second)
			}
			got, err := s.Token(t.Context())
			if e := failed(t, err); got != nil || e.Kind != Refused || e.Code != "token_type" || s.Cached() != nil {
				t.Errorf("%q: want it refused, got %v, %v", kind, got, err)
			}
			if w.as.requests() < 2 {
				t.Error("want the refresh to have been tried")
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) {
			f.sick["alice"] = fmt.Sprintf(`200{"access_token":"bound","token_type":"DPoP","issued_token_type":%q}`, typeAccessToken)
		})
		if got, err := w.s.TokenFor(t.Context(), caller("alice")); got != nil || failed(t, err).Code != "token_type" {
			t.Errorf("a user's: want it refused, got %v, %v", got, err)
		}
	})
}

// TestO9_DPoPNonce: the demand for a proof is a refusal, answered by no second
// request, and no proof is ever sent.
func TestO9_DPoPNonce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := newFake()
		as.status, as.body, as.header = 400, `{"error":"use_dpop_nonce"}`, http.Header{"Dpop-Nonce": {"n"}}
		look := roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("DPoP") != "" {
				t.Error("a proof was sent")
			}
			return as.RoundTrip(r)
		})
		s := source(t, newCache(t, func(c *Config) { c.Transport = look }), "a", res("a"))
		_, err := s.Token(t.Context())
		if e := failed(t, err); e.Kind != Refused || as.requests() != 1 {
			t.Errorf("want a refusal after 1 request, got %v after %d", e, as.requests())
		}
	})
}

// TestO10_TheBetterWayFirst: a client that can prove itself by a key does not
// show its secret, and its tokens are for one resource.
func TestO10_TheBetterWayFirst(t *testing.T) {
	key := newEC(elliptic.P256())
	as := startAS(t, tokenstest.Config{Clients: map[string]tokenstest.Client{
		clientID: {Secret: canary, Keys: []jose.JSONWebKey{{Key: key.Public()}}, NeedsResource: true},
	}})
	o := discovered(as.Issuer())
	o.PrivateKey = keyRef()
	s := source(t, newCache(t, func(c *Config) { c.Secrets = refStore{"PRIVATE_KEY": pkcs8(key), "CLIENT_SECRET": canary} }), "a", o)
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := as.Recorded()[0]
	if !r.Form.Has("client_assertion") || r.Form.Has("client_secret") || r.Header.Get("Authorization") != "" || strings.Contains(r.Raw, url.QueryEscape(canary)) {
		t.Errorf("want an assertion and no secret, got %v", r.Form)
	}
	var c struct {
		Audience string `json:"aud"`
	}
	if !segment(strings.Split(string(tok.Authorization()), ".")[1], &c) || c.Audience != o.Resource || r.Form.Get("resource") != o.Resource {
		t.Errorf("want a token for %s, got one for %q", o.Resource, c.Audience)
	}
}

// TestT4_EveryFailureOfTheNetwork has its word, and none of the library's own,
// which may quote what the other side sent.
func TestT4_EveryFailureOfTheNetwork(t *testing.T) {
	const quoted = "quoted-from-the-wire"
	op := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for name, c := range map[string]struct {
		err  error
		code string
		word string
	}{
		"no such name":       {op(&net.DNSError{Err: quoted, Name: quoted, IsNotFound: true}), "dns", "does not resolve"},
		"server failure":     {op(&net.DNSError{Err: quoted, Name: quoted, IsTemporary: true}), "dns", "does not resolve"},
		"resolver is silent": {op(&net.DNSError{Err: quoted, Name: quoted, IsTimeout: true}), "timeout", "did not answer"},
		"dial timeout":       {op(context.DeadlineExceeded), "timeout", "did not answer"},
		"refused":            {op(syscall.ECONNREFUSED), "connection_refused", "refuses"},
		"no route":           {op(syscall.EHOSTUNREACH), "unreachable", "cannot be reached"},
		"network is down":    {op(syscall.ENETUNREACH), "unreachable", "cannot be reached"},
		"reset":              {op(syscall.ECONNRESET), "cut_off", "cut its answer off"},
		"broken pipe":        {op(syscall.EPIPE), "cut_off", "cut its answer off"},
		"ended early":        {io.ErrUnexpectedEOF, "cut_off", "cut its answer off"},
		"closed at once":     {io.EOF, "cut_off", "cut its answer off"},
		"unknown authority":  {&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, "tls", "set ca"},
		"another name":       {&tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{quoted}}, Host: quoted}}, "tls", "another name"},
		"expired":            {&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired, Detail: quoted}}, "tls", "has expired"},
		"no such use":        {&tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.IncompatibleUsage, Detail: quoted}}, "tls", "cannot be verified"},
		"alert":              {op(tls.AlertError(40)), "tls", "agree on no TLS"},
		"no TLS there":       {tls.RecordHeaderError{Msg: quoted}, "tls", "agree on no TLS"},
		"anything else":      {errors.New(quoted), "unreachable", "cannot be reached"},
	} {
		down := roundTrip(func(*http.Request) (*http.Response, error) { return nil, fmt.Errorf("post: %w", c.err) })
		s := source(t, newCache(t, func(cfg *Config) { cfg.Transport = down }), "a", spec("https://as.test/token"))
		_, err := s.Token(t.Context())
		e := failed(t, err)
		if e.Kind != Unavailable || e.Code != c.code || !strings.Contains(e.Text, c.word) {
			t.Errorf("%s: want unavailable %s %q, got %v", name, c.code, c.word, e)
		}
		if strings.Contains(e.Error(), quoted) {
			t.Errorf("%s: the library is quoted: %v", name, e)
		}
		noSecret(t, e.Error())
	}
}

// TestU12_O5_TheAudienceIsThePlatforms: the assertion of the grant goes as the
// file has it, whoever it names, and is not looked into.
func TestU12_O5_TheAudienceIsThePlatforms(t *testing.T) {
	for _, audience := range []string{"https://as.test", "https://as.test/token", "sts.company.com"} {
		synctest.Test(t, func(t *testing.T) {
			path := t.TempDir() + "/jwt"
			jwt := jagFor("workload", audience, 1)
			write(t, path, jwt+"\n")
			as := newFake()
			var form url.Values
			look := roundTrip(func(r *http.Request) (*http.Response, error) {
				body, err := r.GetBody()
				if err != nil {
					return nil, err
				}
				raw, _ := io.ReadAll(body)
				form, _ = url.ParseQuery(string(raw))
				return as.RoundTrip(r)
			})
			o := res("a")
			o.Grant, o.Assertion, o.AuthMethod, o.ClientID, o.ClientSecret = policy.JWTBearer, path, policy.NoClientAuth, "", policy.SecretRef{}
			s := source(t, newCache(t, func(c *Config) { c.Transport = look }), "a", o)
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			if form.Get("assertion") != jwt || form.Get("grant_type") != jwtBearer {
				t.Errorf("%s: got %v", audience, form)
			}
		})
	}
}
