package extproc

import (
	"context"
	"io"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// faulty is an observer that panics when told to: a fault in the middle of a decision.
type faulty struct{ armed bool }

func (f *faulty) Decided(*Decision) {
	if f.armed {
		panic("fault") //nolint:forbidigo // the fault under test
	}
}

// script turns fuzz bytes into a stream: each byte is one thing that happens.
type script struct {
	stream *stream
	fault  *faulty
}

// messages are the kinds a script can send, by number.
func messages() []*extprocv3.ProcessingRequest {
	return []*extprocv3.ProcessingRequest{
		headersRequest(nil, nil, ":path", "/mcp", "authorization", "Bearer caller", "cookie", "session=1; x=2"),
		headersRequest(map[string]any{"xds.cluster_name": "open"}, nil, "authorization", "Bearer caller"),
		headersRequest(map[string]any{"xds.cluster_name": "nowhere"}, nil, "authorization", "Bearer caller"),
		headersRequest(nil, nil, "authorization", "Bearer caller", "x-envoy-attempt-count", "2"),
		headersRequest(nil, map[string]any{"upstream": "open", "caller": "anyone", "reason": "allowed"},
			"authorization", "Bearer caller", "x-envoy-attempt-count", "2"),
		bodyRequest("{}"),
		{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}},
		{},
		post(), // 11
		post("mcp-protocol-version", "2026-07-28", "mcp-method", "tools/call", "mcp-name", "read"),
		post("x-envoy-attempt-count", "2"),
		bodyRequest(callOf("read")), // 14
		bodyRequest(callOf("drop")),
		bodyRequest("[" + callOf("read") + "," + callOf("drop") + "]"),
		bodyRequest(""),
	}
}

// What else a script can say, besides the number of a message.
const (
	nameAt   = 100 // and up: Envoy names an upstream
	nothing  = 120 // Recv fails
	recvFail = 121
	sendFail = 122
	fault    = 123
)

func scriptNames() []string {
	return []string{"open", "fixed", "b", "x", "", "ruled", "by_headers", "by_filter", "followed", "followed_ruled"}
}

func newScript(tb testing.TB, steps []byte) *script {
	tb.Helper()
	sc := &script{stream: &stream{t: tb}, fault: &faulty{}}
	md := metadata.MD{}
	kinds, names := messages(), scriptNames()
	for _, b := range steps {
		switch {
		case int(b) < len(kinds):
			wire, err := proto.Marshal(kinds[b])
			if err != nil {
				tb.Fatal(err)
			}
			sc.stream.in = append(sc.stream.in, wire)
		case b >= nameAt && int(b) < nameAt+len(names):
			md.Append(upstreamKey, names[b-nameAt])
		case b == nothing:
			sc.stream.in = append(sc.stream.in, nil)
		case b == recvFail:
			sc.stream.recvErr = context.Canceled
		case b == sendFail:
			sc.stream.sendErr = io.EOF
		case b == fault:
			sc.fault.armed = true
		default:
			sc.stream.in = append(sc.stream.in, steps) // the script itself, as a message
		}
	}
	sc.stream.ctx = metadata.NewIncomingContext(tb.Context(), md)
	return sc
}

// FuzzE1NeverNilBeforeAReply drives Process with sequences of messages and
// faults. Whatever happens, Process returns nil only after a reply, and a reply
// that lets a request go on bears our mark and takes the caller's
// Authorization off or overwrites it.
func FuzzE1NeverNilBeforeAReply(f *testing.F) {
	for _, seed := range [][]byte{
		{100, 0},
		{100, 1},
		{},
		{nothing},
		{sendFail, 100, 0},
		{fault, 100, 0},
		{100, 101, 0},
		{100, 4},
		{100, 3},
		{7},
		{5, 0},
		{10, 0},
		{0, recvFail},
		{255, 1},
		{105, 11, 14},
		{105, 11, 15},
		{105, 11, 16},
		{105, 11, 17},
		{105, 11},
		{105, 11, nothing},
		{105, 11, 11, 14},
		{105, 11, 6},
		{105, 11, 7},
		{105, 13, 14},
		{105, fault, 11, 14},
		{106, 12},
		{107, 12},
		{106, 11},
		{108, 0, 7},
		{108, 0, 8},
		{108, 0, recvFail},
		{108, 4, 7},
		{109, 11, 14, 7},
		{109, 11, 7},
	} {
		f.Add(seed)
	}
	r := newRig(f)
	f.Fuzz(func(t *testing.T, steps []byte) {
		sc := newScript(t, steps)
		r.cfg.Observe = sc.fault // one script runs at a time
		checkScript(t, r.Server, sc)
	})
}

func checkScript(t *testing.T, s *Server, sc *script) {
	t.Helper()
	err := s.Process(sc.stream)
	sent := sc.stream.sent
	if err == nil && (len(sent) == 0 || sent[len(sent)-1].GetModeOverride() != nil) {
		t.Fatal("Process returned nil before the last reply: Envoy would forward the request untouched")
	}
	for _, resp := range sent {
		if resp.GetModeOverride() != nil {
			checkAsksOnly(t, resp, upstreamOf(sc) == "followed_ruled")
			continue
		}
		if resp.GetRequestHeaders() == nil && resp.GetRequestBody() == nil {
			continue
		}
		if name := upstreamOf(sc); (name == "ruled" || name == "followed_ruled") && resp.GetRequestHeaders() != nil {
			t.Fatalf("a reply to the headers alone, at an upstream with rules: %v", resp)
		}
		set, removed := changes(resp)
		if set[guardHeader] == "" {
			t.Fatalf("a reply without our mark: %v", resp)
		}
		if !removed["authorization"] && set["authorization"] == "" {
			t.Fatalf("a reply that leaves the caller's authorization: %v", resp)
		}
		if set["cookie"] == "" && !removed["cookie"] {
			t.Fatalf("a reply that leaves a cookie: %v", resp)
		}
	}
}

// upstreamOf is the one upstream that Envoy names, or empty.
func upstreamOf(sc *script) string {
	if md, _ := metadata.FromIncomingContext(sc.stream.ctx); len(md.Get(upstreamKey)) == 1 {
		return md.Get(upstreamKey)[0]
	}
	return ""
}
