package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestTornLine: what a crash left of a line is cut off, and a line says so.
func TestTornLine(t *testing.T) {
	t.Parallel()
	for name, tail := range map[string]string{
		"half a line": `{"time":"2026-10-01T12:00:00.000000000Z","kind":"deci`,
		"zeros":       strings.Repeat("\x00", 5000),
		"one byte":    "{",
	} {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		l := started(t, fileSpec(path))
		record(t, l, 3)
		l.Close()
		appendTo(t, path, tail)
		l = started(t, fileSpec(path))
		record(t, l, 1)
		l.Close()
		if r := sound(t, path); r.Lines != 9 || r.Recovered != 1 {
			t.Errorf("%s: got %+v", name, r)
		}
		if line := written(t, path)[6]; line.Kind != "recovered" || line.Cut != int64(len(tail)) {
			t.Errorf("%s: want a line about %d bytes, got %+v", name, len(tail), line)
		}
	}
}

func appendTo(tb testing.TB, path, text string) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // the write counts
	if _, err := f.WriteString(text); err != nil {
		tb.Fatal(err)
	}
}

// TestTornFirstLine: a crash while the first line of all was written.
func TestTornFirstLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	write(t, path, []byte(`{"time":"2026-10-01T12:0`))
	l := started(t, fileSpec(path))
	record(t, l, 1)
	l.Close()
	if r := sound(t, path); r.First != 1 || r.Recovered != 1 {
		t.Errorf("got %+v", r)
	}
}

// TestForeignFiles: a file that does not end in a good line of ours is not gone on
// with, and stays as it is.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	l := started(t, fileSpec(good))
	record(t, l, 2)
	l.Close()
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	changed := bytes.Replace(text, []byte(`"kind":"end"`), []byte(`"kind":"END"`), 1)
	for name, text := range map[string][]byte{
		"the last line changed": changed,
		"another log":           []byte("one line\nanother\n"),
		"no line at all":        []byte("127.0.0.1 localhost"),
		"garbage and a newline": append(bytes.Clone(text), "x\n"...),
		"a blank line":          append(bytes.Clone(text), '\n'),
		"no line for a long":    bytes.Repeat([]byte("x"), 2<<20),
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		write(t, path, text)
		l := newLog(t)
		if _, err := l.Prepare(fileSpec(path)); err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%s: want an error that says what to do, got %v", name, err)
		}
		if after, _ := os.ReadFile(path); !bytes.Equal(text, after) {
			t.Errorf("%s: the file was changed", name)
		}
		l.Close()
	}
}

// TestPathsThatAreNoFiles are refused without waiting for anybody.
func TestPathsThatAreNoFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLog(t)
	for _, path := range []string{fifo, filepath.Join(dir, "none", "audit.jsonl"), dir} {
		if _, err := l.Prepare(fileSpec(path)); err == nil {
			t.Errorf("%s: want an error", path)
		}
	}
}

// TestTwoWriters: a second process, or a second log, is refused, also after a rotation.
func TestTwoWriters(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	first := started(t, fileSpec(path))
	record(t, first, 1)
	first.do(func() {
		if err := first.writer.rotate(first.writer.seal); err != nil {
			t.Error(err)
		}
	})
	second := newLog(t)
	if _, err := second.Prepare(fileSpec(path)); err == nil || !strings.Contains(err.Error(), "another process writes") {
		t.Errorf("want the second writer refused, got %v", err)
	}
	first.Close()
	commit(t, second, fileSpec(path))
	second.Close()
	sound(t, all(path)...)
}

// TestEndedBetweenFiles: the file was put aside, and the next one never made.
func TestEndedBetweenFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := started(t, fileSpec(path))
	record(t, l, 3)
	l.Close()
	aside := asideName(path, 1, time.Now())
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	l = started(t, fileSpec(path))
	record(t, l, 1)
	l.Close()
	if r := sound(t, all(path)...); r.Last != 8 {
		t.Errorf("got %+v", r)
	}
	if line := written(t, path)[0]; line.After != filepath.Base(aside) {
		t.Errorf("want the name of the file before, got %+v", line)
	}
}

