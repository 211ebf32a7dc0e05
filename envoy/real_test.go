package envoy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// asked is what one ext_proc stream brought.
type asked struct {
	upstream   string
	headers    map[string]string
	attributes map[string]string
	token      string // of our dynamic metadata, as attempt 1 left it
}

// answer is what the script makes of it: a reply, or an error, or neither,
// which closes the stream cleanly before a reply.
type answer struct {
	reply *extprocv3.ProcessingResponse
	err   error
	hold  time.Duration // keep the stream open after the reply
}

// script is an ext_proc server for tests.
type script struct {
	extprocv3.UnimplementedExternalProcessorServer

	mu     sync.Mutex
	asked  []asked
	answer func(asked) answer
}

func (s *script) Process(stream grpc.BidiStreamingServer[extprocv3.ProcessingRequest, extprocv3.ProcessingResponse]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(stream.Context())
	a := asked{upstream: strings.Join(md.Get(envoy.UpstreamMetadata), ","), headers: map[string]string{}, attributes: map[string]string{}}
	for _, h := range req.GetRequestHeaders().GetHeaders().GetHeaders() {
		a.headers[h.GetKey()] = string(h.GetRawValue())
	}
	for _, fields := range req.GetAttributes() {
		for k, v := range fields.GetFields() {
			a.attributes[k] = v.GetStringValue()
		}
	}
	a.token = req.GetMetadataContext().GetFilterMetadata()[envoy.MetadataNamespace].GetFields()["token"].GetStringValue()
	s.mu.Lock()
	s.asked = append(s.asked, a)
	f := s.answer
	s.mu.Unlock()
	out := f(a)
	if out.err != nil || out.reply == nil {
		return out.err
	}
	if err := stream.Send(out.reply); err != nil {
		return err
	}
	if out.hold > 0 {
		select {
		case <-time.After(out.hold):
		case <-stream.Context().Done():
		}
	}
	return nil
}

func (s *script) set(f func(asked) answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.answer = nil, f
}

func (s *script) seen() []asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// allow marks the request, as the server does, and lends it the token T1.
func allow(a asked) answer { return lend(a.upstream, "T1") }

func lend(upstream, token string) answer {
	set := []*corev3.HeaderValueOption{}
	for _, h := range [][2]string{{envoy.GuardHeader, upstream}, {"authorization", "Bearer " + token}} {
		set = append(set, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h[0], RawValue: []byte(h[1])},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	ours, err := structpb.NewStruct(map[string]any{envoy.MetadataNamespace: map[string]any{"token": token}})
	if err != nil {
		return answer{err: err}
	}
	return answer{reply: &extprocv3.ProcessingResponse{
		DynamicMetadata: ours,
		Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
			Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: set, RemoveHeaders: []string{"cookie"}}},
		}},
	}}
}

// recorder is an upstream that remembers what reached it.
type recorder struct {
	*httptest.Server

	mu   sync.Mutex
	reqs []*http.Request
}

