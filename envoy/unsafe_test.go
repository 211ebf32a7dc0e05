package envoy_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// settings are those that a configuration must have, each with the faults it is
// about. Each has examples of its own without it.
func settings() []string {
	return []string{
		"failure_mode_allow (E8)", "guard (E1)", "mutation_rules (E7)", "route_cache_action (L6)", "request_attributes (C2, C3)", "forward_rules (L2)",
		"processing_mode (E10)", "message_timeout (E3)", "connection manager (C3, C4, C6)", "cluster of the processor (E4, E9)", "retry (O4)", "version of Envoy",
	}
}

// unsafe is a configuration with one setting wrong: a file of testdata/unsafe.
type unsafe struct {
	setting string // the beginning of one of settings
	file    string
	place   string // in testdata/good/upstream.yaml, or downstream.yaml where the path begins with "listener: "
	value   string // YAML; empty takes the place out
}

const (
	ownRoute  = vhost + "routes/0/"
	ownTools  = "static_resources/clusters/0/"
	ownHTTP   = ownTools + "typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/"
	ownChain  = ownHTTP + "http_filters/"
	ownAsk    = ownChain + "1/typed_config/"
	ownWay    = "static_resources/clusters/1/"
	ownWayH2  = ownWay + "typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/explicit_http_config/http2_protocol_options"
	ownAnswer = "listener: " + hcm
)

func unsafeChain() []unsafe {
	const perRoute = `{"@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute, overrides: {failure_mode_allow: true}}`
	const luaOff = `{"@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.LuaPerRoute, disabled: true}`
	const rbac = `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {action: ALLOW, policies: {decided: {permissions: [{any: true}], principals: [{header: {name: x-mcp-auth-guard, present_match: true}}]}}}}}`
	return []unsafe{
		{"failure_mode_allow", "failure-mode-allow", ownAsk + "failure_mode_allow", "true"},
		{"failure_mode_allow", "failure-mode-allow-route", ownRoute + "typed_per_filter_config/envoy.filters.http.ext_proc", perRoute},
		{"failure_mode_allow", "failure-mode-allow-listener", ownAnswer + "http_filters/0/typed_config/failure_mode_allow", "true"},

		{"guard", "guard-missing", ownChain + "2", ""},
		{"guard", "guard-empty", ownChain + "2/typed_config/default_source_code/inline_string", `"-- x-mcp-auth-guard \"tools\"\nfunction envoy_on_request(handle) end\n"`},
		{"guard", "guard-off", ownChain + "2/disabled", "true"},
		{"guard", "guard-off-route", ownRoute + "typed_per_filter_config/envoy.filters.http.lua", luaOff},
		{"guard", "guard-rbac", ownChain + "2", rbac},
		{"guard", "guard-missing-listener", ownAnswer + "http_filters/1", ""},
		{"guard", "guard-logs-listener", ownAnswer + "http_filters/1/typed_config/rules/action", "LOG"},
		{"guard", "mark-kept", hcm + "early_header_mutation_extensions", ""},
		{"guard", "mark-kept-chain", ownChain + "0/typed_config/mutations/request_mutations", ""},
		{"guard", "mark-forged", ownRoute + "request_headers_to_add", "[{header: {key: x-mcp-auth-guard, value: tools}}]"},
		{"guard", "authorization-removed", ownRoute + "request_headers_to_remove", "[authorization]"},

		{"mutation_rules", "mutations-dropped", ownAsk + "mutation_rules/disallow_is_error", ""},
		{"mutation_rules", "mutations-open", ownAsk + "mutation_rules/disallow_all", ""},
		{"mutation_rules", "mutations-narrow", ownAsk + "mutation_rules/allow_expression/regex", "authorization|cookie"},
		{"mutation_rules", "mutations-routing", ownAsk + "mutation_rules/allow_all_routing", "true"},
		{"mutation_rules", "mutations-envoy", ownAsk + "mutation_rules/allow_envoy", "true"},

		{"route_cache_action", "route-cache-listener", ownAnswer + "http_filters/0/typed_config/route_cache_action", ""},

		{"request_attributes", "attributes-certificate", ownAsk + "request_attributes", "[xds.cluster_name, xds.route_name]"},
		{"request_attributes", "attributes-listener", ownAnswer + "http_filters/0/typed_config/request_attributes", "[source.address]"},
		{"request_attributes", "identity-missing", ownAsk + "grpc_service/initial_metadata", ""},

		{"forward_rules", "headers-all", ownAsk + "forward_rules", ""},
		{"forward_rules", "headers-few", ownAsk + "forward_rules/allowed_headers/patterns", "[{exact: authorization}]"},

		{"processing_mode", "request-headers-skipped", ownAsk + "processing_mode/request_header_mode", "SKIP"},
		{"processing_mode", "request-body", ownAsk + "processing_mode/request_body_mode", "BUFFERED"},
		{"processing_mode", "response-body", ownAsk + "processing_mode/response_body_mode", "STREAMED"},
		{"processing_mode", "response-headers-listener", ownAnswer + "http_filters/0/typed_config/processing_mode/response_header_mode", "SEND"},

		{"message_timeout", "message-timeout-default", ownAsk + "message_timeout", ""},
		{"message_timeout", "message-timeout-short", ownAsk + "message_timeout", "1s"},
	}
}

