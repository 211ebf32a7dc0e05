package envoy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
)

// filter is one entry of a chain.
type filter struct {
	entry, config tree
	kind          string
	on            bool // switched on by a route
	override      tree // what that route says of it
	later         bool // runs on a second attempt alone
	tidied        bool // trailers end behind it
}

// off reports whether a filter is switched off, and stays so.
func (f filter) off() bool { return f.entry.get("disabled").yes() && !f.on }

func filters(list tree) []filter {
	items := list.items()
	all := make([]filter, len(items))
	for i, item := range items {
		config, kind := item.config()
		all[i] = filter{entry: item, config: config, kind: kind}
		if kind == "ExtensionWithMatcher" && onlyLater(config.get("xds_matcher")) {
			inner, kind := config.get("extension_config").config()
			all[i] = filter{entry: item, config: inner, kind: kind, later: true}
		}
	}
	return all
}

// identities are the values of mcp-upstream that a filter sends.
func identities(metadata tree) []tree {
	var all []tree
	for _, h := range metadata.items() {
		if strings.EqualFold(h.get("key").str(), UpstreamMetadata) {
			all = append(all, h.get("value"))
		}
	}
	return all
}

func grpcCluster(config tree) string {
	return config.get("grpc_service", "envoy_grpc", "cluster_name").str()
}

func marked(f filter) bool {
	gateways := ofGateway(f) &&
		slices.Contains(f.config.get("metadata_options", "receiving_namespaces", "untyped").strs(), MetadataNamespace)
	return gateways || grpcCluster(f.config) == ProcessorCluster || len(identities(f.config.get("grpc_service", "initial_metadata"))) > 0
}

// ours reports whether an ext_proc filter calls this program. An Envoy may have
// other processors, so once one filter is clearly ours, the unmarked are not. Where
// filters are changed, they never are.
func (c *checker) ours(f filter) bool {
	return f.kind == "ExternalProcessor" && (marked(f) || !c.onlyMarked)
}

// processors finds the filters that call us.
func (c *checker) processors() {
	c.guarded, c.covered, c.healing, c.processorNames = map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]tree{}
	chains := make([]tree, 0, len(c.clusters)+len(c.listeners))
	for _, cl := range c.clusters {
		chains = append(chains, upstreamOptions(cl).get("http_filters"))
	}
	for _, l := range c.listeners {
		for _, m := range connectionManagers(l) {
			chains = append(chains, m.hcm.get("http_filters"))
		}
	}
	c.guards = map[string]bool{}
	for _, chain := range chains {
		for _, f := range filters(chain) {
			c.onlyMarked = c.onlyMarked || f.kind == "ExternalProcessor" && marked(f)
			if watches(f) && f.config.mentions(GuardHeader) {
				c.guards[f.entry.get("name").str()] = true
			}
		}
	}
	c.placesOfOurs(chains)
}

// placesOfOurs notes where filters of ours are: once they can be told from those of others.
func (c *checker) placesOfOurs(chains []tree) {
	c.askers, c.foreign = map[string]bool{}, map[string]bool{}
	for _, chain := range chains {
		for _, f := range filters(chain) {
			switch {
			case c.ours(f):
				c.askers[f.entry.get("name").str()] = true
			case f.kind == "ExternalProcessor":
				c.foreign[f.entry.get("name").str()] = true
			}
		}
	}
	for _, cl := range c.clusters {
		for _, f := range filters(upstreamOptions(cl).get("http_filters")) {
			if c.ours(f) {
				asks := c.guarded
				if f.later {
					asks = c.healing
				}
				asks[cl.get("name").str()] = true
			}
		}
	}
}

// chain checks a filter chain with one of ours in it. up is nil where the policy
// does not say whose it is; early is whether the mark is gone before the chain.
func (c *checker) chain(all []filter, upstream, early bool, up *target) {
	for i, f := range all {
		if !c.ours(f) {
			continue
		}
		if _, seen := c.processorNames[grpcCluster(f.config)]; !seen {
			c.processorNames[grpcCluster(f.config)] = f.config.get("grpc_service")
		}
		c.mark(all[:i], f, early || f.later) // the guard took it off after the first attempt
		if f.on && slices.ContainsFunc(all[i+1:], func(g filter) bool { return demandsMark(g.override) }) {
			c.routeGuard(all[i+1:], up)
		} else {
			c.guard(all[i+1:], f, upstream)
		}
		if !unpatched(f) && !f.tidied {
			c.trailers(all, f)
		}
		if upstream {
			c.reasons(all, f)
		}
		c.extProc(f, upstream)
		c.identity(f, upstream, up)
		if up != nil {
			if !unpatched(f) {
				c.againstPolicy(f.config, up)
			}
			if !f.later {
				c.answers(all, i, upstream, []*target{up})
			}
		}
	}
}

