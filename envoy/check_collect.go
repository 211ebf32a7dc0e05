package envoy

import (
	"maps"
	"strings"
)

// config is what Check found in a file.
type config struct {
	listeners []tree
	clusters  []tree
	routes    map[string]tree // route configurations that listeners fetch by name
	bootstrap tree            // for the admin block and the node

	assigned  map[string]tree // endpoints that clusters fetch by name
	byCluster map[string]tree // filled by cluster
}

func collect(root tree) config {
	if root.get("configs").ok() {
		return collectDump(root)
	}
	if dumps := wrapped(root); len(dumps) > 0 {
		return collectAll(dumps)
	}
	static := root.get("static_resources")
	if !static.ok() { // a list of resources by itself
		static = root
	}
	return config{
		bootstrap: root,
		listeners: static.get("listeners").items(),
		clusters:  static.get("clusters").items(),
		routes:    map[string]tree{},
	}
}

// wrapped returns the dumps in what egctl prints: by gateway, or by namespace and pod.
func wrapped(root tree) []tree {
	var all []tree
	for _, outer := range root.each() {
		for _, inner := range outer.each() {
			if inner.get("configs").ok() {
				all = append(all, inner)
			}
		}
	}
	return all
}

func collectAll(dumps []tree) config {
	cfg := collectDump(dumps[0])
	for _, dump := range dumps[1:] {
		more := collectDump(dump)
		cfg.listeners, cfg.clusters = append(cfg.listeners, more.listeners...), append(cfg.clusters, more.clusters...)
		maps.Copy(cfg.routes, more.routes)
		maps.Copy(cfg.assigned, more.assigned)
	}
	return cfg
}

// collectDump reads a /config_dump. Its bootstrap repeats the static resources,
// so it is used only where the dump was filtered and has nothing else.
func collectDump(root tree) config {
	cfg := config{routes: map[string]tree{}, assigned: map[string]tree{}}
	for _, dump := range root.get("configs").items() {
		kind := dump.get("@type").str()
		switch {
		case strings.HasSuffix(kind, ".BootstrapConfigDump"):
			cfg.bootstrap = dump.get("bootstrap")
		case strings.HasSuffix(kind, ".ListenersConfigDump"):
			cfg.listeners = append(cfg.listeners, under(dump, "listener", "static_listeners")...)
			for _, d := range dump.get("dynamic_listeners").items() {
				cfg.listeners = appendPresent(cfg.listeners, d.get("active_state", "listener"))
			}
		case strings.HasSuffix(kind, ".ClustersConfigDump"):
			cfg.clusters = append(cfg.clusters, under(dump, "cluster", "static_clusters", "dynamic_active_clusters")...)
		case strings.HasSuffix(kind, ".EndpointsConfigDump"):
			for _, e := range under(dump, "endpoint_config", "static_endpoint_configs", "dynamic_endpoint_configs") {
				cfg.assigned[e.get("cluster_name").str()] = e
			}
		case strings.HasSuffix(kind, ".RoutesConfigDump"):
			for _, rc := range under(dump, "route_config", "dynamic_route_configs") {
				cfg.routes[rc.get("name").str()] = rc
			}
		}
	}
	if len(cfg.listeners)+len(cfg.clusters) == 0 {
		static := cfg.bootstrap.get("static_resources")
		cfg.listeners, cfg.clusters = static.get("listeners").items(), static.get("clusters").items()
	}
	return cfg
}

func under(dump tree, key string, lists ...string) []tree {
	var all []tree
	for _, list := range lists {
		for _, item := range dump.get(list).items() {
			all = appendPresent(all, item.get(key))
		}
	}
	return all
}

func appendPresent(all []tree, t tree) []tree {
	if !t.ok() {
		return all
	}
	if name := t.get("name").str(); name != "" {
		t.path += "[" + name + "]"
	}
	return append(all, t)
}

func (c *config) cluster(name string) (tree, bool) {
	if c.byCluster == nil {
		c.byCluster = make(map[string]tree, len(c.clusters))
		for _, cl := range c.clusters {
			c.byCluster[cl.get("name").str()] = cl
		}
	}
	cl, ok := c.byCluster[name]
	return cl, ok
}

// endpoints are those of a cluster, its own or fetched.
func (c *config) endpoints(cl tree) tree {
	if own := cl.get("load_assignment"); own.ok() {
		return own
	}
	if e, ok := c.assigned[cl.get("name").str()]; ok {
		return e
	}
	return c.assigned[cl.get("eds_cluster_config", "service_name").str()]
}

// upstreamOptions is the HttpProtocolOptions of a cluster.
func upstreamOptions(cluster tree) tree {
	return cluster.get("typed_extension_protocol_options", protocolOptions)
}

// connectionManagers returns the HTTP connection managers of a listener, each
// with its filter chain.
func connectionManagers(listener tree) []manager {
	var all []manager
	chains := listener.get("filter_chains").items()
	if d := listener.get("default_filter_chain"); d.ok() {
		chains = append(chains, d)
	}
	for _, chain := range chains {
		for _, f := range chain.get("filters").items() {
			if hcm, kind := f.config(); kind == "HttpConnectionManager" {
				all = append(all, manager{hcm: hcm, chain: chain})
			}
		}
	}
	// An API listener has no chain.
	if hcm, kind := listener.get("api_listener", "api_listener").config(); kind == "HttpConnectionManager" {
		all = append(all, manager{hcm: hcm})
	}
	return all
}

type manager struct{ hcm, chain tree }

// verifiesCallers reports whether it is said what client certificates are verified with.
func (m manager) verifiesCallers() bool {
	tls, kind := m.chain.get("transport_socket").config()
	common := tls.get("common_tls_context")
	return kind == "DownstreamTlsContext" && (common.get("validation_context", "trusted_ca").ok() ||
		common.get("combined_validation_context").ok() || common.get("validation_context_sds_secret_config").ok())
}

// leg is one way from a listener to a cluster.
type leg struct {
	levels []tree // route configuration, virtual host, route: where headers and overrides may be
	route  tree   // the mapping that holds the action
	action tree
}

// legs returns every route of a route configuration that goes to a cluster,
// wherever it is nested.
func legs(rc tree) []leg {
	var all []leg
	for _, vh := range rc.get("virtual_hosts").items() {
		vh.walk(func(t tree) bool {
			if a := t.get("route"); a.ok() && (a.get("cluster").ok() || a.get("weighted_clusters").ok() ||
				a.get("cluster_header").ok() || a.get("cluster_specifier_plugin").ok() || a.get("inline_cluster_specifier_plugin").ok()) {
				all = append(all, leg{levels: []tree{rc, vh, t}, route: t, action: a})
			}
			return true
		})
	}
	return all
}

// clusters names the clusters that a leg may go to.
func (l leg) clusters() []string {
	if name := l.action.get("cluster").str(); name != "" {
		return []string{name}
	}
	var names []string
	for _, w := range l.action.get("weighted_clusters", "clusters").items() {
		names = append(names, w.get("name").str())
	}
	return names
}

func (l leg) vhost() tree { return l.levels[1] }
