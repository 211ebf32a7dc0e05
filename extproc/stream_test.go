package extproc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// stream is an ext_proc stream in memory: the wire bytes pass through the codec
// as they do through gRPC.
type stream struct {
	grpc.ServerStream
	ctx     context.Context
	in      [][]byte // nil stands for an error of Recv
	recvErr error    // what Recv says at a nil and at the end; io.EOF when not set
	sendErr error
	sent    []*extprocv3.ProcessingResponse
	t       testing.TB
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) RecvMsg(m any) error {
	if len(s.in) == 0 || s.in[0] == nil {
		if s.recvErr == nil {
			return io.EOF
		}
		return s.recvErr
	}
	wire := s.in[0]
	s.in = s.in[1:]
	return codec{}.Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, m)
}

func (s *stream) SendMsg(m any) error {
	if s.sendErr != nil {
		return s.sendErr
	}
	out, err := codec{}.Marshal(m)
	if err != nil {
		return err
	}
	s.sent = append(s.sent, parsed(s.t, out.Materialize()))
	return nil
}

// newStream makes a stream from the cluster that names the upstreams given.
func newStream(tb testing.TB, upstreams []string, msgs ...*extprocv3.ProcessingRequest) *stream {
	tb.Helper()
	s := &stream{ctx: metadata.NewIncomingContext(tb.Context(), metadata.MD{upstreamKey: upstreams}), t: tb}
	for _, m := range msgs {
		wire, err := proto.Marshal(m)
		if err != nil {
			tb.Fatal(err)
		}
		s.in = append(s.in, wire)
	}
	return s
}

// authServer is a token endpoint that issues tok-1, tok-2, … until fail is set.
type authServer struct {
	*httptest.Server
	requests atomic.Int64
	fail     atomic.Int64 // status to fail with
	hang     atomic.Bool
}

func newAuthServer(tb testing.TB) *authServer {
	tb.Helper()
	a := &authServer{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := a.requests.Add(1)
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that the client left
		if a.hang.Load() {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if status := a.fail.Load(); status != 0 {
			w.WriteHeader(int(status))
			_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
			return
		}
		_, _ = fmt.Fprintf(w, `{"access_token":"tok-%d","token_type":"Bearer","expires_in":3600}`, n)
	}))
	tb.Cleanup(a.Close)
	return a
}

// observed collects decisions.
type observed struct {
	mu   sync.Mutex
	list []Decision
}

func (o *observed) Decided(d *Decision) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, *d)
}

// rig is a server with a policy in force.
type rig struct {
	*Server
	set  *policy.Set
	auth *authServer
	seen *observed
	log  *syncBuffer
}

