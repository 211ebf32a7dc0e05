package envoy_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
)

// meshes are the renderings that are kept in testdata/istio, where Istio's control plane
// reads them (tools/istio).
func meshes() map[string]envoy.IstioOptions {
	return map[string]envoy.IstioOptions{
		"sidecar":       {Namespace: "agents"},
		"route":         {Namespace: "agents", RouteLevel: true},
		"socket":        {Namespace: "agents"},
		"gateway":       {Namespace: "agents", Gateway: "istio-egressgateway.istio-system"},
		"gateway-route": {Namespace: "agents", Gateway: "istio-egressgateway.istio-system", RouteLevel: true},
	}
}

func TestRenderIstioGolden(t *testing.T) {
	for name, opt := range meshes() {
		t.Run(name, func(t *testing.T) {
			s := parsed(t, filepath.Join("testdata", "istio", "policy.yaml"))
			if name == "socket" {
				s.Server.Listen = "unix:///run/envoy-mcp-auth/grpc.sock"
			}
			got, err := envoy.RenderIstio(s, opt)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("istio", name+".yaml"), got)
			again, err := envoy.RenderIstio(s, opt)
			if err != nil || string(again) != string(got) {
				t.Fatal("two renderings of one policy differ", err)
			}
		})
	}
	mesh, err := envoy.RenderIstioMesh(parsed(t, filepath.Join("testdata", "istio", "policy.yaml")), envoy.IstioOptions{})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("istio", "mesh.yaml"), mesh)
	if !strings.Contains(string(mesh), "extensionProviders") {
		t.Error("want the access log service")
	}
}
