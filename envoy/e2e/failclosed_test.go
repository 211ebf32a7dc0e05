package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// spoof is what a caller sends who hopes for an open door.
func spoof(upstream string) []string {
	return []string{
		"authorization: Bearer " + callerToken, "cookie: session_id=" + canary, "x-litellm-api-key: " + canary,
		"x-mcp-auth-guard: " + upstream,
	}
}

// TestE1_CleanClose: a stream that ends without an error before a reply never
// lets a request through, whichever way it came to its end.
func TestE1_CleanClose(t *testing.T) {
	t.Parallel() // it waits more than it works
	r, s := startScripted(t, nil)
	ways := map[string]act{
		"nil before the message":   func(stream) error { return nil },
		"nil after the message":    after(func(stream) error { return nil }),
		"status OK":                after(func(stream) error { return status.Error(codes.OK, "fine") }),
		"a panic that is caught":   after(func(stream) error { panic("fault") }), //nolint:forbidigo // the fault under test
		"nil when the other left":  after(func(st stream) error { _, _ = st.Recv(); return nil }),
		"nil after an empty reply": sends(&extprocv3.ProcessingResponse{}),
		"late nil":                 after(func(stream) error { time.Sleep(300 * time.Millisecond); return nil }),
		"the mark of another upstream": after(func(st stream) error {
			return st.Send(setHeaders("x-mcp-auth-guard", "beta", "authorization", "Bearer T1"))
		}),
		"a continue without the mark": sends(setHeaders("authorization", "Bearer T1")),
	}
	// Those that Envoy takes for permission, so that only the guard is left.
	passes := map[string]bool{
		"nil before the message": true, "nil after the message": true, "status OK": true, "a panic that is caught": true,
		"late nil": true, "the mark of another upstream": true, "a continue without the mark": true,
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			s.set(way)
			upstreams := []string{"alpha"}
			if name == "nil after the message" {
				upstreams = []string{"alpha", "fixed", "open", "keyed"}
			}
			for _, up := range upstreams {
				r.both(func(proto string, get func(string, ...string) reply) {
					got := get("/"+up+"/mcp", spoof(up)...)
					// What Envoy notices itself is a 5xx; what passes for permission meets the guard.
					if got.status != http.StatusForbidden && got.status < 500 {
						t.Errorf("%s %s: want a refusal, got %v", proto, up, got)
					}
					if passes[name] {
						got.refused(t, http.StatusForbidden, "guard")
					}
				})
			}
		})
	}
	r.untouched()
}

// untouched fails unless no upstream got a single byte.
func (r *rig) untouched() {
	r.t.Helper()
	for name, u := range r.facts.upstreams {
		if n := u.total(); n != 0 {
			r.t.Errorf("want nothing at upstream %s, got %d requests", name, n)
		}
		if raw := strings.TrimSpace(string(u.raw())); raw != "" {
			r.t.Errorf("want not a byte at upstream %s, got %.200q", name, raw)
		}
	}
}

// TestE1_SecondAttempt: the stream of the retry ends without a reply, while the
// request still carries the mark that the first one left.
func TestE1_SecondAttempt(t *testing.T) {
	r, s := startScripted(t, nil)
	r.leaky = true // the scripted token is none of the authorization server's
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	n := 0
	s.set(func(st stream) error {
		if n++; n == 1 {
			return lend("T1")(st)
		}
		return nil
	})
	r.post("/alpha/mcp", "{}", own("")...).refused(t, http.StatusForbidden, "guard")
	if got := len(r.up("alpha").take()); got != 1 || n != 2 {
		t.Errorf("want one attempt at the upstream and two decisions, got %d and %d", got, n)
	}
	if strings.Contains(string(r.up("alpha").raw()), canary) {
		t.Error("a secret of the caller reached the upstream")
	}
}