func newRecorder(t *testing.T, h http.HandlerFunc) *recorder {
	t.Helper()
	r := &recorder{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.reqs = append(r.reqs, req.Clone(context.WithoutCancel(req.Context())))
		r.mu.Unlock()
		h(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

// take returns what came since the last call.
func (r *recorder) take() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.reqs
	r.reqs = nil
	return out
}

// lab is a rendered Envoy between a client and recording upstreams.
type lab struct {
	*script

	url    string
	own    string // the listener of the upstream "own"
	up     *recorder
	envoy  *realenvoy.Envoy
	dir    string
	policy *policy.Set
}

// newLab starts one Envoy whose upstreams all lead to one recorder:
// a (path /mcp), bare (no path), open (no credential), own (own listener).
func newLab(t *testing.T, h http.HandlerFunc, change ...func(*policy.Set)) *lab {
	t.Helper()
	binary := realenvoy.Require(t)
	l := &lab{script: &script{answer: allow}, up: newRecorder(t, h), dir: t.TempDir()}
	sock := filepath.Join(l.dir, "grpc.sock")
	serve(t, "unix", sock, l.script)
	s := set(
		upstream("a", l.up.URL+"/mcp"), upstream("bare", l.up.URL), upstream("open", l.up.URL+"/mcp", withoutCredential),
		upstream("own", l.up.URL+"/sse", withListen(free(t))),
	)
	s.Server.Listen, s.Envoy.Listen = "unix://"+sock, free(t)
	for _, f := range change {
		f(s)
	}
	l.url, l.own = "http://"+s.Envoy.Listen, "http://"+s.Upstreams[len(s.Upstreams)-1].Listen
	e, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: binary, Dir: l.dir, Bootstrap: render(t, s, envoy.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	l.envoy, l.policy = e, s
	return l
}

func serve(t *testing.T, network, addr string, s *script, opt ...grpc.ServerOption) {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), network, addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(opt...)
	extprocv3.RegisterExternalProcessorServer(srv, s)
	healthv1.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
}

// free returns a loopback address that was free a moment ago.
func free(t *testing.T) string {
	t.Helper()
	address, err := realprocess.Address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}

type reply struct {
	status int
	header http.Header
	body   string
	reason string // of the JSON-RPC body
}

func post(t *testing.T, url, body string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func read(t *testing.T, resp *http.Response) reply {
	t.Helper()
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Error struct {
			Data struct {
				Reason string `json:"reason"`
			} `json:"data"`
		} `json:"error"`
	}
	_ = json.Unmarshal(b, &parsed) // not every answer is JSON
	return reply{status: resp.StatusCode, header: resp.Header, body: string(b), reason: parsed.Error.Data.Reason}
}

// refused fails unless the answer is a whole refusal: status, header, body, no-store.
func refused(t *testing.T, got reply, status int, reason string) {
	t.Helper()
	if got.status != status || got.reason != reason || got.header.Get(envoy.ReasonHeader) != reason ||
		got.header.Get("Cache-Control") != "no-store" || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("want %d %s as JSON with no-store, got %d %v %s", status, reason, got.status, got.header, got.body)
	}
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

// TestE1_ClosedBeforeReply keeps fault E1: a stream that ends without an error
// before a reply must not let the request through.
func TestE1_ClosedBeforeReply(t *testing.T) {
	l := newLab(t, ok)
	l.set(func(asked) answer { return answer{} })
	for _, path := range []string{"/a/mcp", "/bare/x", "/open/mcp"} {
		got := post(t, l.url+path, "{}", "Authorization", "Bearer CALLER", "Cookie", "a=b", envoy.GuardHeader, strings.Split(path, "/")[1])
		refused(t, got, http.StatusForbidden, "guard")
	}
	refused(t, post(t, l.own+"/sse", "{}"), http.StatusForbidden, "guard")
	// A mark for another upstream is no mark.
	l.set(func(asked) answer { return lend("other", "T1") })
	refused(t, post(t, l.url+"/a/mcp", "{}"), http.StatusForbidden, "guard")
	if n := len(l.up.take()); n != 0 {
		t.Errorf("want no request at the upstream, got %d", n)
	}
}

// TestE2E3_ErrorAndHang keeps E2 and E3: errors and silence are refusals.
func TestE2E3_ErrorAndHang(t *testing.T) {
	l := newLab(t, ok)
	l.set(func(asked) answer { return answer{err: io.ErrUnexpectedEOF} })
	if got := post(t, l.url+"/a/mcp", "{}"); got.status < 500 {
		t.Errorf("error: want 5xx, got %d", got.status)
	}
	l.set(func(asked) answer { time.Sleep(3 * time.Second); return answer{} })
	start := time.Now()
	if got := post(t, l.url+"/a/mcp", "{}"); got.status < 500 {
		t.Errorf("hang: want 5xx, got %d", got.status)
	}
	if d := time.Since(start); d < 1500*time.Millisecond || d > 2900*time.Millisecond {
		t.Errorf("want the answer after message_timeout (2 s), got it after %s", d)
	}
	if n := len(l.up.take()); n != 0 {
		t.Errorf("want no request at the upstream, got %d", n)
	}
}

// TestStreamHeldOpen shows that a server that keeps its side open loses nothing.
func TestStreamHeldOpen(t *testing.T) {
	l := newLab(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "a")
		_ = http.NewResponseController(w).Flush()
		time.Sleep(3 * time.Second)
		_, _ = io.WriteString(w, "b")
	})
	l.set(func(a asked) answer {
		out := lend(a.upstream, "T1")
		out.hold = 10 * time.Second
		return out
	})
	if got := post(t, l.url+"/a/mcp", "{}"); got.status != http.StatusOK || got.body != "ab" {
		t.Errorf("got %d %q", got.status, got.body)
	}
}

