package envoy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	customv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/custom_response/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// survey notes which clusters are asked about by a listener's own chain on some way, and
// which clusters lead to the server. Where other ways to such a cluster do not ask, its
// own chain would ask a second time about what is decided: Check says what is open.
func (p *patcher) survey() {
	note := func(chain tree) bool {
		asks := false
		for _, f := range filters(chain) {
			if p.ours(f) {
				asks = true
				p.processorNames[grpcCluster(f.config)] = f.config
			}
		}
		return asks
	}
	for _, cl := range p.clusters {
		note(upstreamOptions(cl).get("http_filters"))
	}
	for _, l := range p.listeners {
		for _, m := range connectionManagers(l) {
			if !note(m.hcm.get("http_filters")) {
				continue
			}
			rc, _ := p.routesOf(m.hcm)
			chain := filters(m.hcm.get("http_filters"))
			p.waysOf(chain, legs(rc), p.asking(chain, legs(rc)))
		}
	}
}

// managers changes the listeners from which routes lead to an upstream, and these
// routes.
func (p *patcher) managers() {
	reached := map[string]bool{}
	for _, l := range p.listeners {
		for _, m := range connectionManagers(l) {
			rc, seen := p.routesOf(m.hcm)
			if !seen {
				p.note("listener %q fetches its routes %q elsewhere: whether they lead to an upstream cannot be seen here; give the answer of /config_dump too", listenerName(l), m.hcm.get("rds", "route_config_name").str())
			}
			var mine []leg
			others := 0
			for _, way := range legs(rc) {
				if ups := p.upstreamsOf([]leg{way}, func(*target) bool { return true }); len(ups) == 0 {
					others++
					continue
				}
				mine = append(mine, way)
				for _, name := range way.clusters() {
					reached[name] = true
				}
			}
			if len(mine) > 0 {
				p.manager(l, m, mine, others)
			}
		}
	}
	for _, t := range p.ups {
		if _, ok := p.cluster(t.Cluster); ok && !reached[t.Cluster] {
			p.note("upstream %q: no route in this file leads to cluster %q, so no route was changed for it", t.Name, t.Cluster)
		}
	}
}

// listenerName is its name, or the address of one that has none.
func listenerName(l tree) string {
	if name := l.get("name").str(); name != "" {
		return name
	}
	at := l.get("address", "socket_address")
	return at.get("address").str() + ":" + at.get("port_value").str()
}

func (p *patcher) manager(l tree, m manager, mine []leg, others int) {
	ups := p.upstreamsOf(mine, func(*target) bool { return true })
	name := listenerName(l)
	if n, ok := l.get("per_connection_buffer_limit_bytes").number(); ok && n < bufferLimit {
		p.note("listener %q: its per_connection_buffer_limit_bytes of %d is all that is kept of a call for a second attempt: a larger one is not repeated when a token was revoked", name, n)
	}
	if others > 0 {
		p.assume("listener %q has %d more route(s): what is changed in its connection manager (paths, hosts, headers with _, its access log) holds for them too; if one cannot live with that, give the routes to upstreams a listener of their own", name, others)
	}
	p.hygiene(name, m.hcm)
	p.early(m.hcm)
	p.tell(m.hcm, mine)
	p.bodies(l, m.hcm, ups)
	rejected := p.rejection(m.hcm, ups)
	quiet := slices.ContainsFunc(filters(m.hcm.get("http_filters")), func(f filter) bool { return f.kind == "Router" && f.config.get("suppress_envoy_headers").yes() })
	if quiet {
		p.note("listener %q: its router has suppress_envoy_headers, so a 401 that a filter of your own gives on a route to an upstream cannot be told from the upstream's, and becomes a 502 too", name)
	}
	p.certificates(m, ups)
	if i := slices.IndexFunc(filters(m.hcm.get("http_filters")), p.ours); i >= 0 {
		p.edge(m.hcm, i)
	}
	p.strangers(fmt.Sprintf("listener %q", name), seenBefore, filters(m.hcm.get("http_filters")))
	for _, way := range mine {
		p.route(way, passage{rejected: rejected, quiet: quiet, misleading: p.passed(m.hcm)})
	}
}

