package envoy

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	networking = "networking.istio.io/v1"
	security   = "security.istio.io/v1"

	// mcpGateway is the name of our resources of an egress gateway, and gatewayPort
	// where it listens inside the mesh.
	mcpGateway  = "mcp-egress"
	gatewayPort = 443
)

func resource(api, kind, name, namespace string, spec object) object {
	return object{
		{key: "apiVersion", value: api},
		{key: "kind", value: kind},
		{key: "metadata", value: object{{key: "name", value: name}, {key: "namespace", value: namespace}}},
		{key: "spec", value: spec},
	}
}

func strs(all ...string) list {
	l := make(list, len(all))
	for i, s := range all {
		l[i] = s
	}
	return l
}

// seen is who may see a host: the proxies that ask, and those that lead to them.
func (m *istio) seen() list {
	if m.home() == m.Namespace {
		return strs(m.Namespace)
	}
	// By name: a rule of Istio's own namespace that says "." is none for a gateway there.
	return strs(m.home(), m.Namespace)
}

// hostDocuments say where an upstream is, how the way there is encrypted, and which
// paths lead to it.
func (m *istio) hostDocuments(t meshTarget) []document {
	var all []document
	if !t.inMesh() {
		all = append(all, document{"Upstream " + t.Name + " is outside of the mesh.", m.serviceEntry(t)})
	}
	switch {
	case t.tls:
		all = append(all, document{"The proxy speaks TLS, and verifies chain and name.", m.originate(t)})
	case t.inMesh():
		all = append(all, document{"The mesh's own mutual TLS, or nothing.", m.destinationRule(t, object{{key: "mode", value: "ISTIO_MUTUAL"}})})
	}
	return append(all, document{"Only what is below the path of the upstream's url leads to it.", m.virtualService(t)})
}

func (m *istio) serviceEntry(t meshTarget) object {
	port := object{
		{key: "number", value: t.meshPort},
		{key: "name", value: "http-mcp"},
		{key: "protocol", value: "HTTP"},
		{key: "targetPort", value: t.port},
	}
	_, err := netip.ParseAddr(t.host)
	resolution := map[bool]string{true: "STATIC", false: "DNS"}[err == nil]
	spec := object{
		{key: "hosts", value: strs(t.meshHost)},
		{key: "exportTo", value: m.seen()},
		{key: "location", value: "MESH_EXTERNAL"},
		{key: "resolution", value: resolution},
		{key: "ports", value: list{port}},
	}
	if t.host != t.meshHost {
		spec = append(spec, field{key: "endpoints", value: list{object{{key: "address", value: t.host}}}})
	}
	return resource(networking, "ServiceEntry", resourceName(t.Name), m.home(), spec)
}

func (m *istio) originate(t meshTarget) object {
	tls := object{
		{key: "mode", value: "SIMPLE"},
		{key: "sni", value: t.host},
		{key: "subjectAltNames", value: strs(t.host), remark: "Written out: without, whether the name is verified is up to the mesh's settings."},
	}
	if t.CA != "" {
		tls = append(tls, field{key: "caCertificates", value: t.CA, remark: "A path in the proxy's container: mount the file there."})
	}
	return m.destinationRule(t, tls)
}

// destinationRule sets the TLS of the upstream's port.
func (m *istio) destinationRule(t meshTarget, tls object) object {
	policy := object{{key: "portLevelSettings", value: list{object{
		{key: "port", value: object{{key: "number", value: t.meshPort}}},
		{key: "tls", value: tls},
	}}}}
	spec := object{{key: "host", value: t.meshHost}, {key: "exportTo", value: m.seen()}, {key: "trafficPolicy", value: policy}}
	return resource(networking, "DestinationRule", resourceName(t.Name), m.home(), spec)
}

// virtualService are the routes of an upstream. Its paths pass unchanged: callers
// write the upstream's own url, but for scheme and port.
func (m *istio) virtualService(t meshTarget) object {
	spec := object{{key: "hosts", value: strs(t.meshHost)}, {key: "exportTo", value: m.seen()}}
	var routes list
	if m.Gateway == "" {
		// By port: Istio answers for the host on every port of the mesh else.
		routes = m.routes(t, object{{key: "port", value: t.meshPort}})
	} else {
		spec = append(spec, field{key: "gateways", value: strs("mesh", mcpGateway)})
		routes = append(list{m.towardsGateway(t)}, m.routes(t, object{{key: "gateways", value: strs(mcpGateway)}})...)
	}
	return resource(networking, "VirtualService", resourceName(t.Name), m.home(), append(spec, field{key: "http", value: routes}))
}

