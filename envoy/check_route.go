package envoy

import (
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
)

// leg checks one route to a cluster of ours. asks is whether the listener's own
// chain asks us, rather than the cluster's.
func (c *checker) leg(hcm tree, l leg, asks bool) {
	if at := l.vhost().get("include_request_attempt_count"); !at.yes() && c.countsAttempts(hcm, l) {
		c.report(at, problem{
			"no-attempt-count", "include_request_attempt_count is not set", "A caller could write " + attemptHeader + " itself and claim to be on a second attempt", "set it to true on the virtual host",
		})
	}
	c.destination(l, asks)
	c.hosts(l.action)
	c.redirects(l)
	c.tunnels(l.action.get("upgrade_configs"))
	c.legRetries(l)
	for _, level := range l.levels {
		c.mirrors(level)
		c.headers(level)
		c.overrides(level.get("typed_per_filter_config"))
	}
	c.mirrors(l.action)
	for _, w := range l.action.get("weighted_clusters", "clusters").items() {
		c.headers(w)
		c.overrides(w.get("typed_per_filter_config"))
	}
	if !l.action.get("timeout").ok() {
		c.report(l.action.get("timeout"), problem{
			"route-timeout", "the route's timeout is not set: 15 s", "An SSE stream or a longer tool call is cut off", "set timeout: 0s",
		})
	}
}

// countsAttempts reports whether a filter of ours on this way goes by the number of the
// attempt. Envoy Gateway's goes by none, once the caller's own is taken off.
func (c *checker) countsAttempts(hcm tree, l leg) bool {
	if slices.ContainsFunc(l.clusters(), func(name string) bool { return c.guarded[name] || c.healing[name] }) {
		return true
	}
	return !slices.ContainsFunc(running(filters(hcm.get("http_filters")), l), unpatched) || !takesOffEarly(hcm, attemptHeader)
}

// destination checks that the route goes where the policy was applied (L6).
func (c *checker) destination(l leg, asks bool) {
	names := l.clusters()
	if len(names) == 0 {
		c.report(l.action, problem{
			"cluster-from-request", "the request chooses the cluster", "A caller could pick another upstream than its route says", "name the cluster in the route",
		})
		return
	}
	open := slices.ContainsFunc(names, func(n string) bool { return !c.guarded[n] })
	if len(names) > 1 && (open || asks) {
		c.report(l.action.get("weighted_clusters"), problem{
			"weighted-clusters", "the route spreads calls over clusters that are not all guarded themselves", "A call decided for one may go to another, or be undecided",
			"give each of these clusters the filters of `render envoy`, or use one cluster",
		})
	}
}

func (c *checker) hosts(action tree) {
	for _, key := range []string{"host_rewrite_literal", "auto_host_rewrite", "host_rewrite_path_regex"} {
		if action.get(key).ok() {
			return
		}
	}
	at := action.get("host_rewrite_header")
	if !at.ok() {
		at = action.get("host_rewrite_literal")
	}
	c.report(at, problem{
		"caller-host", "the caller chooses the Host that the upstream sees", "One server behind several names could be made to answer as another", "set host_rewrite_literal to the upstream's own host",
	})
}

// redirects checks that Envoy does not follow the upstream with our token (L5).
func (c *checker) redirects(l leg) {
	for _, key := range []string{"internal_redirect_policy", "internal_redirect_action"} {
		if at := l.action.get(key); at.ok() && at.enum(routev3.RouteAction_InternalRedirectAction_name) != "PASS_THROUGH_INTERNAL_REDIRECT" {
			c.report(at, problem{
				"redirects-followed", "Envoy follows the upstream's redirects", "The token would travel to wherever the upstream points", "remove " + key,
			})
		}
	}
}

func (c *checker) legRetries(l leg) {
	// A route's own policy counts in the place of its virtual host's.
	p := l.inForce("retry_policy")
	c.retries(p)
	heals := slices.Contains(p.get("retriable_status_codes").strs(), "401") && slices.Contains(retryWords(p), "retriable-status-codes")
	if hedge := l.inForce("hedge_policy"); hedge.ok() {
		c.report(hedge, problem{"hedged", "slow requests are sent a second time", "A tool call may not be safe to run twice", "remove hedge_policy"})
	}
	for _, name := range l.clusters() {
		cl, _ := c.cluster(name)
		up := c.upOf[name]
		if heals || upstreamOptions(cl).get("retry_policy").ok() || up == nil || up.Credential.None() || !up.RetryOn401 || !c.guarded[name] && !c.healing[name] {
			continue
		}
		c.report(l.action.get("retry_policy"), problem{
			"no-retry", "a call is not repeated on 401", "A revoked token fails calls until it is replaced; the policy says retry_on_401",
			"set retry_policy: {retry_on: retriable-status-codes, retriable_status_codes: [401], num_retries: 1}",
		})
	}
}

