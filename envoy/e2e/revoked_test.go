package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// guarded answers 401 to tokens that the authorization server revoked.
func (r *rig) guarded(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		if r.issuer.Revoked(claim(token, "jti")) {
			_, _ = io.Copy(io.Discard, req.Body)
			w.Header().Set("Www-Authenticate", `Bearer error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next(w, req)
	})
}

// length answers how long the body was, as JSON or as an event stream.
func length(w http.ResponseWriter, req *http.Request) {
	b, _ := io.ReadAll(req.Body)
	if req.Header.Get("X-Want") != "sse" {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"length":%d}`, len(b))
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range 3 {
		_, _ = fmt.Fprintf(w, "data: {\"length\":%d,\"n\":%d}\n\n", len(b), i)
		_ = http.NewResponseController(w).Flush()
		time.Sleep(20 * time.Millisecond)
	}
}

// fanned is a policy with n upstreams more: one gets three new tokens at once, then
// one each 5 s, so each case has one of its own, and with it a token of its own.
// Every second one speaks HTTP/2.
func fanned(n int) string {
	text := standard
	for i := range n {
		where := `{{.URL "` + fannedName(i) + `"}}`
		if i%2 == 1 {
			where = `{{.SecureURL "` + fannedName(i) + `"}}, ca: {{.Dir}}/ca.pem`
		}
		text += "  " + fannedName(i) + `: {url: ` + where + `, cookies: {allow: [session_id]},` +
			` credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}}` + "\n"
	}
	return text
}

func fannedName(i int) string { return fmt.Sprintf("heal%d", i) }

// noBody is a size that stands for a GET.
const noBody = -1

// earlyAnswerSince is the first Envoy, 1.N, that takes the answer of an HTTP/2
// upstream which did not read the whole body; before, the call is a 502 of Envoy's own.
const earlyAnswerSince = 37

const notEarly = "this Envoy does not take the answer of an HTTP/2 upstream that did not read the whole body: large bodies fail on a revoked token"

// TestO4_RevokedTokenHealsInTheCall: nobody sees the 401 of a token that was
// revoked a moment ago.
func TestO4_RevokedTokenHealsInTheCall(t *testing.T) {
	early := envoySince(t, earlyAnswerSince)
	r, n := start(t, fanned(40)), 0
	for proto, client := range map[string]*http.Client{"h1": pooled(), "h2": h2c()} {
		for _, size := range []int{noBody, 0, 200, 100 << 10, 900 << 10} {
			for _, kind := range []string{"json", "sse"} {
				for _, behind := range []string{"h1", "h2"} {
					up := r.up(fannedName(n))
					n++
					t.Run(fmt.Sprintf("%s to %s, %d bytes, %s", proto, behind, size, kind), func(t *testing.T) {
						if behind == "h2" && size > 100<<10 && !early {
							t.Skip(notEarly)
						}
						r.heals(t, up, client, size, kind)
						if came := up.protocol(); came != map[string]string{"h1": "HTTP/1.1", "h2": "HTTP/2.0"}[behind] {
							t.Errorf("want the upstream called by %s, got %s", behind, came)
						}
					})
				}
			}
		}
	}
}

func (r *rig) heals(t *testing.T, up *upstream, client *http.Client, size int, kind string) {
	t.Helper()
	up.answer(r.guarded(length))
	r.issuer.Revoke()
	before := r.issuer.Requests()
	method, body := http.MethodPost, strings.Repeat("x", max(size, 0))
	if size == noBody {
		method = http.MethodGet
	}
	got, err := r.send(t.Context(), client, method, r.url+"/"+up.name+"/mcp", strings.NewReader(body), append(own(kind), "X-Want", kind))
	if err != nil || got.status != http.StatusOK || !strings.Contains(got.body, fmt.Sprintf(`"length":%d`, len(body))) {
		t.Errorf("got %v, %v", got, err)
	}
	if kind == "sse" && strings.Count(got.body, "data: ") != 3 {
		t.Errorf("want three events, got %q", got.body)
	}
	came := up.take()
	if len(came) != 2 || came[1].Header.Get("Cookie") != "session_id=s-1" || came[1].Method != method {
		t.Errorf("want two attempts, the second with the cookie, got %d", len(came))
	}
	if n := r.issuer.Requests() - before; n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
}

// TestO4_LargeBody: a body over the retry buffer cannot be sent again. The call
// fails with a reason; Envoy's access log tells of it, and the next call, as large
// as the first, has a new token.
func TestO4_LargeBody(t *testing.T) {
	if !envoySince(t, earlyAnswerSince) {
		t.Skip(notEarly)
	}
	r := start(t, fanned(4))
	large := strings.Repeat("x", 2<<20)
	n, failed := 0, 0
	for proto, client := range map[string]*http.Client{"h1": nil, "h2": h2c()} {
		for _, kind := range []string{"json", "sse"} {
			up := r.up(fannedName(n))
			n++
			up.answer(r.guarded(length))
			call := func() reply {
				return r.do(t.Context(), client, r.url+"/"+up.name+"/mcp", strings.NewReader(large), append(own(kind), "X-Want", kind))
			}
			r.post("/"+up.name+"/mcp", "{}") // the case before revoked this one's token as well
			if got := call(); got.status != http.StatusOK {
				t.Fatalf("%s %s, with a good token: got %v", proto, kind, got)
			}
			before, evicted := r.issuer.Requests(), r.evicted()
			r.issuer.Revoke()
			// Now and then, Envoy has kept all of a body that came over HTTP/2.
			if got := call(); got.status != http.StatusOK {
				failed++
				got.refused(t, http.StatusBadGateway, "upstream_rejected")
				if got.header.Get("Www-Authenticate") != "" {
					t.Errorf("%s %s: the upstream's challenge reached the caller", proto, kind)
				}
				r.eventually("the token is dropped", 2*time.Second, func() bool { return r.evicted() == evicted+1 })
			}
			if got := call(); got.status != http.StatusOK || !strings.Contains(got.body, fmt.Sprint(len(large))) {
				t.Errorf("%s %s: the next call: got %v", proto, kind, got)
			}
			if n := r.issuer.Requests() - before; n != 1 {
				t.Errorf("%s %s: want one token request, got %d", proto, kind, n)
			}
		}
	}
	if failed < 2 {
		t.Errorf("want calls that Envoy could not send again, got %d", failed)
	}
}

// logged is how many calls Envoy's access log told of.
func (r *rig) logged() float64 {
	return r.proc.metric(`mcp_auth_access_log_entries_total{kind="call"}`)
}

// evicted is how many tokens were dropped because of the access log.
func (r *rig) evicted() float64 { return r.proc.metric("mcp_auth_tokens_evicted_total") }

// TestO4_EarlyAnswer: an upstream that refuses before it read the body.
func TestO4_EarlyAnswer(t *testing.T) {
	r := start(t, standard)
	r.up("alpha").answerFunc(func(w http.ResponseWriter, req *http.Request) {
		token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		if r.issuer.Revoked(claim(token, "jti")) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		length(w, req)
	})
	for _, size := range []int{200, 200 << 10} {
		r.issuer.Revoke()
		if got := r.post("/alpha/mcp", strings.Repeat("x", size)); got.status != http.StatusOK || !strings.Contains(got.body, fmt.Sprint(size)) {
			t.Errorf("%d bytes: got %v", size, got)
		}
	}
}

// TestO4_Herd: many calls on a revoked token make one token request, and none
// of them fails.
func TestO4_Herd(t *testing.T) {
	r := start(t, standard)
	r.up("alpha").answer(r.guarded(length))
	before := r.issuer.RequestsBy("alpha-client")
	r.issuer.Revoke()
	for i, got := range r.parallel(100, "/alpha/mcp", func() {}) {
		if got.status != http.StatusOK {
			t.Fatalf("call %d: got %v", i, got)
		}
	}
	if n := r.issuer.RequestsBy("alpha-client") - before; n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
}

// TestO5_UpstreamRefusesEverything: an upstream that answers 401 to every token
// cannot make us flood the authorization server.
func TestO5_UpstreamRefusesEverything(t *testing.T) {
	r := start(t, standard)
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
	})
	before := r.issuer.RequestsBy("alpha-client")
	begin := time.Now()
	const calls = 200
	for range 20 {
		got := r.post("/alpha/mcp", "{}", own("")...)
		got.refused(t, http.StatusBadGateway, "upstream_rejected")
		if got.header.Get("Www-Authenticate") != "" {
			t.Error("the upstream's challenge reached the caller")
		}
	}
	for _, got := range r.parallel(calls-20, "/alpha/mcp", func() {}) {
		if got.status != http.StatusBadGateway {
			t.Errorf("got %v", got)
		}
	}
	// Each of them is in the access log too, and that may cost no more.
	r.eventually("Envoy's log is read", 5*time.Second, func() bool { return r.logged() >= calls })
	allowed := 3 + int(time.Since(begin)/(5*time.Second)) + 1
	if n := r.issuer.RequestsBy("alpha-client") - before; n > allowed {
		t.Errorf("want at most %d token requests, got %d", allowed, n)
	}
	if n := r.up("alpha").total(); n > 2*calls {
		t.Errorf("want at most two attempts a call, got %d in %d calls", n, calls)
	}
	// The other upstreams do not notice.
	if got := r.post("/beta/mcp", "{}"); got.status != http.StatusOK {
		t.Errorf("beta: got %v", got)
	}
}