// TestRetryOn401 keeps the promise of the revoked token: attempt 2 is asked about
// again, sees our metadata of attempt 1, and heals the call.
func TestRetryOn401(t *testing.T) {
	l := newLab(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") != "Bearer T2" {
			w.Header().Set("Www-Authenticate", "Bearer")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = fmt.Fprint(w, len(b))
	})
	second := func(a asked) answer {
		if a.token == "T1" && a.headers["x-envoy-attempt-count"] == "2" && a.headers["authorization"] == "Bearer T1" {
			return lend(a.upstream, "T2")
		}
		return lend(a.upstream, "T1")
	}
	for _, size := range []int{0, 200, 300_000, 900_000} {
		l.set(second)
		got := post(t, l.url+"/a/mcp", strings.Repeat("x", size), "X-Envoy-Attempt-Count", "2", "Authorization", "Bearer CALLER")
		if got.status != http.StatusOK || got.body != fmt.Sprint(size) {
			t.Errorf("%d bytes: got %d %q, asked %+v", size, got.status, got.body, l.seen())
		}
		if n := len(l.seen()); n != 2 {
			t.Errorf("%d bytes: want 2 decisions, got %d", size, n)
		}
	}
	// A body over the buffer cannot be sent again: one attempt, and a reason.
	l.set(second)
	refused(t, post(t, l.url+"/a/mcp", strings.Repeat("x", 2_000_000)), http.StatusBadGateway, "upstream_rejected")
	if n := len(l.seen()); n != 1 {
		t.Errorf("2 MB: want 1 decision, got %d", n)
	}
	l.up.take()
	t.Run("without a credential", func(t *testing.T) {
		l.set(allow)
		got := post(t, l.url+"/open/mcp", "{}")
		if got.status != http.StatusUnauthorized || got.header.Get("Www-Authenticate") != "Bearer" || len(l.up.take()) != 1 {
			t.Errorf("want the upstream's own 401 after one attempt, got %d %v", got.status, got.header)
		}
	})
	t.Run("final", func(t *testing.T) {
		l.set(allow)
		for _, url := range []string{l.url + "/a/mcp", l.own + "/sse"} {
			got := post(t, url, "{}")
			refused(t, got, http.StatusBadGateway, "upstream_rejected")
			if got.header.Get("Www-Authenticate") != "" || len(l.up.take()) != 2 {
				t.Errorf("want no challenge after two attempts, got %v", got.header)
			}
		}
	})
}

