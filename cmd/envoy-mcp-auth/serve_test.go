package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// lockedBuffer is a writer that many goroutines may use.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a server started by serve in this process.
type running struct {
	policy, socket, admin string
	log                   *lockedBuffer
	stop                  context.CancelFunc
	done                  chan int
}

// start runs serve and waits until it is ready.
func start(t *testing.T, text func(socket, admin, auth string) string) *running {
	t.Helper()
	r := launch(t, text)
	r.until(t, "/readyz", "ready")
	return r
}

// launch runs serve with the policy that text makes of the socket, admin and
// token endpoint addresses.
func launch(t *testing.T, text func(socket, admin, auth string) string) *running {
	t.Helper()
	log := &lockedBuffer{}
	return launchTo(t, log, log, text)
}

// launchTo is launch with a standard output of its own.
func launchTo(t *testing.T, out io.Writer, log *lockedBuffer, text func(socket, admin, auth string) string) *running {
	t.Helper()
	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"canary-token","token_type":"Bearer","expires_in":600}`)
	}))
	t.Cleanup(auth.Close)
	dir, err := os.MkdirTemp("", "ema") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &running{
		policy: filepath.Join(dir, "policy.yaml"), socket: filepath.Join(dir, "s"), admin: freeAddress(t),
		log: log, done: make(chan int, 1),
	}
	r.write(t, text("unix://"+r.socket, r.admin, auth.URL))
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() {
		env := func(name string) (string, bool) { return "canary-secret", name == "SECRET" || name == "GOGC" }
		r.done <- run(ctx, []string{"serve", "-c", r.policy}, streams{out: out, err: log, env: env})
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
		if strings.Contains(r.log.String(), "canary") {
			t.Errorf("a secret is in the log: %s", r.log)
		}
	})
	return r
}

func (r *running) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(r.policy, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// get fetches from the admin listener; "" when it does not answer.
func (r *running) get(t *testing.T, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.admin+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	return string(b)
}

// until waits for an admin page to hold a text.
func (r *running) until(t *testing.T, path, want string) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !strings.HasPrefix(r.get(t, path), want) && !strings.Contains(r.get(t, path), "\n"+want) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not hold %q: %s\nlog: %s", path, want, r.get(t, path), r.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := realprocess.Address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func servePolicy(socket, admin, auth string) string {
	return fmt.Sprintf(`version: 1
server: {listen: %q, admin: %q, drain_delay: 50ms, drain_timeout: 1s}
callers: {anyone: {any: true}}
upstreams:
  tools:
    url: http://127.0.0.1:1/mcp
    callers: [anyone]
    credential: {oauth2: {token_url: %q, client_id: a, client_secret: "${SECRET}"}}
