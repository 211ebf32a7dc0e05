package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// options are what the environment asks for.
type options struct {
	litellm, keep bool
	// offset is added to every port.
	offset int
}

// demo is one run.
type demo struct {
	options
	*narrator

	root    string // of the repository
	dir     string // where the parts run and find their files
	work    string // for logs, and for files for other ports
	layout  *parts.Layout
	secrets map[string]string
	program map[string]string // paths by the names of parts.Part
	running map[string]*process
	order   []string // names of running, in the order they started
	socket  string   // its directory, once that is ours
}

var errSteps = errors.New("the walk failed")

// run is the whole demo. Whatever it started is stopped when it returns.
func run(ctx context.Context, opt options, n *narrator) error {
	d := &demo{options: opt, narrator: n, running: map[string]*process{}, program: map[string]string{}}
	begin := time.Now()
	defer d.stop()
	if err := d.prepare(ctx); err != nil {
		return interrupted(ctx, err)
	}
	d.heading("Start")
	for _, p := range d.parts() {
		if err := d.launch(ctx, p); err != nil {
			return interrupted(ctx, err)
		}
	}
	failed := d.walk(ctx)
	if ctx.Err() != nil {
		return interrupted(ctx, ctx.Err())
	}
	d.summary(failed, time.Since(begin))
	if opt.keep {
		d.wait(ctx)
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d of its steps did not hold; the logs are in %s", errSteps, failed, d.logs())
	}
	return nil
}

func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// prepare does what can fail before anything runs.
func (d *demo) prepare(ctx context.Context) error {
	var err error
	if d.root, err = moduleRoot(); err != nil {
		return err
	}
	d.secrets = newSecrets()
	d.work = filepath.Join(d.root, ".cache", "demo"+d.suffix())
	if err := os.MkdirAll(d.logs(), 0o700); err != nil {
		return err
	}
	if err := d.files(); err != nil {
		return err
	}
	for _, p := range d.parts() {
		if err := free(ctx, p); err != nil {
			return err
		}
		_ = os.Remove(d.log(p.Name)) // of an earlier run
	}
	dir := filepath.Dir(d.layout.Socket)
	if err := socketDir(dir); err != nil {
		return err
	}
	d.socket = dir
	d.heading("Parts")
	if err := d.install(ctx); err != nil {
		return err
	}
	return d.build(ctx)
}

func (d *demo) suffix() string {
	if d.offset == 0 {
		return ""
	}
	return fmt.Sprintf("-%d", d.offset)
}

func (d *demo) logs() string           { return filepath.Join(d.work, "logs") }
func (d *demo) log(name string) string { return filepath.Join(d.logs(), name+".log") }

func (d *demo) env(name string) (string, bool) {
	v, ok := d.secrets[name]
	return v, ok
}