// routes are those at which the filters are, each for requests that match where too.
func (m *istio) routes(t meshTarget, where object) list {
	match := func(kind, value string) object {
		return append(object{{key: "uri", value: object{{key: kind, value: value}}}}, where...)
	}
	unclear := unclearPath()
	refused := func(name string, o object) object {
		return append(object{{key: "name", value: name}, {key: "match", value: list{o}}}, refusedBy(policy.NoPolicy)...)
	}
	below := list{match("prefix", "/")}
	if path := strings.TrimSuffix(t.path, "/"); path != "" {
		below = list{match("prefix", path+"/")}
		if path == t.path {
			below = append(list{match("exact", path)}, below...)
		}
	}
	all := list{refused(unclear.GetName(), match("regex", unclear.GetMatch().GetSafeRegex().GetRegex()))}
	if !t.keepsChallenge() && t.path == "" {
		all = append(all, refused("hidden_metadata", match("prefix", metadataPath)))
	}
	all = append(all, m.lead(t, below))
	return append(all, refused(policy.NoPolicy.String(), match("prefix", "/")))
}

// lead is the route to the upstream.
func (m *istio) lead(t meshTarget, match list) object {
	to := object{{key: "host", value: t.meshHost}, {key: "port", value: object{{key: "number", value: t.meshPort}}}}
	if t.subset != "" {
		to = append(to, field{key: "subset", value: t.subset})
	}
	headers := object{{key: "request", value: object{
		{key: "remove", value: strs(misleadingHeaders()...), remark: "What frameworks read instead of host and path."},
	}}}
	retries := object{{key: "attempts", value: 0, remark: "Istio repeats calls by default. A tool call may not be safe to run twice."}}
	if hidden := m.hidden(t); len(hidden) > 0 {
		headers = append(headers, field{
			key: "response", value: object{{key: "remove", value: strs(hidden...)}},
			remark: "What is not for callers: the challenge is for the holder of the credential.",
		})
	}
	if !t.keepsChallenge() && t.RetryOn401 && !m.RouteLevel {
		retries = object{
			{key: "attempts", value: 1, remark: "A revoked token heals inside the call. Nothing but a 401 is repeated: it says that the\ntool did not run."},
			{key: "retryOn", value: "retriable-status-codes,401"},
			{key: "backoff", value: "25ms"},
			{key: "retryIgnorePreviousHosts", value: false},
		}
	}
	return object{
		{key: "name", value: t.routeName()},
		{key: "match", value: match},
		{key: "rewrite", value: object{{key: "authority", value: t.authority, remark: "The upstream gets its own host, never one that the caller chose."}}},
		{key: "retries", value: retries},
		{key: "headers", value: headers},
		{key: "route", value: list{object{{key: "destination", value: to}}}},
	}
}

// hidden are the headers of an upstream's answers that do not reach callers.
func (m *istio) hidden(t meshTarget) (names []string) {
	if !t.keepsChallenge() {
		names = append(names, challengeHeader)
	}
	if m.RouteLevel {
		names = append(names, ReasonHeader) // elsewhere the cluster's chain does
	}
	return names
}

// refusedBy answers in the place of an upstream.
func refusedBy(reason policy.Reason) object {
	set := object{}
	for _, h := range refusalHeaders(reason.String()) {
		set = append(set, field{key: h.GetHeader().GetKey(), value: h.GetHeader().GetValue()})
	}
	return object{
		{key: "directResponse", value: object{
			{key: "status", value: reason.Status()},
			{key: "body", value: object{{key: "string", value: string(reason.Body(nil))}}},
		}},
		{key: "headers", value: object{{key: "response", value: object{{key: "set", value: set}}}}},
	}
}

func (m *istio) towardsGateway(t meshTarget) object {
	return object{
		{key: "name", value: "towards-egress"},
		{key: "match", value: list{object{{key: "gateways", value: strs("mesh")}, {key: "port", value: t.meshPort}}}},
		{key: "retries", value: object{{key: "attempts", value: 0}}},
		{key: "route", value: list{object{{key: "destination", value: object{
			{key: "host", value: serviceHost(m.Gateway)},
			{key: "subset", value: resourceName(t.Name)},
			{key: "port", value: object{{key: "number", value: gatewayPort}}},
		}}}}},
	}
}

// gatewayDocuments let callers reach the egress gateway, each with its own certificate.
func (m *istio) gatewayDocuments() []document {
	var hosts, subsets list
	for _, t := range m.ups {
		hosts = append(hosts, t.meshHost)
		subsets = append(subsets, object{
			{key: "name", value: resourceName(t.Name)},
			{key: "trafficPolicy", value: object{{key: "portLevelSettings", value: list{object{
				{key: "port", value: object{{key: "number", value: gatewayPort}}},
				{key: "tls", value: object{{key: "mode", value: "ISTIO_MUTUAL"}, {key: "sni", value: t.meshHost}}},
			}}}}},
		})
	}
	key, value, _ := strings.Cut(m.Selector, "=")
	gateway := resource(networking, "Gateway", mcpGateway, m.home(), object{
		{key: "selector", value: object{{key: key, value: value}}},
		{key: "servers", value: list{object{
			{key: "port", value: object{{key: "number", value: gatewayPort}, {key: "name", value: "https-mcp"}, {key: "protocol", value: "HTTPS"}}},
			{key: "hosts", value: hosts},
			{key: "tls", value: object{{key: "mode", value: "ISTIO_MUTUAL"}}},
		}}},
	})
	rule := resource(networking, "DestinationRule", mcpGateway, m.home(), object{
		{key: "host", value: serviceHost(m.Gateway)},
		{key: "exportTo", value: m.seen()},
		{key: "subsets", value: subsets},
	})
	return []document{
		{"The gateway asks each caller for its certificate: callers of kind mtls are known by it,\nas spiffe://cluster.local/ns/NAMESPACE/sa/ACCOUNT.", gateway},
		{"What leads callers to the gateway. An Istio that lets pods call any host lets them go\naround it: set outboundTrafficPolicy: REGISTRY_ONLY, or a NetworkPolicy.", rule},
	}
}

