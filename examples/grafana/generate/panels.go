package main

// rows are the dashboard, from what is asked first to what is asked last.
func rows() []row {
	return []row{now(), calls(), authentication(), latency(), protection(), records(), upkeep()}
}

func now() row {
	onOff := func(ok, bad string) map[string]string { return map[string]string{"1": ok, "0": bad} }
	return row{"Now", []panel{
		{
			title: "Calls", about: "That ended, in the last 5 minutes.", kind: stat, unit: "reqps", wide: 4,
			queries: []query{{"", `sum(upstream:mcp_auth_calls:rate5m{upstream=~"$upstream"})`}},
		},
		{
			title: "Authentication fails", about: "The share of calls that failed to authenticate, at any stage. McpAuthFailures fires above 10 %.", kind: stat, unit: "percentunit", wide: 4, bad: .1,
			queries: []query{{"", `sum(upstream_stage:mcp_auth_auth_failures:rate5m{upstream=~"$upstream"}) / (sum(upstream:mcp_auth_calls:rate5m{upstream=~"$upstream"}) > 0)`}},
		},
		{
			title: "Upstreams switched off", about: "By the watch, or by disabled: true in the policy.", kind: stat, unit: "short", wide: 4, bad: 1,
			queries: []query{{"", `sum(max by (upstream) (mcp_auth_upstream_disabled{upstream=~"$upstream"})) or vector(0)`}},
		},
		{
			title: "Next token to end", about: "How long the token lives that ends first. Tokens are renewed before that.", kind: stat, unit: "s", wide: 4, bad: 30, least: true,
			queries: []query{{"", `min(max by (upstream) (mcp_auth_token_expiry_timestamp_seconds{upstream=~"$upstream"})) - time()`}},
		},
		{
			title: "Policy file", about: "Whether the file as it is now is in force everywhere. When not, the last good one is.", kind: stat, wide: 4, bad: 1, least: true, words: onOff("in force", "cannot be loaded"),
			queries: []query{{"", `min(mcp_auth_config_last_reload_successful{instance=~"$instance"})`}},
		},
		{
			title: "Audit", about: "Whether an audit could not be written at its last line.", kind: stat, wide: 4, bad: 1, words: onOff("fails", "written"),
			queries: []query{{"", `max(mcp_auth_audit_failing{instance=~"$instance"})`}},
		},
	}}
}

func calls() row {
	return row{"Calls", []panel{
		{
			title: "Calls by upstream", about: "That ended, by Envoy's access log. A long stream counts when it ends.", kind: series, unit: "reqps", stacked: true,
			queries: []query{{"{{upstream}}", `topk(20, upstream:mcp_auth_calls:rate5m{upstream=~"$upstream"})`}},
		},
		{
			title: "Calls by outcome", about: "By the class of the status that the caller got; none when the call died before one.", kind: series, unit: "reqps", stacked: true,
			queries: []query{{"{{class}}", `sum by (class) (upstream_class:mcp_auth_calls:rate5m{upstream=~"$upstream"})`}},
		},
		{
			title: "Refusals by reason", about: "What this server refused. The README has a table of the reasons.", kind: series, unit: "reqps", stacked: true,
			queries: []query{{"{{reason}}", `sum by (reason) (upstream_reason:mcp_auth_refusals:rate5m{upstream=~"$upstream"}) > 0`}},
		},
		{
			title: "Calls by caller", about: "The ten that call most.", kind: series, unit: "reqps", stacked: true,
			queries: []query{{"{{caller}}", `topk(10, sum by (caller) (rate(mcp_auth_calls_total{upstream=~"$upstream"}[$__rate_interval])))`}},
		},
		{
			title: "Calls by tool", about: "The ten most called. Empty where no rule governs tools; other is what is beyond the bounds.", kind: series, unit: "reqps", stacked: true,
			queries: []query{{"{{upstream}} {{tool}}", `topk(10, sum by (upstream, tool) (rate(mcp_auth_calls_total{upstream=~"$upstream"}[$__rate_interval])))`}},
		},
		{
			title: "Calls that went wrong under way", about: "Undecided: Envoy answered without this server. Reset: no whole answer. Attempts beyond the calls are repeats..", kind: series, unit: "reqps",
			queries: []query{
				{"undecided", `sum(rate(mcp_auth_calls_undecided_total{upstream=~"$upstream"}[$__rate_interval]))`},
				{"reset", `sum(rate(mcp_auth_calls_reset_total{upstream=~"$upstream"}[$__rate_interval]))`},
				{"attempts", `sum(rate(mcp_auth_attempts_total{upstream=~"$upstream"}[$__rate_interval]))`},
			},
		},
	}}
}

