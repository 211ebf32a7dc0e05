package envoy_test

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// objects reads what was rendered: KIND NAMESPACE/NAME to the spec. Of two objects by
// one name, Kubernetes would keep the last that is applied.
func objects(t interface {
	Helper()
	Fatal(args ...any)
	Errorf(format string, args ...any)
}, b []byte,
) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	dec := yaml.NewDecoder(strings.NewReader(string(b)))
	for {
		var o struct {
			Kind     string         `yaml:"kind"`
			Metadata map[string]any `yaml:"metadata"`
			Spec     map[string]any `yaml:"spec"`
		}
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if o.Kind == "" { // the comments at the top
			continue
		}
		name := fmt.Sprintf("%s %v/%v", o.Kind, o.Metadata["namespace"], o.Metadata["name"])
		if all[name] != nil {
			t.Errorf("%s is there twice", name)
		}
		all[name] = o.Spec
	}
}

// inMesh is a policy whose upstreams have these names, and one host each.
func inMesh(names ...string) *policy.Set {
	var ups []*policy.Upstream
	for i, name := range names {
		// With TLS, without, and in the mesh: each has other resources.
		scheme := []string{"https", "http", "http"}[i%3]
		host := fmt.Sprintf([]string{"h%d.test", "h%d.test", "h%d.tools.svc.cluster.local"}[i%3], i)
		u := upstream(name, scheme+"://"+host+"/mcp")
		u.Cluster = "outbound|80||" + host
		ups = append(ups, u)
	}
	s := set(ups...)
	s.Server.Listen = "127.0.0.1:9440"
	return s
}

// TestIstioNamesThatCollide: the last one applied would win, and the host of the other
// lose its TLS without a word.
func TestIstioNamesThatCollide(t *testing.T) {
	gateway := envoy.IstioOptions{Namespace: "agents", Gateway: "egress.istio-system"}
	served := func(opt envoy.IstioOptions, service string) envoy.IstioOptions {
		opt.Service = service
		return opt
	}
	for _, c := range []struct {
		names []string
		opt   envoy.IstioOptions
		want  []string // nothing: it is rendered
	}{
		{[]string{"a_b", "a-b"}, envoy.IstioOptions{}, []string{`"a_b" and "a-b"`, `"mcp-a-b"`, "rename one"}},
		{[]string{"a.b", "c", "a-b"}, envoy.IstioOptions{}, []string{`"a.b" and "a-b"`, "rename one"}},
		{[]string{"a", "a-"}, envoy.IstioOptions{}, []string{`"a" and "a-"`, "rename one"}},
		{[]string{"a._", "a"}, gateway, []string{`"a._" and "a"`, "rename one"}},
		{[]string{"egress"}, gateway, []string{`"egress"`, `"mcp-egress"`, "--gateway", "rename the upstream"}},
		{[]string{"one", "egress_"}, gateway, []string{`"egress_"`, "--gateway", "rename the upstream"}},
		{[]string{"egress"}, envoy.IstioOptions{}, nil},
		{[]string{"a"}, served(envoy.IstioOptions{Namespace: "agents"}, "mcp-a.agents"), []string{`"a"`, "--service", "mcp-a.agents", "rename the upstream"}},
		{[]string{"a"}, served(envoy.IstioOptions{Namespace: "agents"}, "mcp-a.security"), nil},
		{[]string{"a"}, served(gateway, "mcp-egress.istio-system"), []string{"--service", "mcp-egress.istio-system", "--gateway"}},
	} {
		_, err := envoy.RenderIstio(inMesh(c.names...), c.opt)
		if len(c.want) == 0 && err != nil {
			t.Errorf("%q: want it rendered, got %v", c.names, err)
		}
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: want an error with %q, got %v", c.names, want, err)
			}
		}
	}
}