// mark checks that the mark is taken off before we are asked.
func (c *checker) mark(before []filter, f filter, early bool) {
	removed := early || slices.ContainsFunc(before, func(b filter) bool {
		return b.kind == "HeaderMutation" && removes(b.config.get("mutations", "request_mutations"), GuardHeader)
	})
	if !removed {
		c.report(f.entry, problem{
			"mark-not-removed", "nothing removes " + GuardHeader + " before ext_proc in this chain",
			"A caller, or the first attempt of a retried call, could bring the mark that the guard looks for",
			"put a header_mutation filter with `request_mutations: [{remove: " + GuardHeader + "}]` before ext_proc",
		})
	}
}

func removes(mutations tree, header string) bool {
	return slices.ContainsFunc(mutations.items(), func(m tree) bool { return strings.EqualFold(m.get("remove").str(), header) })
}

// guard checks that something after ext_proc demands the mark (fault E1).
func (c *checker) guard(after []filter, f filter, upstream bool) {
	why := "A stream that ends without an error before a reply lets the request through untouched, with the caller's credentials, whatever failure_mode_allow says"
	for _, g := range after {
		if !g.config.mentions(GuardHeader) || !watches(g) {
			continue
		}
		switch {
		case upstream && g.kind == "RBAC":
			c.report(g.entry, problem{
				"guard-too-early", "the guard is an RBAC filter in a cluster's chain",
				"There it runs when a host is chosen, before ext_proc, and refuses everything", "use the Lua guard of `render envoy`",
			})
		case g.off():
			c.report(g.entry.get("disabled"), problem{"guard-disabled", "the guard is switched off", why, "remove `disabled`"})
		case upstream, f.on:
			c.guardName(g, f)
		}
		return
	}
	c.report(f.entry, problem{
		"no-guard", "no filter after ext_proc demands " + GuardHeader, why,
		"add the guard of `render envoy` after ext_proc: a Lua filter in a cluster's chain, RBAC in a listener's",
	})
}

func (c *checker) guardName(g, f filter) {
	for _, id := range identities(f.config.get("grpc_service", "initial_metadata")) {
		switch {
		case g.config.mentions(`"` + strings.ToLower(id.str()) + `"`):
			if g.kind == "Lua" && !enforces(g, id.str()) {
				c.report(g.entry, problem{
					"guard-changed", "the guard is not the code that `render envoy` writes", "Whether it refuses what nobody decided on cannot be told", "take its code from `render envoy`",
				})
			}
		default:
			c.report(g.entry, problem{
				"guard-other-upstream", fmt.Sprintf("the guard does not demand the mark %q", id.str()),
				"The mark is the upstream's name, so every call would be refused, or another upstream's mark accepted",
				"compare the mark with the value of " + UpstreamMetadata,
			})
		}
	}
}

// extProc checks the filter itself.
func (c *checker) extProc(f filter, upstream bool) {
	c.rules(f.entry, []rule{{[]string{"disabled"}, func(tree) bool { return !f.off() }, problem{
		"ext-proc-disabled", "the filter is switched off", "Every route that does not switch it on is unprotected", "remove `disabled`",
	}}})
	c.rules(f.config, extProcRules())
	if !unpatched(f) {
		c.rules(f.config, mutationsRules())
		if !upstream {
			c.rules(f.config, downstreamRules())
		}
	}
	c.bodies(f.config.get("processing_mode"))
	c.messageTimeout(f.config.get("message_timeout"))
	for ns, id := range map[string]string{"forwarding_namespaces": "no-forwarding-namespace", "receiving_namespaces": "no-receiving-namespace"} {
		at := f.config.get("metadata_options", ns, "untyped")
		if !slices.Contains(at.strs(), MetadataNamespace) {
			c.report(at, problem{
				id, "namespace " + MetadataNamespace + " is not listed",
				"A second attempt is judged by the first one's decision, which travels there; without it the retry is refused, and access logs have no reason",
				"set metadata_options." + ns + ".untyped: [" + MetadataNamespace + "]",
			})
		}
	}
}

