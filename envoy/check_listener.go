package envoy

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// listenerChecks looks at the connection managers whose calls concern us.
func (c *checker) listenerChecks() {
	for _, l := range c.listeners {
		for _, m := range connectionManagers(l) {
			c.manager(m)
		}
	}
}

func (c *checker) manager(m manager) {
	chain := filters(m.hcm.get("http_filters"))
	rc, seen := c.routesOf(m.hcm)
	own := c.asking(chain, legs(rc))
	mine := c.waysOf(chain, legs(rc), own)
	if !own.any && len(mine) == 0 && (seen || len(c.guarded) == 0) {
		return
	}
	if !seen {
		c.report(m.hcm.get("rds"), problem{
			"routes-unseen", "the routes of this listener are fetched elsewhere and are not in this file", "They were not checked", "check the answer of the admin's /config_dump?include_eds instead",
		})
	}
	c.rules(m.hcm, managerRules(rc))
	early := takesOffEarly(m.hcm, GuardHeader)
	if own.always {
		c.chain(chain, false, early, nil)
		c.answersIn(chain, mine)
		c.oneIdentity(chain, mine)
	} else if !own.any && !early {
		c.report(m.hcm.get("early_header_mutation_extensions"), problem{
			"mark-not-removed", "nothing removes " + GuardHeader + " when a request comes in", "It is ours alone to set",
			"add early_header_mutation_extensions with `remove: " + GuardHeader + "`",
		})
	}
	c.callerCertificates(m, mine)
	c.tunnels(m.hcm.get("upgrade_configs"))
	for _, l := range mine {
		c.managedLeg(m.hcm, l, own, early)
	}
	c.outcomeLog(m.hcm.get("access_log"), mine)
}

// waysOf returns the legs that concern us, and notes which clusters the listener asks
// about on its way to them, and on which ways it does not.
func (c *checker) waysOf(chain []filter, all []leg, own asking) []leg {
	var mine []leg
	for _, l := range all {
		asks := own.always || c.asks(chain, l)
		if asks || c.concerns(l) {
			mine = append(mine, l)
		}
		if !asks {
			c.unasked = append(c.unasked, l)
			continue
		}
		for _, name := range l.clusters() {
			c.covered[name] = true
		}
	}
	return mine
}

// managedLeg checks one route of a connection manager.
func (c *checker) managedLeg(hcm tree, l leg, own asking, early bool) {
	chain := filters(hcm.get("http_filters"))
	asks := own.always || c.asks(chain, l)
	if !own.always && asks {
		c.switched(running(chain, l), l, early)
	}
	c.leg(hcm, l, asks)
	c.rejected(hcm, l)
	c.toolsLeg(hcm, l, asks)
}

// takesOffEarly reports whether a header goes before anything reads it.
func takesOffEarly(hcm tree, header string) bool {
	return slices.ContainsFunc(hcm.get("early_header_mutation_extensions").items(), func(e tree) bool {
		config, _ := e.config()
		return removes(config.get("mutations"), header)
	})
}

// asking says which filters of a listener ask us: any at all, and always, or where a
// route switches them on.
type asking struct{ any, always bool }

func (c *checker) asking(chain []filter, all []leg) asking {
	var a asking
	for _, f := range chain {
		if c.ours(f) && !f.later {
			a.any, a.always = true, a.always || !f.entry.get("disabled").yes()
		}
	}
	if a.any && !a.always {
		// One that no route switches on is one that is switched off.
		a.always = !slices.ContainsFunc(all, func(l leg) bool { return c.asks(chain, l) })
	}
	return a
}

// asks reports whether a filter of ours runs on a route, and on the first attempt.
func (c *checker) asks(chain []filter, l leg) bool {
	return slices.ContainsFunc(running(chain, l), func(f filter) bool { return c.ours(f) && !f.later })
}

// running are the filters of a listener that run on a route.
func running(chain []filter, l leg) []filter {
	var all []filter
	for _, f := range chain {
		if config, on := effective(f, l); on {
			f.on, f.override = true, config
			all = append(all, f)
		}
	}
	return all
}

// switched checks the chain of a route that switches ours on: what is said to us there
// is about its own cluster.
func (c *checker) switched(chain []filter, l leg, early bool) {
	for i := range chain {
		chain[i].tidied = c.tidy(l)
	}
	ups := c.upstreamsOf([]leg{l}, func(*target) bool { return true })
	if len(ups) == 0 {
		c.chain(chain, false, early, nil)
		return
	}
	for _, up := range ups {
		c.chain(chain, false, early, up)
	}
}

