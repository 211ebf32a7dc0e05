package envoy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
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
			objects(t, got)
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

// meshed are the configurations that Istio's control plane made, with their policies.
func meshed() map[string]string {
	all := map[string]string{filepath.Join("..", "examples", "istio", "istio.xds.yaml"): filepath.Join("..", "examples", "istio", "policy.yaml")}
	for name := range meshes() {
		all[filepath.Join("testdata", "istio", name+".xds.yaml")] = filepath.Join("testdata", "istio", "policy.yaml")
	}
	return all
}

// hex is a value for every variable, a checksum's included.
func hex(string) (string, bool) { return strings.Repeat("5e", 32), true }

func findings(t *testing.T, path, policyPath string, change func(string) string) []envoy.Finding {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(policyPath)
	if err != nil {
		t.Fatal(err)
	}
	s, err := policy.Parse(policyPath, text, hex)
	if err != nil {
		t.Fatal(err)
	}
	changed := string(b)
	if change != nil {
		if changed = change(changed); changed == string(b) {
			t.Fatal("the edit changes nothing")
		}
	}
	found, err := envoy.Check(path, []byte(changed), s)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestCheckIstio: nothing is unsafe in what Istio's control plane made of the resources.
func TestCheckIstio(t *testing.T) {
	for path, policyPath := range meshed() {
		for _, f := range findings(t, path, policyPath, nil) {
			t.Error(f)
		}
	}
}

// TestCheckIstioBroken: what goes wrong in a mesh is named.
func TestCheckIstioBroken(t *testing.T) {
	swap := func(old, with string) func(string) string {
		return func(s string) string { return strings.ReplaceAll(s, old, with) }
	}
	for _, c := range []struct {
		what, proxy, want string
		change            func(string) string
	}{
		{"a DestinationRule that the proxy does not see", "sidecar", "upstream-plaintext", swap("tls.v3.UpstreamTlsContext", "raw_buffer.v3.RawBuffer")},
		{"Istio's own retries", "sidecar", "retry-replays", swap("retryOn: retriable-status-codes", "retryOn: connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes")},
		{"another MERGE into HttpProtocolOptions", "sidecar", "no-filter", swap("httpFilters:\n          - name: envoy.filters.http.header_mutation", "http_filters_of_others:\n          - name: envoy.filters.http.header_mutation")},
		{"one upstream's chain in another's cluster", "sidecar", "other-upstream", swap("value: alpha", "value: beta")},
		{"anybody may be the program", "sidecar", "processor-unverified", swap("exact: spiffe://cluster.local/ns/envoy-mcp-auth/sa/envoy-mcp-auth", "safeRegex: {regex: .*}")},
		{"a Telemetry of somebody else's", "sidecar", "no-outcome-log", swap("outbound|9440||envoy-mcp-auth.envoy-mcp-auth.svc.cluster.local\n                    logName", "outbound|9000||logs\n                    logName")},
		{"paths as the mesh has them", "gateway", "slashes-not-merged", swap("mergeSlashes: true", "mergeSlashes: false")},
		{"a caller's certificate header", "gateway", "caller-certificate-header", swap("forwardClientCertDetails: SANITIZE_SET", "forwardClientCertDetails: ALWAYS_FORWARD_ONLY")},
		{"attempts not counted", "route", "no-attempt-count", swap("includeRequestAttemptCount: true", "includeRequestAttemptCount: false")},
		{"no route switches the filter on", "route", "ext-proc-disabled", swap("            envoy.filters.http.ext_proc/", "            envoy.filters.http.other/")},
		{"one route does not", "route", "no-filter", swap("            envoy.filters.http.ext_proc/alpha:", "            envoy.filters.http.other/alpha:")},
		{"a route switches on another's", "route", "other-upstream", swap("            envoy.filters.http.ext_proc/alpha:", "            envoy.filters.http.ext_proc/beta:")},
		{"a route without the guard", "route", "no-guard", swap("            envoy.filters.http.lua/alpha:", "            envoy.filters.http.other/alpha:")},
		{"a route with a guard of its own", "route", "guard-disabled", swap("                  if mark ~= \"alpha\" then", "                  if false then")},
	} {
		t.Run(c.what, func(t *testing.T) {
			found := findings(t, filepath.Join("testdata", "istio", c.proxy+".xds.yaml"), filepath.Join("testdata", "istio", "policy.yaml"), c.change)
			ids := map[string]bool{}
			for _, f := range found {
				ids[f.ID] = true
			}
			if !ids[c.want] {
				t.Errorf("want %s, got %v", c.want, ids)
			}
		})
	}
}

// TestRenderIstioFaults: what cannot be kept in a mesh is refused, with what to write.
func TestRenderIstioFaults(t *testing.T) {
	named := func(u *policy.Upstream) { u.Cluster = "outbound|80||" + u.Name + ".tools.test" }
	for _, c := range []struct {
		what, want string
		change     func(*policy.Set)
		opt        envoy.IstioOptions
	}{
		{"no cluster of Istio's", `write envoy: {cluster: "outbound|80||one.tools.test"}`, func(s *policy.Set) { s.Upstreams[0].Cluster = "one" }, envoy.IstioOptions{}},
		{"port 0", "want a port from 1 to 65535", func(s *policy.Set) { s.Upstreams[0].Cluster = "outbound|0||one.tools.test" }, envoy.IstioOptions{}},
		{"one host twice", "give one of them a host of its own", func(s *policy.Set) { s.Upstreams[1].Cluster = "outbound|81||one.tools.test" }, envoy.IstioOptions{}},
		{"TLS of our own", "take server.tls out", func(s *policy.Set) { s.Server.TLS = &policy.TLSSpec{} }, envoy.IstioOptions{}},
		{"a listener", "take it out: paths pass unchanged here", func(s *policy.Set) { s.Upstreams[0].Listen = "127.0.0.1:1" }, envoy.IstioOptions{}},
		{"certificates at a sidecar", "use --gateway", func(s *policy.Set) { withMTLS(s.Upstreams[0]) }, envoy.IstioOptions{}},
		{"the mcp filter", "write proof: body", func(s *policy.Set) { withTools(policy.ProofMCPFilter, 1<<20)(s.Upstreams[0]) }, envoy.IstioOptions{}},
		{"a service without namespace", "want NAME.NAMESPACE", nil, envoy.IstioOptions{Service: "auth"}},
		{"a selector without value", "want KEY=VALUE", nil, envoy.IstioOptions{Selector: "litellm"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := set(upstream("one", "https://one.tools.test/mcp", named), upstream("two", "https://two.tools.test/mcp", named))
			s.Server.Listen = "127.0.0.1:9440"
			if c.change != nil {
				c.change(s)
			}
			_, err := envoy.RenderIstio(s, c.opt)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want an error with %q, got %v", c.want, err)
			}
		})
	}
	s := set(upstream("one", "https://one.tools.test/mcp", named))
	s.Server.Listen = "unix:///run/a.sock"
	if _, err := envoy.RenderIstioMesh(s, envoy.IstioOptions{}); err == nil {
		t.Error("want no provider that is a Unix socket")
	}
	s.Server.Listen = "127.0.0.1:9440"
	withMTLS(s.Upstreams[0])
	if _, err := envoy.RenderIstio(s, envoy.IstioOptions{Gateway: "egress.istio-system"}); err != nil {
		t.Errorf("callers by certificate at a gateway: %v", err)
	}
}
