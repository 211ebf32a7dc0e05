package envoy

import (
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

// trailers checks that a caller's trailers end here: we are asked about headers.
func (c *checker) trailers(all []filter, f filter) {
	if slices.ContainsFunc(all, func(b filter) bool {
		return b.kind == "HeaderMutation" && !b.off() && removesAll(b.config.get("mutations", "request_trailers_mutations"))
	}) {
		return
	}
	c.report(f.entry, problem{
		"trailers-pass", "nothing removes the trailers of a request in this chain",
		"Over HTTP/2 a caller's own authorization reaches the upstream in one: ext_proc is asked about headers",
		"add to a header_mutation filter: request_trailers_mutations: [{remove_on_match: {key_matcher: {safe_regex: {regex: \".*\"}}}}]",
	})
}

// reasons checks that no upstream can give our reasons: callers read them, and the
// 502 for its last 401 goes by them. In a listener's chain our own refusals would
// lose theirs.
func (c *checker) reasons(all []filter, f filter) {
	if slices.ContainsFunc(all, func(b filter) bool {
		return b.kind == "HeaderMutation" && !b.entry.get("disabled").yes() && removes(b.config.get("mutations", "response_mutations"), ReasonHeader)
	}) {
		return
	}
	c.report(f.entry, problem{
		"reason-not-removed", "nothing removes " + ReasonHeader + " from what the upstream answers",
		"An upstream could pass its answer for a refusal of ours, and its 401 would reach the caller",
		"add to a header_mutation filter of this chain: response_mutations: [{remove: " + ReasonHeader + "}]",
	})
}

func removesAll(mutations tree) bool {
	return slices.ContainsFunc(mutations.items(), func(m tree) bool {
		return m.get("remove_on_match", "key_matcher", "safe_regex", "regex").str() == ".*"
	})
}

// verdicts looks for what writes the mark, or where our decisions travel from
// one attempt to the next: who can write there can be another caller.
func (c *checker) verdicts(root tree) {
	p := problem{
		"verdict-forged", "something else writes metadata namespace " + MetadataNamespace,
		"A second attempt is judged by the first one's decision, which is kept there", "use another namespace",
	}
	root.walk(func(t tree) bool {
		if at := t.get("metadata_namespace"); at.str() == MetadataNamespace {
			c.report(at, p)
		}
		if at := t.get("append", "header", "key"); strings.EqualFold(at.str(), GuardHeader) {
			c.report(at, problem{"guard-forged", "a header mutation sets " + GuardHeader, "The guard would accept requests that nobody decided on", "take it out"})
		}
		if config, kind := t.config(); t.get("typed_config").ok() && kind == "ExternalProcessor" && !c.ours(filter{entry: t, config: config, kind: kind}) {
			if at := config.get("metadata_options", "receiving_namespaces", "untyped"); slices.Contains(at.strs(), MetadataNamespace) {
				c.report(at, p)
			}
		}
		return true
	})
}

// tunnels checks that no caller gets bytes through that are no request of ours.
func (c *checker) tunnels(upgrades tree) {
	for _, u := range upgrades.items() {
		kind := u.get("upgrade_type")
		if strings.HasPrefix(strings.ToUpper(kind.str()), "CONNECT") && !strings.EqualFold(u.get("enabled").str(), "false") {
			c.report(kind, problem{
				"tunnel", "callers may open a tunnel by " + kind.str(), "What is in it is not decided, the caller's own credentials included", "remove it from upgrade_configs",
			})
		}
	}
}

// destinationOf checks that the configuration says where a cluster leads, and not
// the caller.
func (c *checker) destinationOf(cl tree) {
	for _, at := range []tree{cl.get("type"), cl.get("cluster_type", "name")} {
		word := strings.ToLower(at.enum(clusterv3.Cluster_DiscoveryType_name))
		if strings.Contains(word, "original_dst") || strings.Contains(word, "dynamic_forward_proxy") {
			c.report(at, problem{
				"destination-from-request", "the request chooses the host of this cluster", "The token would go wherever a caller points it", "name the upstream's host in load_assignment",
			})
		}
	}
}

// waysAround looks for ways to our clusters that leave their filters out.
func (c *checker) waysAround() {
	concerned := func(t tree) bool { return c.guarded[t.str()] || c.upOf[t.str()] != nil }
	const why = "Calls on this way are not decided, and carry the caller's own credentials"
	for _, cl := range c.clusters {
		typed, kind := cl.get("cluster_type").config()
		if kind != "ClusterConfig" || c.guarded[cl.get("name").str()] {
			continue
		}
		for _, member := range typed.get("clusters").items() {
			if concerned(member) {
				c.report(member, problem{"way-around", "an aggregate cluster without our filters leads to " + member.str(), why, "let routes name the cluster itself"})
			}
		}
	}
	for _, l := range c.listeners {
		l.walk(func(t tree) bool {
			config, kind := t.config()
			if t.get("typed_config").ok() && (kind == "TcpProxy" || kind == "UdpProxyConfig") && concerned(config.get("cluster")) {
				c.report(config.get("cluster"), problem{"way-around", kind + " leads to " + config.get("cluster").str() + " without its HTTP filters", why, "remove it"})
			}
			return true
		})
	}
}

// enforces reports whether a Lua guard does what ours does: an edited one may
// name the mark and let everything pass.
func enforces(g filter, name string) bool {
	want, _, _ := strings.Cut(guardCode(name), `[":status"]`)
	want = strings.Join(strings.Fields(want), " ")
	return !g.config.walk(func(v tree) bool {
		return !strings.Contains(strings.Join(strings.Fields(v.str()), " "), want)
	})
}

// isOurCode reports whether the code that a route gives a Lua filter is ours: what turns
// a 401 into a 502, or a guard. One for another upstream refuses everything.
func isOurCode(config tree) bool {
	code := config.get("source_code", "inline_string").str()
	if code == rejectedCode() {
		return true
	}
	_, rest, _ := strings.Cut(code, `mark ~= "`)
	name, _, ok := strings.Cut(rest, `"`)
	return ok && enforces(filter{config: config}, name)
}

// watches reports whether a filter of this kind, which names the mark, can be the
// guard: taking the mark off, or noting that it is missing, refuses nothing.
func watches(g filter) bool {
	switch g.kind {
	case "HeaderMutation":
		return false
	case "RBAC":
		rules := g.config.get("rules")
		return rules.get("action").enum(rbacv3.RBAC_Action_name) != "LOG" && (rules.mentions(GuardHeader) || g.config.get("matcher").mentions(GuardHeader))
	}
	return true
}
