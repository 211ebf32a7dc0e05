package kubernetes

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	errNoHelm        = errors.New("no helm found: set $HELM to the program, or run tools/build helm")
	errNoKubeconform = errors.New("no kubeconform found: set $KUBECONFORM to the program, or run tools/build kubeconform")
)

func helm(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	program := cached.Require(t, "helm", cached.Part{Env: "HELM", Dir: "helm", Program: "helm", Missing: errNoHelm}.Find, errNoHelm)
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = errors.New(said.String())
	}
	return out, err
}

// render is helm template for these settings.
func render(t *testing.T, settings ...string) ([]byte, error) {
	t.Helper()
	args := []string{"template", "mcp", "chart", "--namespace", "agents", "--kube-version", "1.35.0", "-f", "values-example.yaml"}
	for _, s := range settings {
		if strings.HasSuffix(s, ".yaml") {
			args = append(args, "-f", s)
		} else {
			args = append(args, "--set", s)
		}
	}
	return helm(t, args...)
}

// charts are the forms of the chart that are kept.
func charts() map[string][]string {
	return map[string][]string{
		"deployment": {"hpa.enabled=true", "serviceMonitor.enabled=true", "xds=true"},
		"daemonset":  {"mode=daemonset", "values-csi.yaml"},
	}
}

func TestChart(t *testing.T) {
	for name, settings := range charts() {
		t.Run(name, func(t *testing.T) {
			got, err := render(t, settings...)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("run go test ./examples/kubernetes -update and read the diff, -want +got:\n%s", diff)
			}
			good(t, got)
		})
	}
}

// TestChartRefuses: what cannot work is said when it is rendered.
func TestChartRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ setting, want string }{
		"a mode that is none":       {"mode=sidecar", "want deployment or daemonset"},
		"a block server of its own": {"policy.server.deadline=1s", "want it left out"},
		"no upstreams":              {"policy.upstreams=null", "want a policy with upstreams"},
	} {
		if _, err := render(t, tc.setting); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: want %q, got %v", name, tc.want, err)
		}
	}
}

func TestHelmLint(t *testing.T) {
	if out, err := helm(t, "lint", "chart", "--strict", "-f", "values-example.yaml"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSidecar(t *testing.T) {
	b, err := os.ReadFile("sidecar.yaml")
	if err != nil {
		t.Fatal(err)
	}
	good(t, b)
}

// TestRulesAreThoseOfPrometheus: a chart can only hold copies.
func TestRulesAreThoseOfPrometheus(t *testing.T) {
	for _, name := range []string{"rules.yaml", "alerts.yaml"} {
		want, err := os.ReadFile(filepath.Join("..", "prometheus", name))
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(filepath.Join("chart", "files", name), want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(filepath.Join("chart", "files", name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs from ../prometheus (%v): run go test ./examples/kubernetes -update", name, err)
		}
	}
	got, err := render(t, "prometheusRule.enabled=true")
	if err != nil || strings.Count(string(got), "alert: ") < 5 {
		t.Errorf("want the alerts in a PrometheusRule, got %v", err)
	}
}

// TestReleasesAreDistinct: of releases with the longest names that Helm takes, in one
// namespace, none has the objects of another.
func TestReleasesAreDistinct(t *testing.T) {
	seen := map[string]string{}
	for _, release := range []string{strings.Repeat("x", 51), strings.Repeat("x", 51) + "-a", strings.Repeat("x", 51) + "-b"} {
		b, err := helm(t, "template", release, "chart", "--namespace", "agents", "--kube-version", "1.35.0", "-f", "values-example.yaml")
		if err != nil {
			t.Fatal(err)
		}
		for dec := yaml.NewDecoder(bytes.NewReader(b)); ; {
			var o object
			if err := dec.Decode(&o); err != nil {
				break
			}
			if other := seen[o.String()]; other != "" {
				t.Errorf("%s is in %s and in %s", o, other, release)
			}
			seen[o.String()] = release
		}
	}
	if len(seen) == 0 {
		t.Error("want objects")
	}
}

// object is what is read of one.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Data     map[string]string
	Spec     struct{ Template struct{ Spec pod } }
}

func (o object) String() string { return o.Kind + " " + o.Metadata.Namespace + "/" + o.Metadata.Name }

// good holds manifests against the schemas of Kubernetes, the policy in them against
// our own, and every container against the rules of a restricted namespace. No object is
// there twice, of which the last that is applied would win.
func good(t *testing.T, manifests []byte) {
	t.Helper()
	conform(t, manifests)
	policies, containers, seen := 0, 0, map[string]bool{}
	for dec := yaml.NewDecoder(bytes.NewReader(manifests)); ; {
		var o object
		if err := dec.Decode(&o); err != nil {
			break
		}
		if seen[o.String()] {
			t.Errorf("%s is there twice", o)
		}
		seen[o.String()] = true
		if text := o.Data["policy.yaml"]; text != "" {
			policies++
			if _, err := policy.Parse("policy.yaml", []byte(text), func(string) (string, bool) { return strings.Repeat("5e", 32), true }); err != nil {
				t.Errorf("the policy: %v", err)
			}
		}
		containers += o.Spec.Template.Spec.restricted(t)
	}
	if policies == 0 || containers == 0 {
		t.Errorf("want a policy and a container, got %d and %d", policies, containers)
	}
}

// pod is the part of a PodSpec that a restricted namespace looks at.
type pod struct {
	SecurityContext struct {
		RunAsNonRoot   bool                  `yaml:"runAsNonRoot"`
		SeccompProfile struct{ Type string } `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	Containers     []container
	InitContainers []container `yaml:"initContainers"`
}

type container struct {
	Name            string
	Resources       map[string]map[string]string
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
}

// restricted returns how many containers the pod has.
func (p pod) restricted(t *testing.T) int {
	t.Helper()
	all := append(append([]container(nil), p.Containers...), p.InitContainers...)
	if len(all) > 0 && (!p.SecurityContext.RunAsNonRoot || p.SecurityContext.SeccompProfile.Type != "RuntimeDefault") {
		t.Error("a pod may run as root, or without seccomp")
	}
	for _, c := range all {
		s := c.SecurityContext
		if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || strings.Join(s.Capabilities.Drop, "") != "ALL" {
			t.Errorf("container %s is not restricted", c.Name)
		}
		if c.Resources["requests"]["memory"] == "" {
			t.Errorf("container %s asks for no memory", c.Name)
		}
	}
	return len(all)
}

// conform runs kubeconform. What is not of Kubernetes itself has no schema here.
func conform(t *testing.T, manifests []byte) {
	t.Helper()
	program := cached.Require(t, "kubeconform", cached.Part{Env: "KUBECONFORM", Dir: "kubeconform", Program: "kubeconform", Missing: errNoKubeconform}.Find, errNoKubeconform)
	schemas := filepath.Join(filepath.Dir(filepath.Dir(program)), "schemas", "{{.ResourceKind}}{{.KindSuffix}}.json")
	cmd := exec.CommandContext(t.Context(), program, "-strict", "-skip", "ServiceMonitor,PrometheusRule", "-schema-location", schemas, "-")
	cmd.Stdin = bytes.NewReader(manifests)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("kubeconform: %v\n%s", err, out)
	}
}
