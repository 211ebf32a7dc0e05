package envoy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// IstioOptions are the choices about a mesh that are not part of the policy.
type IstioOptions struct {
	// Namespace is that of the workloads whose proxies ask; with Gateway, that of
	// the callers behind it. Empty means default.
	Namespace string
	// Selector is the label KEY=VALUE of those workloads, or of the gateway's pods.
	// Empty means app=litellm, or with Gateway istio=egressgateway.
	Selector string
	// Service is NAME.NAMESPACE of this program's Service, where server.listen is an
	// address. Its pods have the label app=NAME. Empty means
	// envoy-mcp-auth.envoy-mcp-auth.
	Service string
	// Principals may reach this program, as an AuthorizationPolicy names them. Empty
	// means every service account of the namespace of the proxies that ask.
	Principals []string
	// Gateway is NAME.NAMESPACE of an egress gateway's Service, whose proxy then asks
	// in the place of the callers' own. Empty means the callers' sidecars.
	Gateway string
	// RouteLevel puts the filters on the listener, for routes of ours alone, where a
	// cluster cannot be patched. A revoked token then costs the call that finds it.
	RouteLevel bool
}

func (o IstioOptions) withDefaults() IstioOptions {
	or := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	or(&o.Namespace, "default")
	or(&o.Service, "envoy-mcp-auth.envoy-mcp-auth")
	if o.Gateway != "" {
		or(&o.Selector, "istio=egressgateway")
	}
	or(&o.Selector, "app=litellm")
	return o
}

// istio is one rendering for a mesh.
type istio struct {
	IstioOptions

	set  *policy.Set
	ups  []meshTarget
	unix bool // the program is on the proxy's own host, behind a socket
	port int  // of its Service
	w    *writer
}

// meshTarget is an upstream, and what Istio calls it.
type meshTarget struct {
	target

	meshHost string // as callers call it
	meshPort uint32
	subset   string
}

// inMesh reports whether Istio knows the host from Kubernetes.
func (t meshTarget) inMesh() bool { return strings.HasSuffix(t.meshHost, ".svc.cluster.local") }

