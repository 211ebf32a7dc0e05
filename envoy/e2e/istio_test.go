package e2e_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// meshed is what Istio's control plane made of the resources that `render istio` writes
// (tools/istio makes it anew), as the upstreams of twelve know it.
const meshed = "../testdata/istio"

// inMesh gives the upstreams of twelve their clusters' names, and TLS.
func inMesh(text string) string {
	for _, up := range []string{"alpha", "beta", "gamma"} {
		text = strings.Replace(text, fmt.Sprintf("url: {{.URL %q}}", up), fmt.Sprintf(
			"url: {{.SecureURL %q}}\n    ca: {{.Dir}}/ca.pem\n    envoy: {cluster: \"outbound|80||%s.tools.test\"}", up, up), 1)
	}
	return text
}

// istio runs the program and an Envoy with what Istio's control plane made for a proxy.
func (r *rig) istio(proxy string) func(string) string {
	r.t.Helper()
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.withoutIstio(proxy))
	return r.meshed()
}

// meshed is where a caller in a mesh finds the upstreams.
func (r *rig) meshed() func(string) string {
	r.t.Helper()
	_, port, err := net.SplitHostPort(r.facts.Listen)
	if err != nil {
		r.t.Fatal(err)
	}
	return func(up string) string { return "http://" + loopback(up) + ":" + port + "/mcp" }
}

// loopback is the address in whose place a caller in a mesh writes UP.tools.test.
func loopback(up string) string {
	return map[string]string{"alpha": "127.0.1.1", "beta": "127.0.1.2", "gamma": "127.0.1.3"}[up]
}

type object = map[string]any

// withoutIstio is a proxy's configuration for an Envoy of nobody's mesh. It takes away,
// or puts something else in the place of, what only Istio's own proxy knows, or what is
// not here:
//   - filters whose name begins with istio. (metadata exchange, ALPN), and their metadata
//   - keys and authorities from the proxy's agent (SDS): a file has the authority of
//     upstreams; the mesh's own mutual TLS goes
//   - addresses: of endpoints (DNS, EDS), of the listener, and the hosts that a mesh's
//     DNS and iptables lead to it
//   - routes by name, which go into the listener; tracing; the chain for what is not HTTP
func (r *rig) withoutIstio(proxy string) []byte {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(meshed, proxy+".xds.yaml"))
	if err != nil {
		r.t.Fatal(err)
	}
	var dump struct {
		Configs []struct {
			Clusters  []struct{ Cluster object } `yaml:"dynamicActiveClusters"`
			Listeners []struct {
				State struct{ Listener object } `yaml:"activeState"`
			} `yaml:"dynamicListeners"`
			Routes []struct {
				Config object `yaml:"routeConfig"`
			} `yaml:"dynamicRouteConfigs"`
		}
	}
	if err := yaml.Unmarshal(b, &dump); err != nil {
		r.t.Fatal(err)
	}
	var clusters, listeners []object
	routes := map[any]object{}
	for _, part := range dump.Configs {
		for _, c := range part.Clusters {
			if c := r.meshedCluster(c.Cluster); c != nil {
				clusters = append(clusters, c)
			}
		}
		for _, rc := range part.Routes {
			routes[rc.Config["name"]] = r.meshedRoutes(rc.Config)
		}
	}
	for _, part := range dump.Configs {
		for _, l := range part.Listeners {
			listeners = append(listeners, r.meshedListener(l.State.Listener, routes))
		}
	}
	out, err := yaml.Marshal(object{"static_resources": object{"clusters": clusters, "listeners": listeners}, "layered_runtime": istioRuntime()})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// istioRuntime is what Istio's bootstrap says of expressions.
func istioRuntime() object {
	return object{"layers": []object{{"name": "global config", "static_layer": object{"re2.max_program_size.error_level": "32768"}}}}
}

// without takes keys off a mapping.
func without(m object, keys ...string) {
	for _, k := range append(keys, "@type") {
		delete(m, k)
	}
}

// inside follows keys and positions.
func inside(v any, path ...any) any {
	for _, step := range path {
		switch key := step.(type) {
		case string:
			m, _ := v.(object)
			v = m[key]
		case int:
			l, _ := v.([]any)
			v = l[key]
		}
	}
	return v
}

func (r *rig) meshedCluster(c object) object {
	r.t.Helper()
	name, _ := c["name"].(string)
	address := object{"pipe": object{"path": r.facts.Socket}}
	without(c, "metadata", "filters", "edsClusterConfig", "typedDnsResolverConfig", "dnsJitter", "dnsLookupFamily", "dnsRefreshRate", "respectDnsTtl")
	switch up := r.upstreamOf(name); {
	case up != "":
		host, port, err := net.SplitHostPort(r.up(up).addr)
		if err != nil {
			r.t.Fatal(err)
		}
		address = object{"socketAddress": object{"address": host, "portValue": port}}
		tls, _ := inside(c, "transportSocket", "typedConfig").(object)
		common, _ := inside(tls, "commonTlsContext").(object)
		if inside(common, "combinedValidationContext", "defaultValidationContext", "matchSubjectAltNames", 0, "exact") != up+".tools.test" || tls["sni"] != up+".tools.test" {
			r.t.Errorf("the cluster of %s does not verify its name", up)
		}
		without(common, "combinedValidationContext")
		common["validationContext"] = object{
			"trustedCa":            object{"filename": filepath.Join(r.dir, "ca.pem")},
			"matchSubjectAltNames": []object{{"exact": "localhost"}},
		}
		tls["sni"] = "localhost"
	case strings.HasPrefix(name, "outbound|9440|"), name == "envoy_mcp_auth":
		without(c, "transportSocket")
		c["altStatName"] = "envoy_mcp_auth"
	default:
		return nil
	}
	c["type"] = "STATIC"
	c["loadAssignment"] = object{"clusterName": name, "endpoints": []object{{"lbEndpoints": []object{{"endpoint": object{"address": address}}}}}}
	return c
}

