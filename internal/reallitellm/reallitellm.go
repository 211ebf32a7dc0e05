// Package reallitellm runs the real LiteLLM in tests and in the demo.
//
//	l, err := reallitellm.Start(ctx, reallitellm.Config{ConfigYAML: b, Dir: t.TempDir()})
//	defer l.Stop()
//
// LiteLLM lists the tools of every server in the background once it is up.
// Start waits for the end of that too, so that a test that counts requests
// counts its own.
package reallitellm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
)

// ErrNotFound is returned by Find when there is no LiteLLM on this machine.
var ErrNotFound = errors.New("no litellm found: set $LITELLM to the program, or run `make deps`")

// ErrOff is returned by Find when LITELLM=0 says to do without it.
var ErrOff = errors.New("litellm is switched off by LITELLM=0: unset it")

// Find returns the path of a LiteLLM: $LITELLM, else the project's own at
// .cache/litellm/bin/litellm beside go.mod. A $LITELLM that is no program is an
// error and not a reason to look further.
func Find() (string, error) {
	if os.Getenv("LITELLM") == "0" {
		return "", ErrOff
	}
	return cached.Part{Env: "LITELLM", Dir: "litellm", Program: "litellm", Missing: ErrNotFound}.Find()
}

// Require returns the path of a LiteLLM. Without one it skips the test, and fails
// it where CI is set.
func Require(t cached.TB) string {
	t.Helper()
	return cached.Require(t, "LiteLLM", Find, ErrNotFound, ErrOff)
}

// Config says what to run.
type Config struct {
	// Binary is the path of LiteLLM. Empty means Find.
	Binary string
	// ConfigYAML is its configuration file. Required.
	ConfigYAML []byte
	// Dir takes the configuration and the log. Required.
	Dir string
	// Port is where it listens on 127.0.0.1. Zero means a free one.
	Port int
	// Env is added to the few variables of this process that it gets, such as
	// LITELLM_MASTER_KEY=….
	Env []string
	// LogPath takes its log. Empty means litellm.log in Dir.
	LogPath string
	// Ready is how long the start may take. Zero means 90 s.
	Ready time.Duration
}

// LiteLLM is a running LiteLLM.
type LiteLLM struct {
	// URL is its base URL; /mcp below it is the gateway.
	URL string
	// Log is the path of its log.
	Log string
	// PID is its process, and its process group.
	PID int

	cmd  *exec.Cmd
	done chan struct{} // closed when the process ended
}

// Start runs LiteLLM in a process group of its own, and returns when it serves
// and its first listing of tools has ended, well or not. The context bounds
// only the wait.
func Start(ctx context.Context, cfg Config) (*LiteLLM, error) {
	if err := cfg.defaults(ctx); err != nil {
		return nil, err
	}
	servers, err := cfg.servers()
	if err != nil {
		return nil, err
	}
	l, err := launch(cfg)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Ready)
	defer cancel()
	err = l.until(ctx, "serving", l.alive)
	if err == nil {
		listed := listing{servers: servers, log: l.Log}
		err = l.until(ctx, "done with its first listing", listed.ended)
	}
	if err != nil {
		l.Stop()
		return nil, fmt.Errorf("%w\n%s", err, l.tail())
	}
	return l, nil
}

