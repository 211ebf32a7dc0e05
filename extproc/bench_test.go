package extproc

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// benchStream hands over one message and throws the reply away.
type benchStream struct {
	grpc.ServerStream
	ctx  context.Context
	wire mem.BufferSlice
}

func (s *benchStream) Context() context.Context { return s.ctx }
func (s *benchStream) RecvMsg(m any) error      { return codec{}.Unmarshal(s.wire, m) }

func (*benchStream) SendMsg(m any) error {
	out, err := codec{}.Marshal(m)
	out.Free()
	return err
}

func newBenchStream(tb testing.TB, more ...string) *benchStream {
	tb.Helper()
	wire, err := proto.Marshal(headersRequest(map[string]any{"xds.cluster_name": "a", "xds.route_name": "a"}, nil, append([]string{
		"authorization", "Bearer sk-the-callers-own", "cookie", "session=0123456789abcdef; tracking=zzz",
		"x-envoy-attempt-count", "1", "x-request-id", "0b9ac637-0000-4000-8000-000000000000",
	}, more...)...))
	if err != nil {
		tb.Fatal(err)
	}
	return &benchStream{
		ctx:  metadata.NewIncomingContext(tb.Context(), metadata.MD{upstreamKey: []string{"a"}}),
		wire: mem.BufferSlice{mem.SliceBuffer(wire)},
	}
}

// BenchmarkProcess is a call with a cached token, without gRPC's own work.
func BenchmarkProcess(b *testing.B) {
	r := newRig(b)
	r.cfg.Observe = nil
	s := newBenchStream(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Process(s); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProcessJWT is a call by a caller whose token is known.
func BenchmarkProcessJWT(b *testing.B) {
	r, s := newJWTBench(b)
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Process(s); err != nil {
			b.Fatal(err)
		}
	}
}

func newJWTBench(tb testing.TB) (*jwtRig, *benchStream) {
	tb.Helper()
	r := newJWTRig(tb)
	token := "Bearer " + mint(tb, r.partner, "", nil)
	r.call(tb, "both", headersRequest(nil, nil, "authorization", token))
	r.cfg.Observe = nil
	wire, err := proto.Marshal(headersRequest(nil, nil, "authorization", token, "x-request-id", "0b9ac637-0000-4000-8000-000000000000"))
	if err != nil {
		tb.Fatal(err)
	}
	s := newBenchStream(tb)
	s.ctx = metadata.NewIncomingContext(tb.Context(), metadata.MD{upstreamKey: []string{"both"}})
	s.wire = mem.BufferSlice{mem.SliceBuffer(wire)}
	return r, s
}

// TestProcessAllocationsOfAKnownToken: two callers of another issuer come first,
// and cost nothing.
func TestProcessAllocationsOfAKnownToken(t *testing.T) {
	r, s := newJWTBench(t)
	if n := testing.AllocsPerRun(200, func() {
		if err := r.Process(s); err != nil {
			t.Fatal(err)
		}
	}); n > 12 {
		t.Errorf("a call allocates %v times, want at most 12", n)
	}
}

// TestProcessAllocations keeps a call with a cached token to what the reply's
// own buffer and the initial metadata cost: 4 allocations, and some more under
// the race detector, which drops pooled memory at random. The generated types
// would cost some 75.
func TestProcessAllocations(t *testing.T) {
	r := newRig(t)
	r.cfg.Observe = nil
	s := newBenchStream(t)
	if n := testing.AllocsPerRun(200, func() {
		if err := r.Process(s); err != nil {
			t.Fatal(err)
		}
	}); n > 12 {
		t.Errorf("a call allocates %v times, want at most 12", n)
	}
}

// bodyStream hands over headers and body in turn.
type bodyStream struct {
	benchStream

	body  mem.BufferSlice
	asked bool
}

func (s *bodyStream) RecvMsg(m any) error {
	s.asked = !s.asked
	if s.asked {
		return s.benchStream.RecvMsg(m)
	}
	return codec{}.Unmarshal(s.body, m)
}

// BenchmarkProcessBody is the same call where tool rules have its body read.
func BenchmarkProcessBody(b *testing.B) {
	r := newRig(b)
	r.cfg.Observe = nil
	headers, err := proto.Marshal(post("x-envoy-attempt-count", "1", "content-length", "200", "mcp-session-id", "0b9ac637-0000-4000-8000-000000000000",
		"mcp-protocol-version", "2025-11-25", "x-request-id", "0b9ac637-0000-4000-8000-000000000000"))
	if err != nil {
		b.Fatal(err)
	}
	body, err := proto.Marshal(bodyRequest(`{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{"name":"ticket_new","arguments":` +
		`{"title":"The printer is on fire","labels":["office","urgent"],"priority":1},"_meta":{"progressToken":4}}}`))
	if err != nil {
		b.Fatal(err)
	}
	s := &bodyStream{
		benchStream: benchStream{
			ctx:  metadata.NewIncomingContext(b.Context(), metadata.MD{upstreamKey: []string{"ruled"}}),
			wire: mem.BufferSlice{mem.SliceBuffer(headers)},
		},
		body: mem.BufferSlice{mem.SliceBuffer(body)},
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := r.Process(s); err != nil {
			b.Fatal(err)
		}
	}
}