// TestE2_Faults: errors and the sudden end of a process are refusals.
func TestE2_Faults(t *testing.T) {
	r, s := startScripted(t, nil)
	for name, way := range map[string]act{
		"an error":                    after(unavailable),
		"an error before the message": unavailable,
		"an internal error":           after(func(stream) error { return status.Error(codes.Internal, "x") }),
		"unauthenticated":             after(func(stream) error { return status.Error(codes.Unauthenticated, "x") }),
		"an unexpected end":           after(func(stream) error { return io.ErrUnexpectedEOF }),
		"cancelled":                   after(func(stream) error { return context.Canceled }),
	} {
		s.set(way)
		r.both(func(proto string, get func(string, ...string) reply) {
			if got := get("/alpha/mcp", spoof("alpha")...); got.status < 500 {
				t.Errorf("%s, %s: want 5xx, got %v", name, proto, got)
			}
		})
	}
	r.untouched()
}

// TestE2_Processes: the same with a processor that takes its process along.
func TestE2_Processes(t *testing.T) {
	r := newRig(t, standard)
	stop := r.spawnScripted("panic")
	r.startEnvoy(r.render())
	for i, mode := range []string{"panic", "exit", "stop", "graceful"} {
		if i > 0 {
			stop = r.spawnScripted(mode)
		}
		r.waitProcessor(1)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				got, err := r.try(t.Context(), nil, r.url+"/alpha/mcp", strings.NewReader("{}"), own(""))
				if err != nil || got.status < 500 && got.status != http.StatusForbidden {
					t.Errorf("%s: want a refusal, got %v, %v", mode, got, err)
				}
			})
		}
		wg.Wait()
		stop()
	}
	r.untouched()
}

// outcomes counts answers by kind under load.
type outcomes struct {
	mu            sync.Mutex
	fine, refused int
	row           int // good answers since the last refusal
	odd           []reply
}

func (o *outcomes) add(a reply, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil && a.status == http.StatusOK:
		o.fine++
		o.row++
	case err == nil && (a.status >= 500 || a.status == http.StatusForbidden):
		o.refused++
		o.row = 0
	default:
		a.body += " " + errText(err)
		o.odd = append(o.odd, a)
		o.row = 0
	}
}

// refusals returns how many there were so far.
func (o *outcomes) refusals() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.refused
}

// goOn waits until n calls of a load in a row were good, from now on.
func (r *rig) goOn(o *outcomes, n int) {
	r.t.Helper()
	o.mu.Lock()
	o.row = 0
	o.mu.Unlock()
	r.eventually(fmt.Sprintf("%d calls in a row are good", n), time.Minute, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.row >= n
	})
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// under runs f in the middle of a load of 200 calls a second: n calls in a row were
// good before it, and n are after it.
func (r *rig) under(n int, f func(*outcomes)) *outcomes {
	r.t.Helper()
	o := &outcomes{}
	client := pooled()
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	end := func() { cancel(); wg.Wait() }
	defer end()
	wg.Go(func() {
		load(ctx, 200, func() {
			o.add(r.try(context.WithoutCancel(ctx), client, r.url+"/alpha/mcp", strings.NewReader("{}"), own("load")))
		})
	})
	r.goOn(o, n)
	f(o)
	r.goOn(o, n)
	end()
	if len(o.odd) > 0 {
		r.t.Errorf("want answers of Envoy only, got %d others: %v", len(o.odd), o.odd[0])
	}
	return o
}

// TestE2_KillUnderLoad: kill -9, with 200 calls a second going on. What is not
// answered is refused; with the program back, calls go on.
func TestE2_KillUnderLoad(t *testing.T) {
	r := start(t, standard)
	o := r.under(100, func(o *outcomes) {
		r.proc.kill()
		r.eventually("calls are refused", 10*time.Second, func() bool { return o.refusals() > 0 })
		r.proc = r.serve(r.policy, r.facts.Admin)
	})
	if n := len(r.up("alpha").take()); n != o.fine {
		t.Errorf("want %d requests at the upstream, one for each good answer, got %d", o.fine, n)
	}
	t.Logf("%d calls went through, %d were refused", o.fine, o.refused)
}

