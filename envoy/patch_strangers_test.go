package envoy_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// walled is an Envoy with a firewall of its own, asked in the listener's chain and in
// the cluster's: the listen port, the upstream's and the firewall's socket are open.
const walled = `
static_resources:
  listeners:
  - name: edge
    address: {socket_address: {address: 127.0.0.1, port_value: %s}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          http_filters:
          - name: envoy.filters.http.ext_proc
            typed_config: &firewall
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {envoy_grpc: {cluster_name: firewall}}
              processing_mode: {response_header_mode: SKIP}
              message_timeout: 5s
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{match: {prefix: /a}, route: {cluster: a}}, {match: {prefix: /}, route: {cluster: shop}}]
  clusters:
  - name: a
    load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: &there {address: 127.0.0.1, port_value: %s}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions: &http
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http_protocol_options: {}}
        http_filters:
        - {name: second, typed_config: *firewall}
        - {name: codec, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec}}
  - name: shop
    load_assignment: {cluster_name: shop, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: *there}}}]}]}
  - name: firewall
    load_assignment: {cluster_name: firewall, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %s}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
`

// TestPatchBesideAnotherProcessor: somebody's own ext_proc filters go on as they were,
// and decide nothing of ours. What a patch says that they see is what they see.
func TestPatchBesideAnotherProcessor(t *testing.T) {
	binary := realenvoy.Require(t)
	dir, up, ours, theirs := t.TempDir(), newRecorder(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") == "Bearer T1" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}), &script{}, &script{}
	theirs.set(func(asked) answer { // it even writes our mark
		return answer{reply: &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{
			RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{
				SetHeaders: []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: envoy.GuardHeader, RawValue: []byte("a")}}},
			}}},
		}}}
	})
	sock, wall := filepath.Join(dir, "grpc.sock"), filepath.Join(dir, "wall.sock")
	serve(t, "unix", sock, ours)
	serve(t, "unix", wall, theirs)
	s := set(upstream("a", up.URL+"/mcp"))
	s.Server.Listen = "unix://" + sock
	addr := free(t)
	p := settled(t, fmt.Appendf(nil, walled, portOf(addr), portOf(up.URL), wall), s)
	if len(p.Open) > 0 {
		t.Errorf("want nothing left open, got %v", p.Open)
	}
	e, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: binary, Dir: dir, Bootstrap: p.Config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Stop)
	call := func(path string) (got reply, seen string) {
		t.Helper()
		before := len(theirs.seen())
		got = post(t, "http://"+addr+path, "{}", "Authorization", "Bearer CALLER")
		var all []string
		for _, a := range theirs.seen()[before:] {
			all = append(all, a.headers["authorization"])
		}
		return got, strings.Join(all, ", ")
	}

	lent := 0
	ours.set(func(a asked) answer { lent++; return lend(a.upstream, fmt.Sprintf("T%d", lent)) })
	got, seen := call("/a")
	if want := "Bearer CALLER, Bearer CALLER, Bearer T1"; got.status != http.StatusOK || len(up.take()) != 2 || seen != want {
		t.Errorf("want 200 at the second attempt, and the firewall asked with %s, got %d, and %s", want, got.status, seen)
	}
	ours.set(func(asked) answer { return answer{} })
	got, _ = call("/a")
	refused(t, got, http.StatusForbidden, "guard")
	if n := len(up.take()); n != 0 {
		t.Errorf("want nothing at the upstream that nobody decided on, got %d", n)
	}
	ours.set(func(asked) answer { return answer{err: http.ErrAbortHandler} })
	if got, seen = call("/shop"); got.status != http.StatusOK || seen != "Bearer CALLER" || len(ours.seen()) != 0 {
		t.Errorf("the shop: want what the firewall alone lets through, got %d, and it was asked with %s", got.status, seen)
	}
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// TestPatchMendsOursBesideAnothers: a filter of ours that was damaged is mended where it
// stands, and one of somebody else's before it or behind it stays as it is.
func TestPatchMendsOursBesideAnothers(t *testing.T) {
	const (
		other  = `{name: other, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor, grpc_service: {envoy_grpc: {cluster_name: b}}, failure_mode_allow: true}}`
		before = "is sent callers' own credentials"
		behind = "is sent the credential that is lent"
	)
	s := breakable()
	inCluster := edit(t, render(t, s, envoy.Options{}), broken{"", extProc + "failure_mode_allow", "true"})
	inListener := downstream(t, broken{"", edge + "failure_mode_allow", "true"})
	for name, tc := range map[string]struct {
		text      []byte
		set       *policy.Set
		list      string
		own, them int    // where ours stands in the end, and the other
		sees      string // the other
	}{
		"before ours in a cluster":  {inCluster, s, chain, 2, 1, before + ", and at a second attempt the one that was lent"},
		"behind ours in a cluster":  {inCluster, s, chain, 1, 2, behind},
		"before ours in a listener": {inListener, local(), hcm + "http_filters/", 1, 0, before},
		"behind ours in a listener": {inListener, local(), hcm + "http_filters/", 0, 1, behind},
	} {
		p := settled(t, edit(t, tc.text, broken{"", fmt.Sprintf("%s+%d", tc.list, tc.them), other}), tc.set)
		if len(p.Open) > 0 {
			t.Errorf("%s: want nothing left open, got %v", name, p.Open)
		}
		if i := slices.IndexFunc(p.Changes, func(c envoy.Change) bool {
			return strings.Contains(c.Path, "[other]") || strings.HasSuffix(c.Path, ".http_filters")
		}); i >= 0 {
			t.Errorf("%s: want no more than ours mended, got %s", name, p.Changes[i])
		}
		for i, want := range map[int]string{tc.own: "false", tc.them: "true"} {
			if got := at(t, p.Config, fmt.Sprintf("%s%d/typed_config/failure_mode_allow", tc.list, i)).Value; got != want {
				t.Errorf("%s: filter %d: want failure_mode_allow %s, got %q", name, i, want, got)
			}
		}
		if notes := strings.Join(p.Notes, "\n"); !strings.Contains(notes, tc.sees) {
			t.Errorf("%s: want %q said, got %q", name, tc.sees, notes)
		}
	}
}

// at returns what stands at a place.
func at(t *testing.T, text []byte, place string) *yaml.Node {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	n := doc.Content[0]
	for key := range strings.SplitSeq(place, "/") {
		n = down(t, n, key)
	}
	return n
}
