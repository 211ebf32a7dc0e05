package envoy_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func TestCheckFindsNothingInRendered(t *testing.T) {
	for name, s := range rendered() {
		b := render(t, s, envoy.Options{Admin: "127.0.0.1:9901"})
		for with, use := range map[string]*policy.Set{"with policy": s, "without": nil} {
			for _, f := range check(t, b, use) {
				t.Errorf("%s, %s: %s", name, with, f)
			}
		}
	}
}

func TestCheckFindsNothingInGoodFiles(t *testing.T) {
	tools := set(upstream("tools", "https://tools.company.com/mcp", withMTLS))
	texts := map[string][]byte{}
	for name, s := range map[string]*policy.Set{"downstream.yaml": nil, "upstream.yaml": tools} {
		b, err := os.ReadFile("testdata/good/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range check(t, b, s) {
			t.Error(f)
		}
		texts[name] = b
	}
	binary := realenvoy.Require(t)
	dir := t.TempDir()
	t.Chdir(dir)
	writePairs(t, dir)
	for name, b := range texts {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := realenvoy.Validate(t.Context(), binary, name); err != nil {
			t.Error(err)
		}
	}
}

func check(t *testing.T, b []byte, s *policy.Set) []envoy.Finding {
	t.Helper()
	found, err := envoy.Check("envoy.yaml", b, s)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Places in the rendered configuration of breakable, and in the file of good/downstream.yaml.
const (
	hcm      = "static_resources/listeners/0/filter_chains/0/filters/0/typed_config/"
	vhost    = hcm + "route_config/virtual_hosts/0/"
	route    = vhost + "routes/1/"
	edgeRt   = vhost + "routes/0/"
	clusterA = "static_resources/clusters/1/"
	options  = clusterA + "typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/"
	chain    = options + "http_filters/"
	extProc  = chain + "1/typed_config/"
	ours     = "static_resources/clusters/0/"
	oursHTTP = ours + "typed_extension_protocol_options/envoy.extensions.upstreams.http.v3.HttpProtocolOptions/"
	edge     = hcm + "http_filters/0/typed_config/"
)

func breakable() *policy.Set {
	s := set(upstream("a", "https://a.company.com/mcp", withMTLS), upstream("b", "https://b.company.com/mcp", withJWT))
	s.Envoy.TLS = &policy.TLSSpec{Certificate: "tls.crt", PrivateKey: "tls.key", ClientCA: "ca.crt"}
	return s
}

type broken struct {
	ids   string // what is found, in the order of ids, each once
	place string
	value string // YAML; empty takes the place out
}

// brokenUpstream are faults of §4, E4, E8, L1, L5, L6 and L7 in the chain of a cluster.
func brokenUpstream() []broken {
	perRoute := func(kind, rest string) string {
		return `{"@type": type.googleapis.com/envoy.` + kind + `, ` + rest + `}`
	}
	const extProcPerRoute, luaPerRoute, filterConfig = "extensions.filters.http.ext_proc.v3.ExtProcPerRoute", "extensions.filters.http.lua.v3.LuaPerRoute", "config.route.v3.FilterConfig"
	return []broken{
		{"failure-mode-allow", extProc + "failure_mode_allow", "true"},
		{"failure-mode-allow", route + "typed_per_filter_config/envoy.filters.http.ext_proc", perRoute(extProcPerRoute, "overrides: {failure_mode_allow: true}")},
		{"ext-proc-disabled", route + "typed_per_filter_config/envoy.filters.http.ext_proc", perRoute(extProcPerRoute, "disabled: true")},
		{"ext-proc-disabled", vhost + "typed_per_filter_config/envoy.filters.http.ext_proc", perRoute(filterConfig, "disabled: true")},
		{"ext-proc-disabled", hcm + "route_config/typed_per_filter_config/mine", perRoute(filterConfig, "config: "+perRoute(extProcPerRoute, "disabled: true"))},
		{"body-sent", route + "typed_per_filter_config/mine", perRoute(extProcPerRoute, "overrides: {processing_mode: {request_body_mode: BUFFERED}}")},
		{"observability-mode", route + "typed_per_filter_config/mine", perRoute(extProcPerRoute, "overrides: {async_mode: true}")},
		{"ext-proc-disabled", chain + "1/disabled", "true"},
		{"observability-mode", extProc + "observability_mode", "true"},
		{"refusals-disabled", extProc + "disable_immediate_response", "true"},
		{"request-headers-skipped", extProc + "processing_mode/request_header_mode", "SKIP"},
		{"body-sent", extProc + "processing_mode/request_body_mode", "BUFFERED"},
		{"body-sent", extProc + "processing_mode/response_body_mode", "STREAMED"},
		{"message-timeout", extProc + "message_timeout", "1.5s"},
		{"message-timeout", extProc + "message_timeout", ""},
		{"mutations-dropped", extProc + "mutation_rules/disallow_is_error", ""},
		{"mutation-rules-open mutations-dropped", extProc + "mutation_rules", ""},
		{"mutation-rules-open", extProc + "mutation_rules/disallow_all", "false"},
		{"mutation-rules-narrow", extProc + "mutation_rules/allow_expression/regex", "authorization"},
		{"mutation-of-routing", extProc + "mutation_rules/allow_all_routing", "true"},
		{"mutation-of-envoy-headers", extProc + "mutation_rules/allow_envoy", "true"},
		{"all-headers-forwarded", extProc + "forward_rules", ""},
		{"headers-not-forwarded", extProc + "forward_rules/allowed_headers/patterns", "[{exact: authorization}]"},
		{"headers-not-forwarded", extProc + "forward_rules/disallowed_headers", "{patterns: [{exact: cookie}]}"},
		{"no-certificate-names", extProc + "request_attributes", "[xds.cluster_name]"},
		{"no-forwarding-namespace", extProc + "metadata_options/forwarding_namespaces", ""},
		{"no-receiving-namespace", extProc + "metadata_options/receiving_namespaces/untyped", "[other]"},
		{"no-identity", extProc + "grpc_service/initial_metadata", ""},
		{"guard-other-upstream unknown-upstream", extProc + "grpc_service/initial_metadata/0/value", "nobody"},
		{"guard-other-upstream other-upstream", extProc + "grpc_service/initial_metadata/0/value", "b"},
		{"two-identities", extProc + "grpc_service/initial_metadata/+", "{key: MCP-Upstream, value: a}"},
		{"no-processor-cluster", extProc + "grpc_service/envoy_grpc/cluster_name", "gone"},
		{"no-guard", chain + "2", ""},
		{"no-guard", chain + "2/typed_config/default_source_code/inline_string", "function envoy_on_request(h) end"},
		{"guard-changed", chain + "2/typed_config/default_source_code/inline_string", `"-- x-mcp-auth-guard \"a\"\nfunction envoy_on_request(h) end"`},
		{"guard-disabled", chain + "2/disabled", "true"},
		{"guard-forged", route + "typed_per_filter_config/envoy.filters.http.header_mutation", perRoute("extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute", "mutations: {request_mutations: [{append: {header: {key: x-mcp-auth-guard, value: a}}}]}")},
		{"guard-forged", chain + "0/typed_config/mutations/request_mutations/+", "{append: {header: {key: X-Mcp-Auth-Guard, value: a}}}"},
		{"upstream-unverified", clusterA + "transport_socket/typed_config/common_tls_context/validation_context/match_typed_subject_alt_names/0/matcher", "{safe_regex: {regex: .*}}"},
		{"trailers-pass", chain + "0/typed_config/mutations/request_trailers_mutations", ""},
		{"trailers-pass", chain + "0/typed_config/mutations/request_trailers_mutations", "[{remove: authorization}]"},
		{"destination-from-request", clusterA + "type", "ORIGINAL_DST"},
		{"destination-from-request", clusterA + "cluster_type", `{name: envoy.clusters.dynamic_forward_proxy}`},
		{"way-around", "static_resources/clusters/+", `{name: both, cluster_type: {name: envoy.clusters.aggregate, typed_config: {"@type": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [a]}}}`},
		{"way-around", "static_resources/listeners/+", `{name: t, filter_chains: [{filters: [{name: tcp, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: a}}]}]}`},
		{"upstream-plaintext", clusterA + "transport_socket_matches", `[{name: raw, transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}]`},
		{"guard-disabled", route + "typed_per_filter_config/envoy.filters.http.lua", perRoute(luaPerRoute, "disabled: true")},
		{"guard-too-early", chain + "2", `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{header: {name: x-mcp-auth-guard, present_match: true}}]}}}}}`},
		{"mark-not-removed reason-not-removed trailers-pass", chain + "0", ""},
		{"reason-not-removed", chain + "0/typed_config/mutations/response_mutations", "[{remove: x-other}]"},
		{"reason-not-removed", chain + "0/typed_config/mutations/response_mutations", ""},
		{"no-filter", options + "http_filters", ""},
		{"mirrored", options + "request_mirror_policies", "[{cluster: b}]"},
		{"retry-replays", options + "retry_policy", "{retry_on: 5xx}"},
		{"upstream-plaintext", clusterA + "transport_socket", ""},
		{"upstream-unverified", clusterA + "transport_socket/typed_config/common_tls_context/validation_context", ""},
		{"upstream-unverified", clusterA + "transport_socket/typed_config/common_tls_context/validation_context/match_typed_subject_alt_names", ""},
		{"upstream-unverified", clusterA + "transport_socket/typed_config/common_tls_context/validation_context/trust_chain_verification", "ACCEPT_UNTRUSTED"},
		{"few-retries", clusterA + "circuit_breakers", ""},
		{"few-retries", clusterA + "circuit_breakers/thresholds/0/max_retries", "3"},
	}
}

// brokenListener are faults of the listener, its routes, the processor's cluster
// and the process.
func brokenListener() []broken {
	fileLog := func(format string) string {
		return `[{name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/stdout, log_format: {text_format_source: {inline_string: "` + format + `"}}}}]`
	}
	return []broken{
		{"path-not-normalized", hcm + "normalize_path", ""},
		{"slashes-not-merged", hcm + "merge_slashes", "false"},
		{"escaped-slashes", hcm + "path_with_escaped_slashes_action", "KEEP_UNCHANGED"},
		{"host-port", hcm + "strip_any_host_port", ""},
		{"host-dot", hcm + "strip_trailing_host_dot", ""},
		{"underscores", hcm + "common_http_protocol_options", ""},
		{"remote-address", hcm + "use_remote_address", "false"},
		{"internal-callers", hcm + "internal_address_config", "{cidr_ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}]}"},
		{"caller-certificate-header", hcm + "forward_client_cert_details", "ALWAYS_FORWARD_ONLY"},
		{"idle-timeout", hcm + "stream_idle_timeout", ""},
		{"mark-not-removed", hcm + "early_header_mutation_extensions", ""},
		{"rejection-relayed", hcm + "http_filters/0", ""},
		{"rejection-relayed", route + "typed_per_filter_config/envoy.filters.http.custom_response", `{"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}`},
		{"own-401-replaced", edge + "custom_response_matcher/matcher_list/matchers/0/predicate", `{single_predicate: {input: {name: s, typed_config: {"@type": type.googleapis.com/envoy.type.matcher.v3.HttpResponseStatusCodeMatchInput}}, value_match: {exact: "401"}}}`},
		{"outcome-without-reason", hcm + "access_log/0/typed_config/additional_response_headers_to_log", ""},
		{"outcome-without-reason", hcm + "access_log/0/typed_config/additional_response_headers_to_log", "[mcp-session-id]"},
		{"outcome-without-session", hcm + "access_log/0/typed_config/additional_response_headers_to_log", "[x-mcp-auth-reason]"},
		{"session-end-unseen", hcm + "access_log/0/typed_config/additional_request_headers_to_log", ""},
		{"no-outcome-log", hcm + "access_log", ""},
		{"no-outcome-log", hcm + "access_log/0/typed_config/common_config/grpc_service/envoy_grpc/cluster_name", "other"},
		{"challenge-relayed", route + "response_headers_to_remove", ""},
		{"no-client-ca", "static_resources/listeners/0/filter_chains/0/transport_socket", ""},
		{"caller-unverified", "static_resources/listeners/0/filter_chains/0/transport_socket/typed_config/common_tls_context/validation_context/trust_chain_verification", "ACCEPT_UNTRUSTED"},
		{"routes-unseen", hcm + "route_config", ""},
		{"no-attempt-count", vhost + "include_request_attempt_count", ""},
		{"redirects-followed", route + "route/internal_redirect_policy", "{}"},
		{"mirrored", route + "route/request_mirror_policies", "[{cluster: b}]"},
		{"mirrored", vhost + "request_mirror_policies", "[{cluster: b}]"},
		{"caller-host", route + "route/host_rewrite_literal", ""},
		{"route-timeout", route + "route/timeout", ""},
		{"cluster-from-request", route + "route", "{cluster_header: x-cluster, host_rewrite_literal: a, timeout: 0s}"},
		{"weighted-clusters", route + "route", "{weighted_clusters: {clusters: [{name: a, weight: 1}, {name: other, weight: 1}]}, host_rewrite_literal: a, timeout: 0s, retry_policy: {retry_on: retriable-status-codes, retriable_status_codes: [401]}}"},
		{"ext-proc-disabled", route + "route", `{weighted_clusters: {clusters: [{name: a, weight: 1, typed_per_filter_config: {envoy.filters.http.ext_proc: {"@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute, disabled: true}}}]}, host_rewrite_literal: a, timeout: 0s, retry_policy: {retry_on: retriable-status-codes, retriable_status_codes: [401]}}`},
		{"retry-replays", route + "route/retry_policy/retry_on", "retriable-status-codes,reset"},
		{"retry-replays", route + "route/retry_policy/retriable_status_codes", "[401, 503]"},
		{"retry-too-often", route + "route/retry_policy/num_retries", "3"},
		{"", vhost + "retry_policy", "{retry_on: gateway-error}"}, // each route has its own
		{"no-retry", route + "route/retry_policy", ""},
		{"hedged", route + "route/hedge_policy", "{hedge_on_per_try_timeout: true}"},
		{"authorization-removed", route + "request_headers_to_remove", "[Authorization]"},
		{"guard-forged", route + "request_headers_to_add", "[{header: {key: X-Mcp-Auth-Guard, value: a}}]"},
		{"credential-in-route", vhost + "request_headers_to_add", "[{header: {key: authorization, value: Bearer x}}]"},
		{"secret-copied", vhost + "request_headers_to_add", `[{header: {key: x-copy, value: "%REQ(Authorization)%"}}]`},
		{"no-outcome-log secret-logged", hcm + "access_log", fileLog("%START_TIME% %REQ(X-A?AUTHORIZATION):10%")},
		{"no-outcome-log secret-logged", hcm + "access_log", fileLog("%REQ(cookie)%")},
		{"no-outcome-log secret-logged", hcm + "access_log", `[{name: g, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig, common_config: {log_name: x}, additional_request_headers_to_log: [x-mcp-auth-key]}}]`},
		{"no-outcome-log secret-logged", hcm + "access_log", fileLog("%RESP(Set-Cookie)%")},
		{"secret-traced", hcm + "tracing", "{custom_tags: [{tag: a, request_header: {name: Authorization}}]}"},
		{"secret-in-metadata", hcm + "http_filters/+", `{name: h, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config, request_rules: [{header: authorization, on_header_present: {key: a}}]}}`},
		{"no-outcome-log secret-logged", hcm + "access_log", fileLog("%REQ(X-Goog-Api-Key)%")},
		{"tunnel", hcm + "upgrade_configs", "[{upgrade_type: CONNECT}]"},
		{"tunnel", route + "route/upgrade_configs", "[{upgrade_type: connect-udp}]"},
		{"verdict-forged", hcm + "http_filters/+", `{name: s, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config, metadata: [{metadata_namespace: mcp_auth, value: {caller: x}}]}}`},
		{"verdict-forged", hcm + "http_filters/+", `{name: p, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor, grpc_service: {envoy_grpc: {cluster_name: other}}, metadata_options: {receiving_namespaces: {untyped: [mcp_auth]}}}}`},
		{"no-health-check", ours + "health_checks", ""},
		{"no-outlier-detection", ours + "outlier_detection", ""},
		{"connect-timeout", ours + "connect_timeout", "5s"},
		{"connect-timeout", ours + "connect_timeout", ""},
		{"processor-limit", ours + "circuit_breakers", ""},
		{"processor-not-http2", ours + "typed_extension_protocol_options", ""},
		{"no-keepalive", oursHTTP + "explicit_http_config/http2_protocol_options", "{}"},
		{"processor-plaintext", ours + "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address", "{socket_address: {address: 10.0.0.7, port_value: 9440}}"},
		{"processor-unverified", ours + "transport_socket", `{name: tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}`},
		{"admin-exposed", "admin", "{address: {socket_address: {address: 0.0.0.0, port_value: 9901}}}"},
		{"envoy-too-old", "node/user_agent_build_version", "{version: {major_number: 1, minor_number: 38, patch: 3}}"},
	}
}

// brokenDownstream are faults of a listener's chain, on good/downstream.yaml.
func brokenDownstream() []broken {
	return []broken{
		{"failure-mode-allow", edge + "failureModeAllow", "true"},
		{"route-cache", edge + "route_cache_action", ""},
		{"response-headers-sent", edge + "processing_mode/response_header_mode", ""},
		{"one-identity", edge + "grpc_service/initial_metadata", "[{key: mcp-upstream, value: a}]"},
		{"no-identity", edge + "request_attributes", "[source.address]"},
		{"no-guard", hcm + "http_filters/1", ""},
		{"no-guard", hcm + "http_filters/1/typed_config/rules/action", "LOG"},
		{"no-guard", hcm + "http_filters/1", `{name: rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, shadow_rules: {policies: {p: {permissions: [{any: true}], principals: [{header: {name: x-mcp-auth-guard, present_match: true}}]}}}}}`},
		{"no-guard", hcm + "http_filters/1", `{name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation, mutations: {request_mutations: [{remove: x-mcp-auth-guard}]}}}`},
		{"trailers-pass", hcm + "http_filters/2", ""},
		{"guard-disabled", hcm + "http_filters/1/disabled", "true"},
		{"guard-disabled", edgeRt + "typed_per_filter_config/envoy.filters.http.rbac", `{"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute}`},
		{"mark-not-removed", hcm + "early_header_mutation_extensions", ""},
		{"weighted-clusters", edgeRt + "route", "{weighted_clusters: {clusters: [{name: a, weight: 1}, {name: b, weight: 1}]}, host_rewrite_literal: a, timeout: 0s}"},
		{"path-not-normalized", hcm + "normalizePath", "false"},
		{"no-filter", hcm + "http_filters/0", ""},
		{"message-timeout", edge + "message_timeout", "200ms"},
	}
}

// withRules is a policy with tool rules: a by the body, b by Envoy's mcp filter.
func withRules() *policy.Set {
	return set(
		upstream("a", "https://a.company.com/mcp", withTools(policy.ProofBody, 1<<20)),
		upstream("b", "https://b.company.com/mcp", withTools(policy.ProofMCPFilter, 1<<20)),
	)
}

// brokenTools are faults around tool rules (S1 to S4), on what withRules renders.
func brokenTools() []broken {
	const (
		limits    = hcm + "http_filters/0/"
		inspector = hcm + "http_filters/1/"
		clusterB  = "static_resources/clusters/2/"
		ownLimit  = route + "typed_per_filter_config/envoy.filters.http.buffer"
		routeB    = vhost + "routes/2/typed_per_filter_config/envoy.filters.http.mcp"
		off       = `{"@type": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}`
	)
	extProcB := strings.Replace(extProc, clusterA, clusterB, 1)
	return []broken{
		{"no-mode-override", extProc + "allow_mode_override", ""},
		{"no-mode-override", extProc + "allow_mode_override", "false"},
		{"", extProc + "allowed_override_modes", ""},
		{"no-mode-override", extProc + "allowed_override_modes/0/request_body_mode", "STREAMED"},
		{"no-mode-override", extProc + "allowed_override_modes/0/response_header_mode", "SEND"},
		{"no-body-limit", ownLimit, ""},
		{"no-body-limit", ownLimit, off},
		{"no-body-limit", ownLimit, `{"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute, disabled: true}`},
		{"mcp-filter-open no-body-limit rejection-relayed", hcm + "http_filters", "[]"},
		{"", limits + "disabled", ""},
		{"no-body-limit", limits + "typed_config/@type", "type.googleapis.com/envoy.extensions.filters.http.decompressor.v3.Decompressor"},
		{"", ownLimit + "/buffer/max_request_bytes", "65536"},
		{"buffer-too-small", ownLimit + "/buffer/max_request_bytes", "2097152"},
		{"buffer-too-small", clusterA + "per_connection_buffer_limit_bytes", "1048576"},
		{"buffer-too-small", clusterA + "per_connection_buffer_limit_bytes", ""},
		{"headers-not-forwarded", extProc + "forward_rules/allowed_headers/patterns/0/exact", "x-other"},
		{"no-filter-namespace", extProcB + "metadata_options/forwarding_namespaces/untyped", "[mcp_auth]"},
		{"mcp-filter-open", routeB, ""},
		{"mcp-filter-open", routeB + "/traffic_mode", "PASS_THROUGH"},
		{"mcp-filter-open", routeB + "/reject_duplicate_keys", ""},
		{"mcp-filter-open", inspector + "typed_config/attribute_source", "HEADERS"},
	}
}

func TestCheckNamesEveryBrokenSetting(t *testing.T) {
	s := breakable()
	text := render(t, s, envoy.Options{})
	down, err := os.ReadFile("testdata/good/downstream.yaml")
	if err != nil {
		t.Fatal(err)
	}
	run := func(base []byte, s *policy.Set, all []broken) {
		for _, b := range all {
			t.Run(b.ids+" "+b.place[strings.LastIndexByte(strings.TrimSuffix(b.place, "/"), '/')+1:]+" "+b.value, func(t *testing.T) {
				changed := edit(t, base, b)
				var ids []string
				for _, f := range check(t, changed, s) {
					ids = append(ids, f.ID)
					if f.What == "" || f.Why == "" || f.Fix == "" || f.Path == "" || f.Line < 1 {
						t.Errorf("incomplete: %+v", f)
					}
				}
				slices.Sort(ids)
				if got := strings.Join(slices.Compact(ids), " "); got != b.ids {
					t.Errorf("want %q, got %q: %v", b.ids, got, check(t, changed, s))
				}
			})
		}
	}
	run(text, s, brokenUpstream())
	run(text, s, brokenListener())
	run(down, nil, brokenDownstream())
	run(render(t, withRules(), envoy.Options{}), withRules(), brokenTools())
	run(render(t, told(), envoy.Options{}), told(), brokenTold())
}

// told is a policy in which the headers of answers tell how calls end.
func told() *policy.Set {
	return set(upstream("a", "https://a.company.com/mcp", withAnswers), upstream("b", "https://b.company.com/mcp", withAnswers, withTools(policy.ProofBody, 1<<20)))
}

// brokenTold are faults of what told renders.
func brokenTold() []broken {
	extProcB := strings.Replace(extProc, clusterA, "static_resources/clusters/2/", 1)
	return []broken{
		{"answers-not-sent", extProc + "processing_mode/response_header_mode", "SKIP"},
		{"", extProc + "processing_mode/response_header_mode", ""}, // Envoy's default
		{"headers-not-forwarded", extProc + "forward_rules/disallowed_headers", `{patterns: [{exact: ":status"}]}`},
		{"no-mode-override", extProcB + "allowed_override_modes/0/response_header_mode", "SKIP"},
	}
}

// TestCheckAnswersInAListener: the filter of a listener sees the answers for the
// policy that has them tell the outcome, and for no other.
func TestCheckAnswersInAListener(t *testing.T) {
	base, err := os.ReadFile("testdata/good/downstream.yaml")
	if err != nil {
		t.Fatal(err)
	}
	mode := edge + "processing_mode/response_header_mode"
	replace := `{name: c, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.custom_response.v3.CustomResponse, matcher: {exact: "401"}}}`
	has := func(s *policy.Set, id string, changes ...broken) bool {
		text := base
		for _, c := range changes {
			text = edit(t, text, c)
		}
		return slices.ContainsFunc(check(t, text, s), func(f envoy.Finding) bool { return f.ID == id })
	}
	logged := set(upstream("a", "https://a.company.com/mcp"), upstream("b", "https://b.company.com/mcp"))
	mixed := set(upstream("a", "https://a.company.com/mcp", withAnswers), upstream("b", "https://b.company.com/mcp"))
	sent := broken{"", mode, "SEND"}
	for name, tc := range map[string]struct {
		set     *policy.Set
		changes []broken
		id      string
		want    bool
	}{
		"sent for a log":             {logged, []broken{sent}, "response-headers-sent", true},
		"sent for one of two":        {mixed, []broken{sent}, "response-headers-sent", false},
		"not sent":                   {mixed, nil, "answers-not-sent", true},
		"not sent for a log":         {logged, nil, "answers-not-sent", false},
		"no log, for the other one":  {mixed, []broken{sent}, "no-outcome-log", true},
		"no log, and none needed":    {told(), []broken{sent}, "no-outcome-log", false},
		"replaced behind":            {told(), []broken{sent, {"", hcm + "http_filters/2", replace}}, "answers-replaced", true},
		"replaced behind, and a log": {logged, []broken{{"", hcm + "http_filters/2", replace}}, "answers-replaced", false},
	} {
		if got := has(tc.set, tc.id, tc.changes...); got != tc.want {
			t.Errorf("%s: %s: want %v, got %v", name, tc.id, tc.want, got)
		}
	}
}

// TestCheckWhatARouteInherits: a virtual host's retries and hedges hold for the routes
// without their own.
func TestCheckWhatARouteInherits(t *testing.T) {
	s := breakable()
	text := edit(t, render(t, s, envoy.Options{}), broken{"", route + "route/retry_policy", ""})
	for _, b := range []broken{
		{"no-retry retry-replays", vhost + "retry_policy", "{retry_on: gateway-error}"},
		{"hedged no-retry", vhost + "hedge_policy", "{hedge_on_per_try_timeout: true}"},
	} {
		if got := idsOf(check(t, edit(t, text, b), s)); got != b.ids {
			t.Errorf("want %q, got %q", b.ids, got)
		}
	}
}

// TestCheckWithoutPolicy keeps the rules that need no policy.
func TestCheckWithoutPolicy(t *testing.T) {
	s := breakable()
	text := render(t, s, envoy.Options{})
	for _, b := range []broken{
		{"failure-mode-allow", extProc + "failure_mode_allow", "true"},
		{"no-identity", extProc + "grpc_service/initial_metadata", ""},
		{"upstream-plaintext", clusterA + "transport_socket", ""},
		{"no-attempt-count", vhost + "include_request_attempt_count", ""},
	} {
		changed := edit(t, text, b)
		found := check(t, changed, nil)
		if len(found) == 0 || found[0].ID != b.ids {
			t.Errorf("want %s, got %v", b.ids, found)
		}
	}
}

func TestCheckTellsTheLine(t *testing.T) {
	text := render(t, breakable(), envoy.Options{})
	changed := edit(t, text, broken{"", extProc + "message_timeout", "0.1s"})
	found := check(t, changed, nil)
	if len(found) != 1 {
		t.Fatalf("want one finding, got %v", found)
	}
	if line := strings.Split(string(changed), "\n")[found[0].Line-1]; strings.TrimSpace(line) != "message_timeout: 0.1s" {
		t.Errorf("line %d is %q", found[0].Line, line)
	}
	want := "static_resources.clusters[a].typed_extension_protocol_options.envoy.extensions.upstreams.http.v3.HttpProtocolOptions.http_filters[envoy.filters.http.ext_proc].typed_config.message_timeout"
	if diff := cmp.Diff(want, found[0].Path); diff != "" {
		t.Error(diff)
	}
}

func TestCheckRefusesWhatIsNoConfiguration(t *testing.T) {
	for _, b := range []string{"", "a: [", "- a", "hello", "a: b", "&x [*x]"} {
		if found, err := envoy.Check("envoy.yaml", []byte(b), nil); err == nil {
			t.Errorf("%q: want an error, got %v", b, found)
		}
	}
}

// edit changes one place of a document. A place is keys and list positions; + adds
// to a list, and +1 before what is at 1.
func edit(t *testing.T, base []byte, b broken) []byte {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal(base, &doc); err != nil {
		t.Fatal(err)
	}
	keys := strings.Split(strings.ReplaceAll(b.place, "envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "\x00"), "/")
	at := doc.Content[0]
	for _, key := range keys[:len(keys)-1] {
		at = down(t, at, unescape(key))
	}
	last := unescape(keys[len(keys)-1])
	var value *yaml.Node
	if b.value != "" {
		var v yaml.Node
		if err := yaml.Unmarshal([]byte(b.value), &v); err != nil {
			t.Fatal(err)
		}
		value = v.Content[0]
	}
	put(t, at, last, value)
	out, err := yaml.Marshal(&doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func unescape(key string) string {
	return strings.ReplaceAll(key, "\x00", "envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
}

// down goes to a key or a list position; a key that is missing is made.
func down(t *testing.T, at *yaml.Node, key string) *yaml.Node {
	t.Helper()
	if at.Kind == yaml.SequenceNode {
		i, err := strconv.Atoi(key)
		if err != nil || i >= len(at.Content) {
			t.Fatalf("no position %q", key)
		}
		return at.Content[i]
	}
	for i := 0; i < len(at.Content); i += 2 {
		if at.Content[i].Value == key {
			return at.Content[i+1]
		}
	}
	made := &yaml.Node{Kind: yaml.MappingNode}
	at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, made)
	return made
}

func put(t *testing.T, at *yaml.Node, key string, value *yaml.Node) {
	t.Helper()
	if at.Kind == yaml.SequenceNode {
		if key == "+" {
			at.Content = append(at.Content, value)
			return
		}
		i, err := strconv.Atoi(key)
		switch {
		case err != nil || i >= len(at.Content):
			t.Fatalf("no position %q", key)
		case key[0] == '+':
			at.Content = slices.Insert(at.Content, i, value)
		case value == nil:
			at.Content = slices.Delete(at.Content, i, i+1)
		default:
			at.Content[i] = value
		}
		return
	}
	for i := 0; i < len(at.Content); i += 2 {
		if at.Content[i].Value != key {
			continue
		}
		if value == nil {
			at.Content = slices.Delete(at.Content, i, i+2)
			return
		}
		at.Content[i+1] = value
		return
	}
	if value == nil {
		t.Fatalf("no key %q to take out", key)
	}
	at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
}