// RenderIstio returns the resources that attach this program to an Istio mesh, as
// YAML documents, with comments that say what they assume. The same policy and
// options give the same bytes.
func RenderIstio(set *policy.Set, opt IstioOptions) ([]byte, error) {
	m, err := newIstio(set, opt)
	if err != nil {
		return nil, err
	}
	docs, err := m.documents()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.WriteString(m.header())
	for _, d := range docs {
		fmt.Fprintf(&b, "\n---\n")
		for line := range strings.Lines(d.remark) {
			b.WriteString("# " + line)
		}
		b.WriteString("\n")
		n, err := m.w.node(d.body, "")
		if err != nil {
			return nil, err
		}
		if err := encode(&b, n, "", pieceNodes); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// RenderIstioMesh returns what goes into the mesh's own configuration: the access
// log service as an extension provider, as values of Istio's Helm charts have it.
func RenderIstioMesh(set *policy.Set, opt IstioOptions) ([]byte, error) {
	m, err := newIstio(set, opt)
	if err != nil {
		return nil, err
	}
	if m.unix {
		return nil, errors.New("server.listen is a Unix socket, which no extension provider can name: the EnvoyFilter holds the access log; there is nothing to add to the mesh")
	}
	n, err := m.w.node(object{{"meshConfig", m.provider(), "Helm: values of the istiod chart. istioctl: below spec of an IstioOperator."}}, "")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = encode(&b, n, "", pieceNodes)
	return b.Bytes(), err
}

func newIstio(set *policy.Set, opt IstioOptions) (*istio, error) {
	if err := fitting(set); err != nil {
		return nil, err
	}
	m := &istio{IstioOptions: opt.withDefaults(), set: set, w: &writer{left: istioComments(opt.RouteLevel), merged: true}}
	if err := m.listen(); err != nil {
		return nil, err
	}
	for what, name := range map[string]string{"--service": m.Service, "--gateway": m.Gateway} {
		if name != "" && strings.Count(name, ".") != 1 {
			return nil, fmt.Errorf("%s: want NAME.NAMESPACE, got %q; write for example envoy-mcp-auth.security", what, name)
		}
	}
	if key, value, ok := strings.Cut(m.Selector, "="); !ok || key == "" || value == "" {
		return nil, fmt.Errorf("--selector: want KEY=VALUE, got %q; write for example app=litellm", m.Selector)
	}
	ups, err := targets(set)
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, t := range ups {
		mt, err := m.meshed(t)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", t.Name, err)
		}
		if other, taken := names[mt.meshHost]; taken {
			return nil, fmt.Errorf("upstreams %q and %q are both host %s in the mesh, whose routes and hosts can have one owner; give one of them a host of its own, such as %s-2.internal, in envoy.cluster",
				other, t.Name, mt.meshHost, t.Name)
		}
		names[mt.meshHost] = t.Name
		m.ups = append(m.ups, mt)
	}
	return m, m.distinct()
}

// distinct refuses names that would make one object in Kubernetes of two: the last that
// is applied would win, and the host of the other lose its TLS without a word.
func (m *istio) distinct() error {
	taken := map[string]string{}
	if m.Gateway != "" {
		taken[mcpGateway] = "what leads to the egress gateway (--gateway)"
	}
	if name, ns, _ := strings.Cut(m.Service, "."); !m.unix && ns == m.home() {
		if of, both := taken[name]; both {
			return fmt.Errorf("--service %s: what leads to it would be named %q in Kubernetes, like %s; rename the Service", m.Service, name, of)
		}
		taken[name] = "what leads to --service " + m.Service
	}
	upstreams := map[string]string{}
	for _, t := range m.ups {
		name := resourceName(t.Name)
		if of, both := taken[name]; both {
			return fmt.Errorf("upstream %q would be named %q in Kubernetes, like %s; rename the upstream", t.Name, name, of)
		}
		if other, both := upstreams[name]; both {
			return fmt.Errorf("upstreams %q and %q would both be named %q in Kubernetes, where _ and . become -, and none is at the end; rename one", other, t.Name, name)
		}
		upstreams[name] = t.Name
	}
	return nil
}

// istioComments are the remarks on what Envoy is told, less those that are not so in a
// mesh.
func istioComments(routeLevel bool) []comment {
	all := slices.Concat(clusterComments(), listenerComments(), filterComments())
	all = slices.DeleteFunc(all, func(c comment) bool {
		return c.at == "typed_config.early_header_mutation_extensions" || c.at == "http_filters.disabled" || c.at == "typed_config.use_remote_address"
	})
	all = append(all,
		comment{"value.disabled", "Off, but for routes that say otherwise."},
		comment{"typed_config.early_header_mutation_extensions", "Only envoy-mcp-auth may set this mark; see the guard."},
		comment{"typed_config.use_remote_address", "x-envoy-* headers of a caller (retries, timeouts) are taken off, and no\nx-forwarded-for is trusted."},
		comment{"route.timeout", "No limit on a whole answer: SSE streams last. A VirtualService cannot say so."},
	)
	converts := comment{"typed_config.default_source_code", "An upstream's last 401 is about our credential, and a caller can do nothing about it:\nit becomes a 502 with a reason, so that no client starts a login."}
	if routeLevel { // there, no guard comes before it
		return append([]comment{converts}, all...)
	}
	return append(all, converts)
}

// listen reads where the program is. In a mesh it listens on loopback, behind its own
// proxy, which alone speaks to others.
func (m *istio) listen() error {
	at := m.set.Server.Listen
	if strings.HasPrefix(at, "unix://") {
		m.unix = true
		return nil
	}
	_, port, err := net.SplitHostPort(at)
	if err != nil {
		return fmt.Errorf("server.listen: %w", err)
	}
	if m.set.Server.TLS != nil {
		return errors.New("server.tls: the mesh speaks mutual TLS to this program's own proxy, and TLS inside of that cannot be verified by either; take server.tls out and write server.listen: 127.0.0.1:" + port)
	}
	m.port, err = strconv.Atoi(port)
	return err
}

// clusterName is what Istio calls an outbound cluster.
var clusterName = regexp.MustCompile(`^outbound\|([0-9]{1,5})\|([a-z0-9.-]*)\|([a-z0-9.-]+)$`)

func (m *istio) meshed(t target) (meshTarget, error) {
	parts := clusterName.FindStringSubmatch(t.Cluster)
	if parts == nil {
		return meshTarget{}, fmt.Errorf("want envoy.cluster as Istio names it, got %q; write envoy: {cluster: \"outbound|80||%s\"}, where 80 is the port at which callers call it", t.Cluster, t.host)
	}
	port, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil || port == 0 {
		return meshTarget{}, fmt.Errorf("envoy.cluster: want a port from 1 to 65535, got %q", parts[1])
	}
	if t.Listen != "" {
		return meshTarget{}, errors.New("envoy.listen: a mesh has no listener for it; take it out: paths pass unchanged here")
	}
	if t.proof() == policy.ProofMCPFilter {
		return meshTarget{}, errors.New("tools.proof: Istio's proxy is not known to have Envoy's mcp filter; write proof: body")
	}
	if m.Gateway == "" && onlyMTLS([]target{t}) {
		return meshTarget{}, errors.New("its callers prove themselves by certificate alone, and a sidecar is called without one by its own application; use --gateway, where the caller's sidecar shows its own, or give it a caller of kind key or jwt")
	}
	t.asks = m.processorName()
	return meshTarget{target: t, meshHost: parts[3], meshPort: uint32(port), subset: parts[2]}, nil
}

// serviceHost is the full name of a NAME.NAMESPACE.
func serviceHost(service string) string { return service + ".svc.cluster.local" }

// processorName is the cluster of this program.
func (m *istio) processorName() string {
	if m.unix {
		return ProcessorCluster
	}
	return fmt.Sprintf("outbound|%d||%s", m.port, serviceHost(m.Service))
}

// home is the namespace of the proxies that ask.
func (m *istio) home() string {
	if m.Gateway != "" {
		_, ns, _ := strings.Cut(m.Gateway, ".")
		return ns
	}
	return m.Namespace
}

// ports are those on which the mesh has upstreams.
func (m *istio) ports() []uint32 {
	var all []uint32
	for _, t := range m.ups {
		all = append(all, t.meshPort)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// plainTargets are the upstreams of a port, and all of them for port 0.
func (m *istio) plainTargets(port uint32) []target {
	var all []target
	for _, t := range m.ups {
		if port == 0 || t.meshPort == port {
			all = append(all, t.target)
		}
	}
	return all
}

// resourceName is a name as Kubernetes takes it.
func resourceName(s string) string {
	return "mcp-" + strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(s), "-")
}

func (m *istio) header() string {
	b := new(strings.Builder)
	b.WriteString(`# Istio resources for the upstreams of an envoy-mcp-auth policy. Written by
# "envoy-mcp-auth render istio"; change the policy and render again rather than
# edit here, or run "envoy-mcp-auth check --envoy FILE" on the proxy's config_dump
# (kubectl exec POD -c istio-proxy -- pilot-agent request GET config_dump).
#
# Assumed:
`)
	say := func(format string, args ...any) { fmt.Fprintf(b, "# - "+format+"\n", args...) }
	if m.Gateway != "" {
		say("the proxies that ask are those of the egress gateway %s, with the label %s;\n#   callers are in namespace %s and have sidecars", m.Gateway, m.Selector, m.Namespace)
	} else {
		say("the proxies that ask are sidecars of pods with the label %s in namespace %s;\n#   calls of other pods to these hosts are not decided (see exportTo)", m.Selector, m.Namespace)
	}
	if m.unix {
		say("the pod that asks also runs this program, and its proxy's container mounts the\n#   directory of %s", strings.TrimPrefix(m.set.Server.Listen, "unix://"))
	} else {
		name, ns, _ := strings.Cut(m.Service, ".")
		say("Service %s in namespace %s leads to port %d of pods with the label app=%s, its\n#   port is named grpc, and those pods have a sidecar and service account %s", name, ns, m.port, name, name)
		say("the mesh knows the extension provider of \"render istio --mesh-config\"")
	}
	say("the trust domain is cluster.local, and the cluster's domain too")
	say("callers call http://HOST:PORT with the path of the upstream's url; the proxy speaks\n#   TLS from there")
	say("no other VirtualService, DestinationRule or ServiceEntry is about these hosts")
	if slices.ContainsFunc(m.ups, func(t meshTarget) bool { issuers, _ := t.issuers(); return len(issuers) > 0 }) {
		say("protected resource metadata (RFC 9728) is served elsewhere: hosts here are the\n#   upstreams' own")
	}
	b.WriteString(`#
# A MERGE into a cluster puts our HttpProtocolOptions in the place of Istio's own, so
# they say all that is needed: HTTP/1.1 to upstreams, HTTP/2 to this program. Settings
# of a DestinationRule about HTTP/2 or idle time have no effect on these clusters.
`)
	return b.String()
}

// document is one resource, and what is to be said of it.
type document struct {
	remark string
	body   object
}

func (m *istio) documents() ([]document, error) {
	var all []document
	for _, t := range m.ups {
		all = append(all, m.hostDocuments(t)...)
	}
	if m.Gateway != "" {
		all = append(all, m.gatewayDocuments()...)
	}
	if !m.unix {
		all = append(all, m.serverDocuments()...)
		all = append(all, m.telemetry())
	}
	filter, err := m.envoyFilter()
	if err != nil {
		return nil, err
	}
	return append(all, filter), nil
}