// TestO4_OtherStatuses: nothing but a 401 is sent again, and an upstream without
// a credential keeps its own.
func TestO4_OtherStatuses(t *testing.T) {
	r := start(t, standard)
	before := r.issuer.Requests()
	for _, status := range []int{400, 403, 404, 409, 429, 500, 502, 503, 504} {
		r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		r.up("alpha").take()
		if got := r.post("/alpha/mcp", "{}"); got.status != status || len(r.up("alpha").take()) != 1 {
			t.Errorf("%d: want it to pass after one attempt, got %v", status, got)
		}
	}
	r.eventually("Envoy's log is read", 5*time.Second, func() bool { return r.logged() == 9 })
	if n := r.issuer.Requests() - before; n != 0 || r.evicted() != 0 {
		t.Errorf("want no token request and none evicted, got %d and %v", n, r.evicted())
	}
	r.up("open").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="open"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	got := r.post("/open/mcp", "{}")
	if got.status != http.StatusUnauthorized || got.header.Get("Www-Authenticate") == "" || len(r.up("open").take()) != 1 {
		t.Errorf("open: want its own 401 and challenge after one attempt, got %v", got)
	}
}

// TestO4_WithoutARetry: with retry_on_401: false, the upstream sees each call once.
// The call that met the 401 is refused, and the next one has a new token.
func TestO4_WithoutARetry(t *testing.T) {
	r := start(t, strings.Replace(standard, "    cookies: {allow: [session_id, user", "    retry_on_401: false\n    cookies: {allow: [session_id, user", 1))
	r.up("alpha").answer(r.guarded(length))
	for i := range 2 {
		before := r.issuer.RequestsBy("alpha-client")
		r.issuer.Revoke()
		got := r.post("/alpha/mcp", "{}")
		got.refused(t, http.StatusBadGateway, "upstream_rejected")
		if n := len(r.up("alpha").take()); n != 1 || got.header.Get("Www-Authenticate") != "" {
			t.Errorf("want one attempt and no challenge, got %d and %v", n, got.header)
		}
		r.eventually("the token is dropped", 2*time.Second, func() bool { return r.evicted() == float64(i+1) })
		if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK || len(r.up("alpha").take()) != 1 {
			t.Errorf("the next call: got %v", got)
		}
		if n := r.issuer.RequestsBy("alpha-client") - before; n != 1 {
			t.Errorf("want one token request, got %d", n)
		}
	}
}

