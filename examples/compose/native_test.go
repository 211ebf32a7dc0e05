package compose_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realratelimit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// isolated is set in the process that has a network of its own, socketDir is where
// the volume of the socket is in containers and here.
const (
	isolated  = "COMPOSE_TEST_ISOLATED"
	socketDir = "/tmp/envoy-mcp-auth-demo"
)

// TestFullRunsNatively reads the compose file as compose does, with the profile
// full, and starts its services without containers: the same programs, arguments,
// variables and files, on the same ports, until the same health checks hold. Then it
// makes the calls of docs/compose.md.
//
// Keycloak's place is taken by a small server unless $KEYCLOAK names a kc.sh.
func TestFullRunsNatively(t *testing.T) {
	if os.Getenv(isolated) == "" && reexec(t) {
		return
	}
	s := newStack(t)
	for _, name := range []string{"keycloak", "redis", "ratelimit", "auth", "protected", "open", "alerts", "keycloak-server", "envoy-mcp-auth", "envoy", "litellm"} {
		s.up(name)
	}
	s.calls()
	s.page()
	s.limit()
	s.counted()
}

// reexec runs the test again with a network and a directory for the socket of its
// own, so that nothing is taken. It reports whether this machine lets us.
func reexec(t *testing.T) bool {
	t.Helper()
	unshare := []string{
		"--user", "--map-root-user", "--net", "--mount", "--kill-child", "sh", "-c",
		"ip link set lo up && mkdir -p -m 0700 " + socketDir + " && mount -t tmpfs -o mode=0700 tmpfs " + socketDir + ` && exec "$0" "$@"`,
	}
	if exec.CommandContext(t.Context(), "unshare", append(unshare, "true")...).Run() != nil {
		return false
	}
	cmd := exec.CommandContext(t.Context(), "unshare", append(unshare, os.Args[0], "-test.run=^TestFullRunsNatively$", "-test.v", "-test.timeout=18m")...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	out, err := cmd.CombinedOutput()
	if t.Logf("%s", out); err != nil {
		t.Error(err)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skip("see above")
	}
	return true
}

// stack is what runs.
type stack struct {
	t        *testing.T
	file     file
	env      map[string]string // of .env
	dir      string
	programs map[string]string // by service
	bin      string
}

func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, file: compose(t), env: environment(t), dir: t.TempDir()}
	s.env["FILES"] = "./" + fullDir
	s.bin = filepath.Join(s.dir, "bin")
	for _, pkg := range []string{"cmd/envoy-mcp-auth", "examples/demo/servers"} {
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(s.bin, filepath.Base(pkg)), root+"/"+pkg).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	servers := filepath.Join(s.bin, "servers")
	s.programs = map[string]string{
		"envoy": realenvoy.Require(t), "litellm": reallitellm.Require(t), "ratelimit": realratelimit.Require(t),
		"envoy-mcp-auth": filepath.Join(s.bin, "envoy-mcp-auth"),
		"auth":           servers, "protected": servers, "open": servers, "alerts": servers, "keycloak-server": servers,
	}
	// Both are looked for on PATH, by the command of redis and by its check.
	if err := os.Symlink(realredis.Require(t), filepath.Join(s.bin, "redis-server")); err != nil {
		t.Fatal(err)
	}
	if got := s.mounts("envoy-mcp-auth")[1][1]; got != socketDir {
		t.Fatalf("want the socket in %s, got %s", socketDir, got)
	}
	if os.Getenv(isolated) != "" {
		return s
	}
	_ = os.Remove(socketDir) // an empty one, left by a demo
	if err := os.Mkdir(socketDir, 0o700); err != nil {
		t.Fatalf("%v: does a demo run here? Stop it, or remove the directory", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(socketDir) })
	return s
}

// mounts are the volumes of a service: source and target.
func (s *stack) mounts(name string) (all [][2]string) {
	for _, v := range s.file.Services[name].Volumes {
		source, target, _ := strings.Cut(s.interpolate(v), ":")
		all = append(all, [2]string{source, strings.TrimSuffix(target, ":ro")})
	}
	return all
}

// interpolate puts variables into a text as compose does.
func (s *stack) interpolate(text string) string {
	variable := regexp.MustCompile(`\$(\$|\{(\w+)(?::[?-]([^}]*))?\})`)
	return variable.ReplaceAllStringFunc(text, func(m string) string {
		if m == "$$" {
			return "$"
		}
		name := variable.FindStringSubmatch(m)[2]
		if s.env[name] == "" {
			s.t.Fatalf("%s: %s is not in .env.example", text, name)
		}
		return s.env[name]
	})
}

