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
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: []byte("{}")}}},
		{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{}}},
		{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}},
		{},
	}
}

func newScript(tb testing.TB, steps []byte) *script {
	tb.Helper()
	sc := &script{stream: &stream{t: tb}, fault: &faulty{}}
	md := metadata.MD{}
	kinds := messages()
	for _, b := range steps {
		switch {
		case int(b) < len(kinds):
			wire, err := proto.Marshal(kinds[b])
			if err != nil {
				tb.Fatal(err)
			}
			sc.stream.in = append(sc.stream.in, wire)
		case b < 20:
			md.Append(upstreamKey, []string{"open", "fixed", "b", "x", ""}[b%5])
		case b == 20:
			sc.stream.in = append(sc.stream.in, nil)
		case b == 21:
			sc.stream.recvErr = context.Canceled
		case b == 22:
			sc.stream.sendErr = io.EOF
		case b == 23:
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
	for _, seed := range [][]byte{{15, 0}, {15, 1}, {}, {20}, {22, 15, 0}, {23, 15, 0}, {15, 16, 0}, {15, 4}, {15, 3}, {7}, {5, 0}, {10, 0}, {0, 21}, {255, 1}} {
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
	if err == nil && len(sc.stream.sent) == 0 {
		t.Fatal("Process returned nil before a reply: Envoy would forward the request untouched")
	}
	for _, resp := range sc.stream.sent {
		if resp.GetRequestHeaders() == nil {
			continue
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
