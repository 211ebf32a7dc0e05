package istio_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "render the resources anew")

func env(name string) (string, bool) {
	return strings.Repeat("5e", 32), name == "MCP_AUTH_KEY_SHA256" || name == "MCP_OAUTH2_CLIENT_SECRET" || name == "TICKETS_CLIENT_SECRET"
}

// TestRendered keeps the resources in step with the renderer.
func TestRendered(t *testing.T) {
	b, err := os.ReadFile("policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Parse("policy.yaml", b, env)
	if err != nil {
		t.Fatal(err)
	}
	if len(set.Warnings) > 0 {
		t.Errorf("want no warnings, got %v", set.Warnings)
	}
	// As the command in README.md says.
	opt := envoy.IstioOptions{Namespace: "agents", Principals: []string{"cluster.local/ns/agents/sa/litellm"}}
	resources, err := envoy.RenderIstio(set, opt)
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := envoy.RenderIstioMesh(set, opt)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"istio.yaml": resources, "mesh.yaml": mesh} {
		if *update {
			if err := os.WriteFile(name, got, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s differs (-want +got); run go generate ./examples/istio:\n%s", name, diff)
		}
	}
}