// serverDocuments are about who may reach this program, and how.
func (m *istio) serverDocuments() []document {
	name, ns, _ := strings.Cut(m.Service, ".")
	labels := object{{key: "app", value: name}}
	selector := object{{key: "matchLabels", value: labels}}
	sidecar := resource(networking, "Sidecar", name, ns, object{
		{key: "workloadSelector", value: object{{key: "labels", value: labels}}},
		{key: "ingress", value: list{object{
			{key: "port", value: object{{key: "number", value: m.port}, {key: "name", value: "grpc"}, {key: "protocol", value: "GRPC"}}},
			{key: "defaultEndpoint", value: fmt.Sprintf("127.0.0.1:%d", m.port)},
		}}},
	})
	mutual := resource(security, "PeerAuthentication", name, ns, object{
		{key: "selector", value: selector},
		{key: "mtls", value: object{{key: "mode", value: "STRICT"}}},
	})
	principals := m.Principals
	if len(principals) == 0 {
		principals = []string{"cluster.local/ns/" + m.home() + "/sa/*"}
	}
	allow := resource(security, "AuthorizationPolicy", name, ns, object{
		{key: "selector", value: selector},
		{key: "action", value: "ALLOW"},
		{key: "rules", value: list{object{
			{key: "from", value: list{object{{key: "source", value: object{{key: "principals", value: strs(principals...)}}}}}},
			{key: "to", value: list{object{{key: "operation", value: object{
				{key: "ports", value: strs(fmt.Sprint(m.port))},
				{key: "methods", value: strs("POST")},
				{key: "paths", value: strs("/envoy.service.ext_proc.v3.ExternalProcessor/*", "/envoy.service.accesslog.v3.AccessLogService/*", "/grpc.health.v1.Health/*")},
			}}}}},
		}}},
	})
	use := resource(networking, "DestinationRule", name, ns, object{
		{key: "host", value: serviceHost(m.Service)},
		{key: "trafficPolicy", value: object{{key: "tls", value: object{
			{key: "mode", value: "ISTIO_MUTUAL"},
			{key: "subjectAltNames", value: strs("spiffe://cluster.local/ns/" + ns + "/sa/" + name)},
		}}}},
	})
	return []document{
		{"This program listens on loopback: nothing but its own proxy reaches it, not even by\nthe pod's address.", sidecar},
		{"Its proxy takes mutual TLS and nothing else.", mutual},
		{"Whoever may ask gets tokens: these service accounts, and nobody else. One of its own\nfor the callers is better than a whole namespace: --principal.", allow},
		{"Proxies speak mutual TLS to it, and to nothing that is not it.", use},
	}
}

// provider is the access log service as MeshConfig has it.
func (m *istio) provider() object {
	_, ns, _ := strings.Cut(m.Service, ".")
	return object{{key: "extensionProviders", value: list{object{
		{key: "name", value: "envoy-mcp-auth"},
		{key: "envoyHttpAls", value: object{
			{key: "service", value: ns + "/" + serviceHost(m.Service)},
			{key: "port", value: m.port},
			{key: "logName", value: MetadataNamespace},
			{key: "additionalRequestHeadersToLog", value: strs(SessionHeader)},
			{key: "additionalResponseHeadersToLog", value: strs(ReasonHeader, SessionHeader)},
		}},
	}}}}
}

// telemetry sends the end of calls to our upstreams, and of no others.
func (m *istio) telemetry() document {
	key, value, _ := strings.Cut(m.Selector, "=")
	var clusters []string
	for _, t := range m.ups {
		clusters = append(clusters, "xds.cluster_name == '"+t.Cluster+"'")
	}
	return document{
		"How calls ended. Where a Telemetry says where access logs go, the mesh's default does\nnot hold for these pods any more: name its provider here too if you want both.",
		resource("telemetry.istio.io/v1", "Telemetry", "mcp-auth", m.home(), object{
			{key: "selector", value: object{{key: "matchLabels", value: object{{key: key, value: value}}}}},
			{key: "accessLogging", value: list{object{
				{key: "match", value: object{{key: "mode", value: "CLIENT"}}},
				{key: "providers", value: list{object{{key: "name", value: "envoy-mcp-auth"}}}},
				{key: "filter", value: object{{key: "expression", value: strings.Join(clusters, " || ")}}},
			}}},
		}),
	}
}