// hygiene makes every spelling of a path, a host and a header one.
func (p *patcher) hygiene(name string, hcm tree) {
	fixes := map[string]any{
		"path-not-normalized": true, "slashes-not-merged": true, "escaped-slashes": "REJECT_REQUEST", "host-port": true, "host-dot": true,
		"underscores": "REJECT_REQUEST", "remote-address": true, "caller-certificate-header": "SANITIZE", "idle-timeout": "3600s",
	}
	for _, r := range managerRules(tree{}) {
		fix, known := fixes[r.id]
		if !known || r.ok(hcm.get(r.keys...)) {
			continue
		}
		switch r.id {
		case "host-port": // Envoy takes one of the two
			p.remove(hcm, "strip_matching_host_port", "strip_any_host_port does more")
		case "remote-address":
			if hcm.get("original_ip_detection_extensions").ok() {
				continue // Envoy refuses both; Check says what is open
			}
			p.assume("listener %q is where callers arrive: with use_remote_address, Envoy takes a caller's address from the connection. Behind another proxy, set xff_num_trusted_hops to the number of proxies before it", name)
		}
		last := len(r.keys) - 1
		p.put(p.within(hcm, r.keys[:last]...), r.keys[last], p.value(fix), "else "+strings.ToLower(r.why[:1])+r.why[1:])
	}
}

// early takes the mark of a caller's own off.
func (p *patcher) early(hcm tree) {
	const key = "early_header_mutation_extensions"
	if takesOffEarly(hcm, GuardHeader) {
		return
	}
	var pk packed
	item := p.node(&corev3.TypedExtensionConfig{
		Name:        "envoy.http.early_header_mutation.header_mutation",
		TypedConfig: pk.any(&earlyv3.HeaderMutation{Mutations: []*mutationv3.HeaderMutation{removeHeader(GuardHeader)}}),
	})
	list := p.list(hcm, key)
	p.insert(list, len(list.n.Content), "only the server may set the mark that the guard looks for", item)
}

// tell sends the end of every call to the server.
func (p *patcher) tell(hcm tree, mine []leg) {
	const why = "how calls end is counted and watched, and a token refused on a call too large to be sent again is replaced for the next one"
	for _, l := range hcm.get("access_log").items() {
		config, kind := l.config()
		at := config.get("common_config", "grpc_service", "envoy_grpc", "cluster_name").str()
		if kind == "HttpGrpcAccessLogConfig" && (at == p.processorName || at == ProcessorCluster) {
			p.lists(config, "additional_response_headers_to_log", []string{ReasonHeader, SessionHeader}, why)
			p.lists(config, "additional_request_headers_to_log", []string{SessionHeader}, why)
			return
		}
	}
	if waiting := p.upstreamsOf(mine, func(u *target) bool { return !u.OutcomesFromHeaders }); len(waiting) == 0 {
		return
	}
	var pk packed
	list := p.list(hcm, "access_log")
	for _, log := range outcomes(&pk, nil) {
		n := p.node(log)
		setScalar(n, p.processorName, "typed_config", "common_config", "grpc_service", "envoy_grpc", "cluster_name")
		p.insert(list, len(list.n.Content), why, n)
	}
}

// bodies limits those that tool rules have read.
func (p *patcher) bodies(l, hcm tree, ups []*target) {
	all := make([]target, len(ups))
	for i, u := range ups {
		all[i] = *u
	}
	var pk packed
	wanted := toolFilters(&pk, all)
	if len(wanted) == 0 {
		return
	}
	const why = "tool rules have bodies read, up to tools.max_body; off, but for the routes of such upstreams"
	list := p.list(hcm, "http_filters")
	for i, f := range wanted {
		if !slices.ContainsFunc(filters(list), func(o filter) bool { return o.entry.get("name").str() == f.GetName() }) {
			p.insert(list, i, why, p.node(f))
		}
	}
	p.atLeast(l, "per_connection_buffer_limit_bytes", uint64(buffers(all...)), uint64(buffers(all...)), "a body that is read has to fit")
	if !hcm.get("local_reply_config").mentions(policy.BodyTooLarge.String()) {
		mappers := p.list(p.within(hcm, "local_reply_config"), "mappers")
		for _, m := range tooLarge(all).GetMappers() {
			p.insert(mappers, 0, "a body over tools.max_body is refused with our reason", p.node(m))
		}
	}
}

