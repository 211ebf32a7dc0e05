package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// The secrets of these tests. What a caller must not get through begins with
// the word that the scan looks for.
const (
	canary      = "CANARY"
	callerToken = canary + "-caller-token"
	callerKey   = "key-of-the-robot-CNRY"

	alphaSecret = "alpha+secret/SVC%41"
	betaSecret  = "beta-secret-SVC"
	fixedKey    = "fixed-key-SVC"
)

// standard is a policy with an upstream of each kind.
const standard = `
version: 1
server:
  listen: unix://{{.Socket}}
  admin: {{.Admin}}
  drain_delay: 100ms
envoy: {listen: {{.Listen}}}
callers:
  anyone: {any: true}
  robot: {key: {sha256: {{.KeySum}}}}
defaults: {callers: [anyone]}
upstreams:
  alpha:
    url: {{.URL "alpha"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
    cookies: {allow: [session_id, user_context, __Host-sid]}
  beta:
    url: {{.URL "beta"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: beta-client, client_secret: {file: {{.Dir}}/beta.secret}, scopes: [mcp.read]}}
    headers: {remove: [x-internal]}
  fixed:
    url: {{.URL "fixed"}}
    credential: {header: {x-api-key: {file: {{.Dir}}/fixed.secret}}}
    headers: {allow: [x-tenant]}
  keyed:
    url: {{.URL "keyed"}}
    callers: [robot]
    credential: {header: {x-api-key: {file: {{.Dir}}/fixed.secret}}}
  open:
    url: {{.URL "open"}}
    credential: none
`

// rig is the whole line on loopback.
type rig struct {
	t       *testing.T
	dir     string
	url     string // of the Envoy listener
	issuer  *tokenstest.Server
	envoy   *realenvoy.Envoy
	proc    *processor
	facts   *facts
	policy  string // path of the policy file
	spawned []*processor
	leaky   bool     // the case shows what leaks, so the audit's findings are its own to judge
	flags   []string // further flags of serve
	dumped  bool     // the case makes the program print its goroutines

	program string // another version of the program, when it is set

	env  []string // further variables of the program
	lent []string // further credentials that nobody may read but an upstream of its own

	unread []string                 // further texts that nobody may read but upstreams
	media  map[string]func() string // further places where somebody else can read

	mu      sync.Mutex
	answers bytes.Buffer // all that callers were told
	told    []string     // paths of further logs to scan
}

// facts are what a policy template may name.
type facts struct {
	Dir, Socket, Admin, Listen, TokenURL, KeySum string
	// Spare is one more loopback address.
	Spare string

	t         *testing.T
	upstreams map[string]*upstream
	pki       *pki
}

// URL returns the url of the upstream of that name, which is started by being named.
func (f *facts) URL(name string) string { return f.upstream(name).url() }

func (f *facts) upstream(name string) *upstream {
	if f.upstreams[name] == nil {
		f.upstreams[name] = newUpstream(f.t, name, nil)
	}
	return f.upstreams[name]
}

// Addr is URL without its scheme and path.
func (f *facts) Addr(name string) string { return f.upstream(name).addr }

// SecureURL is URL for an upstream that speaks TLS, and HTTP/2 if asked to.
func (f *facts) SecureURL(name string) string {
	if f.upstreams[name] == nil {
		f.upstreams[name] = newUpstream(f.t, name, f.pki.server())
	}
	return f.upstreams[name].url()
}

// up returns an upstream of the policy.
func (r *rig) up(name string) *upstream { return r.facts.upstreams[name] }

