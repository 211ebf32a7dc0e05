package envoy_test

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the pieces and after.yaml anew")

func env(name string) (string, bool) {
	return strings.Repeat("5e", 32), name == "MCP_AUTH_KEY_SHA256" || name == "MCP_OAUTH2_CLIENT_SECRET"
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func load(t *testing.T) *policy.Set {
	t.Helper()
	set, err := policy.Parse("policy.yaml", read(t, "policy.yaml"), env)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// piece is one file to paste.
type piece struct {
	name, where string
	node        *yaml.Node
}

// pieces cuts what to paste out of a rendered configuration.
func pieces(t *testing.T, rendered *yaml.Node) []piece {
	t.Helper()
	hcm := get(t, rendered, "static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config")
	vhost := get(t, hcm, "route_config", "virtual_hosts", 0)
	route := get(t, vhost, "routes", 1) // after that for unclear paths, which is not for paths of others
	clusters := get(t, rendered, "static_resources", "clusters")
	converter := get(t, hcm, "http_filters", 0)
	answer := get(t, converter, "typed_config")

	// Switched on for this route alone: another's 401 is none of our business.
	idle := mapping("name", get(t, converter, "name"), "typed_config", mapping("@type", get(t, answer, "@type")))
	toRoute := pick(t, route, "route", "response_headers_to_remove")
	action := pick(t, get(t, route, "route"), "timeout", "idle_timeout", "retry_policy")
	set(toRoute, "route", action)
	set(toRoute, "typed_per_filter_config", mapping(get(t, converter, "name").Value, answer))
	key, _ := entry(toRoute, "typed_per_filter_config")
	key.HeadComment = "# The MCP server's last 401 is about our credential, and a caller can do nothing about\n# it: it becomes a 502 with a reason, so that no client starts a login."

	return []piece{
		{"1-processor.yaml", "Add to static_resources.clusters: the way to envoy-mcp-auth.", list(byName(t, clusters, envoy.ProcessorCluster))},
		{
			"2-cluster.yaml", "Into the cluster of the MCP server, in the place of what is there of the same name.",
			pick(t, byName(t, clusters, "mcp_tools"), "per_connection_buffer_limit_bytes", "circuit_breakers", "transport_socket", "typed_extension_protocol_options"),
		},
		{"3-listener.yaml", "Into the typed_config of the connection manager. This holds for all its routes.", pick(t, hcm,
			"common_http_protocol_options", "stream_idle_timeout", "request_timeout", "request_headers_timeout", "use_remote_address",
			"early_header_mutation_extensions", "normalize_path", "merge_slashes", "path_with_escaped_slashes_action",
			"strip_any_host_port", "strip_trailing_host_dot", "forward_client_cert_details")},
		{"4-filter.yaml", "First of the connection manager's http_filters. It does nothing until a route says what.", list(idle)},
		{"5-virtual-host.yaml", "Into the virtual host of the route.", pick(t, vhost, "include_request_attempt_count")},
		{"6-route.yaml", "Into the route to the MCP server.", toRoute},
		{"7-runtime.yaml", "At the top. If there is a layered_runtime, add the layer to it.", pick(t, rendered, "layered_runtime")},
		{"8-access-log.yaml", "Into the typed_config of the connection manager. If it has an access_log, add this one to the list.", pick(t, hcm, "access_log")},
	}
}

// paste does what README.md says, piece by piece.
func paste(t *testing.T, into *yaml.Node, all []piece) {
	t.Helper()
	hcm := get(t, into, "static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config")
	clusters, chain := get(t, into, "static_resources", "clusters"), get(t, hcm, "http_filters")
	vhost := get(t, hcm, "route_config", "virtual_hosts", 0)

	clusters.Content = append(clusters.Content, all[0].node.Content...)
	merge(byName(t, clusters, "mcp_tools"), all[1].node)
	merge(hcm, all[2].node)
	chain.Content = append(all[3].node.Content, chain.Content...)
	merge(vhost, all[4].node)
	merge(get(t, vhost, "routes", 0), all[5].node)
	merge(into.Content[0], all[6].node)
	merge(hcm, all[7].node)
}

// TestPieces keeps the pieces and after.yaml in step with the renderer.
func TestPieces(t *testing.T) {
	rendered, err := envoy.Render(load(t), envoy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	all := pieces(t, parse(t, rendered))
	for _, p := range all {
		golden(t, filepath.Join("paste", p.name), "# "+p.where+"\n\n", p.node)
	}
	after := parse(t, read(t, "before.yaml"))
	after.Content[0].Content[0].HeadComment = "" // of before.yaml
	paste(t, after, all)
	golden(t, "after.yaml", "# before.yaml with the pieces of paste/ in it.\n\n", after)
}

func golden(t *testing.T, path, head string, node *yaml.Node) {
	t.Helper()
	var b bytes.Buffer
	b.WriteString(head)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(node); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(b.String(), string(read(t, path))); diff != "" {
		t.Errorf("%s; run go generate ./examples/envoy (-want +got):\n%s", path, diff)
	}
}

func TestAfterHasNoFindingAndBeforeHas(t *testing.T) {
	t.Parallel()
	set := load(t)
	found, err := envoy.Check("after.yaml", read(t, "after.yaml"), set)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("finding: %s", f)
	}
	if found, err = envoy.Check("before.yaml", read(t, "before.yaml"), set); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, f := range found {
		have[f.ID] = true
	}
	for _, want := range []string{"no-filter", "upstream-unverified", "no-attempt-count", "rejection-relayed", "mark-not-removed"} {
		if !have[want] {
			t.Errorf("before.yaml: want a finding %s, got %v", want, found)
		}
	}
}

func TestRealEnvoyAcceptsBoth(t *testing.T) {
	t.Parallel()
	binary := realenvoy.Require(t)
	for _, name := range []string{"before.yaml", "after.yaml"} {
		if err := realenvoy.Validate(t.Context(), binary, name); err != nil {
			t.Error(err)
		}
	}
}

// TestRealEnvoyWithThePieces: nothing answers for envoy-mcp-auth here, and the
// way to the other server is as it was.
func TestRealEnvoyWithThePieces(t *testing.T) {
	t.Parallel()
	binary := realenvoy.Require(t)
	tools, shop := upstream(t), upstream(t)
	after := parse(t, read(t, "after.yaml"))
	base := run(t, binary, after, tools, shop)
	if got, _ := ask(t, base+"/tools/mcp"); got != http.StatusForbidden && got < 500 {
		t.Errorf("undecided call: want 403 or 5xx, got %d", got)
	}
	if n := tools.calls.Load(); n != 0 {
		t.Errorf("%d undecided calls arrived", n)
	}
	if got, header := ask(t, base+"/shop/x"); got != http.StatusUnauthorized || header.Get("WWW-Authenticate") == "" {
		t.Errorf("another server's 401: want it as it is, got %d %v", got, header)
	}

	// Without the filters, calls come to the server that refuses them.
	cluster := byName(t, get(t, after, "static_resources", "clusters"), "mcp_tools")
	drop(cluster, "typed_extension_protocol_options")
	got, header := ask(t, run(t, binary, after, tools, shop)+"/tools/mcp")
	if got != http.StatusBadGateway || header.Get(envoy.ReasonHeader) != "upstream_rejected" || header.Get("WWW-Authenticate") != "" {
		t.Errorf("the MCP server's 401: want a 502 without its challenge, got %d %v", got, header)
	}
	if n := tools.calls.Load(); n != 2 {
		t.Errorf("want a second attempt after the 401, got %d calls", n)
	}
}

// server refuses every request.
type server struct {
	address string
	calls   atomic.Int32
}

func upstream(t *testing.T) *server {
	t.Helper()
	s := &server{}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.calls.Add(1)
		w.Header().Set("WWW-Authenticate", "Bearer")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(h.Close)
	s.address = h.Listener.Addr().String()
	return s
}

// run starts Envoy with the configuration, at addresses of this test, and
// returns its base URL.
func run(t *testing.T, binary string, config *yaml.Node, tools, shop *server) string {
	t.Helper()
	dir := t.TempDir()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := l.Addr().String()
	_ = l.Close()
	place(t, get(t, config, "static_resources", "listeners", 0), base)
	clusters := get(t, config, "static_resources", "clusters")
	for name, s := range map[string]*server{"mcp_tools": tools, "shop": shop} {
		cluster := byName(t, clusters, name)
		drop(cluster, "transport_socket")
		if _, options := entry(cluster, "typed_extension_protocol_options"); options != nil {
			key, value := entry(options.Content[1], "auto_config") // which needs TLS
			key.Value, value.Content = "explicit_http_config", mapping("http_protocol_options", mapping()).Content
		}
		place(t, get(t, cluster, "load_assignment", "endpoints", 0, "lb_endpoints", 0, "endpoint"), s.address)
	}
	pipe := get(t, byName(t, clusters, envoy.ProcessorCluster), "load_assignment", "endpoints", 0, "lb_endpoints", 0, "endpoint", "address", "pipe")
	get(t, pipe, "path").Value = filepath.Join(dir, "nobody.sock")
	b, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	e, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: binary, Bootstrap: b, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	return "http://" + base
}

func place(t *testing.T, n *yaml.Node, address string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	get(t, n, "address", "socket_address", "address").Value = host
	get(t, n, "address", "socket_address", "port_value").Value = port
}

// ask makes a call with a credential of the caller's own.
func ask(t *testing.T, url string) (status int, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer mine")
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header
}

func drop(n *yaml.Node, key string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content = slices.Delete(n.Content, i, i+2)
			return
		}
	}
}