func authentication() row {
	return row{"Authentication and tokens", []panel{
		{
			title: "Failures by stage", about: "caller: refused here. token: no token to be had. upstream: 401 or 403 to the credential lent.", kind: series, unit: "reqps", stacked: true,
			queries: []query{{"{{stage}}", `sum by (stage) (upstream_stage:mcp_auth_auth_failures:rate5m{upstream=~"$upstream"})`}},
		},
		{
			title: "Failures by upstream", about: "The share of an upstream's calls. McpAuthFailures fires above the line.", kind: series, unit: "percentunit", bad: .1,
			queries: []query{{"{{upstream}}", `topk(20, upstream:mcp_auth_auth_failures:ratio_rate5m{upstream=~"$upstream"})`}},
		},
		{
			title: "Refused by the upstream", about: "Tokens dropped because an upstream had refused them, beside those replaced within the call.", kind: series, unit: "reqps",
			queries: []query{
				{"evicted", `sum(rate(mcp_auth_tokens_evicted_total{instance=~"$instance"}[$__rate_interval]))`},
				{"{{upstream}} 401, 403", `topk(10, upstream_stage:mcp_auth_auth_failures:rate5m{upstream=~"$upstream", stage="upstream"})`},
			},
		},
		{
			title: "Life of tokens", about: "Time until the token at hand ends: a saw of which the teeth do not touch the ground.", kind: series, unit: "s",
			queries: []query{{"{{upstream}}", `bottomk(20, max by (upstream) (mcp_auth_token_expiry_timestamp_seconds{upstream=~"$upstream"})) - time()`}},
		},
		{
			title: "Token requests that failed", about: "By what went wrong: an OAuth error, or the way to the authorization server.", kind: series, unit: "reqps",
			queries: []query{{"{{upstream}} {{result}}", `sum by (upstream, result) (rate(mcp_auth_token_requests_total{upstream=~"$upstream", result!="ok"}[$__rate_interval]))`}},
		},
		{
			title: "Token requests", about: "All of them. Shared cache: hit is a token that another replica fetched.", kind: series, unit: "reqps",
			queries: []query{
				{"{{result}}", `sum by (result) (rate(mcp_auth_token_requests_total{upstream=~"$upstream"}[$__rate_interval]))`},
				{"cache {{result}}", `sum by (result) (rate(mcp_auth_shared_cache_requests_total{instance=~"$instance"}[$__rate_interval]))`},
			},
		},
	}}
}

func latency() row {
	return row{"Latency", []panel{
		{
			title: "Whole calls", about: "As Envoy saw them, until the last byte of the answer. Streams last as long as they like.", kind: series, unit: "s", wide: 12,
			queries: []query{
				{"{{upstream}} p50", `topk(10, upstream:mcp_auth_call_seconds:p50_5m{upstream=~"$upstream"})`},
				{"{{upstream}} p99", `topk(10, upstream:mcp_auth_call_seconds:p99_5m{upstream=~"$upstream"})`},
			},
		},
		{
			title: "Our share", about: "What the decisions of a call took, all attempts together, waiting for a token included.", kind: series, unit: "s", wide: 12,
			queries: []query{
				{"{{upstream}} p50", `topk(10, upstream:mcp_auth_call_own_seconds:p50_5m{upstream=~"$upstream"})`},
				{"{{upstream}} p99", `topk(10, upstream:mcp_auth_call_own_seconds:p99_5m{upstream=~"$upstream"})`},
			},
		},
		{
			title: "Our share of the time", about: "Of all the time that calls took.", kind: series, unit: "percentunit", wide: 12,
			queries: []query{{"{{upstream}}", `topk(10, sum by (upstream) (rate(mcp_auth_call_own_seconds_sum{upstream=~"$upstream"}[$__rate_interval])) / (sum by (upstream) (rate(mcp_auth_call_seconds_sum{upstream=~"$upstream"}[$__rate_interval])) > 0))`}},
		},
		{
			title: "Decisions", about: "From Envoy's message until our reply. A point is a trace, where Prometheus keeps exemplars.", kind: series, unit: "s", wide: 12,
			queries: []query{
				{"{{instance}} p99", `instance:mcp_auth_decision_seconds:p99_5m{instance=~"$instance"}`},
				{"p50", `histogram_quantile(0.5, sum by (le) (rate(mcp_auth_decision_seconds_bucket{instance=~"$instance"}[$__rate_interval])))`},
			},
		},
	}}
}