`, socket, admin, auth)
}

func TestServeShowsItsStateAndKeepsSecrets(t *testing.T) {
	r := start(t, servePolicy)
	requests := `mcp_auth_token_requests_total{result="ok",upstream="tools"} 1`
	r.until(t, "/metrics", requests)
	for path, want := range map[string]string{"/healthz": "ok", "/status": `"name": "tools"`, "/metrics": requests} {
		if got := r.get(t, path); !strings.Contains(got, want) {
			t.Errorf("%s does not hold %q: %s", path, want, got)
		}
		if got := r.get(t, path); strings.Contains(got, "canary") {
			t.Errorf("%s shows a secret: %s", path, got)
		}
	}
	if got := r.get(t, "/metrics"); !strings.Contains(got, `mcp_auth_token_expiry_timestamp_seconds{upstream="tools"}`) {
		t.Errorf("/metrics has no expiry: %s", got)
	}
}

func TestO8BrokenReloadKeepsTheLastGoodPolicy(t *testing.T) {
	r := start(t, servePolicy)
	good, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, "version: 1\nupstreams: {")
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 0")
	if got := r.get(t, "/status"); !strings.Contains(got, `"name": "tools"`) || !strings.Contains(got, `"error"`) {
		t.Errorf("/status = %s", got)
	}
	if n := strings.Count(r.log.String(), "policy not reloaded"); n != 1 {
		t.Errorf("the failure is logged %d times, want once", n)
	}
	r.write(t, strings.Replace(string(good), "tools:", "other:", 1))
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 1")
	if got := r.get(t, "/status"); !strings.Contains(got, `"name": "other"`) || strings.Contains(got, `"name": "tools"`) {
		t.Errorf("/status = %s", got)
	}
}

// stuck is a standard output that takes nothing more, from the first line that
// holds a word on until it is closed.
type stuck struct {
	word       string
	hangs, end chan struct{}
}

func (s *stuck) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(s.word)) {
		s.hangs <- struct{}{}
		<-s.end
	}
	return len(p), nil
}

// TestReloadWithAStuckAudit: while the audit before cannot be closed, nothing passes
// that the new policy switches off or limits.
func TestReloadWithAStuckAudit(t *testing.T) {
	out, plain := &stuck{word: "the-call", hangs: make(chan struct{}, 1), end: make(chan struct{})}, ""
	r := launchTo(t, out, &lockedBuffer{}, func(socket, admin, auth string) string {
		plain = servePolicy(socket, admin, auth)
		return plain + "audit: {stdout: true}\n"
	})
	defer close(out.end)
	r.until(t, "/readyz", "ready")
	r.decide(t, "tools", "x-request-id", "the-call")
	<-out.hangs
	r.write(t, plain+`  off: {url: "http://127.0.0.1:1/off", callers: [anyone], credential: none, disabled: true}
  few: {url: "http://127.0.0.1:1/few", callers: [anyone], credential: none}
limits: {rules: [{name: one, upstreams: [few], rate: 1/h, burst: 1}]}
`)
	refusal := func(upstream string) (reason string) {
		for _, h := range r.decide(t, upstream).GetImmediateResponse().GetHeaders().GetSetHeaders() {
			if h.GetHeader().GetKey() == "x-mcp-auth-reason" {
				reason = string(h.GetHeader().GetRawValue())
			}
		}
		return reason
	}
	off := "no_policy"
	for begin := time.Now(); off == "no_policy" && time.Since(begin) < 15*time.Second; time.Sleep(20 * time.Millisecond) {
		off = refusal("off")
	}
	if first, second := refusal("few"), refusal("few"); off != "upstream_disabled" || first != "" || second != "rate_limited" {
		t.Errorf("want it switched off, and one call of the other, got %q, %q and %q", off, first, second)
	}
}

func TestE9HealthTurnsBeforeTheEnd(t *testing.T) {
	r := start(t, servePolicy)
	conn, err := grpc.NewClient("unix://"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the end of the test
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []grpc_health_v1.HealthCheckResponse_ServingStatus{
		grpc_health_v1.HealthCheckResponse_SERVING, grpc_health_v1.HealthCheckResponse_NOT_SERVING,
	} {
		got, err := watch.Recv()
		if err != nil || got.GetStatus() != want {
			t.Fatalf("health = %v, %v, want %v", got, err, want)
		}
		r.stop()
	}
}

func TestListenUnix(t *testing.T) {
	dir, err := os.MkdirTemp("", "ema") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "sub", "s")
	l, err := listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v, want 0660", info.Mode(), err)
	}
	if _, err := listen(t.Context(), "unix://"+path); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("listening on a living socket: %v", err)
	}
	if s, ok := l.(*socket); ok {
		_ = s.Listener.Close() // as the end of a killed process does
	}
	l, err = listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatalf("listening over a dead socket: %v", err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), "unix://"+path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("listening over a file: %v", err)
	}
}

func TestRemovedSocketIsMadeAnew(t *testing.T) {
	r := start(t, servePolicy)
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	if got := r.get(t, "/readyz"); !strings.HasPrefix(got, "not ready: the socket") {
		if _, err := os.Lstat(r.socket); err != nil { // else it was made anew in between
			t.Errorf("/readyz without a socket = %q", got)
		}
	}
	r.until(t, "/readyz", "ready")
	conn, err := grpc.NewClient("unix://"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the end of the test
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Errorf("through the new socket: %v", err)
	}
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * lookEvery)
	if got := r.get(t, "/readyz"); !strings.HasPrefix(got, "not ready: the socket") {
		t.Errorf("/readyz with a file in place of the socket = %q", got)
	}
}

func TestReadyzSaysDraining(t *testing.T) {
	r := start(t, func(socket, admin, auth string) string {
		return strings.Replace(servePolicy(socket, admin, auth), "drain_delay: 50ms", "drain_delay: 3s", 1)
	})
	r.stop()
	r.until(t, "/readyz", "not ready: draining")
}

// TestReloadLeavesReadyReplicasReady adds a credential whose endpoint hangs:
// were /readyz to wait for it, one edit would take every replica out of service.
func TestReloadLeavesReadyReplicasReady(t *testing.T) {
	r := start(t, servePolicy)
	good, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	hangs, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close() //nolint:errcheck // the end of the test
	r.write(t, string(good)+fmt.Sprintf(`  slow:
    url: http://127.0.0.1:1/mcp
    callers: [anyone]
    credential: {oauth2: {token_url: "http://%s/", client_id: a, client_secret: "${SECRET}"}}