// TestMovedByOthers: logrotate moved the file, or somebody removed it.
func TestMovedByOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	l := started(t, fileSpec(path))
	record(t, l, 3)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.do(l.writer.tend)
	record(t, l, 3)
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	write(t, path, nil) // as logrotate's create does
	l.do(l.writer.tend)
	record(t, l, 3)
	l.Close()
	if r := sound(t, path, path+".1", path+".2"); r.Lines != 15 || !r.Closed {
		t.Errorf("got %+v", r)
	}
}

// TestMovedAwayWithItsDirectory: while there can be no new file, the old one goes on, the
// status says so, and no longer once there can.
func TestMovedAwayWithItsDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit.jsonl")
	spec := fileSpec(path)
	spec.Size = 64 << 10
	l := started(t, spec)
	record(t, l, 3)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	l.do(l.writer.tend)
	record(t, l, 200) // more than the file should hold
	if s := l.Status(); !s.Failing || !strings.Contains(s.LastError, "no such file or directory") || s.Dropped["file"] != 0 {
		t.Errorf("want the failure in the status, and every line written, got %+v", s)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	l.do(func() { l.writer.again = time.Time{} }) // else in ten seconds
	record(t, l, 1)
	l.do(l.writer.tend)
	if s := l.Status(); s.Failing {
		t.Errorf("want it well again, got %+v", s)
	}
	l.Close()
	if files := all(path); len(files) != 2 || sound(t, files...).Lines != 204+2*2 {
		t.Errorf("want two files, got %q", files)
	}
}

// TestReopenFails: while the last line of a file that was moved away cannot be written,
// each try lets go of the new one.
func TestReopenFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	l := started(t, fileSpec(path))
	record(t, l, 3)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	full, err := os.Open(path + ".1") // for reading alone: it stands for a full disk
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close() //nolint:errcheck // read only
	var good *os.File
	l.do(func() { good, l.writer.file.f.File = l.writer.file.f.File, full })
	before := descriptors(t, dir)
	for range 3 {
		l.do(func() { l.writer.again = time.Time{}; l.writer.tend() })
	}
	if s := l.Status(); !s.Failing {
		t.Fatalf("want the file not changed for another, got %+v", s)
	}
	if after := descriptors(t, dir); after != before {
		t.Errorf("want %d open files, got %d", before, after)
	}
	l.do(func() { l.writer.file.f.File, l.writer.again = good, time.Time{}; l.writer.tend() })
	record(t, l, 3)
	l.Close()
	if r := sound(t, path, path+".1"); r.Lines != 10 || !r.Closed {
		t.Errorf("got %+v", r)
	}
}