// newRig writes the policy and starts nothing but the authorization server and
// the upstreams.
func newRig(t *testing.T, text string, change ...func(*rig)) *rig {
	t.Helper()
	realenvoy.Require(t)
	// t.TempDir is too long for the path of a socket (108 bytes).
	dir, err := os.MkdirTemp("", "e2e") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	issuer := tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{
		"alpha-client": {Secret: alphaSecret}, "beta-client": {Secret: betaSecret},
	}})
	sum := sha256.Sum256([]byte(callerKey))
	r := &rig{t: t, dir: dir, issuer: issuer, facts: &facts{
		Dir: dir, Socket: filepath.Join(dir, "p.sock"), Admin: free(t), Listen: free(t), Spare: free(t),
		TokenURL: issuer.TokenURL(), KeySum: hex.EncodeToString(sum[:]),
		t: t, upstreams: map[string]*upstream{}, pki: newPKI(t, dir),
	}}
	for _, f := range change {
		f(r)
	}
	r.url = "http://" + r.facts.Listen
	r.policy = filepath.Join(dir, "policy.yaml")
	r.write("beta.secret", betaSecret+"\n")
	r.write("fixed.secret", fixedKey+"\n")
	r.write("policy.yaml", r.recorded(text))
	t.Cleanup(r.finish)
	return r
}

// record is the path of the audit log.
func (r *rig) record() string { return filepath.Join(r.dir, "audit.jsonl") }

// recorded is a policy with an audit log, unless it says something of that itself:
// what a case leaves on record is looked at after it.
func (r *rig) recorded(text string) string {
	text = r.fill(text)
	if strings.Contains(text, "\naudit:") {
		return text
	}
	return "audit: {file: " + r.record() + "}\n" + text
}

// start runs the whole line for a policy.
func start(t *testing.T, text string) *rig {
	t.Helper()
	r := newRig(t, text)
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	return r
}

// fill executes a policy template.
func (r *rig) fill(text string) string {
	r.t.Helper()
	tpl, err := template.New("policy").Parse(text)
	if err != nil {
		r.t.Fatal(err)
	}
	var b strings.Builder
	if err := tpl.Execute(&b, r.facts); err != nil {
		r.t.Fatal(err)
	}
	return b.String()
}

// write replaces a file of the rig's directory by rename.
func (r *rig) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
}

// command prepares the program with the secrets of the tests in its environment.
func (r *rig) command(args ...string) *exec.Cmd {
	program := built.path(r.t)
	if r.program != "" {
		program = r.program
	}
	cmd := exec.Command(program, args...) //nolint:noctx // stopped by pid
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "ALPHA_SECRET=" + alphaSecret, "GORACE=halt_on_error=0",
		"GOTRACEBACK=all", "HOME=" + r.dir,
	}
	cmd.Env = append(cmd.Env, r.env...)
	return cmd
}

// render prints the configuration that goes with the policy.
func (r *rig) render() []byte { return r.run("render", "envoy", "-c", r.policy) }

