package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// theirs is the Envoy of somebody who has never heard of this program: a front proxy
// with a login of its own, and a shop beside the MCP servers.
const theirs = `
static_resources:
  listeners:
  - name: front
    address: {socket_address: {address: 127.0.0.1, port_value: {{.Port}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: AUTO
          stat_prefix: front
          http_filters:
          - name: envoy.filters.http.lua
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
              default_source_code:
                inline_string: |
                  function envoy_on_request(h)
                    if h:headers():get("x-login") == "wrong" then
                      h:respond({[":status"] = "401", ["www-authenticate"] = "Own"}, "who are you?")
                    end
                  end
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            name: front
            virtual_hosts:
            - name: front
              domains: ["*"]
              retry_policy: {retry_on: "5xx", num_retries: 2}
              routes:
              - match: {prefix: /svc/alpha/}
                route: {cluster: alpha, prefix_rewrite: /}
              - match: {prefix: /svc/beta/}
                route: {cluster: beta, prefix_rewrite: /, retry_policy: {retry_on: "5xx,reset", num_retries: 3}}
                typed_per_filter_config:
                  envoy.filters.http.lua:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute
                    disabled: true
              - match: {prefix: /svc/gamma/}
                route: {cluster: gamma, prefix_rewrite: /}
              - match: {prefix: /}
                route: {cluster: shop}
  clusters:
  - name: alpha
    type: STATIC
    load_assignment: {cluster_name: alpha, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {{.At "alpha"}}}}}]}]}
  - name: beta
    type: STATIC
    http_protocol_options: {}
    load_assignment: {cluster_name: beta, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {{.At "beta"}}}}}]}]}
  - name: gamma
    type: STATIC
    load_assignment: {cluster_name: gamma, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {{.At "gamma"}}}}}]}]}
  - name: shop
    type: STATIC
    load_assignment: {cluster_name: shop, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: SHOP}}}]}]}
`

// Port is that of Listen.
func (f *facts) Port() string { return f.Listen[strings.LastIndexByte(f.Listen, ':')+1:] }

// At is the address of an upstream as Envoy writes it.
func (f *facts) At(name string) string { return envoyAddress(f.Addr(name)) }

func envoyAddress(addr string) string {
	host, port, _ := strings.Cut(addr, ":")
	return "{address: " + host + ", port_value: " + port + "}"
}

// patched starts the program, and their Envoy with the policy in it, by the four
// commands of docs/envoy.md.
func patched(r *rig, shop string) func(upstream string) string {
	r.write("theirs.yaml", strings.ReplaceAll(r.fill(theirs), "SHOP", envoyAddress(shop)))
	before, out := filepath.Join(r.dir, "theirs.yaml"), filepath.Join(r.dir, "patched.yaml")
	r.run("render", "envoy", "-c", r.policy, "--patch", before, "-o", out)
	r.run("check", "-c", r.policy, "--envoy", out)
	r.proc = r.serve(r.policy, r.facts.Admin)
	b, err := os.ReadFile(out)
	if err != nil {
		r.t.Fatal(err)
	}
	r.startEnvoy(b)
	return func(upstream string) string { return r.url + "/svc/" + upstream + "/mcp" }
}

// TestPatchedEnvoy: what was there before goes on as before, beside upstreams that
// are protected now.
func TestPatchedEnvoy(t *testing.T) {
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("WWW-Authenticate", "Shop")
		w.Header().Set("X-Saw", req.Header.Get("Authorization")+" "+req.Host+" "+req.Header.Get("X-Forwarded-Host"))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(shop.Close)
	r := newRig(t, twelve)
	endpoint := patched(r, strings.TrimPrefix(shop.URL, "http://"))

	got := r.post("/cart", "{}", "Authorization", "Bearer mine", "X-Forwarded-Host", "shop.test")
	host, _, _ := strings.Cut(r.facts.Listen, ":")
	if got.status != http.StatusUnauthorized || got.header.Get("WWW-Authenticate") != "Shop" || got.header.Get("X-Saw") != "Bearer mine "+host+" shop.test" {
		t.Errorf("the shop: want its 401 and what a caller sent it, got %v %v", got, got.header)
	}
	own := r.do(t.Context(), nil, endpoint("alpha"), strings.NewReader("{}"), asRobot("X-Login", "wrong"))
	if own.status != http.StatusUnauthorized || own.body != "who are you?" || len(r.up("alpha").take()) != 0 {
		t.Errorf("their own login: want its 401, got %v", own)
	}
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	rejected, came := r.through(endpoint, "alpha", "{}", asRobot())
	rejected.refused(t, http.StatusBadGateway, "upstream_rejected")
	if len(came) != 2 {
		t.Errorf("want two attempts with a token each, got %d", len(came))
	}
	r.up("beta").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	if failed, came := r.through(endpoint, "beta", "{}", asRobot()); failed.status != http.StatusServiceUnavailable || len(came) != 1 {
		t.Errorf("want one attempt of a call that fails, got %v in %d", failed, len(came))
	}
}