// rejection puts the filter into the chain that turns a last 401 of an upstream into
// a 502, doing nothing but for the routes that say so: the 401 of others is theirs.
// It returns the filter's name, empty where none is needed.
func (p *patcher) rejection(hcm tree, ups []*target) string {
	if !slices.ContainsFunc(ups, func(u *target) bool { return !u.keepsChallenge() }) {
		return ""
	}
	list := p.list(hcm, "http_filters")
	for _, f := range filters(list) {
		if f.kind == "CustomResponse" {
			return f.entry.get("name").str()
		}
	}
	var pk packed
	p.insert(list, 0, "it does nothing until a route says what", p.node(httpFilter(filterCustomResponse, pk.any(&customv3.CustomResponse{}))))
	return filterCustomResponse
}

// certificates has the listener verify those of callers, where the policy says with
// what.
func (p *patcher) certificates(m manager, ups []*target) {
	tls, kind := m.chain.get("transport_socket").config()
	files := p.set.Envoy.TLS
	if kind != "DownstreamTlsContext" || m.verifiesCallers() || files == nil || files.ClientCA == "" || !slices.ContainsFunc(ups, func(u *target) bool { return u.mtls() }) {
		return
	}
	p.put(p.within(tls, "common_tls_context", "validation_context"), "trusted_ca", p.node(file(files.ClientCA)), "callers of kind mtls are known by a certificate of this authority")
	p.assume("callers' certificates are signed by an authority in %s (envoy.tls.client_ca), on Envoy's host", files.ClientCA)
}

// What filters see before the decision, and after it.
const (
	seenBefore = "callers' own credentials"
	seenAfter  = "the credential that is lent"
)

// strangers tells of the filters of a chain that ask another program: they stay as they
// are, and whoever patches must know what they see. sees is that before the decision.
func (p *patcher) strangers(where, sees string, chain []filter) {
	for _, f := range chain {
		switch {
		case p.ours(f):
			sees = seenAfter
		case f.kind == "ExternalProcessor":
			p.note("%s: its ext_proc filter %q is taken for another program's and stays as it is. That program is sent %s, unless forward_rules leave that out. If it is to be envoy-mcp-auth, name the cluster that the filter calls %s, and patch again",
				where, f.entry.get("name").str(), sees, ProcessorCluster)
		}
	}
}

// edge sets right the settings of a listener's own filter that can only be one way.
func (p *patcher) edge(hcm tree, i int) {
	f := filters(hcm.get("http_filters"))[i]
	rc, _ := p.routesOf(hcm)
	if !slices.ContainsFunc(legs(rc), func(l leg) bool { _, on := effective(f, l); return on }) {
		p.remove(f.entry, "disabled", "every route that does not switch it on is unprotected")
	}
	for _, key := range []string{"failure_mode_allow", "observability_mode", "disable_immediate_response"} {
		if f.config.get(key).yes() {
			p.put(f.config, key, p.value(false), "a call that is not decided must be refused, and a refusal has to be one")
		}
	}
	if f.config.get("route_cache_action").enum(extprocv3.ExternalProcessor_RouteCacheAction_name) != "RETAIN" {
		p.put(f.config, "route_cache_action", scalarNode("RETAIN"), "a route that is chosen again after the decision may lead to another upstream, with this one's token")
	}
	if d, ok := f.config.get("message_timeout").duration(); !ok || d <= p.set.Server.Deadline {
		p.put(f.config, "message_timeout", scalarNode(messageTimeout.String()), "it must be above server.deadline, so that a slow token endpoint is refused with a reason")
	}
	if !f.config.get("mutation_rules", "disallow_is_error").yes() {
		p.put(p.within(f.config, "mutation_rules"), "disallow_is_error", p.value(true), "a change that Envoy does not allow would be dropped silently, and the caller's header go on")
	}
	for _, key := range []string{"allow_all_routing", "allow_envoy"} {
		if f.config.get("mutation_rules", key).yes() {
			p.remove(f.config.get("mutation_rules"), key, "no reply may send a request elsewhere")
		}
	}
	for _, ns := range []string{"forwarding_namespaces", "receiving_namespaces"} {
		p.lists(p.within(f.config, "metadata_options", ns), "untyped", []string{MetadataNamespace}, "a second attempt is judged by the first one's decision, which travels there")
	}
	if len(identities(f.config.get("grpc_service", "initial_metadata"))) == 0 {
		p.lists(f.config, "request_attributes", []string{"xds.cluster_name", "xds.route_name"}, "a call is for the upstream of its cluster")
	}
	p.edgeModes(f.config)
	p.edgeGuard(hcm, i)
}

