package envoy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// local are the upstreams of good/downstream.yaml.
func local() *policy.Set {
	return set(upstream("a", "http://127.0.0.1:9000/mcp", withoutCredential), upstream("b", "http://127.0.0.1:9001/mcp", withoutCredential))
}

func downstream(t *testing.T, changes ...broken) []byte {
	t.Helper()
	b := goodFile(t, "downstream.yaml")
	for _, c := range changes {
		b = edit(t, b, c)
	}
	return b
}

func goodFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "good", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sideDoor is a second listener that leads to cluster a and asks nobody.
func sideDoor(action string) broken {
	return broken{"", "static_resources/listeners/+", `
name: side
address: {socket_address: {address: 127.0.0.1, port_value: 10001}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: side
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
      route_config:
        name: side
        virtual_hosts:
        - name: side
          domains: ["*"]
          routes: [{name: side, match: {prefix: /}, route: {` + action + `}}]
`}
}

const switchedOn = `{"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}`

// byRoute has the filter of the listener off, and the first route alone switch it on.
// Its second route leads to the same cluster.
func byRoute() []broken {
	return []broken{
		{"", hcm + "http_filters/0/disabled", "true"},
		{"", edgeRt + "typed_per_filter_config/envoy.filters.http.ext_proc", switchedOn},
		{"", route + "route/cluster", "a"},
	}
}

// TestE1_L2_EveryWayIsDecided: one listener that asks about a cluster does not speak for
// another that does not, nor one route for the next.
func TestE1_L2_EveryWayIsDecided(t *testing.T) {
	for name, tc := range map[string]struct {
		set     *policy.Set
		id, at  string
		changes []broken
	}{
		"a listener without the filter":                 {local(), "no-filter", "[side].routes[side]", []broken{sideDoor("cluster: a")}},
		"a listener without the filter, and no policy":  {nil, "no-filter", "[side].routes[side]", []broken{sideDoor("cluster: a")}},
		"a share of the calls":                          {local(), "no-filter", "[side].routes[side]", []broken{sideDoor("weighted_clusters: {clusters: [{name: x, weight: 9}, {name: b, weight: 1}]}")}},
		"a listener where the request says which":       {local(), "cluster-from-request", "[side].routes[side]", []broken{sideDoor("cluster_header: x-to")}},
		"a route that does not switch it on":            {local(), "no-filter", "[edge].routes[b]", byRoute()},
		"a route that does not switch it on, no policy": {nil, "no-filter", "[edge].routes[b]", byRoute()},
		"a route that switches a filter of ours off": {local(), "ext-proc-disabled", "[edge].routes[b]", []broken{
			{"", hcm + "http_filters/0/name", "asks"},
			{"", route + "typed_per_filter_config/asks", `{"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}`},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			text := downstream(t, tc.changes...)
			seen := func(found []envoy.Finding) bool {
				for _, f := range found {
					if f.ID == tc.id && strings.Contains(f.Path, tc.at) {
						return true
					}
				}
				return false
			}
			if found := check(t, text, tc.set); !seen(found) {
				t.Errorf("want %s at %s, got %v", tc.id, tc.at, found)
			}
			if tc.set == nil {
				return
			}
			if p := settled(t, text, tc.set); !seen(p.Open) {
				t.Errorf("want %s left open, got %v", tc.id, p.Open)
			}
		})
	}
}

// TestE1_WaysThatAreDecided: a cluster that is guarded itself needs no listener, and a
// way to somewhere else is nobody's matter.
func TestE1_WaysThatAreDecided(t *testing.T) {
	s := set(upstream("tools", "https://tools.company.com/mcp", withMTLS))
	b := goodFile(t, "upstream.yaml")
	for name, found := range map[string][]envoy.Finding{
		"guarded itself":           check(t, edit(t, b, sideDoor("cluster: tools")), s),
		"elsewhere":                check(t, downstream(t, sideDoor("cluster: shop")), local()),
		"elsewhere, and no policy": check(t, downstream(t, sideDoor("cluster: shop")), nil),
		"both routes switch it on": check(t, downstream(t, append(byRoute()[:2], broken{"", route + "typed_per_filter_config/envoy.filters.http.ext_proc", switchedOn})...), local()),
		"a route elsewhere is off": check(t, downstream(t, append(byRoute(), broken{"", route + "route/cluster", "shop"})...), set(local().Upstreams[0])),
		"Istio, by route":          findings(t, filepath.Join("testdata", "istio", "route.xds.yaml"), filepath.Join("testdata", "istio", "policy.yaml"), nil),
	} {
		if ids := idsOf(found); strings.Contains(ids, "no-filter") {
			t.Errorf("%s: want no no-filter, got %v", name, found)
		}
	}
}

// TestE1_PatchGuardsAClusterThatNoWayAsksAbout: a filter that other routes of the listener
// switch on does not speak for this one, and is not switched on for all.
func TestE1_PatchGuardsAClusterThatNoWayAsksAbout(t *testing.T) {
	changes := byRoute()[:2] // to a by way of the filter, to b without
	p := settled(t, downstream(t, changes...), local())
	if ids := idsOf(p.Open); strings.Contains(ids, "no-filter") || strings.Contains(ids, "ext-proc-disabled") {
		t.Errorf("want every way decided, got %v", p.Open)
	}
	guarded, enabled := map[string]bool{}, false
	for _, c := range p.Changes {
		for _, name := range []string{"a", "b"} {
			guarded[name] = guarded[name] || strings.Contains(c.Path, "clusters["+name+"]") && strings.HasSuffix(c.Path, ".http_filters")
		}
		enabled = enabled || strings.HasSuffix(c.Path, "disabled")
	}
	if guarded["a"] || !guarded["b"] || enabled {
		t.Errorf("want the chain in cluster b alone and the filter left off, got %v", p.Changes)
	}
}