func unsafeAround() []unsafe {
	return []unsafe{
		{"connection manager", "normalize-path", hcm + "normalize_path", ""},
		{"connection manager", "merge-slashes", hcm + "merge_slashes", "false"},
		{"connection manager", "escaped-slashes", hcm + "path_with_escaped_slashes_action", "UNESCAPE_AND_FORWARD"},
		{"connection manager", "host-port", hcm + "strip_any_host_port", ""},
		{"connection manager", "host-dot", hcm + "strip_trailing_host_dot", "false"},
		{"connection manager", "underscores", hcm + "common_http_protocol_options/headers_with_underscores_action", "ALLOW"},
		{"connection manager", "remote-address", hcm + "use_remote_address", ""},
		{"connection manager", "internal-callers", hcm + "internal_address_config", "{cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"},

		{"cluster of the processor", "processor-missing", ownWay + "name", "another"},
		{"cluster of the processor", "processor-no-keepalive", ownWayH2 + "/connection_keepalive", ""},
		{"cluster of the processor", "processor-no-health-check", ownWay + "health_checks", ""},
		{"cluster of the processor", "processor-no-outlier-detection", ownWay + "outlier_detection", ""},
		{"cluster of the processor", "processor-connect-timeout", ownWay + "connect_timeout", "5s"},
		{"cluster of the processor", "processor-limit", ownWay + "circuit_breakers", ""},

		{"retry", "retry-missing", ownRoute + "route/retry_policy", ""},
		{"retry", "retry-on-5xx", ownRoute + "route/retry_policy/retry_on", "retriable-status-codes,5xx"},
		{"retry", "retry-on-503", ownRoute + "route/retry_policy/retriable_status_codes", "[401, 503]"},
		{"retry", "retry-thrice", ownRoute + "route/retry_policy/num_retries", "3"},
		{"retry", "retry-budget", ownTools + "circuit_breakers", ""},
		{"retry", "retry-uncounted", vhost + "include_request_attempt_count", ""},

		{"version", "version", "node/user_agent_build_version", "{version: {major_number: 1, minor_number: 38, patch: 3}}"},
	}
}