func parse(t *testing.T, b []byte) *yaml.Node {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	return &doc
}

// get follows keys and indices.
func get(t *testing.T, n *yaml.Node, path ...any) *yaml.Node {
	t.Helper()
	if n.Kind == yaml.DocumentNode {
		n = n.Content[0]
	}
	for _, step := range path {
		next := (*yaml.Node)(nil)
		switch s := step.(type) {
		case int:
			if n.Kind == yaml.SequenceNode && s < len(n.Content) {
				next = n.Content[s]
			}
		case string:
			if _, v := entry(n, s); v != nil {
				next = v
			}
		}
		if next == nil {
			t.Fatalf("no %v of %v", step, path)
		}
		n = next
	}
	return n
}

// entry returns key and value of a mapping.
func entry(n *yaml.Node, key string) (k, v *yaml.Node) {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// pick copies some entries of a mapping, comments included.
func pick(t *testing.T, n *yaml.Node, keys ...string) *yaml.Node {
	t.Helper()
	if n.Kind == yaml.DocumentNode {
		n = n.Content[0]
	}
	out := &yaml.Node{Kind: yaml.MappingNode}
	for _, key := range keys {
		k, v := entry(n, key)
		if v == nil {
			t.Fatalf("the rendered configuration has no %s there", key)
		}
		out.Content = append(out.Content, k, v)
	}
	return out
}

// set replaces a value, or adds an entry.
func set(n *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = value
			return
		}
	}
	n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
}

// merge puts the entries of a mapping into another; those of the key route go
// into the one that is there.
func merge(into, from *yaml.Node) {
	for i := 0; i+1 < len(from.Content); i += 2 {
		key, value := from.Content[i], from.Content[i+1]
		if _, old := entry(into, key.Value); old != nil && key.Value == "route" {
			merge(old, value)
			continue
		}
		if k, _ := entry(into, key.Value); k != nil {
			k.HeadComment = key.HeadComment
			set(into, key.Value, value)
			continue
		}
		into.Content = append(into.Content, key, value)
	}
}

func mapping(pairs ...any) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i+1 < len(pairs); i += 2 {
		set(out, fmt.Sprint(pairs[i]), pairs[i+1].(*yaml.Node))
	}
	return out
}

func list(items ...*yaml.Node) *yaml.Node { return &yaml.Node{Kind: yaml.SequenceNode, Content: items} }

func byName(t *testing.T, items *yaml.Node, name string) *yaml.Node {
	t.Helper()
	for _, item := range items.Content {
		if _, v := entry(item, "name"); v != nil && v.Value == name {
			return item
		}
	}
	t.Fatalf("nothing is named %s", name)
	return nil
}
