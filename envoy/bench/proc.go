package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child that ends with us.
type process struct {
	cmd     *exec.Cmd
	started time.Time
	log     string
}

func start(log string, env []string, name string, args ...string) (*process, error) {
	out, err := os.Create(filepath.Clean(log))
	if err != nil {
		return nil, err
	}
	defer out.Close()                                                              //nolint:errcheck // the child has its own descriptor
	p := &process{cmd: exec.Command(name, args...), started: time.Now(), log: log} //nolint:gosec,noctx // our own programs, stopped by stop
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p, p.cmd.Start()
}

func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// waitReady waits for /readyz.
func (p *process) waitReady(ctx context.Context, admin string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		if _, err := get(ctx, "http://"+admin+"/readyz"); err == nil {
			return nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	b, _ := os.ReadFile(p.log)
	return fmt.Errorf("the server is not ready after %v: %s", limit, b[max(0, len(b)-2000):])
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return b, err
}

// cpu returns the processor time a process used so far. The kernel counts it in
// hundredths of a second, so measurements must be long.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in parentheses may hold anything; the fields follow it.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime (proc(5): fields 14 and 15)
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// memory returns the resident memory of a process in MiB, now and at its largest.
func memory(pid int) (now, most float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		for name, v := range map[string]*float64{"VmRSS:": &now, "VmHWM:": &most} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					return 0, 0, err
				}
				*v = kb / 1024
			}
		}
	}
	return now, most, nil
}
