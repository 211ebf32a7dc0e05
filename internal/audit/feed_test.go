package audit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// eventually waits for something that another goroutine or process does.
func eventually(tb testing.TB, what string, there func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !there(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("waited 20 s for %s", what)
		}
	}
}

// collects is an OTLP collector that keeps what it gets.
type collects struct {
	mu      sync.Mutex
	lines   []string
	levels  []int32
	headers http.Header
	status  int
}

func (c *collects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.headers = r.Header.Clone()
	if c.status != 0 {
		http.Error(w, r.Header.Get("authorization"), c.status)
		return
	}
	unpacked, err := gzip.NewReader(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b, _ := io.ReadAll(unpacked)
	var req collogs.ExportLogsServiceRequest
	if err := proto.Unmarshal(b, &req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, rl := range req.GetResourceLogs() {
		for _, sl := range rl.GetScopeLogs() {
			for _, l := range sl.GetLogRecords() {
				c.lines = append(c.lines, l.GetBody().GetStringValue())
				c.levels = append(c.levels, int32(l.GetSeverityNumber()))
			}
		}
	}
}

func (c *collects) got() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines
}

// TestOTLP: a collector gets the very lines of the file, with the headers of the policy.
func TestOTLP(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-from=environment")
	t.Setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://127.0.0.1:1/elsewhere")
	c := &collects{}
	server := httptest.NewServer(c)
	defer server.Close()
	ref := policy.SecretRef{Kind: policy.SecretEnv, Name: "OTLP_TOKEN"}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := newLog(t)
	l.cfg.Secrets = held{ref: "Bearer c4n4ry"}
	spec := fileSpec(path)
	spec.OTLP = &policy.AuditOTLP{Endpoint: server.URL + "/v1/logs", Headers: []policy.SecretHeader{{Name: "authorization", Value: ref}}}
	commit(t, l, spec)
	record(t, l, 3)
	refused := decision(4)
	refused.Reason = policy.ToolDenied
	if err := l.Record(refused); err != nil {
		t.Fatal(err)
	}
	l.Close()
	lines := written(t, path)
	if got := c.got(); len(got) != len(lines) || !strings.Contains(got[1], lines[1].Hash) {
		t.Fatalf("want the %d lines of the file, got %q", len(lines), got)
	}
	if c.levels[1] != 9 || c.levels[4] != 13 {
		t.Errorf("want info for a decision and warn for a refusal, got %v", c.levels)
	}
	if c.headers.Get("Authorization") != "Bearer c4n4ry" || c.headers.Get("X-From") != "" {
		t.Errorf("got headers %v", c.headers)
	}
}

// TestOTLPRefused: what a collector does not take is counted, and its answer, which
// may quote the headers, is nowhere.
func TestOTLPRefused(t *testing.T) {
	t.Parallel()
	c := &collects{status: http.StatusForbidden}
	server := httptest.NewServer(c)
	defer server.Close()
	l, said := newLog(t), &buffer{}
	l.cfg.Log = l.cfg.Log.Output(said)
	spec := fileSpec(filepath.Join(t.TempDir(), "audit.jsonl"))
	spec.OTLP = &policy.AuditOTLP{Endpoint: server.URL + "/v1/logs"}
	commit(t, l, spec)
	record(t, l, 3)
	l.Close()
	if got := l.Status().Dropped["otlp"]; got != 5 {
		t.Errorf("want 5 lines dropped, got %d", got)
	}
	if !strings.Contains(said.String(), "it answers 403 Forbidden") {
		t.Errorf("got %s", said)
	}
}

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestSyslog: over each of the transports.
func TestSyslog(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "log")
	for _, tc := range []struct{ network, address, url string }{
		{"udp", "127.0.0.1:0", "udp://"},
		{"unixgram", socket, "unix://"},
		{"tcp", "127.0.0.1:0", "tcp://"},
	} {
		t.Run(tc.network, func(t *testing.T) {
			t.Parallel()
			got := make(chan string, 16)
			address := syslogd(t, tc.network, tc.address, got)
			spec := fileSpec(filepath.Join(t.TempDir(), "audit.jsonl"))
			spec.Syslog = policy.AuditSyslog{Address: tc.url + address, Facility: "local3", Tag: "mcp"}
			l := started(t, spec)
			record(t, l, 1)
			refused := decision(1)
			refused.Reason = policy.ToolDenied
			if err := l.Record(refused); err != nil {
				t.Fatal(err)
			}
			// local3 is 19, info 6 and warning 4 (RFC 3164 §4.1.1)
			for _, want := range []string{`<158>`, `<158>`, `<156>`} {
				select {
				case line := <-got:
					if !strings.HasPrefix(line, want) || !strings.Contains(line, `: {"time":"`) || !strings.Contains(line, "mcp[") {
						t.Errorf("want a line with %s, got %q", want, line)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("no line came")
				}
			}
		})
	}
}

func syslogd(t *testing.T, network, address string, got chan<- string) string {
	t.Helper()
	if network == "tcp" {
		l, err := new(net.ListenConfig).Listen(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			for lines := bufio.NewScanner(c); lines.Scan(); {
				got <- lines.Text()
			}
		}()
		return l.Addr().String()
	}
	c, err := new(net.ListenConfig).ListenPacket(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for b := make([]byte, 64<<10); ; {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			got <- string(b[:n])
		}
	}()
	return c.LocalAddr().String()
}

// TestSyslogThatDoesNotRead: a server whose window is full holds neither the feed that
// was let go of nor what waits in it, and is sent none of that later.
func TestSyslogThatDoesNotRead(t *testing.T) {
	t.Parallel()
	server, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close() //nolint:errcheck // it accepts nothing
	l := newLog(t)
	f := l.newFeed(sinkSyslog, &syslogServer{now: time.Now, spec: policy.AuditSyslog{Address: "tcp://" + server.Addr().String(), Facility: "user", Tag: "mcp"}}, 0)
	line := append(bytes.Repeat([]byte{'x'}, 1<<20), '\n')
	for range 7 {
		f.offer(line, 1)
	}
	f.close()
	select {
	case <-f.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the feed goes on")
	}
	if dropped, waiting := l.Status().Dropped["syslog"], f.waiting.Load(); dropped == 0 || waiting != 0 {
		t.Errorf("want what was not sent counted, and nothing kept, got %d lines dropped and %d bytes waiting", dropped, waiting)
	}
}

// TestO10_StuckReaderOfStdout: nobody reads standard output, and no call waits for that.
func TestO10_StuckReaderOfStdout(t *testing.T) {
	t.Parallel()
	for _, required := range []bool{false, true} {
		read, write := io.Pipe() // it takes nothing until it is read
		l := newLog(t)
		l.cfg.Stdout, l.patience, l.strictPatience = write, patience, strictPatience
		commit(t, l, &policy.Audit{Stdout: true, Required: required})
		refused := 0
		begin := time.Now()
		for i := range 50 {
			if l.Record(decision(i)) != nil {
				refused++
			}
		}
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("50 calls took %v", took)
		}
		if want := map[bool]int{false: 0, true: 50}[required]; refused != want {
			t.Errorf("required %t: want %d refused, got %d", required, want, refused)
		}
		out := &buffer{}
		go func() { _, _ = io.Copy(out, read) }()
		eventually(t, "a line that is taken", func() bool { return l.Record(decision(99)) == nil })
		if required {
			eventually(t, "the word of what is missing", func() bool { return strings.Contains(out.String(), `"kind":"dropped"`) })
		}
		l.Close()
		_ = write.Close()
	}
}