// TestIstioObjectsAreDistinct, whatever upstreams are called.
func TestIstioObjectsAreDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.Just("egress"), rapid.StringMatching(`[ab][ab_.-]{0,2}`))
		s := inMesh(rapid.SliceOfNDistinct(name, 1, 4, rapid.ID[string]).Draw(t, "names")...)
		if rapid.Bool().Draw(t, "socket") {
			s.Server.Listen = "unix:///run/a.sock"
		}
		opt := envoy.IstioOptions{
			Namespace:  "agents",
			Gateway:    rapid.SampledFrom([]string{"", "egress.agents", "egress.istio-system"}).Draw(t, "gateway"),
			Service:    rapid.SampledFrom([]string{"", "mcp-a.agents", "mcp-egress.agents", "mcp-egress.istio-system"}).Draw(t, "service"),
			RouteLevel: rapid.Bool().Draw(t, "route level"),
		}
		b, err := envoy.RenderIstio(s, opt)
		if err != nil {
			if !strings.Contains(err.Error(), "named") {
				t.Fatal(err)
			}
			t.Skip("refused")
		}
		objects(t, b)
	})
}

// TestGatewayObjectsAreDistinct, whatever Gateways and HTTPRoutes are called and wherever
// they are.
func TestGatewayObjectsAreDistinct(t *testing.T) {
	type place struct{ namespace, name string }
	places := func(t *rapid.T, what string) []place {
		one := rapid.Custom(func(t *rapid.T) place {
			return place{rapid.SampledFrom([]string{"x", "y"}).Draw(t, "namespace"), rapid.SampledFrom([]string{"a", "b", "a.b", "a-b"}).Draw(t, "name")}
		})
		return rapid.SliceOfNDistinct(one, 1, 4, rapid.ID[place]).Draw(t, what)
	}
	rapid.Check(t, func(t *rapid.T) {
		var text strings.Builder
		parents := []string{}
		for _, g := range places(t, "gateways") {
			proxy := rapid.SampledFrom([]string{"", "own", "envoy-mcp-auth"}).Draw(t, "proxy")
			fmt.Fprintf(&text, "---\n{kind: Gateway, metadata: {name: %s, namespace: %s}, spec: {infrastructure: {parametersRef: {name: %q}}, listeners: [{name: http}]}}\n", g.name, g.namespace, proxy)
			parents = append(parents, fmt.Sprintf("{name: %s, namespace: %s}", g.name, g.namespace))
		}
		var ups []*policy.Upstream
		for i, r := range places(t, "routes") {
			fmt.Fprintf(&text, "---\n{kind: HTTPRoute, metadata: {name: %s, namespace: %s}, spec: {parentRefs: [%s], rules: [{backendRefs: [{name: a}]}]}}\n", r.name, r.namespace, strings.Join(parents, ", "))
			ups = append(ups, routed(fmt.Sprintf("u%d", i), fmt.Sprintf("httproute/%s/%s/rule/*", r.namespace, r.name)))
		}
		opt := gatewayOptions()
		opt.Resources, opt.Patch = []byte(text.String()), rapid.Bool().Draw(t, "patch")
		b, err := envoy.RenderGateway(secured(ups...), opt)
		if err != nil {
			t.Fatal(err)
		}
		objects(t, b)
	})
}

// TestGatewaysShareAnEnvoyProxy of their namespace, which says whose it is.
func TestGatewaysShareAnEnvoyProxy(t *testing.T) {
	opt := gatewayOptions()
	opt.Resources = []byte(`
{kind: Gateway, metadata: {name: one, namespace: edge}, spec: {listeners: [{name: http}]}}
---
{kind: Gateway, metadata: {name: two, namespace: edge}, spec: {infrastructure: {parametersRef: {name: envoy-mcp-auth}}, listeners: [{name: http}]}}
---
{kind: HTTPRoute, metadata: {name: a, namespace: edge}, spec: {parentRefs: [{name: one}, {name: two}], rules: [{backendRefs: [{name: a}]}]}}
`)
	got, text := renderGateway(t, secured(routed("a", "httproute/edge/a/rule/*")), opt)
	if got["EnvoyProxy edge/envoy-mcp-auth"] == nil || got["ClientTrafficPolicy edge/envoy-mcp-auth-two"] == nil {
		t.Errorf("got %v", got)
	}
	flat := strings.Join(strings.Fields(strings.ReplaceAll(text, "\n#", "")), " ")
	for _, want := range []string{"Gateway edge/one has no EnvoyProxy yet", "Gateway edge/two names this EnvoyProxy"} {
		if !strings.Contains(flat, want) {
			t.Errorf("want %q in\n%s", want, text)
		}
	}
}
