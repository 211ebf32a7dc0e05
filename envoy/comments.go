package envoy

import "slices"

// header opens the rendered file.
func header() string {
	return `# Envoy for the upstreams of an envoy-mcp-auth policy. Written by
# "envoy-mcp-auth render envoy"; change the policy and render again rather than
# edit here, or run "envoy-mcp-auth check --envoy FILE" after an edit.
#
# Use Envoy 1.38.4 or later: before it, path parameters could get past path rules
# (CVE-2026-73511, -73551, -73553).
#
# How a call goes: a listener cleans the request up, a
# route picks the cluster, and the filters *of that cluster* ask envoy-mcp-auth
# once per attempt. They run after every routing decision, so a token cannot go
# to another upstream than the one it was decided for. Whatever fails on the way
# (no answer, late, an error, a stream that just ends) is a refusal.
#
# Each setting is explained where it first occurs.`
}

// bootstrapComments say what goes wrong without a setting. The path of each is
// the end of the keys that lead to it.
func bootstrapComments() []comment {
	all := listenerComments()
	all = append(all, routeComments()...)
	all = append(all, clusterComments()...)
	return append(all, filterComments()...)
}

func listenerComments() []comment {
	return []comment{
		{"admin", "The admin interface can stop this Envoy and shows its whole configuration.\nKeep it on loopback."},
		{"listeners.per_connection_buffer_limit_bytes", "How much of a body is kept so that it can be sent again: a call with a larger\nbody is not repeated on 401."},
		{"filter_chains.transport_socket", "The caller's certificate, if it has one, must be of this authority. Which names\nmay call which upstream is the policy's business."},
		{"typed_config.common_http_protocol_options", "A header such as x_api_key is another spelling of x-api-key to many servers."},
		{"typed_config.server_header_transformation", "The upstream's own server header stays as it is."},
		{"typed_config.stream_idle_timeout", "A long tool call or an SSE stream may be silent for a while. An hour lets it, and\nstill frees the streams of peers that vanished."},
		{"typed_config.request_timeout", "For receiving a request, body included; not for answering it. With the next one,\nthis ends clients that hold a request open on purpose."},
		{"typed_config.use_remote_address", "This is the edge: x-envoy-* headers of a caller (retries, timeouts) are taken off,\nand no x-forwarded-for is trusted."},
		{"typed_config.forward_client_cert_details", "A caller's own x-forwarded-client-cert is taken off."},
		{"typed_config.early_header_mutation_extensions", "Only envoy-mcp-auth may set this mark; see the guard below. The rest would let a\ncaller tell the upstream of another host or path than it asked for."},
		{"typed_config.access_log", "How calls ended, for envoy-mcp-auth: a token that an upstream refused, on a call\nthat was too large to be sent again, is replaced for the next one."},
		{"typed_config.normalize_path", "The path that is matched is the path that goes on: no /a/../b, no //, no %2f."},
		{"typed_config.strip_any_host_port", "mcp.test, mcp.test:443 and mcp.test. are one host."},
		{"typed_config.local_reply_config", "A body over tools.max_body is refused with our reason."},
		{"http_filters.disabled", "Off, but for routes that say otherwise: those of upstreams with tool rules."},
		{"typed_config.http_filters", "An upstream's last 401 is about our credential, and a caller can do nothing about\nit: it becomes a 502 with a reason, so that no client starts a login."},
	}
}

func routeComments() []comment {
	return []comment{
		{"virtual_hosts.include_request_attempt_count", "Tells the first attempt from the second. Envoy overwrites what a caller sends, so\nit can be trusted; without it, a caller could claim to be on a second attempt."},
		{"match.safe_regex", "Paths that this Envoy and an upstream may read in two ways: ..;x, ..%3b, %252e."},
		{"match.path_separated_prefix", "This path and what is below it: /x/mcp and /x/mcp/y, not /x/mcpy."},
		{"route.regex_rewrite", "A prefix_rewrite would make // of the slash that follows the name."},
		{"route.host_rewrite_literal", "The upstream gets its own host, never one that the caller chose."},
		{"route.timeout", "No limit on a whole answer: SSE streams last."},
		{"route.retry_policy", "A revoked token heals inside the call: the second attempt is decided again, with a\nnew token. Nothing but a 401 is repeated, because a tool call may not be safe to\nrun twice; a 401 says that it did not run."},
		{"routes.response_headers_to_remove", "The upstream's challenge is for the holder of the credential, which is us."},
		{"typed_per_filter_config.envoy.filters.http.buffer", "Tool rules have the body read, up to tools.max_body. A cluster's chain cannot\nrefuse a body that its buffer does not hold, so a larger one ends here."},
		{"typed_per_filter_config.envoy.filters.http.mcp", "Envoy reads what the body names, and refuses a body that it cannot read."},
		{"typed_per_filter_config.envoy.filters.http.custom_response", "Nothing is lent to this upstream: its 401 is about the caller's own credential and\npasses as it is."},
		{"routes.direct_response", "What no route above took. Never a 404: clients take that for a missing server."},
	}
}