// TestE3_Stopped: a processor that hangs is a refusal after message_timeout.
func TestE3_Stopped(t *testing.T) {
	r := start(t, standard)
	r.proc.signal(syscall.SIGSTOP)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := r.try(t.Context(), nil, r.url+"/alpha/mcp", strings.NewReader("{}"), own(""))
			if err != nil || got.status < 500 || got.took > 4*time.Second {
				t.Errorf("want 5xx after 2 s, got %v after %s, %v", got, got.took, err)
			}
		})
	}
	wg.Wait()
	r.untouched()
	r.proc.signal(syscall.SIGCONT)
	r.eventually("calls go on", 10*time.Second, func() bool {
		return r.post("/alpha/mcp", "{}", own("")...).status == http.StatusOK
	})
}

// TestE3_Slow: an answer after 150 ms or 1 s is an answer.
func TestE3_Slow(t *testing.T) {
	t.Parallel() // it waits more than it works
	r, s := startScripted(t, nil)
	r.leaky = true // as above
	for _, d := range []time.Duration{150 * time.Millisecond, 300 * time.Millisecond, time.Second} {
		s.set(func(st stream) error { time.Sleep(d); return lend("T1")(st) })
		if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK || got.took < d {
			t.Errorf("%s: got %v after %s", d, got, got.took)
		}
	}
	s.set(func(st stream) error { time.Sleep(3 * time.Second); return lend("T1")(st) })
	if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusGatewayTimeout || got.took > 3*time.Second {
		t.Errorf("want 504 after message_timeout, got %v after %s", got, got.took)
	}
}

// TestE3_TokenEndpointHangs: our own answer, with a reason, comes before Envoy's.
func TestE3_TokenEndpointHangs(t *testing.T) {
	r := newRig(t, standard)
	r.issuer.Fail("hang")
	r.proc = r.launch(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	got := r.post("/alpha/mcp", "{}", own("")...)
	got.refused(t, http.StatusServiceUnavailable, "token_unavailable")
	if got.header.Get("Retry-After") == "" || got.took > 1900*time.Millisecond {
		t.Errorf("want retry-after, before 2 s; got %v after %s", got.header, got.took)
	}
	r.untouched()
	if got := r.post("/fixed/mcp", "{}"); got.status != http.StatusOK {
		t.Errorf("another upstream: got %v", got)
	}
	r.issuer.Heal()
	r.eventually("calls go on", 10*time.Second, func() bool {
		return r.post("/alpha/mcp", "{}").status == http.StatusOK
	})
}

// TestE4_NoProcessor: nobody there, or somebody else.
func TestE4_NoProcessor(t *testing.T) {
	r := newRig(t, standard)
	r.startEnvoy(r.render())
	check := func(what string) {
		t.Helper()
		r.both(func(proto string, get func(string, ...string) reply) {
			if got := get("/alpha/mcp", spoof("alpha")...); got.status < 500 {
				t.Errorf("%s, %s: want 5xx, got %v", what, proto, got)
			}
		})
		r.untouched()
	}
	check("no socket")
	for what, serve := range map[string]func(net.Conn){
		"a server that hangs up":   func(c net.Conn) { _ = c.Close() },
		"a server that is no gRPC": func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); _ = c.Close() },
	} {
		_ = os.Remove(r.facts.Socket)
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", r.facts.Socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for c, err := ln.Accept(); err == nil; c, err = ln.Accept() {
				serve(c)
			}
		}()
		check(what)
		_ = ln.Close()
	}
}

// TestE4_MissingCluster: the filter names a cluster that is not there. Envoy
// refuses such a configuration, or every call.
func TestE4_MissingCluster(t *testing.T) {
	r := newRig(t, standard)
	b := strings.ReplaceAll(string(r.render()), "cluster_name: envoy_mcp_auth\n                  timeout", "cluster_name: nobody\n                  timeout")
	if !strings.Contains(b, "nobody") {
		t.Fatal("the rendered configuration has another form than this test expects")
	}
	r.startEnvoy([]byte(b))
	if got := r.get1("/alpha/mcp", spoof("alpha")...); got.status < 500 {
		t.Errorf("want 5xx, got %v", got)
	}
	r.untouched()
}