// TestA3_ChallengeNotRelayed keeps A3 and O18: a 403 passes without its challenge.
func TestA3_ChallengeNotRelayed(t *testing.T) {
	l := newLab(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer error="insufficient_scope"`)
		w.Header().Set("Server", "upstream/1")
		w.WriteHeader(http.StatusForbidden)
	})
	got := post(t, l.url+"/a/mcp", "{}")
	if got.status != http.StatusForbidden || got.header.Get("Www-Authenticate") != "" || got.header.Get("Server") != "upstream/1" {
		t.Errorf("got %d %v", got.status, got.header)
	}
	if got := post(t, l.url+"/open/mcp", "{}"); got.header.Get("Www-Authenticate") == "" {
		t.Errorf("without a credential: want the challenge, got %v", got.header)
	}
}

// TestC4_Paths keeps C4: what the router matched is what the upstream gets, and
// nothing outside an upstream's path is reachable.
func TestC4_Paths(t *testing.T) {
	l := newLab(t, ok)
	cases := []struct {
		path   string
		want   string // what the upstream sees; empty for a refusal
		status int
	}{
		{"/a/mcp", "/mcp", 200},
		{"/a/mcp?x=1&y=/a/mcp", "/mcp?x=1&y=/a/mcp", 200},
		{"/a/mcp/", "/mcp/", 200},
		{"/a/mcp/x?q", "/mcp/x?q", 200},
		{"/a//mcp///x", "/mcp/x", 200},
		{"/a/./mcp", "/mcp", 200},
		{"/b/../a/mcp", "/mcp", 200},
		{"/a/mcp/%2e%2e/mcp", "/mcp", 200}, // decoded and normalised before matching
		{"/a/mcp/../../bare/x", "/x", 200}, // is a request for bare, and decided as one
		{"/bare", "/", 200},
		{"/bare/", "/", 200},
		{"/bare?x=//y", "/?x=//y", 200},
		{"/bare/x/bare/y", "/x/bare/y", 200},
		{"//bare//x", "/x", 200},
		{"/bare/;x", "/;x", 200},
		{"/a/mcp;x", "", 403},
		{"/a/mcpx", "", 403},
		{"/a", "", 403},
		{"/a/", "", 403},
		{"/a/MCP", "", 403},
		{"/A/mcp", "", 403},
		{"/rootx", "", 403},
		{"/own/sse", "", 403},
		{"/", "", 403},
		{"/a/mcp/../secret", "", 403},
		{"/a/mcp/%2e%2e/secret", "", 403},
		{"/..", "", 403},
		{"/a%2fmcp", "", 400},
		{"/a/mcp/%252e%252e/secret", "", 403}, // left to a server that decodes twice
		{"/a/mcp/%25252e%252E", "", 403},
		{"/a/mcp/.%252e%252fsecret", "", 403},
		{"/a/mcp/%2e%2e;/secret", "", 403}, // left to a server that drops path parameters
		{"/a/mcp/..;x=1/secret", "", 403},
		{"/a/mcp/..%3b/secret", "", 403},
		{"/a/mcp/..%20/secret", "", 403},
		{"/a/mcp/..%09", "", 403},
		{"/bare/%2e%2E;/secret", "", 403},
		{"/a/mcp/.well-known/x", "/mcp/.well-known/x", 200},
		{"/a/mcp/.../x", "/mcp/.../x", 200},
		{"/a/mcp/a..;b?q=/..;/", "/mcp/a..;b?q=/..;/", 200},
		{"/a/mcp%2Fx", "", 400},
		{"/a/mcp%5cx", "", 400},
		{"/a/mcp%00", "", 400},
		{"/a/mcp#frag", "", 400},
		{`/a\mcp`, "/mcp", 200},                 // normalised to /a/mcp before matching
		{"/a/mcp/x%252fy", "/mcp/x%252fy", 200}, // one decoding only, and none by Envoy
		{"/a/mcp%252fx", "", 403},
	}
	for _, c := range cases {
		status, _ := raw(t, l.url, "GET "+c.path+" HTTP/1.1\r\nHost: x\r\n")
		got := l.up.take()
		switch {
		case status != c.status:
			t.Errorf("%s: want %d, got %d", c.path, c.status, status)
		case c.want == "" && len(got) != 0:
			t.Errorf("%s: want nothing at the upstream, got %s", c.path, got[0].RequestURI)
		case c.want != "" && (len(got) != 1 || got[0].RequestURI != c.want):
			t.Errorf("%s: want %s at the upstream, got %+v", c.path, c.want, got)
		}
	}
}

// raw sends one request as written and returns status and body.
func raw(t *testing.T, url, head string) (int, string) {
	t.Helper()
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // one request only
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, head+"Connection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// TestC3_Authorities keeps C3: the upstream is the path's, whatever the authority,
// and it sees its own.
func TestC3_Authorities(t *testing.T) {
	l := newLab(t, ok)
	own := strings.TrimPrefix(l.up.URL, "http://")
	for _, host := range []string{"a.test", "a.test:443", "A.TEST", "a.test.", "a.test:", "user@a.test", "open"} {
		status, body := raw(t, l.url, "GET /a/mcp HTTP/1.1\r\nHost: "+host+"\r\n")
		got := l.up.take()
		if status != http.StatusOK && len(got) == 0 {
			continue // refused is fine
		}
		if len(got) != 1 || got[0].Host != own || got[0].Header.Get("Authorization") != "Bearer T1" {
			t.Errorf("Host %q: got %d %s %+v", host, status, body, got)
		}
	}
	for _, a := range l.seen() {
		if a.upstream != "a" || a.attributes["xds.cluster_name"] != "a" || a.attributes["xds.route_name"] != "a" {
			t.Errorf("want upstream, cluster and route a, got %+v", a)
		}
	}
	t.Run("by host", func(t *testing.T) {
		l := newLab(t, ok, func(s *policy.Set) { s.Envoy.ByHost, s.Envoy.Host = true, "mcp.test" })
		cases := map[string]int{
			"a.mcp.test": 200, "A.MCP.TEST": 200, "a.mcp.test:443": 200, "a.mcp.test.": 200, "a.mcp.test.:80": 200,
			"b.mcp.test": 403, "mcp.test": 403, "user@a.mcp.test": 403, "x.a.mcp.test": 403, "": 403,
		}
		for host, want := range cases {
			status, _ := raw(t, l.url, "GET /mcp/x HTTP/1.1\r\nHost: "+host+"\r\n")
			got := l.up.take()
			if host == "user@a.mcp.test" && status == 400 || host == "" && status == 400 {
				status = want // a refusal either way
			}
			if status != want || want == 200 && (len(got) != 1 || got[0].RequestURI != "/mcp/x") || want != 200 && len(got) != 0 {
				t.Errorf("Host %q: want %d, got %d, at the upstream %d", host, want, status, len(got))
			}
		}
		status, _ := raw(t, l.url, "GET /mcpx HTTP/1.1\r\nHost: a.mcp.test\r\n")
		if status != http.StatusForbidden {
			t.Errorf("outside the path: want 403, got %d", status)
		}
	})
}

// TestC2C6_SpoofedHeaders keeps C2 and C6: what steers Envoy or us does not come
// from a caller.
func TestC2C6_SpoofedHeaders(t *testing.T) {
	l := newLab(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Fail") != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	post(t, l.url+"/a/mcp", "{}", "X-Fail", "1",
		"x-envoy-retry-on", "5xx", "x-envoy-max-retries", "3", "x-envoy-upstream-rq-timeout-ms", "1",
		"x-envoy-original-path", "/evil", "x-envoy-attempt-count", "7", "mcp-upstream", "bare", envoy.GuardHeader, "a",
		"x-forwarded-client-cert", "URI=spiffe://company/litellm", "x-envoy-decorator-operation", "evil",
		"x-forwarded-host", "evil", "x-original-url", "/evil", "forwarded", "host=evil", "x-envoy-external-address", "1.2.3.4", "x-forwarded-proto", "https")
	got := l.up.take()
	if len(got) != 1 {
		t.Fatalf("want one attempt, got %d", len(got))
	}
	for _, h := range []string{
		"X-Envoy-Retry-On", "X-Envoy-Max-Retries", "X-Envoy-Upstream-Rq-Timeout-Ms", "X-Forwarded-Client-Cert",
		"X-Envoy-Decorator-Operation", "X-Forwarded-Host", "X-Original-Url", "Forwarded", envoy.GuardHeader,
	} {
		if v := got[0].Header.Get(h); v != "" {
			t.Errorf("%s reached the upstream: %q", h, v)
		}
	}
	if h := got[0].Header; h.Get("X-Envoy-External-Address") == "1.2.3.4" || h.Get("X-Forwarded-Proto") != "http" {
		t.Errorf("want address and scheme as Envoy saw them, got %v", h)
	}
	if a := l.seen()[0]; a.headers["x-envoy-attempt-count"] != "1" || a.upstream != "a" || a.headers[envoy.GuardHeader] != "" {
		t.Errorf("got %+v", a)
	}
	if status, _ := raw(t, l.url, "GET /a/mcp HTTP/1.1\r\nHost: x\r\nx_mcp_auth_guard: a\r\n"); status != http.StatusBadRequest {
		t.Errorf("header with underscores: want 400, got %d", status)
	}
}

// TestE7_ForbiddenMutations keeps E7: a reply that touches what the policy does
// not fails the call.
func TestE7_ForbiddenMutations(t *testing.T) {
	l := newLab(t, ok)
	for _, name := range []string{"host", ":authority", ":path", "x-envoy-retry-on", "x-other"} {
		l.set(func(a asked) answer {
			out := lend(a.upstream, "T1")
			m := out.reply.GetRequestHeaders().GetResponse().GetHeaderMutation()
			m.SetHeaders = append(m.SetHeaders, &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, RawValue: []byte("evil")}})
			return out
		})
		if got := post(t, l.url+"/a/mcp", "{}"); got.status != http.StatusInternalServerError {
			t.Errorf("%s: want 500, got %d", name, got.status)
		}
	}
	if n := len(l.up.take()); n != 0 {
		t.Errorf("want no request at the upstream, got %d", n)
	}
}

// TestCheckReadsConfigDump shows that what Envoy says of itself is checked like
// the file it was started with.
func TestCheckReadsConfigDump(t *testing.T) {
	l := newLab(t, ok)
	dump, err := l.envoy.Get(t.Context(), "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range check(t, dump, l.policy) {
		t.Error(f)
	}
	late := bytes.ReplaceAll(dump, []byte(`"message_timeout": "2s"`), []byte(`"message_timeout": "0.2s"`))
	found := check(t, late, l.policy)
	for _, f := range found {
		if f.ID != "message-timeout" {
			t.Errorf("want message-timeout alone, got %s", f)
		}
	}
	if len(found) != len(l.policy.Upstreams) {
		t.Errorf("want one finding per upstream, got %v", found)
	}
}

func TestCatchAll(t *testing.T) {
	l := newLab(t, ok)
	refused(t, post(t, l.url+"/nobody/mcp", "{}"), http.StatusForbidden, "no_policy")
	if n := len(l.up.take()) + len(l.seen()); n != 0 {
		t.Errorf("want nobody asked, got %d", n)
	}
}

// TestSSEStreams shows that events arrive when they are sent, not at the end.
func TestSSEStreams(t *testing.T) {
	release := make(chan struct{})
	l := newLab(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "data: 2\n\n")
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, l.url+"/a/mcp", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	br := bufio.NewReader(resp.Body)
	if line, err := br.ReadString('\n'); err != nil || line != "data: 1\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	close(release)
	rest, err := io.ReadAll(br)
	if err != nil || !bytes.Contains(rest, []byte("data: 2")) {
		t.Fatalf("got %q, %v", rest, err)
	}
}

// TestMTLS shows that the names of a client's certificate reach the server from
// the upstream chain, over HTTP/1.1 and HTTP/2, and only those of a verified one.
func TestMTLS(t *testing.T) {
	dir := t.TempDir()
	writePairs(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	l := newLab(t, ok, func(s *policy.Set) {
		s.Envoy.TLS = &policy.TLSSpec{Certificate: in("tls.crt"), PrivateKey: in("tls.key"), ClientCA: in("ca.crt")}
		s.Upstreams[0] = upstream("a", s.Upstreams[0].URL, withMTLS)
	})
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(in("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(in("client.crt"), in("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	get := func(h2 bool, certs ...tls.Certificate) int {
		tr := &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: h2, DisableKeepAlives: true,
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.Replace(l.url, "http:", "https:", 1)+"/a/mcp", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, resp); h2 != (resp.ProtoMajor == 2) {
			t.Errorf("want HTTP/2 %t, got %s %+v", h2, resp.Proto, got)
		}
		return resp.StatusCode
	}
	for _, h2 := range []bool{false, true} {
		l.set(allow)
		if status := get(h2, pair); status != http.StatusOK {
			t.Errorf("got %d", status)
		}
		a := l.seen()[0].attributes
		if a["connection.uri_san_peer_certificate"] != "spiffe://company/litellm" || a["connection.dns_san_peer_certificate"] != "litellm.company.com" {
			t.Errorf("got attributes %v", a)
		}
		l.set(allow)
		get(h2)
		if a := l.seen()[0].attributes; a["connection.uri_san_peer_certificate"] != "" || a["connection.dns_san_peer_certificate"] != "" {
			t.Errorf("without a certificate: got attributes %v", a)
		}
	}
}

// TestL7_Transport keeps L7: an upstream or a processor that cannot prove its name
// gets nothing, and one that can is reached over HTTP/2 and mutual TLS.
func TestL7_Transport(t *testing.T) {
	binary := realenvoy.Require(t)
	dir, other := t.TempDir(), t.TempDir()
	writePairs(t, dir)
	writePairs(t, other)
	files := &policy.TLSSpec{Certificate: filepath.Join(dir, "tls.crt"), PrivateKey: filepath.Join(dir, "tls.key"), ClientCA: filepath.Join(dir, "ca.crt")}
	sc, s := &script{answer: allow}, set()
	s.Server.Listen, s.Server.TLS, s.Envoy.Listen = free(t), files, free(t)
	serve(t, "tcp", s.Server.Listen, sc, grpc.Creds(credentials.NewTLS(mutual(t, files))))
	var reached atomic.Int64
	for name, u := range map[string]struct{ host, ca string }{
		"good": {"127.0.0.1", dir}, "elsewhere": {"127.0.0.2", dir}, "stranger": {"127.0.0.1", other},
	} {
		url := serveTLS(t, u.host, files, func(w http.ResponseWriter, r *http.Request) {
			reached.Add(1)
			if r.ProtoMajor == 2 {
				_, _ = io.WriteString(w, "over HTTP/2")
			}
		})
		s.Upstreams = append(s.Upstreams, upstream(name, url+"/mcp", func(up *policy.Upstream) { up.CA = filepath.Join(u.ca, "ca.crt") }))
	}
	b := render(t, s, envoy.Options{})
	for _, f := range check(t, b, s) {
		t.Error(f)
	}
	e, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: binary, Dir: t.TempDir(), Bootstrap: b})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	base := "http://" + s.Envoy.Listen
	if got := post(t, base+"/good/mcp", "{}"); got.status != http.StatusOK || got.body != "over HTTP/2" {
		t.Errorf("good: got %d %s", got.status, got.body)
	}
	for _, name := range []string{"elsewhere", "stranger"} {
		if got := post(t, base+"/"+name+"/mcp", "{}"); got.status != http.StatusServiceUnavailable {
			t.Errorf("%s: want 503, got %d %s", name, got.status, got.body)
		}
	}
	if n := reached.Load(); n != 1 {
		t.Errorf("want one request at the upstreams, got %d", n)
	}
}

// mutual is a server's side of mutual TLS.
func mutual(t *testing.T, files *policy.TLSSpec) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(files.ClientCA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}
}

func serveTLS(t *testing.T, host string, files *policy.TLSSpec, h http.HandlerFunc) string {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	_ = srv.Listener.Close()
	srv.Listener, srv.EnableHTTP2 = ln, true
	srv.TLS = mutual(t, files)
	srv.TLS.ClientAuth = tls.NoClientCert
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return "https://" + ln.Addr().String()
}
