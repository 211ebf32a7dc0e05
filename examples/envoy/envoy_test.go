package envoy_test

import (
	"flag"
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

var update = flag.Bool("update", false, "write after.yaml anew")

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

// TestAfter keeps after.yaml what `render envoy --patch before.yaml` prints: a person has
// nothing to decide about before.yaml.
func TestAfter(t *testing.T) {
	t.Parallel()
	done, err := envoy.Patch("before.yaml", read(t, "before.yaml"), load(t), envoy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range done.Open {
		t.Errorf("left open: %s", f)
	}
	if *update {
		if err := os.WriteFile("after.yaml", done.Config, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(done.Config), string(read(t, "after.yaml"))); diff != "" {
		t.Errorf("after.yaml; run go generate ./examples/envoy (-want +got):\n%s", diff)
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

// TestRealEnvoyAfter: nothing answers for envoy-mcp-auth here, and the
// way to the other server is as it was.
func TestRealEnvoyAfter(t *testing.T) {
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
			if v := entry(n, s); v != nil {
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

// entry returns a value of a mapping, nil without one.
func entry(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func byName(t *testing.T, items *yaml.Node, name string) *yaml.Node {
	t.Helper()
	for _, item := range items.Content {
		if v := entry(item, "name"); v != nil && v.Value == name {
			return item
		}
	}
	t.Fatalf("nothing is named %s", name)
	return nil
}