// TestE5_OddReplies: answers of a kind that was not asked for.
func TestE5_OddReplies(t *testing.T) {
	r, s := startScripted(t, nil)
	headers := setHeaders("authorization", "Bearer T1").GetRequestHeaders()
	for name, resp := range map[string]*extprocv3.ProcessingResponse{
		"empty":                          {},
		"response headers":               {Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: headers}},
		"request body":                   {Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}},
		"response body":                  {Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}},
		"request trailers":               {Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}},
		"immediate, no status":           {Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extprocv3.ImmediateResponse{}}},
		"immediate, CRLF in the details": immediate(typev3.StatusCode_Forbidden, "a\r\nx-evil: 1\r\n\r\nb"),
		"immediate, CRLF in a header":    immediate(typev3.StatusCode_Forbidden, "d", "x-mcp-auth-reason", "a\r\nx-evil: 1"),
	} {
		s.set(sends(resp))
		r.both(func(proto string, get func(string, ...string) reply) {
			got := get("/open/mcp", spoof("open")...)
			// An immediate response without a status is Envoy's 200; it is an answer, and nothing went on.
			if got.status < 400 && name != "immediate, no status" || got.header.Get("X-Evil") != "" {
				t.Errorf("%s, %s: want a refusal, got %v %v", name, proto, got, got.header)
			}
		})
	}
	r.untouched()
}

// TestE6_BadMutations: a value that cannot stand in a header stops the request.
func TestE6_BadMutations(t *testing.T) {
	r, s := startScripted(t, nil)
	many := []string{}
	for i := range 150 {
		many = append(many, "x-mcp-many-"+strings.Repeat("a", i+1), "v")
	}
	for name, way := range map[string]act{
		"CR":           lend("a\rb"),
		"LF":           lend("a\nb"),
		"CR LF":        lend("a\r\nx-evil: 1"),
		"NUL":          lend("a\x00b"),
		"100 kB":       lend(strings.Repeat("a", 100<<10)),
		"150 headers":  lend("T1", many...),
		"bad name":     lend("T1", "x-mcp-a b", "v"),
		"empty name":   lend("T1", "", "v"),
		"name with LF": lend("T1", "x-mcp-a\nb", "v"),
	} {
		s.set(way)
		if got := r.get1("/alpha/mcp", spoof("alpha")...); got.status < 500 && got.status != http.StatusForbidden {
			t.Errorf("%s: want a refusal, got %v", name, got)
		}
		if n := len(r.up("alpha").take()); n != 0 {
			t.Errorf("%s: want nothing at the upstream, got %d requests", name, n)
		}
	}
	r.untouched()
}

// TestE6_OwnRefusal: a key file that gets a control character makes our own
// refusal, before Envoy ever sees the value.
func TestE6_OwnRefusal(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := start(t, standard)
	if got := r.post("/fixed/mcp", "{}"); got.status != http.StatusOK {
		t.Fatalf("got %v", got)
	}
	r.up("fixed").take()
	for _, bad := range []string{"a\rb", "a\x00b", "a\nb", "a\x7fb"} {
		r.write("fixed.secret", bad)
		var got reply
		r.eventually("the bad key is noticed", 6*time.Second, func() bool {
			got = r.post("/fixed/mcp", "{}", own("")...)
			return got.status != http.StatusOK
		})
		got.refused(t, http.StatusBadGateway, "token_refused")
		r.up("fixed").take()
		if got := r.post("/fixed/mcp", "{}"); got.status == http.StatusOK || len(r.up("fixed").take()) != 0 {
			t.Errorf("want it to stay refused, got %v", got)
		}
		r.write("fixed.secret", fixedKey)
		r.eventually("a good key is taken again", 6*time.Second, func() bool {
			return r.post("/fixed/mcp", "{}").status == http.StatusOK
		})
	}
}