// routesOf returns the routes of a connection manager, inline or by name.
func (c *checker) routesOf(hcm tree) (tree, bool) {
	if rc := hcm.get("route_config"); rc.ok() {
		return rc, true
	}
	rc, ok := c.routes[hcm.get("rds", "route_config_name").str()]
	return rc, ok
}

// concerns reports whether a leg may go to a cluster that is guarded or in the
// policy. One that a request header chooses may go anywhere.
func (c *checker) concerns(l leg) bool {
	if len(l.clusters()) == 0 {
		return len(c.guarded)+len(c.upOf) > 0
	}
	return slices.ContainsFunc(l.clusters(), func(name string) bool { return c.guarded[name] || c.upOf[name] != nil })
}

func managerRules(routes tree) []rule {
	path := "The policy and the upstream could read two different paths from one request"
	host := "One host has several spellings, and the others would meet another virtual host"
	return []rule{
		{[]string{"normalize_path"}, isTrue, problem{"path-not-normalized", "normalize_path is not set", path, "set normalize_path: true"}},
		{[]string{"merge_slashes"}, isTrue, problem{"slashes-not-merged", "merge_slashes is not set", path, "set merge_slashes: true"}},
		{[]string{"path_with_escaped_slashes_action"}, oneOf(hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction_name, "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT"), problem{
			"escaped-slashes", "%2f and %5c in a path are let through", path, "set path_with_escaped_slashes_action: REJECT_REQUEST",
		}},
		{[]string{"strip_any_host_port"}, func(t tree) bool { return t.yes() || routes.get("ignore_port_in_host_matching").yes() }, problem{"host-port", "strip_any_host_port is not set", host, "set strip_any_host_port: true"}},
		{[]string{"strip_trailing_host_dot"}, isTrue, problem{"host-dot", "strip_trailing_host_dot is not set", host, "set strip_trailing_host_dot: true"}},
		{[]string{"common_http_protocol_options", "headers_with_underscores_action"}, oneOf(corev3.HttpProtocolOptions_HeadersWithUnderscoresAction_name, "REJECT_REQUEST", "DROP_HEADER"), problem{
			"underscores", "headers with underscores are let through", "Many servers read x_api_key as x-api-key, which the policy would have taken off",
			"set common_http_protocol_options.headers_with_underscores_action: REJECT_REQUEST",
		}},
		{[]string{"use_remote_address"}, isTrue, problem{
			"remote-address", "use_remote_address is not set", "x-envoy-* headers of a caller then set retries and timeouts", "set use_remote_address: true",
		}},
		{[]string{"internal_address_config"}, func(t tree) bool { return len(t.get("cidr_ranges").items()) == 0 && !t.get("unix_sockets").yes() }, problem{
			"internal-callers", "callers from internal_address_config keep their x-envoy-* headers", "They then set retries and timeouts", "remove internal_address_config",
		}},
		{[]string{"forward_client_cert_details"}, noneOf(hcmv3.HttpConnectionManager_ForwardClientCertDetails_name, "ALWAYS_FORWARD_ONLY", "2147483647"), problem{
			"caller-certificate-header", "a caller's own x-forwarded-client-cert is passed on", "Anyone can write anything into it", "set forward_client_cert_details: SANITIZE",
		}},
		{[]string{"stream_idle_timeout"}, present, problem{
			"idle-timeout", "stream_idle_timeout is not set: 5 minutes", "A silent SSE stream or a long tool call is cut off", "set stream_idle_timeout: 3600s",
		}},
	}
}

// oneIdentity checks a listener's filter that names one upstream while its routes
// lead to several.
func (c *checker) oneIdentity(chain []filter, mine []leg) {
	names := map[string]bool{}
	for _, l := range mine {
		for _, n := range l.clusters() {
			names[n] = true
		}
	}
	for _, f := range chain {
		ids := identities(f.config.get("grpc_service", "initial_metadata"))
		if c.ours(f) && len(ids) > 0 && len(names) > 1 {
			c.report(ids[0], problem{
				"one-identity", "the filter names one upstream for all routes of this listener", "Every cluster they lead to would get that upstream's credential",
				"remove " + UpstreamMetadata + " here and set request_attributes: [xds.cluster_name, xds.route_name]",
			})
		}
	}
}