// descriptors counts what this process has open below dir.
func descriptors(t *testing.T, dir string) (n int) {
	t.Helper()
	const open = "/proc/self/fd"
	all, err := os.ReadDir(open)
	if err != nil {
		t.Skip(err)
	}
	for _, fd := range all {
		if to, err := os.Readlink(filepath.Join(open, fd.Name())); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

// TestRotateByAge also counts the age of a file from before a restart.
func TestRotateByAge(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	var mu sync.Mutex
	now := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	later := func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	begin := func() *Log {
		l := New(Config{Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }, Log: zerolog.Nop()})
		l.patience, l.strictPatience = 20*time.Second, 20*time.Second
		t.Cleanup(l.Close)
		spec := fileSpec(path)
		spec.Age, spec.Keep = time.Hour, 2
		commit(t, l, spec)
		return l
	}
	l := begin()
	record(t, l, 1)
	later(59 * time.Minute)
	record(t, l, 1)
	l.Close()
	l = begin()
	if n := len(all(path)); n != 1 {
		t.Fatalf("want one file, got %d", n)
	}
	later(2 * time.Minute)
	record(t, l, 1)
	if n := len(all(path)); n != 2 {
		t.Fatalf("want a second file after an hour, got %d", n)
	}
	for range 4 {
		later(61 * time.Minute)
		l.do(l.writer.tend) // nobody calls
	}
	eventually(t, "the oldest files to be removed", func() bool { return len(all(path)) == 3 })
	l.Close()
	if r := sound(t, all(path)...); r.First == 1 {
		t.Errorf("got %+v", r)
	}
}

// TestToldMeansNotBusy: whoever was told that its line is written finds the writer free
// for the next one, however much time goes by in between.
func TestToldMeansNotBusy(t *testing.T) {
	t.Parallel()
	var past atomic.Int64
	l := New(Config{Now: func() time.Time { return time.Unix(past.Load(), 0) }, Log: zerolog.Nop()})
	l.patience, l.strictPatience = 20*time.Second, 20*time.Second
	t.Cleanup(l.Close)
	spec := fileSpec(filepath.Join(t.TempDir(), "audit.jsonl"))
	spec.Age = 1000 * time.Hour
	commit(t, l, spec)
	for i := range 2000 {
		if err := l.Record(decision(i)); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		past.Add(60)
	}
}

// TestModeIsKept: an operator lets others read the log.
func TestModeIsKept(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	write(t, path, nil)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	l := started(t, fileSpec(path))
	record(t, l, 1)
	l.do(func() { _ = l.writer.rotate(l.writer.seal) })
	for _, name := range all(path) {
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o640 {
			t.Errorf("%s: want mode 0640, got %v, %v", name, info.Mode(), err)
		}
	}
}

// TestReload: another file, other settings, none, and back.
func TestReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	l := newLog(t)
	if err := l.Record(decision(0)); err != nil {
		t.Fatalf("want nothing recorded and no error, got %v", err)
	}
	commit(t, l, fileSpec(a))
	record(t, l, 1)
	smaller := fileSpec(a)
	smaller.Size = 64 << 10
	commit(t, l, smaller)
	record(t, l, 1)
	commit(t, l, fileSpec(b))
	record(t, l, 1)
	if got := written(t, b)[0].After; got != a {
		t.Errorf("want the file before named, got %q", got)
	}
	c, err := l.Prepare(fileSpec(filepath.Join(dir, "c")))
	if err != nil {
		t.Fatal(err)
	}
	c.Cancel()
	record(t, l, 1)
	commit(t, l, nil)
	if err := l.Record(decision(0)); err != nil {
		t.Fatal(err)
	}
	if s := l.Status(); len(s.Sinks) != 0 {
		t.Errorf("got %+v", s)
	}
	commit(t, l, fileSpec(b))
	record(t, l, 1)
	l.Close()
	if r := sound(t, a, b); r.Lines != 4+4+3 || !r.Closed {
		t.Errorf("got %+v", r)
	}
}

