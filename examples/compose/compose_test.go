package compose_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// where the containers run; the native demo runs where demoDir is.
const (
	containerDir = "/demo"
	demoDir      = "../demo"
	fullDir      = "full"
	files        = "${FILES:-" + demoDir + "}" // chosen in .env
	user         = "65532:65532"               // of distroless images
)

type file struct {
	Services map[string]*service `yaml:"services"`
	Volumes  map[string]struct {
		Options map[string]string `yaml:"driver_opts"`
	} `yaml:"volumes"`
}

type service struct {
	Image       string                                `yaml:"image"`
	Profiles    []string                              `yaml:"profiles"`
	Build       struct{ Context, Target string }      `yaml:"build"`
	Command     []string                              `yaml:"command"`
	Entrypoint  any                                   `yaml:"entrypoint"`
	Environment map[string]string                     `yaml:"environment"`
	NetworkMode string                                `yaml:"network_mode"`
	Ports       []string                              `yaml:"ports"`
	Volumes     []string                              `yaml:"volumes"`
	Tmpfs       []string                              `yaml:"tmpfs"`
	WorkingDir  string                                `yaml:"working_dir"`
	User        string                                `yaml:"user"`
	ReadOnly    bool                                  `yaml:"read_only"`
	CapDrop     []string                              `yaml:"cap_drop"`
	SecurityOpt []string                              `yaml:"security_opt"`
	Healthcheck struct{ Test []string }               `yaml:"healthcheck"`
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func compose(t *testing.T) file {
	t.Helper()
	var f file
	if err := yaml.Unmarshal(read(t, "compose.yaml"), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// native is the layout of the native demo, with the secrets of .env.example.
func native(t *testing.T) *parts.Layout {
	t.Helper()
	values := environment(t)
	env := func(name string) (string, bool) { v, ok := values[name]; return v, ok }
	set, err := policy.Parse(parts.PolicyFile, read(t, filepath.Join(demoDir, parts.PolicyFile)), env)
	if err != nil {
		t.Fatal(err)
	}
	l, err := parts.NewLayout(set, parts.LiteLLMPort)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// environment reads .env.example.
func environment(t *testing.T) map[string]string {
	t.Helper()
	values := map[string]string{}
	for line := range strings.Lines(string(read(t, ".env.example"))) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			values[name] = value
		}
	}
	return values
}

func TestServicesAreThePartsOfTheNativeDemo(t *testing.T) {
	t.Parallel()
	f, l := compose(t), native(t)
	all := l.Parts()
	always := 0
	for _, s := range f.Services {
		if len(s.Profiles) == 0 {
			always++
		}
	}
	if always != len(all) {
		t.Errorf("want %d services without a profile, got %d", len(all), always)
	}
	for _, p := range all {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			s := f.Services[p.Name]
			if s == nil {
				t.Fatal("no such service")
			}
			sameCommand(t, p, s)
			sameFiles(t, p, s, l.Socket)
			sameEnvironment(t, p, s)
			hardened(t, s)
			network(t, p.Name, s)
			health(t, l, p, s)
		})
	}
}

// sameCommand allows one difference: a published port does not reach loopback.
func sameCommand(t *testing.T, p parts.Part, s *service) {
	t.Helper()
	want := slices.Clone(p.Args)
	if i := slices.Index(want, "--host"); p.Name == "litellm" && i >= 0 {
		want[i+1] = "0.0.0.0"
	}
	if diff := cmp.Diff(want, s.Command); diff != "" {
		t.Errorf("command (-native +compose):\n%s", diff)
	}
	if s.Entrypoint != nil {
		t.Errorf("want the image's own entrypoint, got %v", s.Entrypoint)
	}
	if s.WorkingDir != containerDir {
		t.Errorf("want to run in %s, got %q", containerDir, s.WorkingDir)
	}
	switch p.Program {
	case "envoy":
		if !strings.HasPrefix(s.Image, "envoyproxy/envoy:v${ENVOY_VERSION:?") {
			t.Errorf("image: %q", s.Image)
		}
	default:
		if s.Build.Target != p.Program || s.Build.Context != "../.." {
			t.Errorf("want the target %s of the Dockerfile, got %+v", p.Program, s.Build)
		}
	}
}

// sameFiles: the very files of the native demo, under the same names, and the
// socket for the two that use it.
func sameFiles(t *testing.T, p parts.Part, s *service, socket string) {
	t.Helper()
	var want []string
	for _, name := range p.Files {
		source := demoDir + "/" + name
		if _, err := os.Stat(source); err != nil {
			t.Error(err)
		}
		want = append(want, files+"/"+name+":"+path.Join(containerDir, name)+":ro")
	}
	if p.Name == "envoy" || p.Name == "envoy-mcp-auth" {
		want = append(want, "socket:"+path.Dir(socket))
	}
	if diff := cmp.Diff(want, s.Volumes); diff != "" {
		t.Errorf("volumes (-native +compose):\n%s", diff)
	}
}

// sameEnvironment: no secret is in the file, and one that is not set stops the start.
func sameEnvironment(t *testing.T, p parts.Part, s *service) {
	t.Helper()
	want := map[string]string{}
	secrets := p.Secrets
	if p.Name == "envoy-mcp-auth" {
		secrets = slices.Concat(secrets, fullSecrets())
	}
	for _, name := range secrets {
		want[name] = "${" + name + ":?copy .env.example to .env}"
	}
	for _, pair := range p.Env {
		name, value, _ := strings.Cut(pair, "=")
		want[name] = value
	}
	got := s.Environment
	if got == nil {
		got = map[string]string{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-native +compose):\n%s", diff)
	}
}