func protection() row {
	return row{"Watch and limits", []panel{
		{
			title: "Switched off", about: "Upstreams whose calls are refused with upstream_disabled.", kind: timeline, wide: 12, bad: 1, words: map[string]string{"0": "on", "1": "off"},
			queries: []query{{"{{upstream}}", `max by (upstream) (mcp_auth_upstream_disabled{upstream=~"$upstream"}) > 0`}},
		},
		{
			title: "Alerts of the watch", about: "That began, by rule; no upstream is a rule about all.", kind: series, unit: "short", wide: 6,
			queries: []query{{"{{rule}} {{upstream}}", `sum by (rule, upstream) (increase(mcp_auth_alerts_total{upstream=~"$upstream"}[$__rate_interval]))`}},
		},
		{
			title: "Messages to receivers", about: "refused, gave_up and dropped were told to nobody; retried is an attempt.", kind: series, unit: "short", wide: 6,
			queries: []query{{"{{kind}} {{result}}", `sum by (kind, result) (increase(mcp_auth_alert_deliveries_total{instance=~"$instance"}[$__rate_interval]))`}},
		},
		{
			title: "Limits", about: "Calls refused by a limit of the policy.", kind: series, unit: "reqps", wide: 12,
			queries: []query{{"{{upstream}} {{rule}}", `sum by (upstream, rule) (rate(mcp_auth_rate_limited_total{upstream=~"$upstream"}[$__rate_interval]))`}},
		},
		{
			title: "Rate limit service", about: "What it was asked, by result; failed, timeout and skipped went by the policy's word for its outage.", kind: series, unit: "reqps", wide: 12,
			queries: []query{{"{{result}}", `sum by (result) (rate(mcp_auth_ratelimit_service_requests_total{instance=~"$instance"}[$__rate_interval]))`}},
		},
	}}
}

func records() row {
	return row{"Records", []panel{
		{
			title: "Audit lines", about: "A decision each, and an outcome each.", kind: series, unit: "short",
			queries: []query{{"{{kind}}", `sum by (kind) (rate(mcp_auth_audit_lines_total{instance=~"$instance"}[$__rate_interval]))`}},
		},
		{
			title: "Audit drops", about: "Lines that did not come to a sink, and failures of the file. McpAuthAuditDropped fires on the first.", kind: series, unit: "short",
			queries: []query{
				{"{{instance}} {{sink}}", `sum by (instance, sink) (increase(mcp_auth_audit_dropped_total{instance=~"$instance"}[$__rate_interval]))`},
				{"{{instance}} file failures", `sum by (instance) (increase(mcp_auth_audit_failures_total{instance=~"$instance"}[$__rate_interval]))`},
			},
		},
		{
			title: "Access log, traces and log", about: "Entries of Envoy's access log by kind; spans by what became of them; log lines not written.", kind: series, unit: "short",
			queries: []query{
				{"entry {{kind}}", `sum by (kind) (rate(mcp_auth_access_log_entries_total{instance=~"$instance"}[$__rate_interval]))`},
				{"spans {{result}}", `sum by (result) (rate(mcp_auth_spans_total{instance=~"$instance"}[$__rate_interval]))`},
				{"log lines dropped", `sum(rate(mcp_auth_log_lines_dropped_total{instance=~"$instance"}[$__rate_interval]))`},
				{"calls under other", `sum(rate(mcp_auth_calls_folded_total{instance=~"$instance"}[$__rate_interval]))`},
			},
		},
	}}
}

func upkeep() row {
	return row{"Configuration and process", []panel{
		{
			title: "xDS", about: "Envoys that follow the served configuration, and resources that one of them refused (NACK): it goes on with what it had.", kind: series, unit: "short",
			queries: []query{
				{"envoys of {{instance}}", `mcp_auth_xds_envoys{instance=~"$instance"}`},
				{"refused {{kind}}", `sum by (kind) (increase(mcp_auth_xds_refused_total{instance=~"$instance"}[$__rate_interval]))`},
			},
		},
		{
			title: "Policy and secrets", about: "Reloads by result, secret files that cannot be read any more, and upstreams that are lent an expired token.", kind: series, unit: "short",
			queries: []query{
				{"reloads {{result}}", `sum by (result) (increase(mcp_auth_config_reloads_total{instance=~"$instance"}[$__rate_interval]))`},
				{"stale secret files {{instance}}", `mcp_auth_stale_secret_files{instance=~"$instance"}`},
				{"stale tokens", `count(mcp_auth_token_stale{upstream=~"$upstream"})`},
			},
		},
		{
			title: "Clock skew", about: "How far the clocks of token endpoints are ahead.", kind: series, unit: "s",
			queries: []query{{"{{endpoint}}", `max by (endpoint) (abs(mcp_auth_token_endpoint_clock_skew_seconds{instance=~"$instance"}))`}},
		},
		{
			title: "CPU", about: "Cores in use.", kind: series, unit: "short",
			queries: []query{{"{{instance}}", `rate(process_cpu_seconds_total{instance=~"$instance"}[$__rate_interval]) and on (instance) mcp_auth_build_info`}},
		},
		{
			title: "Memory", about: "Resident.", kind: series, unit: "bytes",
			queries: []query{{"{{instance}}", `process_resident_memory_bytes{instance=~"$instance"} and on (instance) mcp_auth_build_info`}},
		},
		{
			title: "Goroutines", about: "One or two for each call that is being decided, or waits.", kind: series, unit: "short",
			queries: []query{{"{{instance}}", `go_goroutines{instance=~"$instance"} and on (instance) mcp_auth_build_info`}},
		},
	}}
}
