package litellm_test

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the rendered block anew")

func env(name string) (string, bool) {
	if name == "MCP_AUTH_KEY_SHA256" {
		return strings.Repeat("5e", 32), true
	}
	return "made-up", strings.HasSuffix(name, "_SECRET")
}

// TestConfig: the mcp_servers block, which ends the file, is what the policy renders to.
func TestConfig(t *testing.T) {
	text, err := os.ReadFile("policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Parse("policy.yaml", text, env)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range set.Warnings {
		t.Errorf("warning: %s", w)
	}
	block, err := envoy.RenderLiteLLM(set)
	if err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile("config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(block), "\n")
	own, _, _ := bytes.Cut(config, []byte(first))
	want := string(own) + string(block)
	if *update {
		if err := os.WriteFile("config.yaml", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, string(config)); diff != "" {
		t.Errorf("config.yaml; run go generate ./examples/litellm (-want +got):\n%s", diff)
	}
	var parsed struct {
		Servers map[string]map[string]any `yaml:"mcp_servers"`
		General map[string]string         `yaml:"general_settings"`
	}
	if err := yaml.Unmarshal(config, &parsed); err != nil {
		t.Fatal(err)
	}
	if len(parsed.Servers) != 3 || parsed.General["master_key"] != "os.environ/LITELLM_MASTER_KEY" {
		t.Errorf("want 3 servers and a master key from the environment, got %+v", parsed)
	}
	for name, s := range parsed.Servers {
		if _, ok := s["auth_type"]; ok {
			t.Errorf("%s has an auth_type: LiteLLM would put a credential of its own on", name)
		}
	}
}