func (p *patcher) edgeModes(config tree) {
	mode := p.within(config, "processing_mode")
	const why = "streams must not be held back or copied"
	for _, key := range []string{"request_body_mode", "response_body_mode"} {
		if at := mode.get(key); at.ok() && at.enum(extprocv3.ProcessingMode_BodySendMode_name) != "NONE" {
			p.put(mode, key, scalarNode("NONE"), why)
		}
	}
	if mode.get("request_header_mode").enum(extprocv3.ProcessingMode_HeaderSendMode_name) == "SKIP" {
		p.put(mode, "request_header_mode", scalarNode("SEND"), "there would be nothing to decide on")
	}
	told := slices.ContainsFunc(p.ups, func(t target) bool { return t.OutcomesFromHeaders })
	if !told && mode.get("response_header_mode").enum(extprocv3.ProcessingMode_HeaderSendMode_name) != "SKIP" {
		p.put(mode, "response_header_mode", scalarNode("SKIP"), "Envoy's own 400 and 431 would reach the caller as a closed connection")
	}
}

// edgeGuard puts behind a listener's ext_proc what demands the mark, and what takes
// trailers off.
func (p *patcher) edgeGuard(hcm tree, i int) {
	list := hcm.get("http_filters")
	all := filters(list)
	c := &checker{config: p.config}
	c.guard(all[i+1:], all[i], false)
	for _, f := range c.found {
		switch f.ID {
		case "guard-disabled":
			for _, g := range all[i+1:] {
				if g.config.mentions(GuardHeader) {
					p.remove(g.entry, "disabled", f.Why)
				}
			}
		case "no-guard":
			p.insert(list, i+1, f.Why, p.yaml(`name: envoy.filters.http.rbac.envoy_mcp_auth
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
  rules:
    action: ALLOW
    policies:
      decided:
        permissions: [{any: true}]
        principals: [{header: {name: `+GuardHeader+`, present_match: true}}]
`))
		}
	}
	c.found = nil
	if c.trailers(all, all[i]); len(c.found) > 0 {
		p.insert(list, i, c.found[0].Why, p.yaml(`name: envoy.filters.http.header_mutation.envoy_mcp_auth
typed_config:
  "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
  mutations: {request_trailers_mutations: [{remove_on_match: {key_matcher: {safe_regex: {regex: ".*"}}}}]}
`))
	}
}

// yaml reads what is written here.
func (p *patcher) yaml(s string) *yaml.Node {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(s), &doc); err != nil {
		p.fail(err)
		return mapping()
	}
	return doc.Content[0]
}

