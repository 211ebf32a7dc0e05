package envoy

import (
	"fmt"
	"slices"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Envoy Gateway puts the filter of each policy into the listener's chain, off, and a
// route switches on its own. What its API has no words for is not held against such
// a filter; docs/envoy-gateway.md says what that means.

// ofGateway reports whether an ext_proc filter is Envoy Gateway's, by its name:
// envoy.filters.http.ext_proc/envoyextensionpolicy/NAMESPACE/NAME/extproc/N. Its file
// provider leaves the kind empty.
func ofGateway(f filter) bool {
	name := f.entry.get("name").str()
	return strings.HasPrefix(name, filterExtProc+"/") && strings.Contains(name, "/extproc/")
}

// unpatched reports whether a filter is as Envoy Gateway makes it.
func unpatched(f filter) bool { return ofGateway(f) && !f.config.get("mutation_rules").ok() }

// learn finds the clusters of upstreams that the policy knows by their routes.
func (c *checker) learn() {
	if c.set == nil {
		return
	}
	for _, l := range c.listeners {
		for _, m := range connectionManagers(l) {
			rc, _ := c.routesOf(m.hcm)
			for _, leg := range legs(rc) {
				c.learnLeg(leg)
			}
		}
	}
}

func (c *checker) learnLeg(l leg) {
	up, reason := c.set.Lookup(&policy.Request{Route: l.route.get("name").str()})
	if reason != policy.Allowed {
		return
	}
	for _, name := range l.clusters() {
		if c.upOf[name] == nil {
			c.upOf[name] = c.byName[up.Name]
		}
	}
}

// onlyLater reports whether a matcher skips its filter on the first attempt, and on no
// other.
func onlyLater(matcher tree) bool {
	all := matcher.get("matcher_list", "matchers").items()
	if len(all) != 1 || matcher.get("on_no_match").ok() {
		return false
	}
	one := all[0].get("predicate", "single_predicate")
	_, kind := all[0].get("on_match", "action").config()
	return kind == "SkipFilter" && one.get("value_match", "exact").str() == "1" &&
		strings.EqualFold(one.get("input", "typed_config", "header_name").str(), attemptHeader)
}

// tidy reports whether trailers end in the chains of all clusters that a leg leads to.
func (c *checker) tidy(l leg) bool {
	names := l.clusters()
	return len(names) > 0 && !slices.ContainsFunc(names, func(name string) bool {
		cl, _ := c.cluster(name)
		return !slices.ContainsFunc(filters(upstreamOptions(cl).get("http_filters")), func(f filter) bool {
			return f.kind == "HeaderMutation" && removesAll(f.config.get("mutations", "request_trailers_mutations"))
		})
	})
}

// leadsTo reports whether two clusters have the same endpoints.
func (c *checker) leadsTo(one, other string) bool {
	a, b := c.addresses(one), c.addresses(other)
	return len(a) > 0 && slices.Equal(a, b)
}

func (c *checker) addresses(name string) []string {
	var all []string
	cl, _ := c.cluster(name)
	c.endpoints(cl).walk(func(t tree) bool {
		if at := t.get("socket_address"); at.ok() {
			all = append(all, at.get("address").str()+":"+at.get("port_value").str())
		}
		if at := t.get("pipe", "path"); at.ok() {
			all = append(all, at.str())
		}
		return true
	})
	slices.Sort(all)
	return all
}

// routeGuard checks the mark that a route's own RBAC demands.
func (c *checker) routeGuard(after []filter, up *target) {
	for _, g := range after {
		marks, strict := marksOf(g.override)
		if up != nil && strict && !slices.Equal(marks, []string{up.Name}) {
			c.report(g.override, problem{
				"guard-other-upstream", fmt.Sprintf("the guard does not demand the mark %q", up.Name),
				"The mark is the upstream's name, so every call would be refused, or another upstream's mark accepted", "let it demand the upstream's name alone",
			})
		}
	}
}

func demandsMark(override tree) bool {
	_, strict := marksOf(override)
	return strict
}

// marksOf are the marks that a route's RBAC lets through; strict is whether it lets
// nothing else through.
func marksOf(override tree) (marks []string, strict bool) {
	rbac := override.get("rbac", "matcher")
	strict = rbac.get("on_no_match", "action", "typed_config", "action").enum(rbacv3.RBAC_Action_name) == "DENY"
	for _, m := range rbac.get("matcher_list", "matchers").items() {
		if m.get("on_match", "action", "typed_config", "action").enum(rbacv3.RBAC_Action_name) == "DENY" {
			continue
		}
		one := m.get("predicate", "single_predicate")
		mark := one.get("value_match", "exact").str()
		strict = strict && mark != "" && strings.EqualFold(one.get("input", "typed_config", "header_name").str(), GuardHeader)
		marks = append(marks, mark)
	}
	return marks, strict && len(marks) > 0
}

// sockets are the transport sockets by which calls to a cluster may go. Envoy Gateway
// gives each endpoint one of its own, and the cluster one that nobody uses.
func (c *checker) sockets(cl tree) []tree {
	var all []tree
	if own := cl.get("transport_socket"); own.get("name").str() != "dummy.transport_socket" || !c.allMatched(cl) {
		all = append(all, own)
	}
	for _, m := range cl.get("transport_socket_matches").items() {
		all = append(all, m.get("transport_socket"))
	}
	return all
}

// allMatched reports whether every endpoint of a cluster names a transport socket that
// the cluster has.
func (c *checker) allMatched(cl tree) bool {
	var names []string
	for _, m := range cl.get("transport_socket_matches").items() {
		names = append(names, m.get("match", "name").str())
	}
	endpoints := 0
	for _, locality := range c.endpoints(cl).get("endpoints").items() {
		for _, e := range locality.get("lb_endpoints").items() {
			endpoints++
			if !slices.Contains(names, e.get("metadata", "filter_metadata", "envoy.transport_socket_match", "name").str()) {
				return false
			}
		}
	}
	return endpoints > 0
}