// TestReloadUnderLoad: no call fails and no line is lost while the file changes.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := started(t, fileSpec(filepath.Join(dir, "0")))
	var writers sync.WaitGroup
	const each = 200
	for range 8 {
		writers.Go(func() {
			for i := range each {
				if err := l.Record(decision(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	files := []string{filepath.Join(dir, "0")}
	for i := range 10 {
		files = append(files, filepath.Join(dir, fmt.Sprint(i+1)))
		commit(t, l, fileSpec(files[i+1]))
	}
	writers.Wait()
	l.Close()
	if r := sound(t, files...); r.Lines != 8*each+2*11 {
		t.Errorf("got %+v", r)
	}
}

// TestKeyChanges: without a key, with one, with another, at a start and while it
// runs; each file is of one kind.
func TestKeyChanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	keys := held{}
	ref := policy.SecretRef{Kind: policy.SecretVault, Name: "audit"}
	begin := func(ref policy.SecretRef) *Log {
		l := newLog(t)
		l.cfg.Secrets = keys
		spec := fileSpec(path)
		spec.Key = ref
		commit(t, l, spec)
		return l
	}
	l := begin(policy.SecretRef{})
	record(t, l, 1)
	l.Close() // 3 lines without
	l = begin(ref)
	if err := l.Record(decision(0)); err == nil {
		t.Error("want an error while the key is not there")
	}
	first, second := strings.Repeat("1", 32), strings.Repeat("2", 32)
	l.do(func() { keys[ref] = first })
	record(t, l, 1)
	l.do(func() { keys[ref] = second; l.writer.follow() })
	record(t, l, 1)
	l.Close()
	keys[ref] = first
	l = begin(ref)
	record(t, l, 1)
	l.Close()
	files := all(path)
	if len(files) != 4 {
		t.Fatalf("want four files, got %q", files)
	}
	for i, cfg := range []VerifyConfig{{}, {Keys: [][]byte{[]byte(first)}}, {Keys: [][]byte{[]byte(second)}}, {Keys: [][]byte{[]byte(first)}}} {
		if r := verified(t, cfg, files[i]); !r.OK {
			t.Errorf("file %d: %v", i, r.Broken)
		}
	}
	r := verified(t, VerifyConfig{Keys: [][]byte{[]byte(first), []byte(second)}}, files[1:]...)
	if !r.OK || r.Dropped != 1 {
		t.Errorf("got %+v, %v", r, r.Broken)
	}
	keys[ref] = "short"
	bad := newLog(t)
	bad.cfg.Secrets = keys
	spec := fileSpec(filepath.Join(t.TempDir(), "x"))
	spec.Key = policy.SecretRef{Kind: policy.SecretEnv, Name: "audit"}
	keys[spec.Key] = "short"
	if _, err := bad.Prepare(spec); err == nil {
		t.Error("want a short key refused")
	}
}

// TestKeyComesLater: a reload names a key that its store has not given yet. The file
// stays as it was, whatever happens to it meanwhile, and lines go on in one of their own
// when there is a key.
func TestKeyComesLater(t *testing.T) {
	t.Parallel()
	later := policy.SecretRef{Kind: policy.SecretVault, Name: "later"}
	good := policy.SecretRef{Kind: policy.SecretVault, Name: "good"}
	first, second := strings.Repeat("1", 32), strings.Repeat("2", 32)
	for name, tc := range map[string]struct {
		before  policy.SecretRef
		happens func(t *testing.T, l *Log, path string)
		keys    held
		with    []string // keys of the files
	}{
		"the key comes": {good, func(_ *testing.T, l *Log, _ string) {
			l.do(func() { l.cfg.Secrets.(held)[later] = second })
		}, held{good: first}, []string{first, second}},
		"there was none before": {policy.SecretRef{}, func(_ *testing.T, l *Log, _ string) {
			l.do(func() { l.cfg.Secrets.(held)[later] = second })
		}, held{}, []string{"", second}},
		"the next reload names one that is there": {policy.SecretRef{}, func(t *testing.T, l *Log, path string) {
			t.Helper()
			commit(t, l, keyedSpec(path, good))
		}, held{good: first}, []string{"", first}},
		"the next reload names none": {good, func(t *testing.T, l *Log, path string) {
			t.Helper()
			commit(t, l, fileSpec(path))
		}, held{good: first}, []string{first, ""}},
		"the file grows old": {good, func(_ *testing.T, l *Log, _ string) {
			l.do(func() {
				if l.writer.file != nil {
					l.writer.file.born = time.Time{}
				}
				l.writer.tend()
				l.cfg.Secrets.(held)[later] = second
			})
		}, held{good: first}, []string{first, second}},
		"another program moves it": {good, func(t *testing.T, l *Log, path string) {
			t.Helper()
			if err := os.Rename(path, asideName(path, 1, time.Now())); err != nil {
				t.Fatal(err)
			}
			l.do(func() { l.writer.tend(); l.cfg.Secrets.(held)[later] = second })
		}, held{good: first}, []string{first, second}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			l := newLog(t)
			l.cfg.Secrets = tc.keys
			commit(t, l, keyedSpec(path, tc.before))
			record(t, l, 2)
			commit(t, l, keyedSpec(path, later))
			if err := l.Record(decision(0)); err == nil {
				t.Error("want an error while the key is not there")
			}
			tc.happens(t, l, path)
			record(t, l, 2)
			l.Close()
			files := all(path)
			if len(files) != len(tc.with) {
				t.Fatalf("want %d files, got %q", len(tc.with), files)
			}
			for i, key := range tc.with {
				cfg := VerifyConfig{}
				if key != "" {
					cfg.Keys = [][]byte{[]byte(key)}
				}
				if r := verified(t, cfg, files[i]); !r.OK {
					t.Errorf("file %d: %v", i, r.Broken)
				}
			}
			if tc.with[0] != "" && tc.with[1] != "" {
				if r := verified(t, VerifyConfig{Keys: [][]byte{[]byte(first), []byte(second)}}, files...); !r.OK || r.Dropped != 1 {
					t.Errorf("got %+v, %v", r, r.Broken)
				}
			}
		})
	}
}

func keyedSpec(path string, key policy.SecretRef) *policy.Audit {
	spec := fileSpec(path)
	spec.Key = key
	return spec
}

// slowPipe takes a line when it is told to.
type slowPipe struct {
	buffer
	let chan struct{}
}

func (p *slowPipe) Write(b []byte) (int, error) {
	<-p.let
	return p.buffer.Write(b)
}

// TestWithdrawn: a line that is written after its request was refused is followed by
// one that says so.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	out := &slowPipe{let: make(chan struct{}, 1)}
	l := newLog(t)
	l.cfg.Stdout, l.strictPatience = out, time.Second
	out.let <- struct{}{}
	commit(t, l, &policy.Audit{Stdout: true, Required: true})
	if err := l.Record(decision(1)); !errors.Is(err, errSlow) {
		t.Fatalf("want errSlow, got %v", err)
	}
	close(out.let)
	l.Close()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	write(t, path, []byte(out.String()))
	lines := written(t, path)
	if len(lines) != 4 || lines[1].Kind != "decision" || lines[2].Kind != "withdrawn" || lines[2].Of != lines[1].Seq {
		t.Errorf("got %+v", lines)
	}
	if r := sound(t, path); r.Withdrawn != 1 {
		t.Errorf("got %+v", r)
	}
}

// TestTighten: a record that a reload requires is required at once, also while the disk
// before hangs.
func TestTighten(t *testing.T) {
	t.Parallel()
	hangs := &slowPipe{let: make(chan struct{}, 1)}
	for name, before := range map[string]*policy.Audit{"nothing before": nil, "a disk that hangs": {Stdout: true}} {
		l := newLog(t)
		l.cfg.Stdout, l.patience, l.strictPatience = hangs, time.Millisecond, 50*time.Millisecond
		if before != nil {
			commit(t, l, before)
			if err := l.Record(decision(1)); err != nil {
				t.Fatal(err)
			}
		} else {
			l.strictPatience = 20 * time.Second
		}
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		c, err := l.Prepare(fileSpec(path))
		if err != nil {
			t.Fatal(err)
		}
		c.Tighten()
		err = l.Record(decision(2))
		if before != nil {
			if !errors.Is(err, errSlow) {
				t.Errorf("%s: want errSlow, got %v", name, err)
			}
			close(hangs.let)
			l.strictPatience = 20 * time.Second
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		c.Commit()
		record(t, l, 1)
		l.Close()
		sound(t, path)
		if lines := written(t, path); lines[0].Kind != "start" || lines[1].Kind == "start" {
			t.Errorf("%s: want one beginning, got %+v", name, lines)
		}
	}
}

// child runs this test binary again, as the program that the named test is about.
func child(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+name+"$", "-test.count=1")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestKilled: kill -9 in the middle of writing, again and again. What was recorded
// is there, and the chain goes on.
func TestKilled(t *testing.T) {
	const where = "AUDIT_TEST_KILLED"
	if path := os.Getenv(where); path != "" {
		spec := fileSpec(path)
		spec.Size = 64 << 10
		l := New(Config{Now: time.Now, Log: zerolog.Nop()})
		c, err := l.Prepare(spec)
		if err != nil {
			fmt.Println("FAILED", err) //nolint:forbidigo // to the parent
			return
		}
		c.Commit()
		for w := range 8 {
			go func() {
				for i := 0; ; i++ {
					d := decision(i)
					d.RequestID = fmt.Appendf(nil, "%d-%d-%d", os.Getpid(), w, i)
					if l.Record(d) == nil {
						_, _ = os.Stdout.WriteString(string(d.RequestID) + "\n")
					}
				}
			}()
		}
		select {}
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	told := 0
	for i := range 5 {
		cmd := child(t, "TestKilled", where+"="+path)
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		enough := func() bool { info, err := out.Stat(); return err == nil && info.Size() > 20_000 }
		eventually(t, "some lines", enough)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		sound(t, all(path)...)
		ids, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		told += recorded(t, path, ids)
		if i%2 == 0 {
			appendTo(t, path, `{"time":"20`) // as if it had been killed within write(2)
		}
	}
	if told < 5*500 {
		t.Errorf("want some thousand lines, got %d", told)
	}
}

// recorded checks that every request whose Record returned is in the log.
func recorded(t *testing.T, path string, ids []byte) int {
	t.Helper()
	there := map[string]bool{}
	for _, name := range all(path) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			if _, rest, ok := bytes.Cut(line, []byte(`"request_id":"`)); ok {
				id, _, _ := bytes.Cut(rest, []byte{'"'})
				there[string(id)] = true
			}
		}
	}
	n := 0
	for line := range bytes.Lines(ids) {
		id := strings.TrimSuffix(string(line), "\n")
		if !strings.HasSuffix(string(line), "\n") || strings.Contains(id, "FAILED") {
			continue
		}
		if n++; !there[id] {
			t.Errorf("request %s was told to be on record, and is not", id)
		}
	}
	return n
}

// TestO10_FullDisk: with `required`, calls are refused while no byte more fits, and
// served as soon as there is room; without, they are served and counted. Either way
// the chain is whole. The limit of a process on the size of its files stands for the disk.
func TestO10_FullDisk(t *testing.T) {
	const where = "AUDIT_TEST_FULL"
	if path := os.Getenv(where); path != "" {
		fullDisk(path, os.Getenv("AUDIT_TEST_REQUIRED") == "true")
		return
	}
	t.Parallel()
	for _, required := range []string{"true", "false"} {
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		out, err := child(t, "TestO10_FullDisk", where+"="+path, "AUDIT_TEST_REQUIRED="+required).Output()
		if err != nil || !strings.Contains(string(out), "PASSED") {
			t.Fatalf("required %s: %v: %s", required, err, out)
		}
		if r := sound(t, path); r.Dropped < 20 || !r.Closed {
			t.Errorf("required %s: got %+v", required, r)
		}
	}
}

func fullDisk(path string, required bool) {
	say := func(text string, args ...any) { _, _ = fmt.Fprintf(os.Stdout, text+"\n", args...) }
	signal.Ignore(syscall.SIGXFSZ)
	l := New(Config{Now: time.Now, Log: zerolog.Nop()})
	l.patience, l.strictPatience = 20*time.Second, 20*time.Second
	spec := fileSpec(path)
	spec.Required = required
	c, err := l.Prepare(spec)
	if err != nil {
		say("%v", err)
		return
	}
	c.Commit()
	limit := func(size uint64) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: syscall.RLIM_INFINITY & (1<<63 - 1)}); err != nil {
			say("%v", err)
		}
	}
	limit(5000) // in the middle of a line
	refused := 0
	for i := range 40 {
		if l.Record(decision(i)) != nil {
			refused++
		}
	}
	l.Ended(&extproc.Outcome{Upstream: "crm"})
	if s := l.Status(); (refused == 0) == required || !s.Failing || s.Dropped["file"] < 20 {
		say("refused %d, %+v", refused, s)
		return
	}
	limit(1 << 40)
	if err := l.Record(decision(99)); err != nil {
		say("with room again: %v", err)
		return
	}
	if s := l.Status(); s.Failing {
		say("with room again: %+v", s)
		return
	}
	l.Close()
	say("PASSED")
}