// process makes room for the regular expressions of mutation_rules.
func (p *patcher) process() {
	const key = "re2.max_program_size.error_level"
	layers := p.bootstrap.get("layered_runtime", "layers")
	if p.bootstrap.n == nil || layers.mentions("envoy_mcp_auth") {
		return
	}
	for _, l := range layers.items() {
		if at := l.get("static_layer").child(key); at.ok() {
			p.atLeast(l.get("static_layer"), key, 10000, 10000, "Envoy refuses regular expressions over this size, and mutation_rules may be longer")
			return
		}
		if re := l.get("static_layer", "re2", "max_program_size", "error_level"); re.ok() {
			p.atLeast(l.get("static_layer", "re2", "max_program_size"), "error_level", 10000, 10000, "mutation_rules may be longer")
			return
		}
	}
	rt, err := runtime()
	if err != nil {
		p.fail(err)
		return
	}
	first := len(layers.items()) == 0
	at := p.list(p.within(p.bootstrap, "layered_runtime"), "layers")
	p.insert(at, 0, "Envoy refuses regular expressions over size 100, and mutation_rules may be longer", p.node(rt.GetLayers()[0]))
	if first && p.bootstrap.get("admin").ok() {
		// Envoy has this layer by itself only where no other is given.
		p.insert(at, 1, "with a layer given, Envoy no longer has this one by itself", p.yaml("{name: admin, admin_layer: {}}"))
	}
}

// route changes one way to an upstream.
func (p *patcher) route(l leg, by passage) {
	ups := p.upstreamsOf([]leg{l}, func(*target) bool { return true })
	t := ups[0]
	if !l.vhost().get("include_request_attempt_count").yes() {
		p.put(l.vhost(), "include_request_attempt_count", p.value(true), "it tells the first attempt from the second; without it a caller could write "+attemptHeader+" itself")
	}
	c := &checker{config: p.config}
	if c.hosts(l.action); len(c.found) > 0 && len(ups) == 1 {
		p.remove(l.action, "host_rewrite_header", "the caller chose it")
		p.put(l.action, "host_rewrite_literal", scalarNode(t.authority), "the upstream gets its own host, never one that the caller chose")
	}
	if !l.action.get("timeout").ok() {
		p.put(l.action, "timeout", scalarNode("0s"), "Envoy's 15 s would cut SSE streams and long tool calls off")
	}
	p.short(l)
	lent := slices.ContainsFunc(ups, func(u *target) bool { return !u.keepsChallenge() })
	p.retry(l, slices.ContainsFunc(ups, func(u *target) bool { return !u.Credential.None() && u.RetryOn401 }))
	p.lists(l.route, "request_headers_to_remove", by.misleading, "a caller could tell the upstream of another host or path than it asked for")
	if at := l.route.get("request_headers_to_remove"); listsHeader(at, "authorization") {
		at.n.Content = slices.DeleteFunc(at.n.Content, func(n *yaml.Node) bool { return strings.EqualFold(n.Value, "authorization") })
		p.open(at.n)
		p.entire[at.n] = true
		p.changed(at.path, "took out authorization", "the policy takes the caller's own off; here it would come before the decision, which may need it")
	}
	if lent && !slices.ContainsFunc(l.levels, func(t tree) bool { return listsHeader(t.get("response_headers_to_remove"), challengeHeader) }) {
		p.lists(l.route, "response_headers_to_remove", []string{challengeHeader}, "the upstream's challenge is for the holder of the credential, which is not the caller")
	}
	p.perRoute(l, t, lent, by)
}

// short tells of times that end what takes long.
func (p *patcher) short(l leg) {
	if d, ok := l.action.get("timeout").duration(); ok && d > 0 {
		p.note("%s: its timeout of %s ends SSE streams and longer tool calls; 0s has none", l.route.path, d)
	}
	if d, ok := l.action.get("idle_timeout").duration(); ok && d > 0 && d < time.Hour {
		p.note("%s: its idle_timeout of %s ends SSE streams and tool calls that are silent so long", l.route.path, d)
	}
}

// passed are the misleading headers that the listener does not take off.
func (p *patcher) passed(hcm tree) []string {
	return slices.DeleteFunc(misleadingHeaders(), func(h string) bool { return takesOffEarly(hcm, h) })
}

// passage is what a listener does for the routes to upstreams.
type passage struct {
	rejected   string   // the name of the filter that turns a last 401 into a 502
	quiet      bool     // whether its router writes no x-envoy-* on answers
	misleading []string // headers that routes have to take off
}

