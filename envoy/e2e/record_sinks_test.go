package e2e_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// received is what came to a place, as lines.
type received struct {
	mu    sync.Mutex
	lines []string
}

func (r *received) add(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
}

func (r *received) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n") + "\n"
}

// collector takes log records.
func collector(t *testing.T, into *received) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		for _, of := range req.GetResourceLogs() {
			for _, scope := range of.GetScopeLogs() {
				for _, l := range scope.GetLogRecords() {
					into.add(l.GetBody().GetStringValue())
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL + "/v1/logs"
}

// syslogSocket takes datagrams, and keeps what stands after their head.
func syslogSocket(t *testing.T, path string, into *received) {
	t.Helper()
	c, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "unixgram", path)
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
			_, line, _ := bytes.Cut(b[:n], []byte("]: "))
			into.add(strings.TrimSuffix(string(line), "\n"))
		}
	}()
}

// TestRecord_Sinks: file, standard output, syslog and a collector get the same lines,
// and what each of them got can be verified by itself.
func TestRecord_Sinks(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := newRig(t, standard)
	var toSyslog, toCollector received
	socket := filepath.Join(r.dir, "log.sock")
	syslogSocket(t, socket, &toSyslog)
	r.write("policy.yaml", audited(r, ", stdout: true, syslog: {address: unix://"+socket+"}, otlp: {endpoint: "+collector(t, &toCollector)+"}"))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	for range 5 {
		r.post("/alpha/mcp", "{}", own("sinks")...)
		r.post("/keyed/mcp", "{}").refused(t, http.StatusForbidden, "caller_unknown")
	}
	r.eventually("all outcomes are on record", 10*time.Second, func() bool { return count(r.lines(), "outcome") == 10 })
	r.proc.signal(syscall.SIGTERM)
	<-r.proc.done
	file, err := os.ReadFile(r.record())
	if err != nil {
		t.Fatal(err)
	}
	var printed strings.Builder // with the program's log, in one file
	for line := range strings.Lines(tail(r.proc.log, 1<<20)) {
		if strings.HasPrefix(line, `{"time":"`) && strings.Contains(line, `"kind":"`) {
			printed.WriteString(line)
		}
	}
	for name, got := range map[string]string{"standard output": printed.String(), "syslog": toSyslog.text(), "the collector": toCollector.text()} {
		if got != string(file) {
			t.Errorf("%s: want what is in the file:\n%s\ngot:\n%s", name, file, got)
		}
		copied := filepath.Join(t.TempDir(), "shipped.jsonl")
		if err := os.WriteFile(copied, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := audit.Verify(audit.VerifyConfig{}, []string{copied}); err != nil || !report.OK || !report.Closed {
			t.Errorf("%s: want a whole chain, got %+v, %v", name, report, err)
		}
	}
}