func hardened(t *testing.T, s *service) {
	t.Helper()
	if s.User != user || !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) ||
		!slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
		t.Errorf("want user %s, read only, no capabilities, no new privileges; got %+v", user, s)
	}
}

// network: the addresses of the files hold, and only LiteLLM and Grafana can be
// reached from outside, and only from this machine.
func network(t *testing.T, name string, s *service) {
	t.Helper()
	mode, ports := "service:envoy", []string(nil)
	if name == "envoy" {
		port := strconv.Itoa(parts.LiteLLMPort)
		mode, ports = "", []string{"127.0.0.1:" + port + ":" + port, "127.0.0.1:3000:3000"}
	}
	if s.NetworkMode != mode || !slices.Equal(s.Ports, ports) {
		t.Errorf("want network %q and ports %v, got %q and %v", mode, ports, s.NetworkMode, s.Ports)
	}
}

// health asks what the native demo asks. Envoy's asks for envoy-mcp-auth too.
func health(t *testing.T, l *parts.Layout, p parts.Part, s *service) {
	t.Helper()
	test := strings.Join(s.Healthcheck.Test, " ")
	var want []string
	switch p.Name {
	case "envoy-mcp-auth":
		if test != "" {
			t.Errorf("its image has nothing to run a check with, got %q", test)
		}
		return
	case "envoy":
		_, envoy, _ := strings.Cut(strings.TrimPrefix(l.Envoy, "http://"), ":")
		_, admin, _ := strings.Cut(strings.TrimPrefix(l.Admin, "http://"), ":")
		want = []string{"answers " + envoy + " / 403 && answers " + admin + " /readyz 200"}
	case "litellm":
		want = []string{p.Ready}
	default:
		want = []string{"demo-servers ready " + p.Ready, "--status " + strconv.Itoa(p.ReadyStatus)}
	}
	for _, w := range want {
		if !strings.Contains(test, w) {
			t.Errorf("health check: want %q in %q", w, test)
		}
	}
}

func TestStartOrder(t *testing.T) {
	t.Parallel()
	f := compose(t)
	for name, needs := range map[string][]string{"envoy-mcp-auth": {"auth"}, "litellm": {"envoy", "open", "protected"}} {
		for _, n := range needs {
			if got := f.Services[name].DependsOn[n].Condition; got != "service_healthy" {
				t.Errorf("%s needs %s: want service_healthy, got %q", name, n, got)
			}
			if len(f.Services[n].Healthcheck.Test) == 0 {
				t.Errorf("%s has no health check", n)
			}
		}
	}
	id, _, _ := strings.Cut(user, ":")
	if o := f.Volumes["socket"].Options; o["type"] != "tmpfs" || o["o"] != "uid="+id+",gid="+id+",mode=0700" {
		t.Errorf("want the socket's volume to be the user's alone, got %v", o)
	}
}

func TestVersionsAreThePinnedOnes(t *testing.T) {
	t.Parallel()
	values := environment(t)
	pinned := string(read(t, "../../tools/versions.env"))
	if want := "\nENVOY_VERSION=" + values["ENVOY_VERSION"] + "\n"; !strings.Contains(pinned, want) {
		t.Errorf("want the ENVOY_VERSION of tools/versions.env, got %q", values["ENVOY_VERSION"])
	}
	sum := sha256.Sum256([]byte(values[parts.CallerKey]))
	if values[parts.CallerSum] != hex.EncodeToString(sum[:]) {
		t.Errorf("%s is not the SHA-256 of %s", parts.CallerSum, parts.CallerKey)
	}
	docker := string(read(t, "../../Dockerfile"))
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(string(read(t, "../../go.mod")))
	if want := " golang:" + goVersion[1] + "."; !strings.Contains(docker, want) {
		t.Errorf("Dockerfile: want %q", want)
	}
	for name, s := range compose(t).Services {
		if s.Build.Target != "" && !strings.Contains(docker, " AS "+s.Build.Target+"\n") {
			t.Errorf("%s: the Dockerfile has no target %q", name, s.Build.Target)
		}
	}
}

// TestComposeReadsIt runs compose's own check, of the old or the new compose.
func TestComposeReadsIt(t *testing.T) {
	t.Parallel()
	var argv []string
	if old, err := exec.LookPath("docker-compose"); err == nil {
		argv = []string{old}
	} else if out, err := exec.CommandContext(t.Context(), "docker", "compose", "version").Output(); err == nil && bytes.Contains(out, []byte("Compose")) {
		argv = []string{"docker", "compose"}
	} else {
		t.Skip("no docker-compose and no docker compose on this machine (Debian: apt install docker-compose)")
	}
	run := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), argv[0], slices.Concat(argv[1:], args)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
		return cmd.CombinedOutput()
	}
	out, err := run("--env-file", ".env.example", "--profile", "full", "--profile", "observe", "config")
	if err != nil {
		t.Fatalf("config: %v\n%s", err, out)
	}
	for name := range compose(t).Services {
		if !bytes.Contains(out, []byte("\n  "+name+":\n")) {
			t.Errorf("want service %s in\n%s", name, out)
		}
	}
	if _, err := os.Stat(".env"); err == nil {
		return // it would be read
	}
	if out, err := run("config", "-q"); err == nil || !bytes.Contains(out, []byte("copy .env.example to .env")) {
		t.Errorf("without .env: want an error that says what to do, got %v\n%s", err, out)
	}
}
