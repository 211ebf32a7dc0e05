// Package realenvoy runs the real Envoy in tests and benchmarks.
//
//	e, err := realenvoy.Start(ctx, realenvoy.Config{Bootstrap: b, Dir: t.TempDir()})
//	defer e.Stop()
//
// Nothing here knows what is in the configuration; Start only adds an admin
// interface, which it needs to see when Envoy is ready.
package realenvoy

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

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
)

// ErrNotFound is returned by Find when there is no Envoy on this machine.
var ErrNotFound = errors.New("no envoy found: set $ENVOY to the binary, put envoy on PATH, or run tools/install envoy")

// Find returns the path of an Envoy: $ENVOY, else envoy on PATH, else the
// project's own at .cache/envoy/bin/envoy beside go.mod. A $ENVOY that does not
// run is an error and not a reason to look further.
func Find() (string, error) {
	return cached.Part{Env: "ENVOY", Dir: "envoy", Program: "envoy", OnPath: true, Missing: ErrNotFound}.Find()
}

// Require returns the path of an Envoy. Without one it skips the test, and fails
// it where CI is set.
func Require(t cached.TB) string {
	t.Helper()
	return cached.Require(t, "Envoy", Find, ErrNotFound)
}

// Version returns what the binary says it is, such as 1.40.0.
func Version(ctx context.Context, binary string) (string, error) {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", binary, err)
	}
	// envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
	for part := range strings.SplitSeq(string(out), "/") {
		if strings.Count(part, ".") == 2 && strings.Trim(part, ".0123456789") == "" {
			return part, nil
		}
	}
	return "", fmt.Errorf("want a version in what %s --version says, got %q", binary, tail(out, 200))
}

// Validate runs Envoy's own check of a configuration. Its complaint is part of
// the error.
func Validate(ctx context.Context, binary, file string) error {
	out, err := exec.CommandContext(ctx, binary, "--mode", "validate", "-c", file, "--use-dynamic-base-id").CombinedOutput() //nolint:gosec // the binary is Find's
	if err != nil {
		return fmt.Errorf("envoy --mode validate %s: %w\n%s", file, err, tail(out, 4000))
	}
	return nil
}

// Config says what to run.
type Config struct {
	// Binary is the path of Envoy. Empty means Find.
	Binary string
	// Bootstrap is the configuration, YAML or JSON. It must not have an admin block.
	Bootstrap []byte
	// Dir takes the configuration and the log. Required.
	Dir string
	// Concurrency is the number of workers. Zero means 1.
	Concurrency int
	// LogLevel is Envoy's. Empty means warning.
	LogLevel string
	// Args are further arguments.
	Args []string
	// Ready is how long the start may take. Zero means 30 s.
	Ready time.Duration
}

// Envoy is a running Envoy.
type Envoy struct {
	// Admin is the base URL of its admin interface.
	Admin string
	// Log is the path of its log.
	Log string
	// PID is its process.
	PID int

	cmd  *exec.Cmd
	done chan struct{} // closed when the process ended
}

// Start runs Envoy in a session of its own, with a base id of its own, and
// returns when it is ready to serve. The context bounds only the wait.
func Start(ctx context.Context, cfg Config) (*Envoy, error) {
	if cfg.Binary == "" {
		found, err := Find()
		if err != nil {
			return nil, err
		}
		cfg.Binary = found
	}
	config := filepath.Join(cfg.Dir, "envoy.yaml")
	adminFile := filepath.Join(cfg.Dir, "admin.address")
	// A second -c would be two files; Envoy merges one more as YAML text.
	admin := "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}"
	if err := os.WriteFile(config, cfg.Bootstrap, 0o600); err != nil {
		return nil, err
	}
	logPath := filepath.Join(cfg.Dir, "envoy.log")
	log, err := os.OpenFile(filepath.Clean(logPath), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the child holds its own descriptor
	args := append([]string{
		"-c", config, "--config-yaml", admin,
		"--use-dynamic-base-id", "--admin-address-path", adminFile,
		"--concurrency", strconv.Itoa(max(cfg.Concurrency, 1)),
		"--log-level", orDefault(cfg.LogLevel, "warning"),
		"--drain-time-s", "1", "--parent-shutdown-time-s", "2",
	}, cfg.Args...)
	// Not CommandContext: the process outlives the wait that ctx bounds.
	cmd := exec.Command(cfg.Binary, args...) //nolint:gosec,noctx // as above; the binary is the caller's
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := os.Remove(adminFile); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	e := &Envoy{Log: logPath, PID: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(e.done)
	}()
	if cfg.Ready == 0 {
		cfg.Ready = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Ready)
	defer cancel()
	if err := e.waitReady(ctx, adminFile); err != nil {
		e.Stop()
		return nil, fmt.Errorf("%w\n%s", err, e.tailLog())
	}
	return e, nil
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

func (e *Envoy) waitReady(ctx context.Context, adminFile string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-e.done:
			return errors.New("envoy ended before it was ready")
		case <-ctx.Done():
			return fmt.Errorf("envoy is not ready: %w", ctx.Err())
		case <-tick.C:
		}
		b, err := os.ReadFile(filepath.Clean(adminFile))
		if err != nil || len(b) == 0 {
			continue
		}
		e.Admin = "http://" + strings.TrimSpace(string(b))
		if _, err := e.Get(ctx, "/ready"); err == nil {
			return nil
		}
	}
}

// Get reads a path of the admin interface, such as /config_dump or /stats.
func (e *Envoy) Get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Admin+path, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("envoy admin %s: want 200, got %d", path, resp.StatusCode)
	}
	return b, err
}

// Stat returns one counter or gauge by its full name, and false when Envoy has
// none of that name.
func (e *Envoy) Stat(ctx context.Context, name string) (uint64, bool, error) {
	b, err := e.Get(ctx, "/stats")
	if err != nil {
		return 0, false, err
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(name+": ")); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(rest)), 10, 64)
			return n, err == nil, err
		}
	}
	return 0, false, nil
}

// Stop ends the process: politely, then not. It returns when it is gone, and may
// be called twice.
func (e *Envoy) Stop() {
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.done:
	case <-time.After(5 * time.Second):
		_ = e.cmd.Process.Kill()
		<-e.done
	}
}

func (e *Envoy) tailLog() []byte {
	b, err := os.ReadFile(filepath.Clean(e.Log))
	if err != nil {
		return []byte(err.Error())
	}
	return tail(b, 4000)
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }
