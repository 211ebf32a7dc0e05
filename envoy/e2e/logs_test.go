package e2e_test

import (
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestO10_NobodyReadsTheLog: a log pipe that is full, and a disk that is, hold up
// no call. What could not be written is counted.
func TestO10_NobodyReadsTheLog(t *testing.T) {
	for name, open := range map[string]func(*testing.T) *os.File{"a pipe nobody reads": stuckPipe, "a full disk": fullDisk} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it waits more than it works
			r := newRig(t, standard)
			sink := open(t)
			p := &processor{
				admin: "http://" + r.facts.Admin, log: os.DevNull,
				cmd: r.command("serve", "-c", r.policy, "--log-level", "trace"), done: make(chan struct{}),
			}
			p.cmd.Stdout, p.cmd.Stderr = sink, sink
			if err := p.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r.spawned, r.proc = append(r.spawned, p), p
			go func() {
				_ = p.cmd.Wait()
				close(p.done)
			}()
			r.eventually("the program is ready", 15*time.Second, func() bool {
				status, _ := p.get("/readyz")
				return status == http.StatusOK
			})
			r.startEnvoy(r.render())
			slowest := time.Duration(0)
			dropped := func() float64 { return p.metric("mcp_auth_log_lines_dropped_total") }
			for start := time.Now(); time.Since(start) < 3*time.Second || dropped() < 1; {
				if time.Since(start) > time.Minute {
					t.Fatal("want the lost lines counted")
				}
				slowest = max(slowest, r.fiftyCalls(t))
			}
			if slowest > 10*time.Second {
				t.Errorf("a call took %s", slowest)
			}
			p.signal(syscall.SIGTERM)
			select {
			case <-p.done:
			case <-time.After(20 * time.Second):
				t.Error("the program does not end")
			}
		})
	}
}

// fiftyCalls makes one that is served and many that are refused and logged, and
// returns how long the slowest took.
func (r *rig) fiftyCalls(t *testing.T) time.Duration {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	slowest := time.Duration(0)
	for i := range 50 {
		wg.Go(func() {
			path, status := "/keyed/mcp", http.StatusForbidden
			if i == 0 {
				path, status = "/alpha/mcp", http.StatusOK
			}
			got, err := r.try(t.Context(), nil, r.url+path, strings.NewReader("{}"), nil)
			if err != nil || got.status != status {
				t.Errorf("%s: got %v, %v", path, got, err)
			}
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, got.took)
		})
	}
	wg.Wait()
	return slowest
}

// stuckPipe is the smallest pipe there is; its reader keeps it open and does not read.
func stuckPipe(t *testing.T) *os.File {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close(); _ = writer.Close() })
	const setSize = 1031 // F_SETPIPE_SZ
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, writer.Fd(), setSize, 4096); errno != 0 {
		t.Fatal(errno)
	}
	return writer
}

func fullDisk(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("there is no /dev/full")
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}
