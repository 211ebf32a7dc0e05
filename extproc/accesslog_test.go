package extproc

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ends collects outcomes.
type ends struct {
	mu   sync.Mutex
	list []Outcome
}

func (e *ends) Ended(o *Outcome) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, *o)
}

func (e *ends) all() []Outcome {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]Outcome(nil), e.list...)
}

// logEntry is an entry as Envoy builds it; a reason is that of the answer.
func logEntry(status uint32, reason string, ours map[string]any) *accesslogv3.HTTPAccessLogEntry {
	meta := map[string]*structpb.Struct{}
	meta["other"], _ = structpb.NewStruct(map[string]any{"upstream": "spoofed", "token": "spoofed"})
	if ours != nil {
		meta[namespace], _ = structpb.NewStruct(ours)
	}
	headers := map[string]string{"content-type": "application/json"}
	if reason != "" {
		headers[reasonHeader] = reason
	}
	return &accesslogv3.HTTPAccessLogEntry{
		CommonProperties: &accesslogv3.AccessLogCommon{
			UpstreamCluster: "a", UpstreamRequestAttemptCount: 2, StreamId: "s",
			Metadata: &corev3.Metadata{FilterMetadata: meta},
		},
		Request:  &accesslogv3.HTTPRequestProperties{Path: "/a/mcp?secret=1", RequestId: "r-1", UserAgent: "ua"},
		Response: &accesslogv3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(status), ResponseHeaders: headers},
	}
}

func logOf(entries ...*accesslogv3.HTTPAccessLogEntry) *alsv3.StreamAccessLogsMessage {
	return &alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &alsv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: entries},
	}}
}

// identified adds what the first message of a stream brings: every extension of
// that Envoy.
func identified(m *alsv3.StreamAccessLogsMessage) *alsv3.StreamAccessLogsMessage {
	node := &corev3.Node{Id: "n", Cluster: "c"}
	for i := range 5000 {
		node.Extensions = append(node.Extensions, &corev3.Extension{Name: fmt.Sprintf("envoy.filters.extension_%d", i), Category: strings.Repeat("x", 60)})
	}
	m.Identifier = &alsv3.StreamAccessLogsMessage_Identifier{Node: node, LogName: "mcp_auth"}
	return m
}

// logClient serves the rig by gRPC and opens an access log stream.
func logClient(t *testing.T, r *rig) (*grpc.Server, alsv3.AccessLogService_StreamAccessLogsClient) {
	t.Helper()
	ln := bufconn.Listen(1 << 20)
	g := grpc.NewServer(r.Options()...)
	r.Register(g)
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	st, err := alsv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g, st
}

func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if yes() {
			return
		}
	}
	t.Fatalf("not within 5 s: %s", what)
}

func send(t *testing.T, st alsv3.AccessLogService_StreamAccessLogsClient, m *alsv3.StreamAccessLogsMessage) {
	t.Helper()
	if err := st.Send(m); err != nil {
		t.Fatal(err)
	}
}