func extProcRules() []rule {
	return []rule{
		{[]string{"failure_mode_allow"}, notTrue, problem{
			"failure-mode-allow", "failure_mode_allow is true", "When envoy-mcp-auth fails, requests go on with the caller's own credentials", "set it to false",
		}},
		{[]string{"observability_mode"}, notTrue, problem{
			"observability-mode", "observability_mode is true", "Envoy then asks and does not wait for the answer", "remove it",
		}},
		{[]string{"disable_immediate_response"}, notTrue, problem{
			"refusals-disabled", "disable_immediate_response is true", "A refusal then becomes an error without a reason", "remove it",
		}},
		{[]string{"processing_mode", "request_header_mode"}, noneOf(extprocv3.ProcessingMode_HeaderSendMode_name, "SKIP"), problem{
			"request-headers-skipped", "request headers are not sent", "There is nothing to decide on, so nothing is decided", "set request_header_mode: SEND",
		}},
		{[]string{"mutation_rules", "allow_all_routing"}, notTrue, problem{
			"mutation-of-routing", "allow_all_routing is true", "A reply could send the request, and the token in it, elsewhere", "remove it",
		}},
		{[]string{"mutation_rules", "allow_envoy"}, notTrue, problem{
			"mutation-of-envoy-headers", "allow_envoy is true", "A reply could change retries and timeouts", "remove it",
		}},
	}
}

// mutationsRules hold where it can be said what a reply may change.
func mutationsRules() []rule {
	return []rule{{[]string{"mutation_rules", "disallow_is_error"}, isTrue, problem{
		"mutations-dropped", "disallow_is_error is not set", "A change that Envoy does not allow is dropped silently, and the caller's header goes on", "set mutation_rules.disallow_is_error: true",
	}}}
}

// downstreamRules hold only in a listener's chain: in a cluster's there is no
// route left to change.
func downstreamRules() []rule {
	return []rule{
		{[]string{"route_cache_action"}, oneOf(extprocv3.ExternalProcessor_RouteCacheAction_name, "RETAIN"), problem{
			"route-cache", "route_cache_action is not RETAIN", "A route that is chosen again after the decision may lead to another upstream, with this one's token", "set route_cache_action: RETAIN",
		}},
	}
}

// bodies checks a processing mode: a body over the buffer hangs in a cluster's chain.
func (c *checker) bodies(mode tree) {
	for _, key := range []string{"request_body_mode", "response_body_mode"} {
		if at := mode.get(key); at.ok() && at.enum(extprocv3.ProcessingMode_BodySendMode_name) != "NONE" {
			c.report(at, problem{
				"body-sent", key + " is " + at.enum(extprocv3.ProcessingMode_BodySendMode_name), "Every body is held back or copied: streams stall, and a body over the buffer hangs for ever in a cluster's chain",
				"set " + key + ": NONE",
			})
		}
	}
}

func (c *checker) messageTimeout(at tree) {
	deadline := 1500 * time.Millisecond
	if c.set != nil && c.set.Server.Deadline > 0 {
		deadline = c.set.Server.Deadline
	}
	d, ok := at.duration()
	if !ok {
		d = 200 * time.Millisecond
	}
	if d <= deadline {
		c.report(at, problem{
			"message-timeout", fmt.Sprintf("message_timeout is %s, server.deadline is %s", d, deadline),
			"Envoy gives up before envoy-mcp-auth does, so a slow token endpoint is a bare 504 without a reason",
			"set message_timeout above server.deadline: 2s",
		})
	}
}

