package examples_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// env has a value for every variable, so that only the files are on trial.
func env(name string) (string, bool) {
	if strings.HasSuffix(name, "_SHA256") {
		return strings.Repeat("5e", 32), true
	}
	return strings.Repeat("made-up-", 5), true
}

// kinds of files, by a key that only they have.
func kinds() map[string]func(t *testing.T, path string, b []byte) {
	return map[string]func(t *testing.T, path string, b []byte){
		"upstreams":        goodPolicy,
		"static_resources": goodEnvoy,
		"mcp_servers":      goodLiteLLM,
		"services":         func(*testing.T, string, []byte) {}, // compose has tests of its own
		"groups":           func(*testing.T, string, []byte) {}, // and prometheus
		"rule_files":       func(*testing.T, string, []byte) {},
		"descriptors":      func(*testing.T, string, []byte) {}, // compose again, for the rate limit service
		"apiVersion":       func(*testing.T, string, []byte) {}, // and grafana's provisioning
	}
}

// TestEveryExampleIsUnderTest finds every YAML file here: one that no test knows
// is a fault too.
func TestEveryExampleIsUnderTest(t *testing.T) {
	t.Parallel()
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		// The first two have tests of their own, for manifests and a chart's templates.
		if path == "kubernetes" || path == "istio" || filepath.Base(path) == "testdata" {
			return fs.SkipDir
		}
		if err != nil || d.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		seen++
		t.Run(path, func(t *testing.T) { one(t, path) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 10 {
		t.Errorf("want the files of demo, compose, litellm, providers and envoy, found %d", seen)
	}
}

func one(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]any
	if err := yaml.Unmarshal(b, &top); err != nil {
		t.Fatal(err)
	}
	for key, test := range kinds() {
		if _, ok := top[key]; ok {
			test(t, path, b)
			return
		}
	}
	t.Error("no test knows what this is: teach kinds() of examples_test.go")
}

func parse(t *testing.T, path string, b []byte) *policy.Set {
	t.Helper()
	set, err := policy.Parse(path, b, env)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// goodPolicy: no fault, no warning, and what it renders to passes its own check.
func goodPolicy(t *testing.T, path string, b []byte) {
	t.Helper()
	set := parse(t, path, b)
	for _, w := range set.Warnings {
		t.Errorf("warning: %s", w)
	}
	rendered, err := envoy.Render(set, envoy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	noFindings(t, path, rendered, set)
	if _, err := envoy.RenderLiteLLM(set); err != nil {
		t.Error(err)
	}
}

// goodEnvoy holds a configuration to the policy beside it, and to the real Envoy.
func goodEnvoy(t *testing.T, path string, b []byte) {
	t.Helper()
	if filepath.Base(path) != "before.yaml" {
		name := filepath.Join(filepath.Dir(path), "policy.yaml")
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		noFindings(t, path, b, parse(t, name, text))
	}
	if err := realenvoy.Validate(t.Context(), realenvoy.Require(t), path); err != nil {
		t.Error(err)
	}
}

func noFindings(t *testing.T, path string, b []byte, set *policy.Set) {
	t.Helper()
	found, err := envoy.Check(path, b, set)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("finding: %s", f)
	}
}

// goodLiteLLM: LiteLLM holds no credential, and no key is in the file.
func goodLiteLLM(t *testing.T, _ string, b []byte) {
	t.Helper()
	var config struct {
		Servers map[string]struct {
			AuthType      string            `yaml:"auth_type"`
			ExtraHeaders  []string          `yaml:"extra_headers"`
			StaticHeaders map[string]string `yaml:"static_headers"`
		} `yaml:"mcp_servers"`
		Models []struct {
			Params struct {
				Base         string            `yaml:"api_base"`
				Key          string            `yaml:"api_key"`
				ExtraHeaders map[string]string `yaml:"extra_headers"`
			} `yaml:"litellm_params"`
		} `yaml:"model_list"`
		General struct {
			MasterKey string `yaml:"master_key"`
			Passed    []struct {
				Path    string            `yaml:"path"`
				Auth    bool              `yaml:"auth"`
				Headers map[string]string `yaml:"headers"`
			} `yaml:"pass_through_endpoints"`
		} `yaml:"general_settings"`
	}
	if err := yaml.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	const fromEnv = "os.environ/"
	if !strings.HasPrefix(config.General.MasterKey, fromEnv) {
		t.Errorf("want the master key from the environment")
	}
	for name, s := range config.Servers {
		if s.AuthType != "" || len(s.ExtraHeaders) > 1 || len(s.ExtraHeaders) == 1 && s.ExtraHeaders[0] != "Cookie" {
			t.Errorf("%s: want no auth_type and no extra header but Cookie, got %+v", name, s)
		}
		for header, value := range s.StaticHeaders {
			if !strings.HasPrefix(value, fromEnv) {
				t.Errorf("%s: want %s from the environment", name, header)
			}
		}
	}
	for _, m := range config.Models {
		if p := m.Params; p.Key != "none" || p.ExtraHeaders["x-mcp-auth-key"] != fromEnv+"MCP_AUTH_KEY_LITELLM" || !strings.HasPrefix(p.Base, "http://127.0.0.1:10000/") {
			t.Errorf("want no key but the one for Envoy, and the way through it, got %+v", p)
		}
	}
	for _, p := range config.General.Passed {
		if !p.Auth || p.Headers["x-mcp-auth-key"] != fromEnv+"MCP_AUTH_KEY_LITELLM" {
			t.Errorf("%s: want auth, and the key for Envoy", p.Path)
		}
	}
}