// run runs the program to its end, and fails the test when it fails.
func (r *rig) run(args ...string) []byte {
	r.t.Helper()
	cmd := r.command(args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out
}

// startEnvoy runs Envoy with this configuration.
func (r *rig) startEnvoy(bootstrap []byte) {
	r.t.Helper()
	dir := filepath.Join(r.dir, "envoy")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	e, err := realenvoy.Start(r.t.Context(), realenvoy.Config{
		Binary: realenvoy.Require(r.t), Dir: dir, Bootstrap: bootstrap, LogLevel: "info", Ready: time.Minute,
		Args: []string{"--file-flush-interval-msec", "100"}, // an access log is scanned too
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.envoy = e
	if r.proc != nil {
		r.waitProcessor(1)
	}
}

// waitProcessor waits until Envoy holds n processors for healthy.
func (r *rig) waitProcessor(n uint64) {
	r.t.Helper()
	r.eventually("Envoy sees the processor healthy", 10*time.Second, func() bool {
		got, ok, err := r.envoy.Stat(r.t.Context(), "cluster.envoy_mcp_auth.membership_healthy")
		return err == nil && ok && got == n
	})
}

// eventually polls.
func (r *rig) eventually(what string, within time.Duration, yes func() bool) {
	r.t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if yes() {
			return
		}
	}
	r.t.Fatalf("not within %s: %s", within, what)
}

// processor is a running program under test.
type processor struct {
	admin, log string
	cmd        *exec.Cmd
	done       chan struct{}
}

// serve starts the program and waits until it is ready.
func (r *rig) serve(policy, admin string) *processor {
	r.t.Helper()
	p := r.launch(policy, admin)
	r.eventually("the program is ready; see "+p.log, 15*time.Second, func() bool {
		status, _ := p.get("/readyz")
		return status == http.StatusOK || p.gone()
	})
	if p.gone() {
		r.t.Fatalf("the program ended at its start\n%s", tail(p.log, 4000))
	}
	return p
}

func (r *rig) launch(policy, admin string) *processor {
	r.t.Helper()
	p := &processor{
		admin: "http://" + admin, log: filepath.Join(r.dir, fmt.Sprintf("processor%d.log", len(r.spawned))),
		cmd: r.command(append([]string{"serve", "-c", policy, "--log-level", "trace"}, r.flags...)...), done: make(chan struct{}),
	}
	log, err := os.Create(p.log)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the child holds its own
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.spawned = append(r.spawned, p)
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p
}

func (p *processor) gone() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// signal sends a signal to the process.
func (p *processor) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill ends the process at once.
func (p *processor) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// get reads a path of the admin listener.
func (p *processor) get(path string) (int, string) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, p.admin+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// metric returns the sample with exactly this name and labels, or -1.
func (p *processor) metric(name string) float64 {
	_, text := p.get("/metrics")
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			_, _ = fmt.Sscan(rest, &v)
			return v
		}
	}
	return -1
}

// sumOf adds up the samples of that name in a text of Prometheus which have all
// these labels.
func sumOf(text, name string, labels ...string) (total float64) {
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(line, "} ")
		if !strings.HasPrefix(series, name+"{") || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(series, l) }) {
			continue
		}
		var v float64
		_, _ = fmt.Sscan(value, &v)
		total += v
	}
	return total
}

// ports hands out ports below those that the kernel gives to clients: a port of
// theirs may be taken between the moment it is found free and its use.
var ports struct {
	mu   sync.Mutex
	next int
}

// free returns a loopback address that was free a moment ago.
func free(t *testing.T) string {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	const low, high = 12000, 32000
	if ports.next == 0 {
		ports.next = low + os.Getpid()*37%(high-low) // other test binaries begin elsewhere
	}
	for range high - low {
		if ports.next++; ports.next >= high {
			ports.next = low
		}
		address := fmt.Sprintf("127.0.0.1:%d", ports.next)
		if ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address); err == nil {
			_ = ln.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func tail(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// finish ends the line: the checks that hold for every case come first.
func (r *rig) finish() {
	found := r.audit()
	if r.envoy != nil {
		r.envoy.Stop()
	}
	for _, f := range found {
		if !r.leaky {
			r.t.Error(f)
		}
	}
	for _, p := range r.spawned {
		p.signal(syscall.SIGCONT)
		p.kill()
		if log := tail(p.log, 1<<20); strings.Contains(log, "DATA RACE") || strings.Contains(log, "goroutine ") && !r.dumped {
			r.t.Errorf("the program raced or panicked:\n%.6000s", log)
		}
	}
	if !r.t.Failed() {
		return
	}
	for _, p := range r.spawned {
		r.t.Logf("%s:\n%s", p.log, tail(p.log, 3000))
	}
	if r.envoy != nil {
		r.t.Logf("%s:\n%s", r.envoy.Log, tail(r.envoy.Log, 2000))
	}
}

// envoySince reports whether the real Envoy is 1.MINOR or newer.
func envoySince(t *testing.T, minor int) bool {
	t.Helper()
	have, err := realenvoy.Version(t.Context(), realenvoy.Require(t))
	if err != nil {
		t.Fatal(err)
	}
	var major, its int
	if _, err := fmt.Sscanf(have, "%d.%d", &major, &its); err != nil {
		t.Fatalf("version %q: %v", have, err)
	}
	return major > 1 || its >= minor
}