// up starts a service and returns when it is healthy.
func (s *stack) up(name string) {
	s.t.Helper()
	begin := time.Now()
	spec := s.file.Services[name]
	if spec == nil {
		s.t.Fatalf("no service %s", name)
	}
	dir := filepath.Join(s.dir, name)
	argv := make([]string, 0, len(spec.Command)+1)
	if p := s.programs[name]; p != "" {
		argv = append(argv, p)
	}
	if name == "keycloak" {
		kc := s.keycloak()
		if kc == "" {
			return
		}
		argv, dir = []string{kc}, filepath.Dir(filepath.Dir(kc))
	}
	for _, m := range s.mounts(name) {
		if !strings.HasPrefix(m[0], ".") {
			continue // the volume of the socket, which is where it is in a container
		}
		// What a container has at /demo is where the service runs.
		_, within, _ := strings.Cut(strings.TrimPrefix(m[1], "/opt/keycloak"), "/demo")
		if name == "keycloak" {
			within = strings.TrimPrefix(m[1], "/opt/keycloak")
		}
		put(s.t, filepath.Join(dir, within), read(s.t, m[0]))
	}
	for i, arg := range spec.Command {
		if name == "ratelimit" && i == 0 {
			continue // the program's path in the image
		}
		argv = append(argv, s.interpolate(arg))
	}
	env := []string{"PATH=" + s.bin + ":" + os.Getenv("PATH"), "HOME=" + s.dir, "JAVA_HOME=" + os.Getenv("JAVA_HOME")}
	for _, k := range slices.Sorted(maps.Keys(spec.Environment)) {
		env = append(env, k+"="+s.interpolate(spec.Environment[k]))
	}
	p := launch(s.t, argv, dir, env, filepath.Join(s.dir, name+".log"))
	if test := spec.Healthcheck.Test; len(test) > 0 {
		p.healthy(s.t, s.check(test), env)
	}
	s.t.Logf("%s: healthy after %s", name, time.Since(begin).Round(10*time.Millisecond))
}

// check is a health check as it runs here.
func (s *stack) check(test []string) []string {
	argv := []string{}
	if _, err := exec.LookPath("redis-cli"); err != nil && strings.Contains(test[len(test)-1], "redis-cli") {
		return []string{"bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/6379"} // a package of its own, which not all have
	}
	for _, a := range test[1:] {
		argv = append(argv, strings.Replace(s.interpolate(a), "/usr/local/bin/demo-servers", filepath.Join(s.bin, "servers"), 1))
	}
	return argv
}

// keycloak returns the kc.sh of a copy of $KEYCLOAK, whose realm is its own; or puts
// a server in its place that knows the same client.
func (s *stack) keycloak() string {
	if own := os.Getenv("KEYCLOAK"); own != "" {
		home := filepath.Join(s.dir, "keycloak")
		if out, err := exec.CommandContext(s.t.Context(), "cp", "-a", filepath.Dir(filepath.Dir(own)), home).CombinedOutput(); err != nil {
			s.t.Fatalf("%v\n%s", err, out)
		}
		if err := os.RemoveAll(filepath.Join(home, "data")); err != nil {
			s.t.Fatal(err)
		}
		return filepath.Join(home, "bin", filepath.Base(own))
	}
	const address, realm = "127.0.0.1:8080", "/realms/mcp"
	issuer := tokenstest.Start(s.t, tokenstest.Config{
		Issuer: "http://" + address + realm, Clients: map[string]tokenstest.Client{"envoy-mcp-auth": {Secret: s.env["MCP_KEYCLOAK_CLIENT_SECRET"]}},
	})
	s.t.Log("keycloak: no $KEYCLOAK, so a small server is in its place")
	front(s.t, address, issuer.URL(), map[string]string{
		realm + "/protocol/openid-connect/token": "/token", realm + "/protocol/openid-connect/certs": "/jwks",
	})
	return ""
}

// process is a service.
type process struct {
	name, log string
	done      chan struct{}
}

func launch(t *testing.T, argv []string, dir string, env []string, log string) *process {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()                         //nolint:errcheck // the child holds its own descriptor
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // as the compose file has it; stopped by its process group
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{name: filepath.Base(log), log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		if t.Failed() {
			t.Logf("%s:\n%s", p.name, p.tail(t))
		}
	})
	return p
}

// healthy returns when the check ends with status 0.
func (p *process) healthy(t *testing.T, check, env []string) {
	t.Helper()
	// More than the 6 minutes in containers: Keycloak's image is built in part.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, check[0], check[1:]...)
		cmd.Env = env
		said, err := cmd.CombinedOutput()
		if err == nil {
			return
		}
		select {
		case <-p.done:
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
			continue
		}
		t.Fatalf("%s is not healthy: %v: %s", p.name, err, said)
	}
}

func (p *process) tail(t *testing.T) []byte {
	t.Helper()
	log := read(t, p.log)
	return log[max(0, len(log)-3000):]
}

