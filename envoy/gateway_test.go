package envoy_test

import (
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const userResources = `
apiVersion: v1
kind: List
items:
  - {kind: Gateway, metadata: {name: gw, namespace: edge}, spec: {listeners: [{name: http}, {name: https}]}}
  - kind: HTTPRoute
    metadata: {name: a, namespace: apps}
    spec: {parentRefs: [{name: gw, namespace: edge, sectionName: https}], rules: [{backendRefs: [{name: a}]}, {backendRefs: [{name: a}]}]}
  - {kind: HTTPRoute, metadata: {name: b}, spec: {parentRefs: [{name: gw, namespace: edge}], rules: [{backendRefs: [{name: b}]}]}}
  - {kind: HTTPRoute, metadata: {name: mirrored}, spec: {parentRefs: [{name: gw, namespace: edge}], rules: [{filters: [{type: RequestMirror}]}]}}
  - {kind: HTTPRoute, metadata: {name: spread}, spec: {parentRefs: [{name: gw, namespace: edge}], rules: [{backendRefs: [{name: a}, {name: b}]}]}}
  - {kind: HTTPRoute, metadata: {name: lost}, spec: {parentRefs: [{name: other}], rules: []}}
  - {kind: HTTPRoute, metadata: {name: loose}, spec: {rules: []}}
`

func routed(name, route string, change ...func(*policy.Upstream)) *policy.Upstream {
	u := upstream(name, "https://"+name+".company.com/mcp", change...)
	u.Route = route
	return u
}

// secured is a policy whose server speaks TLS on all addresses.
func secured(ups ...*policy.Upstream) *policy.Set {
	s := set(ups...)
	s.Server.Listen = "0.0.0.0:9440"
	s.Server.TLS = &policy.TLSSpec{Certificate: "tls.crt", PrivateKey: "tls.key", ClientCA: "ca.crt"}
	return s
}

func gatewayOptions() envoy.GatewayOptions {
	opt := envoy.GatewayOptions{Resources: []byte(userResources)}
	opt.Processor = "mcp.security.svc:9440"
	return opt
}

func renderGateway(t *testing.T, s *policy.Set, opt envoy.GatewayOptions) (map[string]map[string]any, string) {
	t.Helper()
	b, err := envoy.RenderGateway(s, opt)
	if err != nil {
		t.Fatal(err)
	}
	return objects(t, b), string(b)
}

// TestGatewayNamespaces: the Backend stands once, and a grant lets the others name it.
func TestGatewayNamespaces(t *testing.T) {
	opt := gatewayOptions()
	opt.Namespace, opt.Patch = "security", true
	got, text := renderGateway(t, secured(routed("a", "httproute/apps/a/rule/*", withMTLS), routed("b", "httproute/default/b/rule/*")), opt)
	for _, want := range []string{
		"Backend security/envoy-mcp-auth", "ReferenceGrant security/envoy-mcp-auth", "EnvoyProxy edge/envoy-mcp-auth",
		"ClientTrafficPolicy edge/envoy-mcp-auth-gw", "EnvoyPatchPolicy edge/envoy-mcp-auth-gw",
		"EnvoyExtensionPolicy apps/envoy-mcp-auth-a", "SecurityPolicy apps/envoy-mcp-auth-a", "BackendTrafficPolicy apps/envoy-mcp-auth-a",
		"EnvoyExtensionPolicy default/envoy-mcp-auth-b", "SecurityPolicy default/envoy-mcp-auth-b", "BackendTrafficPolicy default/envoy-mcp-auth-b",
	} {
		if got[want] == nil {
			t.Errorf("want %s", want)
		}
		delete(got, want)
	}
	if len(got) > 0 {
		t.Errorf("want no more, got %v", got)
	}
	for _, want := range []string{
		// The route is at one listener of two, and has two rules; the other at both.
		"name: edge/gw/https", "name: httproute/apps/a/rule/1", "connection.uri_san_peer_certificate", "namespace: security",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("want %q in the text", want)
		}
	}
	if strings.Count(text, "'envoy.filters.http.ext_proc/envoyextensionpolicy/apps/envoy-mcp-auth-a/extproc/0'") != 3 {
		t.Error("want upstream a's filter patched at the listener of its route alone")
	}
}

// TestGatewaySocket: with a socket there is no TLS to speak of, and no grant.
func TestGatewaySocket(t *testing.T) {
	opt := gatewayOptions()
	opt.Processor, opt.Namespace = "unix:///run/envoy-mcp-auth/grpc.sock", "default"
	got, text := renderGateway(t, set(routed("b", "httproute/default/b/rule/*", withoutCredential)), opt)
	if got["Backend default/envoy-mcp-auth"]["tls"] != nil || !strings.Contains(text, "path: /run/envoy-mcp-auth/grpc.sock") {
		t.Errorf("got %v", got["Backend default/envoy-mcp-auth"])
	}
	// What is lent nothing answers for itself.
	traffic := got["BackendTrafficPolicy default/envoy-mcp-auth-b"]
	if traffic["retry"] != nil || traffic["responseOverride"] != nil {
		t.Errorf("want no retry and the upstream's own 401, got %v", traffic)
	}
}

func TestGatewayRefuses(t *testing.T) {
	a := routed("a", "httproute/apps/a/rule/*")
	change := func(f func(*envoy.GatewayOptions)) envoy.GatewayOptions {
		opt := gatewayOptions()
		f(&opt)
		return opt
	}
	for name, tc := range map[string]struct {
		set  *policy.Set
		opt  envoy.GatewayOptions
		want string
	}{
		"no route":               {secured(routed("a", "")), gatewayOptions(), `write envoy: {route: "httproute/NAMESPACE/NAME/rule/*"}`},
		"a route of another":     {secured(routed("a", "default/a/*")), gatewayOptions(), `got "default/a/*"`},
		"one rule alone":         {secured(routed("a", "httproute/apps/a/rule/1/*")), gatewayOptions(), "want the routes of an HTTPRoute"},
		"an unknown HTTPRoute":   {secured(routed("a", "httproute/apps/z/rule/*")), gatewayOptions(), "there is no HTTPRoute apps/z in your resources"},
		"an unknown Gateway":     {secured(routed("a", "httproute/default/lost/rule/*")), gatewayOptions(), "names Gateway default/other"},
		"no Gateway":             {secured(routed("a", "httproute/default/loose/rule/*")), gatewayOptions(), "give it parentRefs"},
		"a mirror (L6)":          {secured(routed("a", "httproute/default/mirrored/rule/*")), gatewayOptions(), "would copy the credential"},
		"two backends (L6)":      {secured(routed("a", "httproute/default/spread/rule/*")), gatewayOptions(), "give each upstream an HTTPRoute of its own"},
		"two upstreams of one":   {secured(a, routed("b", "httproute/apps/a/rule/*")), gatewayOptions(), `is that of upstream "a"`},
		"nobody can reach it":    {secured(a), change(func(o *envoy.GatewayOptions) { o.Processor = "" }), "with --processor HOST:PORT"},
		"in plain text":          {set(a), gatewayOptions(), "the policy has no server.tls"},
		"no resources":           {secured(a), change(func(o *envoy.GatewayOptions) { o.Resources = nil }), "kubectl get gateways,httproutes"},
		"resources that are not": {secured(a), change(func(o *envoy.GatewayOptions) { o.Resources = []byte("kind: [") }), "reading your resources"},
	} {
		if _, err := envoy.RenderGateway(tc.set, tc.opt); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: want %q, got %v", name, tc.want, err)
		}
	}
}