// TestE7_ForbiddenMutations: a reply that touches what is not the policy's fails
// the call.
func TestE7_ForbiddenMutations(t *testing.T) {
	r, s := startScripted(t, nil)
	for _, name := range []string{"host", ":authority", ":path", ":method", ":scheme", "x-envoy-retry-on", "x-envoy-original-path", "x-other", "content-length"} {
		s.set(lend("T1", name, "1"))
		if got := r.get1("/alpha/mcp", spoof("alpha")...); got.status != http.StatusInternalServerError {
			t.Errorf("%s: want 500, got %v", name, got)
		}
	}
	r.untouched()
}

// TestE8_FailureModeAllow shows what the setting costs, and that the audit of
// this package would see it: with it and without the guard, everything of the
// caller goes on. The checker names it; the guard alone still holds.
func TestE8_FailureModeAllow(t *testing.T) {
	t.Parallel() // it waits more than it works
	open := func(b []byte) []byte {
		return []byte(strings.ReplaceAll(string(b), "failure_mode_allow: false", "failure_mode_allow: true"))
	}
	unguarded := func(b []byte) []byte {
		return []byte(strings.ReplaceAll(string(open(b)), `if mark ~= "alpha" then`, `if false then`))
	}
	t.Run("with the guard", func(t *testing.T) {
		r, s := startScripted(t, open)
		s.set(after(unavailable))
		r.get1("/alpha/mcp", spoof("alpha")...).refused(t, http.StatusForbidden, "guard")
		r.untouched()
		r.finds("failure-mode-allow", open(r.render()))
	})
	t.Run("without", func(t *testing.T) {
		r, s := startScripted(t, unguarded)
		r.leaky = true
		for name, way := range map[string]act{
			"error": after(unavailable), "hang": func(st stream) error { <-st.Context().Done(); return nil }, "nil": func(stream) error { return nil },
		} {
			s.set(way)
			got := r.get1("/alpha/mcp", spoof("alpha")...)
			came := r.up("alpha").take()
			if got.status != http.StatusOK || len(came) != 1 || !strings.Contains(came[0].Head, callerToken) {
				t.Errorf("%s: want this configuration to leak, got %v", name, got)
			}
		}
		if found := auditUpstream(r.up("alpha")); len(found) < 2 {
			t.Errorf("want the audit to see the leak, got %q", found)
		}
		r.finds("failure-mode-allow", unguarded(r.render()))
	})
	t.Run("per route", func(t *testing.T) {
		perRoute := func(b []byte) []byte {
			return edited(b, func(c config) {
				c.route("alpha")["typed_per_filter_config"] = map[string]any{"envoy.filters.http.ext_proc": map[string]any{
					"@type":     "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
					"overrides": map[string]any{"failure_mode_allow": true},
				}}
			})
		}
		r, s := startScripted(t, perRoute)
		s.set(after(unavailable))
		if got := r.get1("/alpha/mcp", spoof("alpha")...); got.status != http.StatusForbidden && got.status < 500 {
			t.Errorf("want a refusal, got %v", got)
		}
		r.untouched()
		r.finds("failure-mode-allow", perRoute(r.render()))
	})
}

// finds fails unless the checker names the fault, and does not name it in what
// we render.
func (r *rig) finds(id string, bootstrap []byte) {
	r.t.Helper()
	b, err := os.ReadFile(r.policy)
	if err != nil {
		r.t.Fatal(err)
	}
	set, err := policy.Parse(r.policy, b, func(string) (string, bool) { return "x", true })
	if err != nil {
		r.t.Fatal(err)
	}
	count := func(config []byte) int {
		found, err := envoy.Check("envoy.yaml", config, set)
		if err != nil {
			r.t.Fatal(err)
		}
		n := 0
		for _, f := range found {
			if f.ID == id {
				n++
			}
		}
		return n
	}
	if bad, good := count(bootstrap), count(r.render()); bad == 0 || good != 0 {
		r.t.Errorf("want %s found in the broken configuration only, got %d there and %d in ours", id, bad, good)
	}
}