`, hangs.Addr()))
	r.until(t, "/status", `      "name": "slow"`)
	if got := r.get(t, "/readyz"); got != "ready\n" {
		t.Errorf("/readyz = %q", got)
	}
	if got := r.get(t, "/status"); !strings.Contains(got, `"tried": false`) {
		t.Errorf("the new credential was tried already: %s", got)
	}
}

// TestO8PipeInPlaceOfThePolicy: a reload that waits at a pipe would be the last one.
func TestO8PipeInPlaceOfThePolicy(t *testing.T) {
	r := start(t, servePolicy)
	good, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.policy); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(r.policy, 0o600); err != nil {
		t.Fatal(err)
	}
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 0")
	if err := os.Remove(r.policy); err != nil {
		t.Fatal(err)
	}
	r.write(t, strings.Replace(string(good), "tools:", "other:", 1))
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 1")
}

func TestReloadSaysWhatNeedsARestart(t *testing.T) {
	r := start(t, servePolicy)
	good, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	r.write(t, strings.Replace(string(good), "drain_timeout: 1s", "drain_timeout: 2s", 1))
	deadline := time.Now().Add(15 * time.Second)
	for !strings.Contains(r.log.String(), "take effect at the next start") {
		if time.Now().After(deadline) {
			t.Fatalf("no word of a restart: %s", r.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestBriefCutsLongFaultLists(t *testing.T) {
	many := make(policy.Faults, 1000)
	if got := brief(many).Error(); strings.Count(got, "\n") > 11 || !strings.Contains(got, "and 990 more") {
		t.Errorf("brief: %s", got)
	}
	if got := brief(many[:3]).Error(); strings.Contains(got, "more") {
		t.Errorf("brief of three: %s", got)
	}
}

// TestSignalEndsACommandThatWaits runs this test program as the command line:
// check waits at a pipe, and a signal must end it.
func TestSignalEndsACommandThatWaits(t *testing.T) {
	const name = "ENVOY_MCP_AUTH_TEST_PIPE"
	if pipe := os.Getenv(name); pipe != "" {
		run(context.Background(), []string{"serve", "-c", pipe}, streams{out: io.Discard, err: io.Discard, env: os.LookupEnv})
		return
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSignalEndsACommandThatWaits$")
	cmd.Env = append(os.Environ(), name+"="+pipe)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a command that was cut off ended with status 0")
		}
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("SIGTERM does not end it")
	}
}