func clusterComments() []comment {
	return []comment{
		{"clusters.health_checks", "Seen as draining within two seconds, before a server that got SIGTERM stops."},
		{"clusters.outlier_detection", "Passes over a server that fails, when there is another."},
		{"clusters.common_lb_config", "With no healthy server left, ask anyway: it may be back before the next check."},
		{"clusters.circuit_breakers", "Envoy allows 3 retries at once by default. When a token that many calls use is\nrevoked, the fourth call would see the 401."},
		{"http2_protocol_options.connection_keepalive", "A connection that died silently is noticed."},
		{"common_tls_context.validation_context", "By itself, Envoy verifies neither the chain nor the name."},
		{"HttpProtocolOptions.common_http_protocol_options", "Common servers close an idle connection after 5 s. A call written into a closing\nconnection fails, and a POST cannot simply be sent again: so we close first."},
		{"mutations.response_mutations", "The reason of a refusal is ours to give: what an upstream calls so is taken off."},
		{"mutations.request_trailers_mutations", "Nobody is asked about trailers, so none goes on."},
		{"HttpProtocolOptions.http_filters", "The order matters: take the mark off (a second attempt carries the first one's),\nask envoy-mcp-auth, which sets it, and let the guard demand it."},
		{"layered_runtime", "Envoy refuses regular expressions over size 100; mutation_rules may be longer."},
		{"overload_manager", "Without a limit, connections take memory until there is none. Raise it with care."},
	}
}

func filterComments() []comment {
	return []comment{
		{"typed_config.grpc_service", "initial_metadata names the upstream. A caller cannot touch it, unlike a header."},
		{"grpc_service.retry_policy", "A server that is gone before it answered: another one is asked, when there is one.\nNothing was lent by then."},
		{"typed_config.failure_mode_allow", "No answer is a refusal."},
		{"typed_config.processing_mode", "One message per attempt: the request's headers. Where the policy says outcomes:\nresponse_headers, those of the answer make a second one."},
		{"typed_config.allow_mode_override", "Tool rules need the body of a POST. envoy-mcp-auth asks for it, and may ask for\nnothing else."},
		{"typed_config.message_timeout", "Longer than server.deadline, so that a slow authorization server is answered with\na reason. Envoy's own 200 ms is shorter than one token request."},
		{"typed_config.mutation_rules", "What a reply may touch. Anything else fails the request instead of being dropped\nsilently."},
		{"typed_config.forward_rules", "Only what a decision reads leaves Envoy."},
		{"typed_config.metadata_options", "The decision goes to the access log, and the first attempt's to the second. There\nis no secret in it."},
		{"typed_config.route_cache_action", "The route is settled; no reply may choose another."},
		{"typed_config.default_source_code", "The guard. A stream that ends without an error before a reply lets the request\nthrough untouched, the caller's credentials included, even though\nfailure_mode_allow is false. Then the mark is missing."},
	}
}

// patchComments are those for a configuration of somebody's own, where some of it
// stands in other places.
func patchComments() []comment {
	own := []comment{
		{"typed_config.early_header_mutation_extensions", "Only envoy-mcp-auth may set this mark; see the guard in the upstreams' clusters."},
		{"routes.request_headers_to_remove", "Headers by which a caller could tell the upstream of another host or path than it\nasked for."},
		{"typed_per_filter_config.envoy.filters.http.custom_response", "The upstream's last 401 is about our credential, and a caller can do nothing about\nit: it becomes a 502 with a reason, so that no client starts a login. A 401 that\nthis Envoy itself gives stays."},
	}
	others := slices.DeleteFunc(bootstrapComments(), func(c comment) bool {
		return slices.ContainsFunc(own, func(o comment) bool { return o.at == c.at })
	})
	return append(own, others...)
}