// files finds the directory to run in: that of the checked-in files, or one with
// files for other ports.
func (d *demo) files() error {
	d.dir = filepath.Join(d.root, "examples", "demo")
	text, err := os.ReadFile(filepath.Join(d.dir, parts.PolicyFile))
	if err != nil {
		return err
	}
	if text, err = parts.Shift(text, d.offset); err != nil {
		return err
	}
	set, err := policy.Parse(parts.PolicyFile, text, d.env)
	if err != nil {
		return fmt.Errorf("examples/demo/%w", err)
	}
	if d.layout, err = parts.NewLayout(set, parts.LiteLLMPort+d.offset); err != nil {
		return err
	}
	if d.offset == 0 {
		return nil
	}
	d.dir = filepath.Join(d.work, "files")
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	files, err := parts.Render(text, set)
	if err != nil {
		return err
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(d.dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) parts() []parts.Part {
	all := d.layout.Parts()
	if d.litellm {
		return all
	}
	return slices.DeleteFunc(all, func(p parts.Part) bool { return p.Name == "litellm" })
}

// install finds the real parts, or gets them.
func (d *demo) install(ctx context.Context) error {
	names := []string{"envoy"}
	if d.litellm {
		names = append(names, "litellm")
	}
	for _, name := range names {
		begin := time.Now()
		out, err := d.command(ctx, filepath.Join(d.root, "tools", "install"), name)
		if err != nil {
			return fmt.Errorf("tools/install %s did not work (%w): see above for what to do", name, err)
		}
		d.program[name] = out
		d.yes(name+": "+d.relative(out), time.Since(begin))
	}
	return nil
}

// build makes the programs of this repository.
func (d *demo) build(ctx context.Context) error {
	begin := time.Now()
	for name, pkg := range map[string]string{"envoy-mcp-auth": "./cmd/envoy-mcp-auth", "demo-servers": "./examples/demo/servers"} {
		d.program[name] = filepath.Join(d.root, ".cache", "demo", "bin", name)
		if _, err := d.command(ctx, "go", "build", "-o", d.program[name], pkg); err != nil {
			return fmt.Errorf("building %s: %w", pkg, err)
		}
	}
	d.yes("envoy-mcp-auth and demo-servers: built from here", time.Since(begin))
	return nil
}

// command runs a program at the root, shows its messages, and returns what it
// printed. It is ended with all it started when ctx is.
func (d *demo) command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // the programs are ours and go
	cmd.Dir, cmd.Stderr = d.root, d.narrator
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// launch starts a part and waits until it is ready.
func (d *demo) launch(ctx context.Context, part parts.Part) error {
	begin := time.Now()
	patience := 20 * time.Second
	if part.Name == "litellm" {
		patience = 2 * time.Minute
		d.line("  LiteLLM starts; it takes about 10 s")
	}
	p, err := launch(part, d.program[part.Program], d.dir, d.log(part.Name), d.secrets)
	if err != nil {
		return err
	}
	d.running[part.Name] = p
	d.order = append(d.order, part.Name)
	if err := p.waitReady(ctx, patience); err != nil {
		return err
	}
	d.yes(fmt.Sprintf("%-22s %s", part.Title, part.Address), time.Since(begin))
	return nil
}

// restart starts a part that was killed.
func (d *demo) restart(ctx context.Context, name string) error {
	part := d.running[name].part
	p, err := launch(part, d.program[part.Program], d.dir, d.log(name), d.secrets)
	if err != nil {
		return err
	}
	d.running[name] = p
	return p.waitReady(ctx, 20*time.Second)
}

// stop ends everything, the first last.
func (d *demo) stop() {
	for _, name := range slices.Backward(d.order) {
		d.running[name].stop()
	}
	if d.socket != "" {
		_ = os.Remove(d.layout.Socket) // left by a kill -9
		_ = os.Remove(d.socket)
	}
}

func (d *demo) summary(failed int, took time.Duration) {
	d.line("")
	if failed > 0 {
		d.no(fmt.Sprintf("%d steps did not hold", failed), took)
		d.detail("logs: " + d.relative(d.logs()))
		return
	}
	d.yes("every step held", took)
}

// wait leaves everything running until Ctrl-C.
func (d *demo) wait(ctx context.Context) {
	d.heading("Everything is left running")
	file := filepath.Join(d.work, "secrets.env")
	var b strings.Builder
	for _, name := range []string{parts.MasterKey, parts.CallerKey} {
		fmt.Fprintf(&b, "export %s=%s\n", name, d.secrets[name])
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		d.detail(err.Error())
	}
	defer func() { _ = os.Remove(file) }()
	for _, l := range [][2]string{
		{"Envoy", d.layout.Envoy + "/" + parts.Protected + "/mcp and /" + parts.Open + "/mcp"},
		{"page", d.layout.Admin},
		{"status", d.layout.Admin + "/status"},
		{"metrics", d.layout.Admin + "/metrics"},
		{"logs", d.relative(d.logs())},
		{"keys", ". " + d.relative(file)},
	} {
		d.line(fmt.Sprintf("  %-10s %s", l[0], l[1]))
	}
	if d.litellm {
		d.line(fmt.Sprintf("  %-10s %s", "LiteLLM", d.layout.LiteLLM+"/mcp   (header x-litellm-api-key: Bearer $"+parts.MasterKey+")"))
	}
	d.line("\nCtrl-C stops it.")
	<-ctx.Done()
	d.line("\nstopping")
}

// newSecrets makes the secrets of one run: nothing of them is in a file.
func newSecrets() map[string]string {
	key := rand.Text()
	sum := sha256.Sum256([]byte(key))
	return map[string]string{
		parts.ClientSecret: rand.Text(),
		parts.MasterKey:    "sk-" + rand.Text(),
		parts.CallerKey:    key,
		parts.CallerSum:    hex.EncodeToString(sum[:]),
		parts.AlertSecret:  rand.Text() + rand.Text(),
	}
}

// socketDir makes the directory of the socket. It is in a place where everybody
// may make one of that name first: then it must be ours, and closed to others.
func socketDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err == nil || !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(owner.Uid) != os.Getuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is there and is not a private directory of yours: remove it, or use PORT_OFFSET=100", dir)
	}
	return nil
}

// moduleRoot finds the repository.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "tools", "install")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not in the repository: run it from there, as go run ./examples/demo")
		}
		dir = parent
	}
}

// relative is a path as a person here would write it.
func (d *demo) relative(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(here, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