// callerCertificates checks that names in a client's certificate were verified.
func (c *checker) callerCertificates(m manager, mine []leg) {
	tls, _ := m.chain.get("transport_socket").config()
	at := tls.get("common_tls_context", "validation_context", "trust_chain_verification")
	if at.enum(tlsv3.CertificateValidationContext_TrustChainVerification_name) == "ACCEPT_UNTRUSTED" {
		c.report(at, problem{"caller-unverified", "client certificates are not verified", "Anyone can write any name into one", "remove trust_chain_verification"})
	}
	verified := m.verifiesCallers()
	for _, l := range mine {
		for _, name := range l.clusters() {
			if up := c.upOf[name]; up != nil && up.mtls() && !verified {
				c.report(m.chain, problem{
					"no-client-ca", "upstream \"" + up.Name + "\" has callers of kind mtls, and this listener verifies no client certificates", "They can never be recognised here",
					"set validation_context.trusted_ca in the listener's transport_socket",
				})
			}
		}
	}
}

// rejected checks that an upstream's last 401, and its challenge, stay here.
func (c *checker) rejected(hcm tree, l leg) {
	lent := slices.ContainsFunc(l.clusters(), func(name string) bool { up := c.upOf[name]; return up != nil && !up.keepsChallenge() })
	if !lent {
		return
	}
	running := running(filters(hcm.get("http_filters")), l)
	converts := slices.ContainsFunc(running, func(f filter) bool { return f.kind == "CustomResponse" && f.config.mentions("401") })
	if !converts && !l.route.get("typed_per_filter_config").mentions("401") {
		c.report(l.route, problem{
			"rejection-relayed", "the upstream's 401 goes to the caller", "It is about our credential; clients start a login that cannot help", "turn it into a 502 with custom_response as `render envoy` does",
		})
	}
	if issuers := c.challenged(l); converts && len(issuers) > 0 && !looksAtReason(running) {
		c.report(hcm.get("http_filters"), problem{
			"own-401-replaced", "custom_response also takes the 401 by which callers of kind jwt are asked for a token", "They never learn where to get one",
			"let the matcher demand that " + ReasonHeader + " is absent, as `render envoy` does",
		})
	}
	if !slices.ContainsFunc(running, unpatched) &&
		!slices.ContainsFunc(l.levels, func(t tree) bool { return listsHeader(t.get("response_headers_to_remove"), challengeHeader) }) {
		c.report(l.route.get("response_headers_to_remove"), problem{
			"challenge-relayed", "the upstream's www-authenticate goes to the caller", "It is for the holder of the credential, which is not the caller", "set response_headers_to_remove: [www-authenticate]",
		})
	}
}

// challenged returns the issuers of the callers of a leg's upstreams.
func (c *checker) challenged(l leg) []string {
	var all []string
	for _, name := range l.clusters() {
		if up := c.upOf[name]; up != nil {
			issuers, _ := up.issuers()
			all = append(all, issuers...)
		}
	}
	return all
}

// looksAtReason reports whether the custom_response of a chain asks for our reason.
// or at who answers.
func looksAtReason(chain []filter) bool {
	return slices.ContainsFunc(chain, func(f filter) bool {
		return f.kind == "CustomResponse" && !f.config.walk(func(t tree) bool {
			_, kind := t.config()
			return !strings.EqualFold(t.get("header_name").str(), ReasonHeader) && kind != "HttpResponseLocalReplyMatchInput"
		})
	})
}

func listsHeader(list tree, name string) bool {
	return slices.ContainsFunc(list.strs(), func(s string) bool { return strings.EqualFold(s, name) })
}

// coverage checks that every cluster of the policy is asked about, on every way to it.
// Without a policy, a cluster that one way asks about is taken for one of its own.
func (c *checker) coverage() {
	for _, l := range c.unasked {
		for _, name := range l.clusters() {
			if c.covered[name] && !c.guarded[name] && (c.set == nil || c.upOf[name] != nil) {
				c.report(l.route, problem{
					"no-filter", fmt.Sprintf("no ext_proc filter of envoy-mcp-auth runs on this way to cluster %q, which other ways ask about", name),
					"Calls on it reach the upstream undecided, with the caller's own credentials",
					"have the filters of the other ways run here too, or give the cluster the http_filters of `render envoy` and take those of the listeners off",
				})
			}
		}
	}
	for _, cl := range c.clusters {
		name := cl.get("name").str()
		if up := c.upOf[name]; up != nil && !c.guarded[name] && !c.covered[name] {
			c.report(cl, problem{
				"no-filter", "no ext_proc filter of envoy-mcp-auth stands before this cluster, which is upstream \"" + up.Name + "\"",
				"Calls reach it undecided, with the caller's own credentials", "add the http_filters of `render envoy` to its HttpProtocolOptions",
			})
		}
	}
	if len(c.upOf) == 0 && len(c.guarded)+len(c.covered) == 0 {
		root := tree{at: 1, path: "."}
		c.report(root, problem{"no-filter", "there is no ext_proc filter of envoy-mcp-auth here", "Nothing is decided", "attach it as `render envoy` does"})
	}
}
