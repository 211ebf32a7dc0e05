package istio

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admin "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	meshconfig "istio.io/api/mesh/v1alpha1"
	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config/mesh"
	"istio.io/istio/pkg/config/schema/collections"
)

var update = flag.Bool("update", false, "write what the control plane makes of the resources")

// root is the directory of the program's module.
const root = "../.."

// rendered is where most of the resources are. What the control plane makes of NAME.yaml
// is kept beside it, as NAME.xds.yaml.
const rendered = "envoy/testdata/istio/"

// What a cluster has that the resources name.
const (
	// program is the Service of this program.
	program = `
apiVersion: v1
kind: Service
metadata: {name: envoy-mcp-auth, namespace: envoy-mcp-auth}
spec:
  clusterIP: 10.96.0.10
  selector: {app: envoy-mcp-auth}
  ports: [{name: grpc, port: 9440, targetPort: 9440}]
---`
	egress = `
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
spec:
  clusterIP: 10.96.0.11
  selector: {istio: egressgateway}
  ports: [{name: https, port: 443, targetPort: 8443}]
---`
	// tickets is an upstream inside the mesh.
	tickets = `
apiVersion: v1
kind: Service
metadata: {name: tickets, namespace: tools}
spec:
  clusterIP: 10.96.0.12
  selector: {app: tickets}
  ports: [{name: http-mcp, port: 8080, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: tickets-1, namespace: tools, labels: {app: tickets, security.istio.io/tlsMode: istio}}
spec: {serviceAccountName: tickets, nodeName: node, containers: [{name: tickets, ports: [{containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.12, podIPs: [{ip: 10.0.0.12}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: tickets-1, namespace: tools, labels: {kubernetes.io/service-name: tickets}}
addressType: IPv4
ports: [{name: http-mcp, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.12], conditions: {ready: true}, targetRef: {kind: Pod, name: tickets-1, namespace: tools}}]
`
)

// asker is a proxy that asks about upstreams.
type asker struct {
	proxy      *model.Proxy
	kubernetes string
	upstreams  []string
}

// proxies are those that ask, by the resources that are for them.
func proxies() map[string]asker {
	agent := func(kubernetes string, upstreams ...string) asker {
		return asker{proxy(model.SidecarProxy, "litellm.agents", "agents", map[string]string{"app": "litellm"}), kubernetes, upstreams}
	}
	gateway := asker{
		proxy(model.Router, "egress.istio-system", "istio-system", map[string]string{"istio": "egressgateway"}), program + egress, three(),
	}
	return map[string]asker{
		rendered + "sidecar":       agent(program, three()...),
		rendered + "route":         agent(program, three()...),
		rendered + "socket":        agent("", three()...),
		rendered + "gateway":       gateway,
		rendered + "gateway-route": gateway,
		"examples/istio/istio":     agent(program+tickets, "protected_server", "tickets"),
	}
}

func three() []string { return []string{"alpha", "beta", "gamma"} }

func proxy(kind model.NodeType, id, namespace string, labels map[string]string) *model.Proxy {
	return &model.Proxy{
		Type: kind, ID: id, ConfigNamespace: namespace, Labels: labels,
		Metadata: &model.NodeMetadata{Namespace: namespace, Labels: labels, IstioVersion: "1.31.0"},
	}
}

// TestControlPlane: Istio finds no fault with the resources, and what it makes of them is
// what is kept beside them, which the tests of the program run in Envoy.
func TestControlPlane(t *testing.T) {
	for name, a := range proxies() {
		t.Run(name, func(t *testing.T) {
			resources := read(t, name+".yaml")
			valid(t, resources)
			s := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
				ConfigString: resources, KubernetesObjectString: a.kubernetes, MeshConfig: meshConfig(t),
			})
			p := s.SetupProxy(a.proxy)
			got := dump(t, s.Clusters(p), s.Listeners(p), s.Routes(p))
			path := filepath.Join(root, name+".xds.yaml")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := read(t, name+".xds.yaml"); want != string(got) {
				t.Errorf("the control plane makes something else of %s.yaml than %s says; run make e2e-istio WRITE=1 and read the diff", name, path)
			}
		})
	}
}

// TestNoPatchMisses: every patch of ours changed something: one that matches nothing
// leaves calls undecided.
func TestNoPatchMisses(t *testing.T) {
	for name, a := range proxies() {
		t.Run(name, func(t *testing.T) {
			got := read(t, name+".xds.yaml")
			for _, upstream := range a.upstreams {
				if n := strings.Count(got, "value: "+upstream+"\n"); n != 1 {
					t.Errorf("want one filter that asks about %s, got %d", upstream, n)
				}
			}
			if n := strings.Count(got, "x-mcp-auth-guard"); n == 0 {
				t.Error("nothing demands the mark")
			}
		})
	}
}

// TestOnlyTheNamedMayAsk: the proxy of this program takes mutual TLS from the service
// accounts that the resources name, and leads to loopback.
func TestOnlyTheNamedMayAsk(t *testing.T) {
	s := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		ConfigString: read(t, rendered+"sidecar.yaml"), KubernetesObjectString: program, MeshConfig: meshConfig(t),
	})
	p := s.SetupProxy(proxy(model.SidecarProxy, "a.envoy-mcp-auth", "envoy-mcp-auth", map[string]string{"app": "envoy-mcp-auth"}))
	text := string(yamlOf(t, &admin.ListenersConfigDump{StaticListeners: statics(t, s.Listeners(p))}))
	for _, want := range []string{"requireClientCertificate: true", "spiffe://cluster.local/ns/agents/sa/", "/envoy.service.ext_proc.v3.ExternalProcessor/"} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in the listeners of the program's proxy", want)
		}
	}
	at := ""
	for _, c := range s.Clusters(p) {
		if strings.HasPrefix(c.GetName(), "inbound|9440|") {
			at = c.String()
		}
	}
	if !strings.Contains(at, "127.0.0.1") {
		t.Errorf("want the inbound cluster to lead to loopback, got %s", at)
	}
}