// perRoute switches on what the listener's chain holds for the upstream. Where the
// router is not quiet, the time that it writes on an answer tells an upstream's 401
// from one that a filter of the user's own gave.
func (p *patcher) perRoute(l leg, t *target, lent bool, by passage) {
	var pk packed
	for name, config := range toolOverrides(&pk, *t) {
		p.put(p.within(l.route, "typed_per_filter_config"), name, p.node(config), "tool rules have the body read, up to tools.max_body")
	}
	if own := l.route.get("typed_per_filter_config").child(by.rejected); lent && by.rejected != "" && !own.mentions("401") && !p.convertsAlready(l, by.rejected) {
		var also []*predicate
		if !by.quiet {
			also = append(also, hasHeader(&pk, "upstream", "x-envoy-upstream-service-time"))
		}
		n := p.node(pk.any(rejectedResponse(&pk, also...)))
		p.replace(p.within(l.route, "typed_per_filter_config"), by.rejected, n, "an upstream's last 401 is about our credential, and a caller can do nothing about it: it becomes a 502 with a reason")
	}
	if pk.err != nil {
		p.fail(pk.err)
	}
	for name, over := range l.route.get("typed_per_filter_config").each() {
		config, kind := over.config()
		if failing := config.get("overrides"); kind == "ExtProcPerRoute" && p.overridesOurs(name, kind) && failing.get("failure_mode_allow").ok() {
			p.remove(failing, "failure_mode_allow", "when envoy-mcp-auth fails, requests of this route would go on with the caller's own credentials")
		}
	}
}

// retry heals a revoked token inside the call, and repeats nothing else.
func (p *patcher) retry(l leg, heals bool) {
	have := l.action.get("retry_policy")
	if !have.ok() && !heals {
		if inherited := l.vhost().get("retry_policy"); p.unsafe(inherited) {
			p.silently(func() {
				p.put(l.action, "retry_policy", p.value(map[string]any{"retry_on": "", "num_retries": 0}), "the virtual host's repeats calls that the upstream may have carried out")
			})
		}
		return
	}
	if !have.ok() {
		p.put(l.action, "retry_policy", p.node(retryOn401()), "a revoked token heals inside the call: nothing but a 401 is repeated, since only that says that the call did not run")
		return
	}
	p.retryPolicy(have, heals)
}

// retryPolicy takes out of a policy what could make a call run twice, and repeats a
// 401 where that heals.
func (p *patcher) retryPolicy(have tree, heals bool) {
	words := slices.DeleteFunc(retryWords(have), func(w string) bool { return w == "" || !slices.Contains(safeRetries(), w) })
	if heals && !slices.Contains(words, "retriable-status-codes") {
		words = append(words, "retriable-status-codes")
	}
	const why = "a tool call may not be safe to run twice; only a 401 says that it did not run"
	if now := strings.Join(words, ","); now != strings.Join(retryWords(have), ",") {
		p.put(have, "retry_on", scalarNode(now), why)
	}
	if slices.Contains(words, "retriable-status-codes") && !slices.Equal(have.get("retriable_status_codes").strs(), []string{"401"}) {
		p.replace(have, "retriable_status_codes", p.value([]int{401}), why)
	}
	if n, ok := have.get("num_retries").number(); ok && (n > 1 || n == 0 && heals) {
		p.put(have, "num_retries", p.value(1), "a second new token cannot heal what the first did not")
	}
}

func (p *patcher) unsafe(policy tree) bool {
	c := &checker{config: p.config}
	c.retries(policy)
	return len(c.found) > 0
}

// convertsAlready reports whether the filter's own configuration does it on this route.
func (p *patcher) convertsAlready(l leg, name string) bool {
	for _, lst := range p.listeners {
		for _, m := range connectionManagers(lst) {
			rc, _ := p.routesOf(m.hcm)
			if rc.n != l.levels[0].n {
				continue
			}
			for _, f := range filters(m.hcm.get("http_filters")) {
				if f.entry.get("name").str() == name {
					config, on := effective(f, l)
					return on && config.mentions("401")
				}
			}
		}
	}
	return false
}