func (c *Config) defaults(ctx context.Context) error {
	if c.Binary == "" {
		found, err := Find()
		if err != nil {
			return err
		}
		c.Binary = found
	}
	if c.LogPath == "" {
		c.LogPath = filepath.Join(c.Dir, "litellm.log")
	}
	if c.Ready == 0 {
		c.Ready = 90 * time.Second
	}
	if c.Port != 0 {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.Port = l.Addr().(*net.TCPAddr).Port
	return l.Close()
}

// servers are the names of the MCP servers in the configuration.
func (c *Config) servers() ([]string, error) {
	var file struct {
		Servers map[string]any `yaml:"mcp_servers"`
	}
	if err := yaml.Unmarshal(c.ConfigYAML, &file); err != nil {
		return nil, fmt.Errorf("litellm configuration: %w", err)
	}
	var names []string
	for name := range file.Servers {
		names = append(names, name)
	}
	return names, nil
}

func launch(cfg Config) (*LiteLLM, error) {
	file := filepath.Join(cfg.Dir, "litellm.yaml")
	if err := os.WriteFile(file, cfg.ConfigYAML, 0o600); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Clean(cfg.LogPath), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child holds its own descriptor
	// Not CommandContext: the process outlives the wait that the context bounds.
	cmd := exec.Command(cfg.Binary, "--config", file, "--host", "127.0.0.1", "--port", strconv.Itoa(cfg.Port), "--num_workers", "1") //nolint:gosec,noctx // as above; the program is the caller's
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = cfg.Dir
	cmd.Env = append(environ(), cfg.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	l := &LiteLLM{
		URL: "http://127.0.0.1:" + strconv.Itoa(cfg.Port), Log: cfg.LogPath, PID: cmd.Process.Pid,
		cmd: cmd, done: make(chan struct{}),
	}
	go func() {
		_ = cmd.Wait()
		close(l.done)
	}()
	return l, nil
}

// environ keeps proxy settings and keys of this process away from LiteLLM, and
// keeps LiteLLM from fetching price lists and the like from the internet.
func environ() []string {
	env := []string{
		"LITELLM_LOG=INFO", // the end of a listing shows at this level
		"LITELLM_LOCAL_MODEL_COST_MAP=True",
		"LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS=True",
		"LITELLM_LOCAL_AUTOROUTER_PRESETS=True",
		"LITELLM_LOCAL_POLICY_TEMPLATES=True",
		"LITELLM_LOCAL_BLOG_POSTS=True",
	}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// until polls yes. what ends the sentence "litellm is not …".
func (l *LiteLLM) until(ctx context.Context, what string, yes func(context.Context) bool) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-l.done:
			return fmt.Errorf("litellm ended before it was %s; see %s", what, l.Log)
		case <-ctx.Done():
			return fmt.Errorf("litellm is not %s: %w; see %s", what, ctx.Err(), l.Log)
		case <-tick.C:
		}
		if yes(ctx) {
			return nil
		}
	}
}

func (l *LiteLLM) alive(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.URL+"/health/liveliness", nil)
	if err != nil {
		return false
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

// listing watches the log for the end of the first listing. LiteLLM writes a
// line for each server that answered or failed, but none for one that it leaves
// out because it needs a user, so a log at rest ends the wait too.
type listing struct {
	servers []string
	log     string

	size  int
	still int // polls without a new line
}

// atRest is that many polls of 100 ms. An upstream that hangs is not waited for.
const atRest = 30

func (s *listing) ended(context.Context) bool {
	b, err := os.ReadFile(filepath.Clean(s.log))
	if err != nil {
		return false
	}
	if len(b) == s.size {
		s.still++
	} else {
		s.size, s.still = len(b), 0
	}
	return s.still >= atRest || s.all(b)
}

func (s *listing) all(log []byte) bool {
	for _, name := range s.servers {
		if !bytes.Contains(log, []byte(" tools from server "+name+"\n")) &&
			!bytes.Contains(log, []byte("Error listing tools from "+name+": ")) &&
			!bytes.Contains(log, []byte("Failed to get tools from server "+name+" during")) {
			return false
		}
	}
	return true
}

// Stop ends LiteLLM and all that it started: politely, then not. It returns when
// it is gone, and may be called twice.
func (l *LiteLLM) Stop() {
	_ = syscall.Kill(-l.PID, syscall.SIGTERM)
	select {
	case <-l.done:
	case <-time.After(10 * time.Second):
	}
	_ = syscall.Kill(-l.PID, syscall.SIGKILL)
	<-l.done
}

func (l *LiteLLM) tail() []byte {
	b, err := os.ReadFile(filepath.Clean(l.Log))
	if err != nil {
		return []byte(err.Error())
	}
	return b[max(0, len(b)-4000):]
}