// text is the broken configuration, and the policy that it is held against.
func (u unsafe) text(t *testing.T) ([]byte, *policy.Set) {
	t.Helper()
	base, s := "upstream", set(upstream("tools", "https://tools.company.com/mcp", withMTLS))
	place, listener := strings.CutPrefix(u.place, "listener: ")
	if listener {
		base, s = "downstream", nil
	}
	b, err := os.ReadFile(filepath.Join("testdata/good", base+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(edit(t, b, broken{"", place, u.value}), &doc); err != nil {
		t.Fatal(err)
	}
	doc.HeadComment, doc.Content[0].HeadComment, doc.Content[0].Content[0].HeadComment = "", "", ""
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), s
}

// TestC3_E1_E3_E7_E8_UnsafeSettings: every setting that a configuration must have has
// a broken example in testdata/unsafe that check names, alone, with the fix. The head
// of each file is what check says of it.
func TestC3_E1_E3_E7_E8_UnsafeSettings(t *testing.T) {
	shown := map[string]int{}
	files := map[string]bool{}
	var page strings.Builder
	page.WriteString("| setting | broken example | what `check` says | to mend it | `--patch` |\n| --- | --- | --- | --- | --- |\n")
	for _, u := range append(unsafeChain(), unsafeAround()...) {
		i := slices.IndexFunc(settings(), func(s string) bool { return strings.HasPrefix(s, u.setting) })
		if i < 0 || files[u.file] {
			t.Fatalf("%s: want one of settings, and a file of its own, got %q", u.file, u.setting)
		}
		shown[settings()[i]]++
		files[u.file] = true
		text, s := u.text(t)
		found := check(t, text, s)
		if len(found) != 1 {
			t.Errorf("%s: want one finding, got %v", u.file, found)
			continue
		}
		f, mended := found[0], "leaves it to you"
		with := s
		if with == nil {
			with = local()
		}
		if p := settled(t, text, with); !strings.Contains(idsOf(p.Open), f.ID) {
			mended = "mends it"
		}
		head := fmt.Sprintf("# %s, wrong. What check says:\n#\n# %s: %s.\n# %s.\n# Fix: %s.\n\n", settings()[i], f.ID, f.What, f.Why, f.Fix)
		golden(t, "unsafe/"+u.file+".yaml", append([]byte(head), text...))
		fmt.Fprintf(&page, "| %s | [%s](../envoy/testdata/unsafe/%s.yaml) | `%s`: %s | %s | %s |\n", settings()[i], u.file, u.file, f.ID, f.What, f.Fix, mended)
	}
	for _, s := range settings() {
		if shown[s] == 0 {
			t.Errorf("%s has no broken example", s)
		}
	}
	have, err := filepath.Glob("testdata/unsafe/*.yaml")
	if err != nil || len(have) != len(files) {
		t.Errorf("want %d files, got %d, %v; take out those that no row is about", len(files), len(have), err)
	}
	section(t, "../docs/envoy.md", "unsafe", page.String())
}

// section keeps what stands between two marks of a page.
func section(t *testing.T, path, mark, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), "<!-- "+mark+" -->\n")
	have, after, ends := strings.Cut(rest, "<!-- /"+mark+" -->")
	if !ok || !ends {
		t.Fatalf("%s: want a section between <!-- %s --> and <!-- /%s -->", path, mark, mark)
	}
	if have == want {
		return
	}
	if !*update {
		t.Errorf("%s: the section %s is not what was seen; run go test ./envoy -update (-want +got):\n%s", path, mark, cmp.Diff(want, have))
		return
	}
	if err := os.WriteFile(path, []byte(before+"<!-- "+mark+" -->\n"+want+"<!-- /"+mark+" -->"+after), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestUnsafeIsAcceptedByEnvoy: Envoy says nothing of these settings; that is what check
// is for.
func TestUnsafeIsAcceptedByEnvoy(t *testing.T) {
	binary := realenvoy.Require(t)
	all, err := filepath.Glob("testdata/unsafe/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string][]byte{}
	for _, file := range all {
		if texts[filepath.Base(file)], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	t.Chdir(dir)
	writePairs(t, dir)
	for name, text := range texts {
		if name == "processor-missing.yaml" {
			continue // Envoy sees that this cluster is not there
		}
		if err := os.WriteFile("envoy.yaml", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := realenvoy.Validate(t.Context(), binary, "envoy.yaml"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
