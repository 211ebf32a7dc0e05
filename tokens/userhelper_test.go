package tokens

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// userAS is an endpoint without a network that exchanges subject tokens such as
// "alice.1.sig", for tests in fake time. Its tokens name whom they are for.
type userAS struct {
	mu      sync.Mutex
	latency time.Duration
	life    time.Duration
	status  int // 0 is 200 with a token
	body    string
	hang    bool
	// sick are the users with an answer of their own: a status and a body.
	sick map[string]string

	starts  []time.Time
	by      map[string]int // requests by subject token
	at      map[string]int // by host
	running map[string]int
	now     int
	most    int
	doubled string // a subject token that had two at once
	serial  int
}

func newUserAS() *userAS {
	return &userAS{life: time.Minute, sick: map[string]string{}, by: map[string]int{}, at: map[string]int{}, running: map[string]int{}}
}

func (f *userAS) set(change func(*userAS)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *userAS) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

func (f *userAS) of(subject string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by[subject]
}

// mostAtOnce returns the most requests at once.
func (f *userAS) mostAtOnce() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

func (f *userAS) RoundTrip(r *http.Request) (*http.Response, error) {
	raw, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(raw))
	subject := form.Get("subject_token") + subjectOf(form.Get("assertion"))
	f.mu.Lock()
	f.starts = append(f.starts, time.Now())
	f.by[subject]++
	f.at[r.URL.Host]++
	if f.running[subject]++; f.running[subject] > 1 {
		f.doubled = subject
	}
	f.now++
	f.most = max(f.most, f.now)
	latency := f.latency
	if f.hang {
		latency = time.Hour
	}
	f.mu.Unlock()
	err := pass(r.Context(), latency)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running[subject]--
	f.now--
	if err != nil {
		return nil, err
	}
	status, body := f.answer(form, subject)
	return &http.Response{
		StatusCode: status, Header: http.Header{}, Request: r, ProtoMajor: 1, ProtoMinor: 1, Body: io.NopCloser(strings.NewReader(body)),
	}, nil
}

// answer is called with mu held.
func (f *userAS) answer(form url.Values, subject string) (int, string) {
	who, _, _ := strings.Cut(subject, ".")
	if sick, ok := f.sick[who]; ok {
		var status int
		_, _ = fmt.Sscan(sick, &status)
		return status, sick[3:]
	}
	if f.status != 0 {
		return f.status, f.body
	}
	f.serial++
	if form.Get("requested_token_type") == typeIDJAG {
		return 200, fmt.Sprintf(`{"access_token":%q,"token_type":"N_A","issued_token_type":%q,"expires_in":300}`, jagFor(subject, form.Get("audience"), f.serial), typeIDJAG)
	}
	return 200, fmt.Sprintf(`{"access_token":"%s.%d","token_type":"Bearer","issued_token_type":%q,"expires_in":%v}`, subject, f.serial, typeAccessToken, f.life.Seconds())
}

// jagFor makes an ID-JAG that nobody signed; its signature names its subject.
func jagFor(subject, audience string, n int) string {
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(`{"typ":"oauth-id-jag+jwt","alg":"ES256"}`)) + "." + b64(fmt.Appendf(nil, `{"aud":%q,"n":%d}`, audience, n)) + "." + b64([]byte(subject))
}

// subjectOf returns the subject of an assertion: of an ID-JAG by jagFor, or itself.
func subjectOf(assertion string) string {
	if !strings.HasPrefix(assertion, "ey") {
		return assertion
	}
	b, _ := base64.RawURLEncoding.DecodeString(assertion[strings.LastIndexByte(assertion, '.')+1:])
	return string(b)
}

// userSpec is a credential that exchanges the caller's token.
func userSpec(url string) *policy.OAuth2 {
	o := spec(url)
	o.Grant, o.SubjectCaller = policy.TokenExchange, true
	return o
}

// jagSpec is one that gets an ID-JAG first.
func jagSpec(url, issuer, idpURL string) *policy.OAuth2 {
	o := userSpec(url)
	o.Grant, o.IDP = policy.IDJAG, spec(idpURL)
	o.IDP.Audience, o.IDP.Resource, o.IDP.Scopes = issuer, "", nil
	return o
}

// userWorld is a cache on a userAS.
type userWorld struct {
	as    *userAS
	cache *Cache
	store *store
	log   *buffer
	s     *Source
}

func newUserWorld(t *testing.T, change func(*Config)) *userWorld {
	t.Helper()
	w := &userWorld{as: newUserAS(), store: &store{secret: canary}, log: &buffer{}}
	w.cache = newCache(t, func(c *Config) {
		c.Transport, c.Secrets = w.as, w.store
		if change != nil {
			change(c)
		}
	})
	w.s = source(t, w.cache, "a", userSpec("https://as.test/token"))
	return w
}

// person is a principal whose token is good for a day.
func caller(who string) *Principal { return callerWith(who, "1", 24*time.Hour) }

func callerWith(who, serial string, life time.Duration) *Principal {
	return newPrincipal(Principal{Issuer: "https://idp", Subject: who, Expiry: time.Now().Add(life)}, who+"."+serial+".sig")
}

func callers(n int) []*Principal {
	all := make([]*Principal, n)
	for i := range all {
		all[i] = caller(fmt.Sprint("user", i))
	}
	return all
}

// everyone calls TokenFor for each, all at once, and returns the errors by code.
func everyone(ctx context.Context, s *Source, all []*Principal) map[string]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	codes := map[string]int{}
	for _, p := range all {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
			defer cancel()
			tok, err := s.TokenFor(ctx, p)
			code := "ok"
			switch e, failed := err.(*Error); { //nolint:errorlint // it is not wrapped
			case failed:
				code = e.Code
			case !strings.HasPrefix(string(tok.Authorization()), "Bearer "+p.token()+"."):
				code = "somebody else's"
			}
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	wg.Wait()
	return codes
}

// heldFor is TokenFor that must succeed.
func heldFor(t *testing.T, s *Source, p *Principal) *Token {
	t.Helper()
	tok, err := s.TokenFor(t.Context(), p)
	if err != nil {
		t.Fatalf("TokenFor %s: %v", p, err)
	}
	return tok
}
