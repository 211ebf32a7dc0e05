package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
)

// process is a part that runs.
type process struct {
	part parts.Part
	log  string

	cmd    *exec.Cmd
	done   chan struct{} // closed when it ended
	killed bool          // by us, on purpose
}

// launch starts a part in a process group of its own, so that Ctrl-C reaches the
// demo alone, which then stops the parts in order. Its environment is bare:
// proxy settings and keys of the user are none of its business.
func launch(part parts.Part, program, dir, log string, secrets map[string]string) (*process, error) {
	out, err := os.OpenFile(filepath.Clean(log), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }() // the child holds its own descriptor
	// Not CommandContext: it would kill on Ctrl-C what is to be stopped in order.
	cmd := exec.Command(program, part.Args...) //nolint:gosec,noctx // as above; the program is one of ours
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	cmd.Env = part.Env
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	for _, name := range part.Secrets {
		cmd.Env = append(cmd.Env, name+"="+secrets[name])
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", part.Title, err)
	}
	p := &process{part: part, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// waitReady returns when the part answers as it should.
func (p *process) waitReady(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		got, err := status(ctx, http.MethodGet, p.part.Ready, nil)
		if err == nil && got == p.part.ReadyStatus {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready; the end of %s:\n%s", p.part.Title, p.log, p.tail())
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("%s is not ready after %s (%s: want status %d, got %d); the end of %s:\n%s",
				p.part.Title, patience, p.part.Ready, p.part.ReadyStatus, got, p.log, p.tail())
		case <-tick.C:
		}
	}
}

// status makes one request and returns the status of its answer.
func status(ctx context.Context, method, url string, header http.Header) (int, error) {
	var body io.Reader
	if method == http.MethodPost {
		body = bytes.NewReader([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`))
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, err
	}
	maps.Copy(req.Header, header)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, nil
}

// ended reports whether the process is gone.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// stop ends the process and all it started: politely, then not.
func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(8 * time.Second):
	}
	p.kill()
}

// kill ends it as a crash would.
func (p *process) kill() {
	p.killed = true
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

func (p *process) tail() []byte {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.SplitAfter(bytes.TrimSpace(b), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-8):], nil)
}

// free says whether a part may listen, and what to do if not.
func free(ctx context.Context, p parts.Part) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.Address)
	if err == nil {
		return l.Close()
	}
	_, port, _ := net.SplitHostPort(p.Address)
	return fmt.Errorf("port %s (%s) is taken (%w): stop what listens there (lsof -i :%s), or move all ports with PORT_OFFSET=100",
		port, p.Title, err, port)
}