// inForce returns the setting of a route's action, else that of its virtual host.
func (l leg) inForce(key string) tree {
	if own := l.action.get(key); own.ok() {
		return own
	}
	return l.vhost().get(key)
}

func retryWords(p tree) []string {
	words := strings.Split(p.get("retry_on").str(), ",")
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	return words
}

// headers checks what a route configuration, virtual host or route does to
// request headers.
func (c *checker) headers(level tree) {
	removed := level.get("request_headers_to_remove")
	for _, item := range removed.items() {
		if strings.EqualFold(item.str(), "authorization") {
			c.report(item, problem{
				"authorization-removed", "the route removes authorization", "In a listener's chain that happens after the filters, and takes the service token off again; in a cluster's, before the decision, which may need it",
				"take it out: the policy removes the caller's own",
			})
		}
	}
	for _, item := range level.get("request_headers_to_add").items() {
		key := item.get("header", "key")
		switch strings.ToLower(key.str()) {
		case GuardHeader:
			c.report(key, problem{"guard-forged", "the route sets " + GuardHeader, "The guard would accept requests that nobody decided on", "take it out"})
		case "authorization", "x-mcp-auth-key", "cookie":
			c.report(key, problem{
				"credential-in-route", "the route sets " + strings.ToLower(key.str()), "It stands in the configuration for everyone to read, and changes what was decided", "let the policy lend it: credential: {header: …}",
			})
		}
	}
}

// overrides checks per-route settings of filters, on any level.
func (c *checker) overrides(configs tree) {
	for name, entry := range configs.each() {
		config, kind := entry.config()
		inner, off := config, config.get("disabled")
		if kind == "FilterConfig" && config.get("config").ok() {
			inner, kind = config.get("config").config()
		}
		isGuard := c.guards[name] // a filter of that kind with another name is somebody else's
		switch {
		case c.overridesOurs(name, kind):
			c.processorOverride(off, inner)
		case isGuard && !demandsMark(config) && (off.yes() || inner.get("disabled").yes() || kind == "LuaPerRoute" && !isOurCode(inner) || kind == "RBACPerRoute"):
			c.report(entry, problem{
				"guard-disabled", "the route switches the guard off or replaces it", "Requests that nobody decided on would pass", "remove the override",
			})
		}
	}
}

// overridesOurs reports whether a route's settings of this name and kind are for a filter
// of ours. Those of a name that no filter here has may be for one that is not seen.
func (c *checker) overridesOurs(name, kind string) bool {
	return c.askers[name] || !c.foreign[name] && (strings.HasPrefix(name, filterExtProc) || kind == "ExtProcPerRoute")
}

func (c *checker) processorOverride(off, config tree) {
	disabled := config.get("disabled")
	if off.yes() {
		disabled = off
	}
	if disabled.yes() {
		c.report(disabled, problem{
			"ext-proc-disabled", "the route switches ext_proc off", "Its calls are not decided", "remove the override; an upstream that needs nothing says `credential: none` in the policy",
		})
	}
	over := config.get("overrides")
	c.rules(over, []rule{
		{[]string{"failure_mode_allow"}, func(t tree) bool { return !t.yes() && !t.get("value").yes() }, problem{
			"failure-mode-allow", "the route sets failure_mode_allow", "When envoy-mcp-auth fails, its requests go on with the caller's own credentials", "remove it",
		}},
		{[]string{"async_mode"}, notTrue, problem{"observability-mode", "the route sets async_mode", "Envoy then asks and does not wait for the answer", "remove it"}},
		{[]string{"processing_mode", "request_header_mode"}, noneOf(extprocv3.ProcessingMode_HeaderSendMode_name, "SKIP"), problem{
			"request-headers-skipped", "request headers are not sent", "There is nothing to decide on, so nothing is decided", "set request_header_mode: SEND",
		}},
	})
	c.bodies(over.get("processing_mode"))
}