// hurry puts server.deadline at 300 ms. Without it there is a minute: a slow machine
// is no slow endpoint.
func (r *rig) hurry(tb testing.TB) {
	tb.Helper()
	r.set.Server.Deadline = 300 * time.Millisecond
	if err := r.Load(r.set); err != nil {
		tb.Fatal(err)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

const testPolicy = `
version: 1
callers:
  anyone: {any: true}
  ci: {key: {sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}, scopes: [admin]}  # "key"
  mesh: {mtls: {san: ["spiffe://a/b"]}}
defaults:
  credential:
    oauth2: {token_url: "${TOKEN_URL}", client_id: cid, client_secret: "${SECRET}"}
upstreams:
  a: {url: "http://127.0.0.1:1/mcp", callers: [anyone], cookies: {allow: [session]}}
  b: {url: "http://127.0.0.1:2/mcp", callers: [ci, mesh]}
  open: {url: "http://127.0.0.1:3/mcp", callers: [anyone], credential: none}
  fixed: {url: "http://127.0.0.1:4/v1", callers: [anyone], credential: {header: {x-api-key: "${API_KEY}"}}}
  by_headers:
    url: "http://127.0.0.1:7/mcp"
    callers: [ci]
    tools: {proof: headers, rules: [{names: [read]}, {methods: [completion/complete], names: [x]}]}
  by_filter:
    url: "http://127.0.0.1:8/mcp"
    callers: [ci]
    tools: {proof: mcp_filter, rules: [{names: [read]}]}
  ruled:
    url: "http://127.0.0.1:6/mcp"
    callers: [ci, mesh]
    cookies: {allow: [session]}
    tools:
      max_body: 4KiB
      implies: {admin: [customer:read]}
      rules:
        - {names: [read, "ticket_*"]}
        - {names: [customer], scopes: [customer:read]}
        - {names: [purge], scopes: [purge:all, customer:write]}
  followed: {url: "http://127.0.0.1:9/mcp", callers: [anyone], envoy: {outcomes: response_headers}}
  followed_ruled:
    url: "http://127.0.0.1:10/mcp"
    callers: [ci]
    tools: {rules: [{names: [read]}]}
    envoy: {outcomes: response_headers}
  once: {url: "http://127.0.0.1:5/v1", callers: [anyone], credential: none, cookies: {allow: [s], duplicates: refuse}}
`

func testEnv(auth string) func(string) (string, bool) {
	env := map[string]string{"TOKEN_URL": auth, "SECRET": "s3cret-canary", "API_KEY": "api-canary"}
	return func(name string) (string, bool) { v, ok := env[name]; return v, ok }
}

func newRig(tb testing.TB) *rig {
	tb.Helper()
	r := &rig{auth: newAuthServer(tb), seen: &observed{}, log: &syncBuffer{}}
	env := testEnv(r.auth.URL)
	set, err := policy.Parse("policy.yaml", []byte(testPolicy), env)
	if err != nil {
		tb.Fatal(err)
	}
	store := secrets.New(secrets.Config{Env: env})
	if err := store.Require(secrets.Of(set)); err != nil {
		tb.Fatal(err)
	}
	cache := tokens.New(tokens.Config{Secrets: store, Now: time.Now})
	tb.Cleanup(cache.Close)
	r.Server, err = New(Config{Tokens: cache, Secrets: store, Now: time.Now, Log: zerolog.New(r.log), Observe: r.seen})
	if err != nil {
		tb.Fatal(err)
	}
	r.set, set.Server.Deadline = set, time.Minute
	if err := r.Load(set); err != nil {
		tb.Fatal(err)
	}
	return r
}

// call runs one request through Process and returns the reply.
func (r *rig) call(tb testing.TB, upstream string, req *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	tb.Helper()
	var names []string
	if upstream != "" {
		names = []string{upstream}
	}
	s := newStream(tb, names, req)
	if err := r.Process(s); err != nil {
		tb.Fatalf("Process: %v", err)
	}
	if len(s.sent) != 1 {
		tb.Fatalf("%d replies, want 1", len(s.sent))
	}
	return s.sent[0]
}

// changes are the header changes of a reply.
func changes(resp *extprocv3.ProcessingResponse) (set map[string]string, removed map[string]bool) {
	m := resp.GetRequestHeaders().GetResponse().GetHeaderMutation()
	if resp.GetRequestBody() != nil {
		m = resp.GetRequestBody().GetResponse().GetHeaderMutation()
	}
	if im := resp.GetImmediateResponse(); im != nil {
		m = im.GetHeaders()
	}
	set, removed = map[string]string{}, map[string]bool{}
	for _, o := range m.GetSetHeaders() {
		set[o.GetHeader().GetKey()] = string(o.GetHeader().GetRawValue())
	}
	for _, n := range m.GetRemoveHeaders() {
		removed[n] = true
	}
	return set, removed
}

// described are the members of our metadata in a reply.
func described(resp *extprocv3.ProcessingResponse) map[string]any {
	m, _ := resp.GetDynamicMetadata().AsMap()[namespace].(map[string]any)
	return m
}