func put(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// post sends a JSON-RPC call.
func (s *stack) post(url, body string, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Content-Type", "application/json")
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	return s.do(req)
}

func (s *stack) do(req *http.Request) answer {
	s.t.Helper()
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

func toolCall(name, arguments string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, name, arguments)
}

// calls are those of docs/compose.md: through LiteLLM to each server, which has the
// right token, and nothing of the caller's.
func (s *stack) calls() {
	s.t.Helper()
	if got := s.viaLiteLLM("open_server-echo", `{"text":"hello"}`); !strings.Contains(got, `"text":"hello"`) {
		s.t.Errorf("open_server: want an echo, got %s", got)
	}
	for server, client := range map[string]string{"protected_server": "litellm-proxy", "keycloak_server": "envoy-mcp-auth"} {
		plain := s.viaLiteLLM(server+"-whoami", "{}")
		if !strings.Contains(plain, `"client_id":"`+client+`"`) || strings.Contains(plain, "litellm-api-key") || strings.Contains(plain, "tracking") {
			s.t.Errorf("%s: want a call as %q with nothing of the caller's, got %s", server, client, plain)
		}
		if server == "protected_server" && !strings.Contains(plain, `"cookies":["session_id"]`) {
			s.t.Errorf("want the permitted cookie, got %s", plain)
		}
	}
}

// page makes the first call of docs/compose.md as the page has it.
func (s *stack) page() {
	s.t.Helper()
	_, text, _ := strings.Cut(string(read(s.t, "../../docs/compose.md")), "```sh\n. ./.env\n")
	block, _, ok := strings.Cut(text, "```")
	if !ok || !strings.Contains(block, "call protected_server-whoami") {
		s.t.Fatalf("want the page's call, got %s", block)
	}
	out, err := exec.CommandContext(s.t.Context(), "sh", "-ec", ". ./.env.example\n"+block).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "litellm-proxy") || strings.Contains(string(out), "tracking") {
		s.t.Errorf("the page's call: %v\n%s", err, out)
	}
}

// viaLiteLLM calls a tool, and returns the answer without spaces and backslashes.
func (s *stack) viaLiteLLM(tool, arguments string) string {
	s.t.Helper()
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		body := s.post("http://127.0.0.1:4000/mcp", toolCall(tool, arguments),
			"X-Litellm-Api-Key", "Bearer "+s.env["LITELLM_MASTER_KEY"], "Cookie", "session_id=1; tracking=2").body
		// LiteLLM learns the names of tools in the background, after it is healthy.
		if !strings.Contains(body, "not found") || time.Since(begin) > time.Minute {
			return strings.ReplaceAll(strings.ReplaceAll(body, `\`, ""), " ", "")
		}
	}
}

// limit calls a tool until it is refused. A minute may turn in between.
func (s *stack) limit() {
	s.t.Helper()
	for n := range 25 {
		got := s.post("http://127.0.0.1:10000/open_server/mcp", toolCall("echo", `{"text":"a"}`))
		if got.status != http.StatusTooManyRequests {
			continue
		}
		wait, err := strconv.Atoi(got.header.Get("Retry-After"))
		if n < 9 || err != nil || wait < 1 || wait > 60 || got.header.Get("X-Mcp-Auth-Reason") != "rate_limited" {
			s.t.Errorf("call %d: want 10 in a minute, and when to come again, got %v %s", n+1, got.header, got.body)
		}
		for range 11 {
			if got := s.viaLiteLLM("open_server-echo", `{"text":"a"}`); strings.Contains(got, "429TooManyRequests") {
				return
			}
		}
		s.t.Error("want LiteLLM to say so within 11 calls")
		return
	}
	s.t.Error("want 10 calls a minute, got 25 through")
}

// counted: the metrics that Prometheus scrapes say that every part did its work.
func (s *stack) counted() {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://127.0.0.1:9441/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		body := s.do(req).body
		missing := slices.DeleteFunc([]string{
			`mcp_auth_shared_cache_up 1`, `mcp_auth_shared_cache_requests_total\{result="stored"\} [1-9]\d*`,
			`mcp_auth_ratelimit_service_up 1`, `mcp_auth_rate_limited_total\{rule="echo",upstream="open_server"\} [1-9]\d*`,
		}, func(want string) bool { return regexp.MustCompile(`(?m)^` + want + `$`).MatchString(body) })
		if len(missing) == 0 {
			return
		}
		// On a busy machine Redis may be late for a moment.
		if time.Since(begin) > 20*time.Second {
			s.t.Fatalf("want %q in\n%s", missing, body)
		}
	}
}

// TestPrometheusReadsIt: the configuration, with the rules where it looks for them.
func TestPrometheusReadsIt(t *testing.T) {
	t.Parallel()
	errNone := errors.New("no promtool found: set $PROMTOOL to the program, or run tools/install promtool")
	promtool := cached.Require(t, "promtool", cached.Part{Env: "PROMTOOL", Dir: "promtool", Program: "promtool", Missing: errNone}.Find, errNone)
	dir, config := t.TempDir(), ""
	for _, v := range compose(t).Services["prometheus"].Volumes {
		part := strings.Split(v, ":")
		text := strings.ReplaceAll(string(read(t, part[0])), "/etc/prometheus/", dir+"/etc/prometheus/")
		put(t, filepath.Join(dir, part[1]), []byte(text))
		if config == "" {
			config = filepath.Join(dir, part[1])
		}
	}
	if !slices.Contains(compose(t).Services["prometheus"].Command, "--config.file="+strings.TrimPrefix(config, dir)) {
		t.Errorf("want the first volume to be the configuration of the command line")
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "config", "--lint=all", config).CombinedOutput(); err != nil || !strings.Contains(string(out), "SUCCESS") {
		t.Errorf("%v\n%s", err, out)
	}
}
