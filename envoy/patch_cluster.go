package envoy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.yaml.in/yaml/v3"
)

// upstreamCluster makes the cluster of an upstream ask the server, unless a listener's
// own chain does.
func (p *patcher) upstreamCluster(cl tree, t target) {
	sees := seenBefore
	switch {
	case p.covered[t.Cluster]:
		sees = seenAfter
	case !t.Credential.None(): // what a chain does to headers, the next attempt finds
		sees += ", and at a second attempt the one that was lent for the first"
	}
	if !p.covered[t.Cluster] || p.guarded[t.Cluster] {
		p.chainOf(p.protocolOptions(cl), t)
	}
	p.strangers(fmt.Sprintf("cluster %q", t.Cluster), sees, filters(upstreamOptions(cl).get("http_filters")))
	p.encrypted(cl, t)
	if own := upstreamOptions(cl).get("retry_policy"); own.ok() {
		p.retryPolicy(own, t.RetryOn401 && !t.Credential.None())
	}
	const budget = "Envoy allows 3 retries at once by default; when a token that many calls use is revoked, most of them would see the 401"
	p.threshold(cl, "max_retries", 100, budget)
	if limit := t.bodyLimit(); limit > 0 {
		p.atLeast(cl, "per_connection_buffer_limit_bytes", uint64(buffers(t)), uint64(limit)+1, "tool rules have bodies of this size read, and one that does not fit is never answered")
	}
}

// protocolOptions returns the HttpProtocolOptions of a cluster. Once it is there,
// Envoy no longer reads the cluster's older fields, so what they say moves into it.
func (p *patcher) protocolOptions(cl tree) tree {
	if at := upstreamOptions(cl); at.ok() {
		return at
	}
	const why = "the cluster's own filters stand here; what its older fields said about HTTP moves with them, since Envoy would no longer read it there"
	options := mapping()
	options.Content = append(options.Content, scalarNode("@type"), scalarNode("type.googleapis.com/"+protocolOptions))
	for _, key := range []string{"common_http_protocol_options", "upstream_http_protocol_options"} {
		p.move(cl, key, options, key)
	}
	http2, http1 := cl.get("http2_protocol_options"), cl.get("http_protocol_options")
	inner := mapping()
	key := "explicit_http_config"
	switch {
	case cl.get("protocol_selection").enum(clusterv3.Cluster_ClusterProtocolSelection_name) == "USE_DOWNSTREAM_PROTOCOL":
		key = "use_downstream_protocol_config"
		p.move(cl, "http_protocol_options", inner, "http_protocol_options")
		p.move(cl, "http2_protocol_options", inner, "http2_protocol_options")
	case http2.ok():
		p.move(cl, "http2_protocol_options", inner, "http2_protocol_options")
	case http1.ok():
		p.move(cl, "http_protocol_options", inner, "http_protocol_options")
	default: // HTTP/1.1, as Envoy takes a cluster that says nothing
		inner.Content = append(inner.Content, scalarNode("http_protocol_options"), mapping())
	}
	p.remove(cl, "protocol_selection", why)
	options.Content = append(options.Content, scalarNode(key), inner)
	p.put(p.within(cl, "typed_extension_protocol_options"), protocolOptions, options, why)
	return upstreamOptions(cl)
}

// move takes an entry out of a mapping and puts it into another that is not yet in
// the document.
func (p *patcher) move(from tree, key string, into *yaml.Node, as string) {
	k, v := entryOf(from.n, key)
	if v == nil {
		return
	}
	p.drop(from, k)
	p.removed[from.n] = append(p.removed[from.n], k.Value)
	into.Content = append(into.Content, scalarNode(as), v)
	p.changed(join(from.path, k.Value), "moved", "into HttpProtocolOptions, which Envoy reads in its place")
}