// identity checks how the filter says which upstream it is about.
func (c *checker) identity(f filter, upstream bool, up *target) {
	ids := identities(f.config.get("grpc_service", "initial_metadata"))
	attributes := f.config.get("request_attributes").strs()
	named := slices.Contains(attributes, "xds.cluster_name") || slices.Contains(attributes, "xds.route_name")
	switch {
	case len(ids) > 1:
		c.report(ids[1], problem{"two-identities", UpstreamMetadata + " is sent twice", "Two names are no name: every call is refused", "send it once"})
	case len(ids) == 0 && upstream:
		c.report(f.config.get("grpc_service", "initial_metadata"), problem{
			"no-identity", UpstreamMetadata + " is not sent", "The filter must say which upstream it stands before; what else there is may come from a caller",
			"add grpc_service.initial_metadata: [{key: " + UpstreamMetadata + ", value: NAME}]",
		})
	case len(ids) == 0 && !named:
		c.report(f.config.get("request_attributes"), problem{
			"no-identity", "neither " + UpstreamMetadata + " nor xds.cluster_name or xds.route_name is sent", "Without a name every call is refused",
			"set request_attributes: [xds.cluster_name, xds.route_name]",
		})
	}
	if c.set == nil || len(ids) == 0 {
		return
	}
	named1, known := c.byName[ids[0].str()]
	switch {
	case !known:
		c.report(ids[0], problem{"unknown-upstream", fmt.Sprintf("the policy has no upstream %q", ids[0].str()), "Every call is refused as no_policy", "name an upstream of the policy file"})
	case (upstream || f.on) && up != nil && named1 != up:
		c.report(ids[0], problem{
			"other-upstream", fmt.Sprintf("cluster %q says it is upstream %q", up.Cluster, ids[0].str()),
			"This cluster would be lent the credential of another upstream", fmt.Sprintf("set %s to %q", UpstreamMetadata, up.Name),
		})
	}
}

// againstPolicy compares what is sent and what may be changed with what the
// policy reads and writes: both move when the policy does.
func (c *checker) againstPolicy(config tree, up *target) {
	names, prefixes, all := up.Inspected()
	rules := config.get("forward_rules")
	switch {
	case !rules.ok() && !all:
		c.report(rules, problem{"all-headers-forwarded", "every header is sent to the processor", "More secrets leave Envoy than a decision needs", "set forward_rules as `render envoy` does"})
	case rules.ok():
		c.forwarded(rules, names, prefixes, all)
	}
	if up.mtls() {
		at := config.get("request_attributes")
		for _, a := range []string{"connection.uri_san_peer_certificate", "connection.dns_san_peer_certificate"} {
			if !slices.Contains(at.strs(), a) {
				c.report(at, problem{"no-certificate-names", a + " is not sent", "A caller of kind mtls cannot be recognised", "add it to request_attributes"})
			}
		}
	}
	c.mutable(config.get("mutation_rules"), up)
	c.toolsFilter(config, up)
}

func (c *checker) forwarded(rules tree, names, prefixes []string, all bool) {
	allowed, disallowed := rules.get("allowed_headers", "patterns"), rules.get("disallowed_headers", "patterns")
	var missing []string
	for _, n := range append(slices.Clone(names), prefixes...) {
		if allowed.ok() && !matchesAny(allowed, n) || matchesAny(disallowed, n) {
			missing = append(missing, n)
		}
	}
	if all && allowed.ok() {
		missing = append(missing, "all others")
	}
	if len(missing) > 0 {
		c.report(rules, problem{
			"headers-not-forwarded", "not sent to the processor: " + strings.Join(missing, ", "),
			"What it cannot see it cannot refuse or take off", "render forward_rules again from this policy",
		})
	}
}

// matchesAny reports whether a list of string matchers takes the name, or all
// names that start with it. Regular expressions are taken as not matching.
func matchesAny(patterns tree, name string) bool {
	return slices.ContainsFunc(patterns.items(), func(p tree) bool {
		if exact := p.get("exact"); exact.ok() {
			return strings.EqualFold(exact.str(), name)
		}
		prefix := p.get("prefix")
		return prefix.ok() && strings.HasPrefix(strings.ToLower(name), strings.ToLower(prefix.str()))
	})
}

func (c *checker) mutable(rules tree, up *target) {
	names, prefixes, all := writable(*up)
	if all {
		return
	}
	if !rules.get("disallow_all").yes() {
		c.report(rules.get("disallow_all"), problem{
			"mutation-rules-open", "a reply may change any header", "Only what the policy sets or removes should be open to it",
			"set mutation_rules.disallow_all: true and allow_expression as `render envoy` does",
		})
		return
	}
	at := rules.get("allow_expression", "regex")
	allowed, err := regexp.Compile("^(?:" + at.str() + ")$")
	if err != nil || !at.ok() {
		allowed = regexp.MustCompile("^$")
	}
	var missing []string
	for _, n := range append(names, prefixes...) {
		if !allowed.MatchString(n) {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		c.report(at, problem{
			"mutation-rules-narrow", "a reply may not change " + strings.Join(missing, ", "), "The policy needs to, and every such call would be a 500",
			"render mutation_rules again from this policy",
		})
	}
}