// TestO4_StreamGoesOn: an answer that began is the caller's, whatever becomes of
// the token meanwhile.
func TestO4_StreamGoesOn(t *testing.T) {
	r := start(t, standard)
	for proto, client := range map[string]*http.Client{"h1": pooled(), "h2": h2c()} {
		begun, revoked := make(chan struct{}), make(chan struct{})
		r.up("alpha").answer(r.guarded(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 5 {
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				_ = http.NewResponseController(w).Flush()
				if i == 1 {
					close(begun)
					<-revoked
				}
			}
		}))
		r.up("alpha").take()
		before := r.issuer.Requests()
		answer := make(chan reply)
		go func() {
			got, _ := r.try(t.Context(), client, r.url+"/alpha/mcp", strings.NewReader("{}"), nil)
			answer <- got
		}()
		<-begun
		r.issuer.Revoke()
		close(revoked)
		if got := <-answer; got.status != http.StatusOK || got.body != "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n" {
			t.Errorf("%s: want all five events, got %v", proto, got)
		}
		if n := len(r.up("alpha").take()); n != 1 || r.issuer.Requests() != before {
			t.Errorf("%s: want one attempt and no token request, got %d", proto, n)
		}
		r.up("alpha").answer(r.guarded(length))
		if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK {
			t.Errorf("%s: the next call: got %v", proto, got)
		}
	}
}

// TestL5_Redirects: Envoy follows no redirect of an upstream with our token.
func TestL5_Redirects(t *testing.T) {
	r := start(t, standard)
	for _, status := range []int{301, 302, 303, 307, 308} {
		r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", r.up("beta").url())
			w.WriteHeader(status)
		})
		client := &http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		if got := r.do(context.Background(), client, r.url+"/alpha/mcp", strings.NewReader("{}"), nil); got.status != status {
			t.Errorf("%d: got %v", status, got)
		}
	}
	if n := r.up("beta").total(); n != 0 {
		t.Errorf("want nothing at the other upstream, got %d requests", n)
	}
}