func TestOutcomesComeFromTheAccessLog(t *testing.T) {
	r, seen := newRig(t), &ends{}
	r.cfg.Outcomes = seen
	_, st := logClient(t, r)
	ours := map[string]any{"upstream": "open", "caller": "anyone", "reason": "allowed", "token": "0a1b2c3d", "later": 7.5}
	elsewhere := logEntry(403, "no_policy", nil)
	elsewhere.CommonProperties.UpstreamCluster = ""
	going := logEntry(200, "", ours)
	going.CommonProperties.AccessLogType = accesslogv3.AccessLogType_DownstreamPeriodic
	send(t, st, identified(logOf(
		logEntry(200, "", ours),
		logEntry(503, "token_unavailable", map[string]any{"upstream": "b", "caller": "ci", "reason": "token_unavailable"}),
		// Never decided on, and refused before it had a name: known by Envoy's cluster.
		logEntry(500, "", nil),
		logEntry(400, "bad_request", map[string]any{"upstream": "", "reason": "bad_request"}),
		// Of another policy, answered where no upstream is, dead early, and not at its end.
		logEntry(200, "", map[string]any{"upstream": "nobody"}),
		elsewhere,
		&accesslogv3.HTTPAccessLogEntry{Request: &accesslogv3.HTTPRequestProperties{RequestId: "nothing"}},
		going,
	)))
	send(t, st, &alsv3.StreamAccessLogsMessage{LogEntries: &alsv3.StreamAccessLogsMessage_TcpLogs{
		TcpLogs: &alsv3.StreamAccessLogsMessage_TCPAccessLogEntries{LogEntry: []*accesslogv3.TCPAccessLogEntry{{}}},
	}})
	long := logEntry(0, "", ours)
	long.Request.RequestId = strings.Repeat("x\n", 500)
	send(t, st, logOf(long))
	eventually(t, "five outcomes", func() bool { return len(seen.all()) == 5 })
	want := []Outcome{
		{Upstream: "open", Caller: "anyone", Reason: "allowed", Token: "0a1b2c3d", Status: 200, Attempts: 2, RequestID: "r-1", Decided: true},
		{Upstream: "b", Caller: "ci", Reason: "token_unavailable", Status: 503, Refusal: "token_unavailable", Attempts: 2, RequestID: "r-1", Decided: true},
		{Upstream: "a", Status: 500, Attempts: 2, RequestID: "r-1"},
		{Upstream: "a", Reason: "bad_request", Status: 400, Refusal: "bad_request", Attempts: 2, RequestID: "r-1", Decided: true},
		{Upstream: "open", Caller: "anyone", Reason: "allowed", Token: "0a1b2c3d", Attempts: 2, RequestID: strings.Repeat("x", 32), Decided: true},
	}
	if diff := cmp.Diff(want, seen.all()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := r.LogStats(); got != (LogStats{Calls: 4, Undecided: 1, Foreign: 3}) {
		t.Errorf("got %+v", got)
	}
	if _, err := st.CloseAndRecv(); err != nil {
		t.Errorf("want a clean end, got %v", err)
	}
}

// TestL9_AMadeUpEntry: an entry cannot bring words of its own, whoever sends it, and
// an upstream's x-mcp-auth-reason is not taken for ours.
func TestL9_AMadeUpEntry(t *testing.T) {
	const word = "made-up"
	r, seen := newRig(t), &ends{}
	r.cfg.Outcomes = seen
	forged := map[string]any{"upstream": "open", "caller": word, "issuer": word, "subject": word, "reason": word, "token": word}
	for _, e := range []*accesslogv3.HTTPAccessLogEntry{
		logEntry(401, word, forged),
		logEntry(401, word, map[string]any{"upstream": "open", "caller": "anyone", "reason": "allowed", "token": "0a1b2c3D"}),
		logEntry(401, word, map[string]any{"upstream": "open", "caller": "anyone", "reason": "allowed", "token": "0a1b2c3d"}),
	} {
		snap := r.snap.Load()
		var m logMessage
		m.reset(snap.known)
		wire, err := proto.Marshal(logOf(e))
		if err != nil {
			t.Fatal(err)
		}
		m.decode(wire)
		r.ended(snap, &m.entries[0])
	}
	plain := Outcome{Upstream: "open", Status: 401, Attempts: 2, RequestID: "r-1", Decided: true}
	ours := plain
	ours.Caller, ours.Reason = "anyone", "allowed"
	lent := ours
	lent.Token = "0a1b2c3d"
	if diff := cmp.Diff([]Outcome{plain, ours, lent}, seen.all()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for i, o := range seen.all() {
		if !o.Rejected() {
			t.Errorf("entry %d: a 401 with a word that is not ours is the upstream's: want it rejected", i)
		}
	}
}

// TestWhatADecisionSaysComesBack: the metadata that our reply puts on a call is what
// its outcome is read from, and two attempts took as long as both.
func TestWhatADecisionSaysComesBack(t *testing.T) {
	r, seen := newJWTRig(t), &ends{}
	r.cfg.Outcomes, r.cfg.Observe = seen, r.seen
	now := time.Unix(1_800_000_000, 0)
	r.now = func() time.Time { now = now.Add(1500 * time.Microsecond); return now }
	token := "Bearer " + mint(t, r.partner, "", nil)
	one := described(r.call(t, "both", headersRequest(nil, nil, "authorization", token)))
	two := described(r.call(t, "both", headersRequest(nil, one, "x-envoy-attempt-count", "2")))
	for _, meta := range []map[string]any{one, two} {
		snap := r.snap.Load()
		var m logMessage
		m.reset(snap.known)
		wire, err := proto.Marshal(logOf(logEntry(200, "", meta)))
		if err != nil {
			t.Fatal(err)
		}
		m.decode(wire)
		r.ended(snap, &m.entries[0])
	}
	for i, o := range seen.all() {
		d := r.seen.list[i]
		if o.Issuer == "" || o.Issuer != d.Issuer || o.Subject == "" || o.Subject != d.Subject || o.Caller != d.Caller || o.Reason != "allowed" || !o.Decided {
			t.Errorf("attempt %d: want what the decision says, %+v, got %+v", i+1, d, o)
		}
		if want := time.Duration(i+1) * 1500 * time.Microsecond; o.Own != want {
			t.Errorf("attempt %d: want %s of our own, got %s", i+1, want, o.Own)
		}
	}
}

// TestO18_TheOutcomeEvicts: a token that the upstream refused on a call that was
// not sent again is replaced, once, and no other outcome costs one.
func TestO18_TheOutcomeEvicts(t *testing.T) {
	r := newRig(t)
	_, st := logClient(t, r)
	token := func() string {
		r.call(t, "a", headersRequest(nil, nil))
		fingerprint, _ := described(r.call(t, "a", headersRequest(nil, nil)))["token"].(string)
		return fingerprint
	}
	entry := func(status uint32, reason, upstream, token string) *accesslogv3.HTTPAccessLogEntry {
		return logEntry(status, reason, map[string]any{"upstream": upstream, "caller": "anyone", "reason": "allowed", "token": token})
	}
	first := token()
	send(t, st, logOf(
		entry(200, "", "a", first), entry(403, "", "a", first), entry(502, "", "a", first), entry(503, "token_unavailable", "a", first),
		entry(401, "caller_unknown", "a", first), entry(401, "", "open", first), entry(401, "", "fixed", first), entry(401, "", "b", first),
		entry(401, "", "nobody", first), entry(401, "", "a", ""), entry(401, "", "a", "ffffffff"), entry(502, "upstream_rejected", "a", "ffffffff"),
	))
	eventually(t, "all are read", func() bool { got := r.LogStats(); return got.Calls == 11 && got.Foreign == 1 })
	if got := token(); got != first || r.LogStats().Evicted != 0 {
		t.Errorf("want the token kept, got %s after %s", got, first)
	}
	for _, final := range []struct {
		status uint32
		reason string
	}{{502, "upstream_rejected"}, {401, ""}} {
		old, before := token(), r.LogStats().Evicted
		requests := r.auth.requests.Load()
		for range 50 { // each call that it cut off says so
			send(t, st, logOf(entry(final.status, final.reason, "a", old), entry(final.status, final.reason, "a", old)))
		}
		eventually(t, "it is evicted", func() bool { return r.LogStats().Evicted == before+1 })
		if now := token(); now == old {
			t.Errorf("%d %s: want a new token", final.status, final.reason)
		}
		if n := r.auth.requests.Load() - requests; n != 1 {
			t.Errorf("%d %s: want one token request, got %d", final.status, final.reason, n)
		}
	}
}

// TestGarbageInTheAccessLog is counted, costs nobody else's entries, and leaves
// nothing behind.
func TestGarbageInTheAccessLog(t *testing.T) {
	good, err := proto.Marshal(logEntry(200, "", map[string]any{"upstream": "open"}))
	if err != nil {
		t.Fatal(err)
	}
	var entries []byte
	for _, e := range [][]byte{good, {0xff, 0xff, 0xff}, good, {0x0a, 0x7f, 1}, {0x22, 0x04, 0x22, 0x7f, 1, 2}} {
		entries = appendBytes(entries, fieldLogEntry, e)
	}
	var m logMessage
	m.reset(knownNames())
	m.decode(appendBytes(nil, fieldHTTPLogs, entries))
	if len(m.entries) != 2 || m.malformed != 3 || m.entries[1].Upstream != "open" {
		t.Errorf("want two entries and three malformed, got %d and %d", len(m.entries), m.malformed)
	}
	m.reset(knownNames())
	m.decode(append(appendBytes(nil, fieldHTTPLogs, appendBytes(nil, fieldLogEntry, good)), 0x12, 0x7f))
	if len(m.entries) != 1 || m.malformed != 1 {
		t.Errorf("cut off: want one entry and one malformed, got %d and %d", len(m.entries), m.malformed)
	}
	node, err := proto.Marshal(identified(logOf()))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { m.reset(nil); m.decode(node) }); n != 0 {
		t.Errorf("the node of %d bytes: want no allocation, got %v", len(node), n)
	}
}

// TestNoMemoryIsKeptOfALargeMessage: entries are small on the wire and large here.
func TestNoMemoryIsKeptOfALargeMessage(t *testing.T) {
	var m logMessage
	empty := bytes.Repeat([]byte{0x0a, 0x00}, 100_000)
	m.decode(appendBytes(nil, fieldHTTPLogs, empty))
	if len(m.entries) != 100_000 {
		t.Fatalf("want all entries, got %d", len(m.entries))
	}
	if m.reset(nil); cap(m.entries) > keptEntries {
		t.Errorf("want room for at most %d kept, got %d", keptEntries, cap(m.entries))
	}
}

// TestNoMemoryIsKeptOfTheAccessLog: a flood of entries with ever new names.
func TestNoMemoryIsKeptOfTheAccessLog(t *testing.T) {
	r := newRig(t)
	_, st := logClient(t, r)
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	sent := 0
	flood := func() {
		for range 200 {
			var all []*accesslogv3.HTTPAccessLogEntry
			for range 100 {
				sent++
				name := fmt.Sprintf("nobody-%d", sent)
				all = append(all, logEntry(401, "upstream_rejected", map[string]any{"upstream": name, "caller": name, "token": name, "reason": name}))
			}
			send(t, st, logOf(all...))
		}
		eventually(t, "all are read", func() bool { return r.LogStats().Foreign == uint64(sent) })
	}
	flood()
	before := heap()
	for range 3 {
		flood()
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("want no growth over %d entries, got %d bytes", sent, after-before)
	}
}

// TestStopOutcomes: Envoy never ends its stream, and a graceful stop must not wait for it.
func TestStopOutcomes(t *testing.T) {
	r := newRig(t)
	g, st := logClient(t, r)
	send(t, st, identified(logOf(logEntry(200, "", map[string]any{"upstream": "open"}))))
	eventually(t, "it is read", func() bool { return r.LogStats().Calls == 1 })
	r.StopOutcomes()
	r.StopOutcomes()
	stopped := make(chan struct{})
	go func() { g.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(5 * time.Second):
		t.Fatal("the server waits for the stream")
	}
	if err := st.RecvMsg(&alsv3.StreamAccessLogsResponse{}); err != nil {
		t.Errorf("want an orderly end, got %v", err)
	}
}

// FuzzAccessLog: no bytes make it panic, or hold more entries than they are.
func FuzzAccessLog(f *testing.F) {
	named := logOf() // identified would make each mutation half a megabyte
	named.Identifier = &alsv3.StreamAccessLogsMessage_Identifier{LogName: "mcp_auth"}
	for _, m := range []*alsv3.StreamAccessLogsMessage{
		named, logOf(logEntry(401, "x", map[string]any{"upstream": "a", "token": "t"}), logEntry(0, "", nil)), logOf(whole()),
	} {
		wire, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var m logMessage
		m.reset(knownNames())
		m.decode(bytes.Clone(wire))
		for _, o := range m.entries {
			if len(o.RequestID) > 64 || o.Status < 0 || o.Attempts < 0 || o.Took < 0 || o.Own < 0 || o.Sent < 0 || o.Received < 0 {
				t.Errorf("got %+v", o)
			}
		}
		if len(m.entries)+m.malformed > len(wire) {
			t.Errorf("%d entries and %d malformed of %d bytes", len(m.entries), m.malformed, len(wire))
		}
	})
}