// upstreamOf is the upstream whose cluster this is.
func (r *rig) upstreamOf(cluster string) string {
	name, ours := strings.CutPrefix(strings.TrimSuffix(cluster, ".tools.test"), "outbound|80||")
	if !ours || r.up(name) == nil {
		return ""
	}
	return name
}

func (r *rig) meshedRoutes(rc object) object {
	without(rc)
	hosts, _ := rc["virtualHosts"].([]any)
	for _, h := range hosts {
		for _, up := range []string{"alpha", "beta", "gamma"} {
			r.meshedHost(h.(object), up)
		}
	}
	return rc
}

// meshedHost gives an upstream's virtual host its address here, and the upstream its own.
func (r *rig) meshedHost(vh object, up string) {
	domains, _ := vh["domains"].([]any)
	if len(domains) == 0 || domains[0] != up+".tools.test" {
		return
	}
	vh["domains"] = []string{loopback(up)}
	all, _ := vh["routes"].([]any)
	for _, route := range all {
		if action, ok := inside(route, "route").(object); ok {
			action["hostRewriteLiteral"] = r.up(up).addr
		}
	}
}

func (r *rig) meshedListener(l object, routes map[any]object) object {
	r.t.Helper()
	_, port, err := net.SplitHostPort(r.facts.Listen)
	if err != nil {
		r.t.Fatal(err)
	}
	without(l, "bindToPort", "defaultFilterChain", "trafficDirection", "listenerFilters", "listenerFiltersTimeout", "continueOnListenerFiltersTimeout", "metadata")
	l["address"] = object{"socketAddress": object{"address": "0.0.0.0", "portValue": port}}
	chain, _ := inside(l, "filterChains", 0).(object)
	without(chain, "transportSocket", "filterChainMatch")
	filters, _ := chain["filters"].([]any)
	var kept []any
	for _, f := range filters {
		if name, _ := inside(f, "name").(string); !strings.HasPrefix(name, "istio.") {
			kept = append(kept, f)
		}
	}
	chain["filters"] = kept
	hcm, _ := inside(kept[len(kept)-1], "typedConfig").(object)
	hcm["routeConfig"] = routes[inside(hcm, "rds", "routeConfigName")]
	kind := hcm["@type"]
	without(hcm, "rds", "tracing")
	hcm["@type"] = kind
	var stock []any
	all, _ := hcm["httpFilters"].([]any)
	for _, f := range all {
		if name, _ := inside(f, "name").(string); !strings.HasPrefix(name, "istio.") {
			stock = append(stock, f)
		}
	}
	hcm["httpFilters"] = stock
	return l
}

// TestIstio_E1: with what Istio's control plane made, no call reaches an upstream
// undecided, whether a stream ends without a word, in which case the guard is all that is
// left, or nothing answers.
func TestIstio_E1(t *testing.T) {
	for _, proxy := range []string{"sidecar", "route", "socket", "gateway", "gateway-route"} {
		t.Run(proxy, func(t *testing.T) {
			r := newRig(t, inMesh(twelve))
			server, err := serveScripted(r.facts.Socket, &scripted{act: after(func(stream) error { return nil })})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(server.Stop)
			r.startEnvoy(r.withoutIstio(proxy))
			r.waitProcessor(1)
			refused := func(want func(reply) bool) {
				t.Helper()
				for _, up := range []string{"alpha", "beta", "gamma"} {
					got, came := r.through(r.meshed(), up, toolCall("harmless"), asRobot("Authorization", "Bearer "+callerToken,
						"Cookie", "session_id="+canary, "X-Mcp-Auth-Guard", up, "X-Envoy-Attempt-Count", "2"))
					if !want(got) || len(came) != 0 {
						t.Errorf("%s: want a refusal and no arrival, got %v and %d", up, got, len(came))
					}
				}
			}
			refused(func(a reply) bool { return a.status == http.StatusForbidden && a.reason() == "guard" })
			server.Stop()
			refused(func(a reply) bool { return a.status >= http.StatusInternalServerError })
		})
	}
}

// TestIstio_Rejected: an upstream's last 401 is our 502, whatever it looks like, and its
// challenge does not reach the caller.
func TestIstio_Rejected(t *testing.T) {
	bodies := map[string]func(http.ResponseWriter){
		"nothing": func(http.ResponseWriter) {},
		"text":    func(w http.ResponseWriter) { _, _ = io.WriteString(w, strings.Repeat("no ", 1000)) },
		"streamed": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, "event: message\n\n")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "data: no\n\n")
		},
	}
	for _, proxy := range []string{"sidecar", "route"} {
		r := newRig(t, inMesh(twelve))
		endpoint := r.istio(proxy)
		for what, body := range bodies {
			t.Run(proxy+"/"+what, func(t *testing.T) {
				r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Www-Authenticate", `Bearer realm="elsewhere"`)
					w.WriteHeader(http.StatusUnauthorized)
					body(w)
				})
				got, _ := r.through(endpoint, "alpha", toolCall("harmless"), asRobot())
				got.refused(t, http.StatusBadGateway, "upstream_rejected")
				if got.header.Get("Www-Authenticate") != "" {
					t.Error("the upstream's challenge reached the caller")
				}
			})
		}
	}
}
