// Package realproxy runs the program of this tree behind the real Envoy, with
// the configuration that the program renders from one policy.
//
//	program, err := realproxy.Build(ctx, dir)
//	p, err := realproxy.Start(ctx, realproxy.Config{Program: program, Policy: policy, Dir: dir})
//	defer p.Stop()
//
// It needs no testing.T, so that a program can run one too.
package realproxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
)

// Build builds the program into dir and returns its path. The working directory
// must be in the module.
func Build(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "envoy-mcp-auth")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/envoy-mcp-auth/envoy-mcp-auth/cmd/envoy-mcp-auth") //nolint:gosec // a path that the caller chose
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the program: %w\n%s", err, out)
	}
	return program, nil
}

// Config says what to run.
type Config struct {
	// Program is the path of the program. Required.
	Program string
	// Policy is the policy file without version, server and envoy, which Start
	// writes. Required.
	Policy string
	// Listen is the address of Envoy's listener. Empty means one that is free.
	Listen string
	// Dir takes the files and logs. Required.
	Dir string
	// Env is added to PATH and HOME, which are all that the program gets.
	Env []string
	// Ready is how long the start may take. Zero means 30 s.
	Ready time.Duration
}

// Proxy is the running program and the Envoy before it.
type Proxy struct {
	// URL is the base URL of Envoy's listener: upstream NAME is at URL/NAME/….
	URL string
	// Admin is the base URL of the program's admin listener.
	Admin string
	// Log is the path of the program's log, at level trace.
	Log string

	envoy  *realenvoy.Envoy
	cmd    *exec.Cmd
	done   chan struct{} // closed when the program ended
	socket string        // the directory of the socket
}

// Start runs the program and Envoy, and returns when calls are served. The
// context bounds only the wait.
func Start(ctx context.Context, cfg Config) (*Proxy, error) {
	if cfg.Ready == 0 {
		cfg.Ready = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Ready)
	defer cancel()
	// The path of a socket has at most 108 bytes, so it has a directory of its own.
	socket, err := os.MkdirTemp("", "proxy")
	if err != nil {
		return nil, err
	}
	admin, err := realprocess.Address(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.Listen == "" {
		if cfg.Listen, err = realprocess.Address(ctx); err != nil {
			return nil, err
		}
	}
	p := &Proxy{URL: "http://" + cfg.Listen, Admin: "http://" + admin, Log: filepath.Join(cfg.Dir, "program.log"), socket: socket}
	text := fmt.Sprintf("version: 1\nserver: {listen: \"unix://%s/p.sock\", admin: %s, drain_delay: 100ms}\nenvoy: {listen: %s}\n%s",
		socket, admin, cfg.Listen, cfg.Policy)
	policy := filepath.Join(cfg.Dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := p.start(ctx, cfg, policy); err != nil {
		p.Stop()
		return nil, fmt.Errorf("%w\n%s", err, tail(p.Log))
	}
	return p, nil
}

func (p *Proxy) start(ctx context.Context, cfg Config, policy string) error {
	render := command(cfg, "render", "envoy", "-c", policy)
	var complaint bytes.Buffer
	render.Stderr = &complaint
	bootstrap, err := render.Output()
	if err != nil {
		return fmt.Errorf("render: %w\n%s", err, complaint.Bytes())
	}
	if err := p.serve(cfg, policy); err != nil {
		return err
	}
	if err := p.until(ctx, "ready", func() bool { return p.ready(ctx) }); err != nil {
		return err
	}
	if p.envoy, err = realenvoy.Start(ctx, realenvoy.Config{Dir: cfg.Dir, Bootstrap: bootstrap}); err != nil {
		return err
	}
	return p.until(ctx, "healthy in Envoy's eyes", func() bool {
		n, ok, err := p.envoy.Stat(ctx, "cluster.envoy_mcp_auth.membership_healthy")
		return err == nil && ok && n == 1
	})
}

// command prepares the program. Nothing of this process's environment reaches it
// but what Config says.
func command(cfg Config, args ...string) *exec.Cmd {
	cmd := exec.Command(cfg.Program, args...) //nolint:gosec,noctx // the program is the caller's, and stopped by pid
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + cfg.Dir, "GOTRACEBACK=all"}, cfg.Env...)
	return cmd
}

func (p *Proxy) serve(cfg Config, policy string) error {
	log, err := os.Create(p.Log)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child holds its own descriptor
	cmd := command(cfg, "serve", "-c", policy, "--log-level", "trace")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.done = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return nil
}

// until polls yes. what ends the sentence "the program is not …".
func (p *Proxy) until(ctx context.Context, what string, yes func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return fmt.Errorf("the program ended before it was %s", what)
		case <-ctx.Done():
			return fmt.Errorf("the program is not %s: %w", what, ctx.Err())
		case <-tick.C:
		}
		if yes() {
			return nil
		}
	}
}

func (p *Proxy) ready(ctx context.Context) bool {
	_, err := p.Get(ctx, "/readyz")
	return err == nil
}

// Get reads a path of the program's admin listener. Any status but 200 is an error.
func (p *Proxy) Get(ctx context.Context, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Admin+path, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: want 200, got %d", path, resp.StatusCode)
	}
	return string(b), err
}

// Metric returns the sample with exactly this name and these labels, and zero
// when there is none.
func (p *Proxy) Metric(ctx context.Context, name string) (float64, error) {
	text, err := p.Get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			_, err := fmt.Sscan(rest, &v)
			return v, err
		}
	}
	return 0, nil
}

// Stop ends both. It returns when they are gone, and may be called twice.
func (p *Proxy) Stop() {
	if p.envoy != nil {
		p.envoy.Stop()
	}
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	_ = os.RemoveAll(p.socket)
}

func tail(path string) []byte {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return nil
	}
	return b[max(0, len(b)-4000):]
}
