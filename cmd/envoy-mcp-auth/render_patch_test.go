package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const smallEnvoy = `static_resources:
  listeners:
    - name: edge
      address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
      filter_chains:
        - filters:
            - name: hcm
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: edge
                route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /mcp}, route: {cluster: tools}}]}]}
  clusters:
    - name: tools
      type: STRICT_DNS
      load_assignment: {cluster_name: tools, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: tools.company.com, port_value: 443}}}}]}]}
`

// TestRenderPatch goes the way of the help text: patch, check, patch again.
func TestRenderPatch(t *testing.T) {
	dir := t.TempDir()
	file, own := policyFile(t, smallPolicy), filepath.Join(dir, "mine.yaml")
	exposed := "admin: {address: {socket_address: {address: 0.0.0.0, port_value: 9901}}}\n"
	for name, tc := range map[string]struct {
		text string
		code int
		said []string
	}{
		"nothing left open":   {smallEnvoy, 0, []string{"changed: static_resources.clusters[tools]", "assumed: cluster \"tools\"", "look at: upstream \"open\"", "0 left for a person to decide"}},
		"something to decide": {smallEnvoy + exposed, 1, []string{"decide: " + own, "admin-exposed", "1 left for a person to decide"}},
	} {
		if err := os.WriteFile(own, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "patched.yaml")
		got := program(t, secretEnv(), "render", "envoy", "-c", file, "--patch", own, "-o", out)
		if got.code != tc.code || got.out != "" {
			t.Errorf("%s: want %d, got %+v", name, tc.code, got)
		}
		for _, want := range tc.said {
			if !strings.Contains(got.err, want) {
				t.Errorf("%s: want %q in %s", name, want, got.err)
			}
		}
		if got := program(t, secretEnv(), "check", "-c", file, "--envoy", out); got.code != tc.code {
			t.Errorf("%s: check does not agree: %+v", name, got)
		}
		patched, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		again := program(t, secretEnv(), "render", "envoy", "-c", file, "--patch", out)
		if again.out != string(patched) || !strings.Contains(again.err, "nothing to change") {
			t.Errorf("%s: a second time it changes: %s", name, again.err)
		}
	}
	for _, args := range [][]string{{"--patch", "/nowhere.yaml"}, {"--patch", own, "--xds"}, {"--patch", file}} {
		if got := program(t, secretEnv(), append([]string{"render", "envoy", "-c", file}, args...)...); got.code != 1 || got.out != "" {
			t.Errorf("%v: want a refusal and nothing written, got %+v", args, got)
		}
	}
}