// TestCallersGoToTheGateway: the sidecars of callers lead to the egress gateway, by mutual
// TLS that names the upstream, and to nothing else.
func TestCallersGoToTheGateway(t *testing.T) {
	s := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		ConfigString: read(t, rendered+"gateway.yaml"), KubernetesObjectString: program + egress, MeshConfig: meshConfig(t),
	})
	p := s.SetupProxy(proxy(model.SidecarProxy, "litellm.agents", "agents", map[string]string{"app": "litellm"}))
	clusters := map[string]string{}
	for _, c := range s.Clusters(p) {
		clusters[c.GetName()] = string(yamlOf(t, c))
	}
	routes := map[string][]*route.Route{}
	for _, rc := range s.Routes(p) {
		for _, host := range rc.GetVirtualHosts() {
			routes[host.GetName()] = append(routes[host.GetName()], host.GetRoutes()...)
		}
	}
	for _, up := range three() {
		name := "outbound|443|mcp-" + up + "|istio-egressgateway.istio-system.svc.cluster.local"
		if text := clusters[name]; !strings.Contains(text, "sni: "+up+".tools.test") || !strings.Contains(text, "tlsCertificateSdsSecretConfigs") {
			t.Errorf("want mutual TLS for %s on the way to the gateway, got:\n%s", up, text)
		}
		all := routes[up+".tools.test:80"]
		if len(all) != 1 || all[0].GetRoute().GetCluster() != name {
			t.Errorf("want one route of %s, to the gateway, got %v", up, all)
		}
	}
}

func statics(t *testing.T, all []*listener.Listener) []*admin.ListenersConfigDump_StaticListener {
	t.Helper()
	var out []*admin.ListenersConfigDump_StaticListener
	for _, l := range all {
		out = append(out, &admin.ListenersConfigDump_StaticListener{Listener: anyOf(t, l)})
	}
	return out
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatalf("%v; make e2e-istio WRITE=1 writes what is made here", err)
	}
	return string(b)
}

// valid has each resource checked as the control plane's webhook does.
func valid(t *testing.T, resources string) {
	t.Helper()
	all, unknown, err := crd.ParseInputs(resources)
	if err != nil || len(unknown) != 0 {
		t.Fatalf("want resources of Istio alone, got others %v, error %v", unknown, err)
	}
	for _, c := range all {
		schema, ok := collections.Pilot.FindByGroupVersionAliasesKind(c.GroupVersionKind)
		if !ok {
			t.Fatalf("no schema of %v", c.GroupVersionKind)
		}
		warning, err := schema.ValidateConfig(c)
		if err != nil {
			t.Errorf("%s %s: %v", c.GroupVersionKind.Kind, c.Name, err)
		}
		if warning != nil {
			t.Logf("%s %s: warning: %v", c.GroupVersionKind.Kind, c.Name, warning)
		}
	}
}

func meshConfig(t *testing.T) *meshconfig.MeshConfig {
	t.Helper()
	var values struct {
		MeshConfig map[string]any `json:"meshConfig"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, rendered+"mesh.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	own, err := yaml.Marshal(values.MeshConfig)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.ApplyMeshConfigDefaults(string(own))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// dump is what the proxy's admin interface would answer to /config_dump, as far as it is
// about other hosts.
func dump(t *testing.T, clusters []*cluster.Cluster, listeners []*listener.Listener, routes []*route.RouteConfiguration) []byte {
	t.Helper()
	slices.SortFunc(clusters, func(a, b *cluster.Cluster) int { return strings.Compare(a.GetName(), b.GetName()) })
	cd, ld, rd := &admin.ClustersConfigDump{}, &admin.ListenersConfigDump{}, &admin.RoutesConfigDump{}
	for _, c := range clusters {
		if strings.HasPrefix(c.GetName(), "outbound|") || c.GetName() == "envoy_mcp_auth" {
			cd.DynamicActiveClusters = append(cd.DynamicActiveClusters, &admin.ClustersConfigDump_DynamicCluster{Cluster: anyOf(t, c)})
		}
	}
	for _, l := range listeners {
		if strings.HasPrefix(l.GetName(), "0.0.0.0_80") || strings.HasSuffix(l.GetName(), "_8080") || strings.HasPrefix(l.GetName(), "0.0.0.0_8443") {
			ld.DynamicListeners = append(ld.DynamicListeners, &admin.ListenersConfigDump_DynamicListener{
				Name: l.GetName(), ActiveState: &admin.ListenersConfigDump_DynamicListenerState{Listener: anyOf(t, l)},
			})
		}
	}
	for _, r := range routes {
		if slices.Contains([]string{"80", "8080", "tickets.tools.svc.cluster.local:8080"}, r.GetName()) || strings.HasPrefix(r.GetName(), "https.443.") {
			rd.DynamicRouteConfigs = append(rd.DynamicRouteConfigs, &admin.RoutesConfigDump_DynamicRouteConfig{RouteConfig: anyOf(t, r)})
		}
	}
	return yamlOf(t, &admin.ConfigDump{Configs: []*anypb.Any{anyOf(t, cd), anyOf(t, ld), anyOf(t, rd)}})
}

func anyOf(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		t.Fatal(err)
	}
	return a
}

func yamlOf(t *testing.T, m proto.Message) []byte {
	t.Helper()
	j, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	b, err := yaml.JSONToYAML(j)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
