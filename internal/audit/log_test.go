package audit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// held is a SecretSource.
type held map[policy.SecretRef]string

func (h held) Secret(ref policy.SecretRef) (policy.Secret, error) {
	v, ok := h[ref]
	if !ok {
		return policy.Secret{}, fmt.Errorf("secret %s is not there", ref)
	}
	return policy.NewSecret(v), nil
}

func fileSpec(path string) *policy.Audit {
	return &policy.Audit{File: path, Required: true, Size: 100 << 20, Age: 24 * time.Hour}
}

func newLog(tb testing.TB) *Log {
	tb.Helper()
	l := New(Config{Now: time.Now, Log: zerolog.New(zerolog.NewTestWriter(tb)), Stdout: os.Stdout})
	// The machine of a test is slow, and its disk well.
	l.patience, l.strictPatience = 20*time.Second, 20*time.Second
	tb.Cleanup(l.Close)
	return l
}

func commit(tb testing.TB, l *Log, spec *policy.Audit) {
	tb.Helper()
	c, err := l.Prepare(spec)
	if err != nil {
		tb.Fatal(err)
	}
	c.Commit()
}

func started(tb testing.TB, spec *policy.Audit) *Log {
	tb.Helper()
	l := newLog(tb)
	commit(tb, l, spec)
	return l
}

func decision(i int) *extproc.Decision {
	return &extproc.Decision{
		Upstream: "crm", Caller: "litellm", Reason: policy.Allowed, Tool: "customer_lookup", Rule: 1,
		Token: "a1b2c3d4", RequestID: fmt.Appendf(nil, "call-%d", i), Attempt: 1, CookiesKept: 1, CookiesDropped: 2,
		Took: 45 * time.Microsecond,
	}
}

func record(tb testing.TB, l *Log, n int) {
	tb.Helper()
	for i := range n {
		if err := l.Record(decision(i)); err != nil {
			tb.Fatalf("line %d: %v", i, err)
		}
	}
}

// written returns the lines of a file.
func written(tb testing.TB, path string) []Line {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	var lines []Line
	for text := range strings.Lines(string(b)) {
		var l Line
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&l); err != nil {
			tb.Fatalf("%v: %s", err, text)
		}
		lines = append(lines, l)
	}
	return lines
}

func verified(tb testing.TB, cfg VerifyConfig, files ...string) *Report {
	tb.Helper()
	r, err := Verify(cfg, files)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func sound(tb testing.TB, files ...string) *Report {
	tb.Helper()
	r := verified(tb, VerifyConfig{}, files...)
	if !r.OK {
		tb.Fatalf("want a sound log, got %v", r.Broken)
	}
	return r
}

// all returns the file and those put aside.
func all(path string) []string {
	var files []string
	for _, a := range asides(path) {
		files = append(files, a.path)
	}
	return append(files, path)
}

// TestRecord: a decision is in the file when Record returns, and an outcome soon after.
func TestRecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := started(t, fileSpec(path))
	for i := range 3 {
		record(t, l, 1)
		if got := len(written(t, path)); got != i+2 {
			t.Fatalf("want %d lines after decision %d, got %d", i+2, i, got)
		}
	}
	l.Ended(&extproc.Outcome{Upstream: "crm", Status: 200, RequestID: "call-0", Attempts: 1, Reason: "allowed", Took: time.Second})
	l.Close()
	lines := written(t, path)
	kinds := ""
	for _, line := range lines {
		kinds += line.Kind + " "
	}
	if want := "start decision decision decision outcome end "; kinds != want {
		t.Errorf("want %q, got %q", want, kinds)
	}
	d, o := lines[1], lines[4]
	if d.RequestID != "call-0" || d.Tool != "customer_lookup" || d.Reason != "allowed" || d.Token != "a1b2c3d4" || d.CookiesDropped != 2 || d.Duration != 45e-6 {
		t.Errorf("the decision reads %+v", d)
	}
	if o.RequestID != d.RequestID || o.Status != 200 || o.Duration != 1 {
		t.Errorf("the outcome reads %+v", o)
	}
	if r := sound(t, path); r.Lines != 6 || !r.Closed {
		t.Errorf("got %+v", r)
	}
}

// TestRotationUnderLoad: 50 writers, and files put aside all the time.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	spec := fileSpec(path)
	spec.Size = 64 << 10
	l := started(t, spec)
	var writers sync.WaitGroup
	const each = 100
	for range 50 {
		writers.Go(func() {
			for i := range each {
				if err := l.Record(decision(i)); err != nil {
					t.Error(err)
				}
				l.Ended(&extproc.Outcome{Upstream: "crm", RequestID: "x"})
			}
		})
	}
	writers.Wait()
	l.Close()
	files := all(path)
	if len(files) < 10 {
		t.Fatalf("want at least ten files, got %d", len(files))
	}
	r := sound(t, files...)
	if want := uint64(50*each*2 + 2*len(files)); r.Lines != want {
		t.Errorf("want %d lines, got %d", want, r.Lines)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > spec.Size {
			t.Errorf("%s: want at most %d bytes, got %v, %v", f, spec.Size, info, err)
		}
	}
}

// TestRestart: the chain goes on in the same file.
func TestRestart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	for range 3 {
		l := started(t, fileSpec(path))
		record(t, l, 5)
		l.Close()
	}
	if r := sound(t, path); r.Last != 3*7 || r.First != 1 {
		t.Errorf("got %+v", r)
	}
}
