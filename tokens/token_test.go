package tokens

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

const access = "tok3n-canary-value"

func aToken() *Token {
	return newToken([]byte("key"), access, time.Now(), time.Minute, "a b")
}

// TestS4_NoFormShowsAToken prints a token, and what holds one, in every way a
// careless line of code could.
func TestS4_NoFormShowsAToken(t *testing.T) {
	tok := aToken()
	type holder struct {
		Exported *Token
		hidden   *Token
		value    Token
	}
	h := holder{tok, tok, *tok}
	var out strings.Builder
	for _, v := range []any{tok, *tok, &tok, h, &h, []*Token{tok}, map[string]Token{"a": *tok}, struct{ v any }{tok}, &struct{ p **Token }{&tok}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T", "%10.3s"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		if b, err := json.Marshal(v); err == nil {
			out.Write(b)
		}
		log := zerolog.New(&out)
		log.Info().Interface("token", v).Any("any", v).Stringer("s", tok).Str("f", tok.Fingerprint()).Msgf("%v", v)
	}
	shown := out.String()
	hex := fmt.Sprintf("%x", access)
	decimal := strings.Trim(fmt.Sprintf("%d", []byte(access)), "[]")
	for _, form := range []string{access, hex, strings.ToUpper(hex), decimal, strings.TrimSuffix(fmt.Sprintf("%#v", []byte(access))[7:], "}")} {
		if strings.Contains(shown, form) {
			t.Errorf("the token shows as %q", form)
		}
	}
	if !strings.Contains(shown, "token "+tok.Fingerprint()) {
		t.Errorf("want the fingerprint to show, got %s", shown)
	}
}

func TestFingerprint(t *testing.T) {
	tok := aToken()
	if len(tok.Fingerprint()) != 8 || tok.Fingerprint() != aToken().Fingerprint() {
		t.Errorf("want 8 digits that stay, got %q", tok.Fingerprint())
	}
	if other := newToken([]byte("other key"), access, time.Now(), time.Minute, ""); other.Fingerprint() == tok.Fingerprint() {
		t.Error("the fingerprint must depend on the key")
	}
	if string(tok.Authorization()) != "Bearer "+access || tok.Type() != "Bearer" || tok.Lifetime() != time.Minute || tok.Scope() != "a b" {
		t.Errorf("got %s %s", tok.Type(), tok.Lifetime())
	}
}

// TestS4_Canary runs a credential through good and bad days at trace level and
// looks for the secret and the token in all that comes out.
func TestS4_Canary(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	var log buffer
	var out strings.Builder
	c := newCache(t, func(c *Config) {
		c.Log = zerolog.New(&log).Level(zerolog.TraceLevel)
		c.Observe = func(f Fetch) { _, _ = fmt.Fprintf(&log, "%+v", f) }
	})
	for i, f := range []tokenstest.Fault{"", tokenstest.EchoForm, "echo_description", "error_in_200", tokenstest.HTML, tokenstest.Redirect307} {
		for _, m := range []policy.AuthMethod{policy.ClientSecretBasic, policy.ClientSecretPost} {
			o := spec(as.TokenURL())
			o.Audience, o.AuthMethod = fmt.Sprint("aud", i), m
			s := source(t, c, fmt.Sprint("up", i, m), o)
			as.Fail(f)
			tok, err := s.Token(t.Context())
			status, jerr := json.Marshal(s.Status())
			if jerr != nil {
				t.Fatal(jerr)
			}
			fmt.Fprintf(&out, "%v %+v %#v %s %+v %v %+v", err, err, err, status, s.Status(), tok, s.entry.client.o)
			if tok != nil && strings.Contains(out.String()+log.String(), strings.TrimPrefix(string(tok.Authorization()), "Bearer ")) {
				t.Error("the token is in the output")
			}
			if e, ok := errors.AsType[*Error](err); ok {
				b, _ := json.Marshal(e)
				out.Write(b)
			}
		}
	}
	noSecret(t, out.String()+log.String())
	if !strings.Contains(log.String(), "http_500") {
		t.Errorf("want the failures in the log, got %s", log.String())
	}
}

// TestHotPathDoesNotAllocate is the promise of Token while a token lives.
func TestHotPathDoesNotAllocate(t *testing.T) {
	c := newCache(t, func(c *Config) { c.Transport = newFake() })
	s := source(t, c, "a", res("a"))
	ctx := t.Context()
	if _, err := s.Token(ctx); err != nil {
		t.Fatal(err)
	}
	var size int
	if n := testing.AllocsPerRun(1000, func() {
		tok, err := s.Token(ctx)
		if err != nil {
			t.Fatal(err)
		}
		size += len(tok.Authorization()) + len(tok.Fingerprint())
	}); n != 0 {
		t.Errorf("want no allocation, got %v", n)
	}
}

func BenchmarkToken(b *testing.B) {
	c := New(Config{Secrets: &store{secret: canary}, Now: time.Now, Transport: newFake(), Log: zerolog.Nop()})
	b.Cleanup(c.Close)
	s, err := c.Source("a", res("a"))
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Token(ctx); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkSources is what ten thousand upstreams cost to load.
func BenchmarkSources(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		c := New(Config{Secrets: &store{secret: canary}, Now: time.Now, Transport: newFake(), Log: zerolog.Nop()})
		for i := range 10_000 {
			if _, err := c.Source(fmt.Sprint("up", i), res(fmt.Sprint("r", i))); err != nil {
				b.Fatal(err)
			}
		}
		c.Close()
	}
}

func TestO12_O19_TypeAndRefreshTokenOfTheAnswer(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	as.Fail("unknown_members") // holds a refresh_token
	s := source(t, newCache(t, nil), "a", spec(as.TokenURL()))
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replace(t.Context(), tok.Authorization()); err == nil {
		t.Error("want the same token to be called so")
	}
	for _, r := range as.Recorded() {
		if r.Form.Get("grant_type") != "client_credentials" || r.Form.Has("refresh_token") {
			t.Errorf("want the refresh_token ignored, got %v", r.Form.Get("grant_type"))
		}
	}
}

func TestErrorsAreOneCleanLine(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	as.Fail("unknown_error")
	_, err := source(t, newCache(t, nil), "a", spec(as.TokenURL())).Token(t.Context())
	want := "token refused: " + strings.TrimPrefix(as.URL(), "http://") + ": the answer is an error without a registered code: line break q (error)"
	if e := failed(t, err); e.Error() != want || e.Status != http.StatusBadRequest {
		t.Errorf("want %q, got %q, %d", want, e.Error(), e.Status)
	}
	for k, want := range map[Kind]string{Unavailable: "unavailable", Refused: "refused", Rejected: "rejected", 0: "unknown"} {
		if k.String() != want {
			t.Errorf("want %q, got %q", want, k)
		}
	}
}