// chainOf makes the chain of a cluster that of its upstream.
func (p *patcher) chainOf(options tree, t target) {
	var pk packed
	own, err := upstreamFilters(&pk, t)
	if err != nil || pk.err != nil {
		p.fail(fmt.Errorf("upstream %q: %w", t.Name, cmpErr(err, pk.err)))
		return
	}
	want := make([]*yaml.Node, len(own))
	for i, f := range own {
		want[i] = p.node(f)
	}
	setScalar(want[1], p.processorName, "typed_config", "grpc_service", "envoy_grpc", "cluster_name")
	list := p.list(options, "http_filters")
	all := filters(list)
	i := slices.IndexFunc(all, p.ours)
	if i >= 0 {
		p.repair(list, i, want, t)
		return
	}
	end := slices.IndexFunc(all, func(f filter) bool { return f.kind == "UpstreamCodec" })
	if end < 0 {
		end = len(all)
	} else {
		want = want[:3]
	}
	for _, f := range want {
		p.rename(f, all)
	}
	p.insert(list, end, fmt.Sprintf("every attempt of a call to upstream %q is decided here, after every routing decision", t.Name), want...)
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// rename gives a filter of ours another name where the file uses its usual one, in
// this chain or in a listener's: settings per route go by name in every chain.
func (p *patcher) rename(f *yaml.Node, chain []filter) {
	_, name := entryOf(f, "name")
	if p.names == nil {
		p.names = p.filterNames()
	}
	taken := p.names[name.Value] || slices.ContainsFunc(chain, func(o filter) bool { return o.entry.get("name").str() == name.Value })
	if taken && name.Value != filterUpstreamCodec {
		name.Value += ".envoy_mcp_auth"
	}
}

// filterNames are those that listeners and settings per route use.
func (p *patcher) filterNames() map[string]bool {
	names := map[string]bool{}
	for _, l := range p.listeners {
		l.walk(func(t tree) bool {
			if t.get("typed_config").ok() {
				names[t.get("name").str()] = true
			}
			for name := range t.get("typed_per_filter_config").each() {
				names[name] = true
			}
			return true
		})
	}
	return names
}

// repair sets right a chain that asks the server already.
func (p *patcher) repair(list tree, i int, want []*yaml.Node, t target) {
	const why = "what the server is asked, and may change, follows from the policy"
	at := list.items()[i]
	p.remove(at, "disabled", "the filter was switched off")
	config, _ := at.config()
	for _, key := range []string{"observability_mode", "disable_immediate_response"} {
		if config.get(key).yes() {
			p.remove(config, key, "a refusal has to be one, with its reason")
		}
	}
	_, wanted := entryOf(want[1], "typed_config")
	p.processing(config, wanted, why)
	for j := 0; j+1 < len(wanted.Content); j += 2 {
		p.setting(config, wanted.Content[j].Value, wanted.Content[j+1], why)
	}
	p.codec(list, want[3])
	p.guardOf(list, i, want[2], t)
	p.unmark(list, i, want[0])
}

// setting brings one setting of our ext_proc filter to what the policy needs, and
// leaves what is as good.
func (p *patcher) setting(config tree, key string, want *yaml.Node, why string) {
	switch key {
	case "@type", "grpc_service", "processing_mode":
	case "message_timeout":
		if d, ok := config.get(key).duration(); !ok || d <= p.set.Server.Deadline {
			p.put(config, key, want, "it must be above server.deadline, so that a slow token endpoint is refused with a reason")
		}
	case "request_attributes":
		p.lists(config, key, stringsOf(want), why)
	case "metadata_options":
		for _, ns := range []string{"forwarding_namespaces", "receiving_namespaces"} {
			words := tree{n: want}.get(ns, "untyped").strs()
			p.lists(p.within(config, key, ns), "untyped", words, "a second attempt is judged by the first one's decision, which travels there")
		}
	case "mutation_rules", "forward_rules", "allowed_override_modes":
		p.replace(config, key, want, why)
	default:
		p.put(config, key, want, why)
	}
}

// processing sets the identity and what is sent.
func (p *patcher) processing(config tree, want *yaml.Node, why string) {
	service := config.get("grpc_service")
	ids := identities(service.get("initial_metadata"))
	name := identities(tree{n: want}.get("grpc_service", "initial_metadata"))[0].str()
	if len(ids) != 1 || ids[0].str() != name {
		metadata := p.list(p.within(config, "grpc_service"), "initial_metadata")
		metadata.n.Content = slices.DeleteFunc(metadata.n.Content, func(n *yaml.Node) bool {
			return strings.EqualFold(scalar(n, "key"), UpstreamMetadata)
		})
		p.insert(metadata, 0, "the filter says which upstream it stands before", p.value(map[string]string{"key": UpstreamMetadata, "value": name}))
	}
	if _, ok := p.cluster(grpcCluster(config)); !ok {
		p.put(p.within(config, "grpc_service", "envoy_grpc"), "cluster_name", scalarNode(p.processorName), "the cluster that was named is not here")
	}
	if !config.get("forward_rules").ok() || (tree{n: want}).get("forward_rules").ok() {
		p.put(config, "processing_mode", tree{n: want}.get("processing_mode").n, why)
		return
	}
	p.remove(config, "forward_rules", "the policy may have to see every header")
	p.put(config, "processing_mode", tree{n: want}.get("processing_mode").n, why)
}

func (p *patcher) codec(list tree, want *yaml.Node) {
	if all := filters(list); len(all) == 0 || all[len(all)-1].kind != "UpstreamCodec" {
		p.insert(list, len(all), "Envoy wants it last", want)
	}
}

// guardOf puts the guard behind ext_proc where there is none, or none that holds.
func (p *patcher) guardOf(list tree, i int, want *yaml.Node, t target) {
	const why = "a stream that ends without an error before a reply lets the request through untouched; this is what stops it"
	all := filters(list)
	for _, g := range all[i+1:] {
		if !g.config.mentions(GuardHeader) || !watches(g) {
			continue
		}
		if g.kind != "Lua" {
			return // somebody's own; Check says what is wrong with it
		}
		p.remove(g.entry, "disabled", why)
		if !g.config.mentions(`"`+strings.ToLower(t.Name)+`"`) || !enforces(g, t.Name) {
			p.replace(g.entry, "typed_config", tree{n: want}.get("typed_config").n, why)
		}
		return
	}
	p.rename(want, all)
	p.insert(list, i+1, why, want)
}

// unmark puts before ext_proc what takes the mark, trailers and reasons of others off.
func (p *patcher) unmark(list tree, i int, want *yaml.Node) {
	all := filters(list)
	c := &checker{config: p.config}
	c.mark(all[:i], all[i], false)
	c.trailers(all, all[i])
	c.reasons(all, all[i])
	if len(c.found) == 0 {
		return
	}
	p.rename(want, all)
	p.insert(list, i, "the mark is the server's alone to set, and no trailer of a caller goes on", want)
}

// encrypted makes the way to the upstream one that nobody reads, to the host of the
// policy's url.
func (p *patcher) encrypted(cl tree, t target) {
	tls, kind := cl.get("transport_socket").config()
	here := slices.Contains(endpoints(cl), fmt.Sprintf("%s:%d", t.host, t.port))
	switch {
	case !t.tls:
	case kind == "UpstreamTlsContext":
		p.verifying(cl, tls, t)
	case !cl.get("transport_socket").ok() && !onLoopback(cl) && here:
		var pk packed
		p.put(cl, "transport_socket", p.node(tlsSocket(&pk, upstreamTLS(t, p.opt))), "the policy's url is https, and the credential could be read on the way")
		p.assumeCA(t)
	}
}

// verifying has the cluster verify the certificate of the upstream's host.
func (p *patcher) verifying(cl, tls tree, t target) {
	c := &checker{config: p.config}
	c.socket(cl, cl.get("transport_socket"), &t)
	if len(c.found) == 0 {
		return
	}
	const why = "Envoy by itself verifies neither chain nor name, so the credential would go to whoever answers"
	common := p.within(tls, "common_tls_context")
	validation := common.get("combined_validation_context", "default_validation_context")
	if !validation.ok() {
		validation = p.within(common, "validation_context")
	}
	want := p.node(upstreamTLS(t, p.opt))
	wanted := tree{n: want}.get("common_tls_context", "validation_context")
	for _, f := range c.found {
		switch {
		case strings.HasSuffix(f.Path, "trust_chain_verification"):
			p.remove(validation, "trust_chain_verification", why)
		case strings.HasSuffix(f.Path, "trusted_ca"):
			p.put(validation, "trusted_ca", wanted.get("trusted_ca").n, why)
			p.assumeCA(t)
		default: // the name
			p.replace(validation, "match_typed_subject_alt_names", wanted.get("match_typed_subject_alt_names").n, why)
		}
	}
	if tls.get("sni").str() == "" && scalar(want, "sni") != "" {
		p.put(tls, "sni", scalarNode(scalar(want, "sni")), "a server of several names shows the certificate of this one")
	}
}

func (p *patcher) assumeCA(t target) {
	ca := p.opt.SystemCA
	if t.CA != "" {
		ca = t.CA
	}
	p.assume("the certificate of %s (upstream %q) is signed by an authority in %s, on Envoy's host; another is named by the upstream's `ca` in the policy", t.host, t.Name, ca)
}

// threshold raises a limit of a cluster's circuit breakers to the one that is rendered.
func (p *patcher) threshold(cl tree, key string, least uint64, why string) {
	at := p.list(p.within(cl, "circuit_breakers"), "thresholds")
	for _, item := range at.items() {
		if pr := item.get("priority").enum(corev3.RoutingPriority_name); pr != "" && pr != "DEFAULT" {
			continue
		}
		if n, ok := item.get(key).number(); ok && n >= least || key == "max_retries" && item.get("retry_budget").ok() {
			return
		}
		p.put(item, key, p.value(ceiling), why)
		return
	}
	p.insert(at, 0, why, p.value(map[string]int{key: ceiling}))
}

func (p *patcher) atLeast(m tree, key string, want, least uint64, why string) {
	if n, ok := m.get(key).number(); !ok || n < least {
		p.put(m, key, p.value(want), why)
	}
}

// wayHere sees to it that there is a cluster that leads to the server, and returns
// its name: that of a filter that calls it already, else our own.
func (p *patcher) wayHere() string {
	want, err := processorCluster(p.opt)
	if err != nil {
		p.fail(err)
		return ProcessorCluster
	}
	cl, ok := p.existingWay()
	if !ok {
		p.assume("the server is reached at %s", p.opt.Processor)
		p.addCluster(want)
		return ProcessorCluster
	}
	name := cl.get("name").str()
	full := p.node(want)
	for _, key := range []string{"health_checks", "outlier_detection"} {
		if !cl.get(key).ok() {
			p.put(cl, key, tree{n: full}.get(key).n, "calls must not go on to a server that is stopping or fails")
		}
	}
	if d, ok := cl.get("connect_timeout").duration(); !ok || d > 250*time.Millisecond {
		p.put(cl, "connect_timeout", tree{n: full}.get("connect_timeout").n, "a lost server would cost each call that long")
	}
	p.threshold(cl, "max_requests", 1025, "Envoy would refuse to have more than 1024 calls decided at once")
	p.http2(cl, full)
	if socket := (tree{n: full}).get("transport_socket"); socket.ok() && !cl.get("transport_socket").ok() && !onLoopback(cl) {
		p.put(cl, "transport_socket", socket.n, "callers' credentials travel here")
	}
	return name
}

func (p *patcher) http2(cl tree, want *yaml.Node) {
	options := upstreamOptions(cl)
	h2 := options.get("explicit_http_config", "http2_protocol_options")
	if !h2.ok() {
		h2 = cl.get("http2_protocol_options")
	}
	switch {
	case h2.ok() && h2.get("connection_keepalive").ok():
	case h2.ok():
		p.put(h2, "connection_keepalive", p.value(map[string]string{"interval": "30s", "timeout": "5s"}), "a connection that died silently is noticed")
	default:
		rendered := tree{n: want}.get("typed_extension_protocol_options", protocolOptions)
		p.replace(p.within(cl, "typed_extension_protocol_options"), protocolOptions, rendered.n, "gRPC needs HTTP/2")
	}
}

// existingWay finds the cluster that leads to the server, if there is one.
func (p *patcher) existingWay() (tree, bool) {
	for name := range p.processorNames {
		if cl, ok := p.cluster(name); ok {
			return cl, true
		}
	}
	return p.cluster(ProcessorCluster)
}

func (p *patcher) addCluster(c *clusterv3.Cluster) {
	list := tree{n: p.doc.Content[0]}.get("static_resources")
	if p.dump {
		for _, d := range (tree{n: p.doc.Content[0]}).get("configs").items() {
			if strings.HasSuffix(d.get("@type").str(), ".ClustersConfigDump") {
				at := p.list(d, "static_clusters")
				item, cluster := mapping(), p.node(c)
				add(item, "cluster", cluster, "")
				p.insert(at, len(at.n.Content), "the way to the server", item)
				p.fresh[cluster] = true
				p.config = collect(tree{n: p.doc.Content[0], at: 1})
				return
			}
		}
	}
	if !list.ok() {
		list = tree{n: p.doc.Content[0]}
	}
	at := p.list(list, "clusters")
	p.insert(at, len(at.n.Content), "the way to the server", p.node(c))
	p.clusters = at.items()
	p.byCluster = nil
}

// stringsOf returns the scalars of a list.
func stringsOf(n *yaml.Node) []string { return tree{n: n}.strs() }

// setScalar changes a scalar below n, where it is.
func setScalar(n *yaml.Node, value string, keys ...string) {
	if at := (tree{n: n}).get(keys...); at.ok() {
		at.n.Value = value
	}
}
