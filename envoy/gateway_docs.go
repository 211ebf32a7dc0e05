package envoy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	gatewayGroup = "gateway.envoyproxy.io"
	gatewayAPI   = gatewayGroup + "/v1alpha1"
)

// named is an object of ours.
func named(api, kind, namespace, name string, spec manifest) manifest {
	return manifest{"apiVersion": api, "kind": kind, "metadata": manifest{"name": name, "namespace": namespace}, "spec": spec}
}

func (l *gatewayLeg) named(kind string, spec manifest) manifest {
	spec["targetRefs"] = []manifest{{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": l.route.Metadata.Name}}
	return named(gatewayAPI, kind, l.route.Metadata.Namespace, l.policyName(), spec)
}

func (l *gatewayLeg) policyName() string { return gatewayName + "-" + l.route.Metadata.Name }

// backend is the way to this program.
func (p *gatewayPlan) backend() (gatewayDocument, error) {
	host, addr, err := processorAddress(p.opt.Processor)
	if err != nil {
		return gatewayDocument{}, fmt.Errorf("server.listen: %w", err)
	}
	spec := manifest{"appProtocols": []string{gatewayGroup + "/h2c"}}
	if pipe := addr.GetPipe(); pipe != nil {
		spec["endpoints"] = []manifest{{"unix": manifest{"path": pipe.GetPath()}}}
		return gatewayDocument{
			"Where envoy-mcp-auth is: a socket in the pod of Envoy. Assumed: it runs there as a\nsidecar, in a volume that both have (EnvoyProxy, spec.provider.kubernetes).",
			named(gatewayAPI, "Backend", p.opt.Namespace, gatewayName, spec),
		}, nil
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		return gatewayDocument{}, fmt.Errorf("server.listen is %q, which Envoys in other pods cannot reach; say where they do with --processor HOST:PORT", p.opt.Processor)
	}
	if p.opt.ProcessorTLS == nil {
		return gatewayDocument{}, fmt.Errorf("%s is another host, and the policy has no server.tls: callers' credentials would be read on the way; add the block, or use a Unix socket", p.opt.Processor)
	}
	spec["endpoints"] = []manifest{endpointAt(host, addr.GetSocketAddress().GetPortValue())}
	delete(spec, "appProtocols") // TLS says it by ALPN
	secret := manifest{"group": "", "kind": "Secret", "name": p.opt.Secret}
	spec["tls"] = manifest{"caCertificateRefs": []manifest{secret}, "clientCertificateRef": secret, "sni": host, "alpnProtocols": []string{"h2"}}
	return gatewayDocument{
		"Where envoy-mcp-auth is. Assumed: Secret " + p.opt.Namespace + "/" + p.opt.Secret + " holds tls.crt and tls.key,\nby which Envoy proves itself (server.tls.client_ca), and in ca.crt the authority of\nthe server's own certificate, which is for " + host + ".",
		named(gatewayAPI, "Backend", p.opt.Namespace, gatewayName, spec),
	}, nil
}

func endpointAt(host string, port uint32) manifest {
	if _, err := netip.ParseAddr(host); err == nil {
		return manifest{"ip": manifest{"address": host, "port": port}}
	}
	return manifest{"fqdn": manifest{"hostname": host, "port": port}}
}

func (p *gatewayPlan) backendRefs(from string) []manifest {
	ref := manifest{"group": gatewayGroup, "kind": "Backend", "name": gatewayName}
	if from != p.opt.Namespace {
		ref["namespace"] = p.opt.Namespace
	}
	return []manifest{ref}
}

// grant lets the other namespaces name the Backend.
func (p *gatewayPlan) grant() (gatewayDocument, bool) {
	var from []manifest
	seen := map[string]bool{}
	add := func(kind, namespace string) {
		if namespace != p.opt.Namespace && !seen[kind+namespace] {
			seen[kind+namespace] = true
			from = append(from, manifest{"group": gatewayGroup, "kind": kind, "namespace": namespace})
		}
	}
	for _, l := range p.legs {
		add("EnvoyExtensionPolicy", l.route.Metadata.Namespace)
	}
	for _, g := range p.gateways {
		add("EnvoyProxy", g.Metadata.Namespace)
	}
	return gatewayDocument{"Lets the namespaces of your routes and gateways name the Backend.", named(
		"gateway.networking.k8s.io/v1beta1", "ReferenceGrant", p.opt.Namespace, gatewayName, manifest{
			"from": from, "to": []manifest{{"group": gatewayGroup, "kind": "Backend", "name": gatewayName}},
		})}, len(from) > 0
}

// accessLog is the EnvoyProxy that sends us how calls ended. Gateways of a namespace may
// have one together: first is whether g is the first of them.
func (p *gatewayPlan) accessLog(g *gatewayResource) (_ gatewayDocument, first bool) {
	name := g.proxyName()
	why := []string{"How calls ended, for envoy-mcp-auth: a token that an upstream refused is replaced, and\nwhom an upstream gave a session is learnt."}
	for _, other := range p.gateways {
		if other.Metadata.Namespace != g.Metadata.Namespace || other.proxyName() != name {
			continue
		}
		if first = first || other == g; !first {
			return gatewayDocument{}, false
		}
		if other.Spec.Infrastructure.ParametersRef.Name == "" {
			why = append(why, "Assumed: Gateway "+other.String()+" has no EnvoyProxy yet. Name this one in\nits spec.infrastructure.parametersRef.")
		} else {
			why = append(why, "Gateway "+other.String()+" names this EnvoyProxy: put the block into it, if you have it\nalready.")
		}
	}
	sink := manifest{"type": "ALS", "als": manifest{
		"type": "HTTP", "logName": MetadataNamespace, "backendRefs": p.backendRefs(g.Metadata.Namespace),
		"backendSettings": processorSettings(),
		"http":            manifest{"requestHeaders": []string{SessionHeader}, "responseHeaders": []string{ReasonHeader, SessionHeader}},
	}}
	return gatewayDocument{strings.Join(why, " "), named(
		gatewayAPI, "EnvoyProxy", g.Metadata.Namespace, name, manifest{
			"telemetry": manifest{"accessLog": manifest{"settings": []manifest{{"sinks": []manifest{sink}}}}},
		})}, true
}

// processorSettings are those of the cluster that leads to this program.
func processorSettings() manifest {
	return manifest{
		"circuitBreaker": circuitBreaker(),
		"timeout":        manifest{"tcp": manifest{"connectTimeout": "250ms"}},
		"healthCheck": manifest{
			"panicThreshold": 50,
			"active":         manifest{"type": "GRPC", "grpc": manifest{}, "timeout": "1s", "interval": "1s", "unhealthyThreshold": 2, "healthyThreshold": 1},
			"passive":        manifest{"interval": "1s", "baseEjectionTime": "1s", "consecutive5XxErrors": 5},
		},
		"http2": manifest{"connectionKeepalive": manifest{"interval": "30s", "timeout": "5s"}},
	}
}

func circuitBreaker() manifest {
	return manifest{"maxConnections": ceiling, "maxPendingRequests": ceiling, "maxParallelRequests": ceiling, "maxParallelRetries": ceiling}
}

// clientTraffic cleans requests up before anything reads them.
func (p *gatewayPlan) clientTraffic(g *gatewayResource) gatewayDocument {
	var ups []target
	for _, l := range p.legs {
		ups = append(ups, l.target)
	}
	// A caller's own count could pass for a second attempt, and be refused.
	remove := append([]string{GuardHeader, attemptHeader}, misleadingHeaders()...)
	return gatewayDocument{
		"Requests are cleaned up before anything reads them: one spelling of a path and of a\nheader's name, no mark but ours. The buffer is how much of a body is kept for a second attempt, or read for tool rules.",
		named(gatewayAPI, "ClientTrafficPolicy", g.Metadata.Namespace, gatewayName+"-"+g.Metadata.Name, manifest{
			"targetRefs": []manifest{{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": g.Metadata.Name}},
			"path":       manifest{"escapedSlashesAction": "RejectRequest"},
			"headers": manifest{
				"withUnderscoresAction": "RejectRequest", "xForwardedClientCert": manifest{"mode": "Sanitize"},
				"earlyRequestHeaders": manifest{"remove": remove}, "host": manifest{"stripTrailingHostDot": true},
			},
			"timeout":    manifest{"http": manifest{"requestReceivedTimeout": "5m", "requestHeadersReceivedTimeout": "10s", "streamIdleTimeout": "1h"}},
			"connection": manifest{"bufferLimit": quantity(buffers(ups...))},
		}),
	}
}

// ask is the ext_proc filter of a route.
func (p *gatewayPlan) ask(l *gatewayLeg) gatewayDocument {
	attributes := []string{"xds.route_name"}
	if l.mtls() {
		attributes = append(attributes, "connection.uri_san_peer_certificate", "connection.dns_san_peer_certificate")
	}
	mode := manifest{"request": manifest{"attributes": attributes}}
	if l.OutcomesFromHeaders {
		mode["response"] = manifest{}
	}
	if l.proof() == policy.ProofBody {
		mode["allowModeOverride"] = true
	}
	settings := processorSettings()
	settings["retry"] = manifest{ // see askAgain
		"numRetries": 3, "retryOn": manifest{"triggers": []string{"reset"}},
		"perRetry": manifest{"backOff": manifest{"baseInterval": "10ms", "maxInterval": "100ms"}},
	}
	spec := manifest{"extProc": []manifest{{
		"backendRefs": p.backendRefs(l.route.Metadata.Namespace), "backendSettings": settings,
		"failOpen": false, "messageTimeout": messageTimeout.String(), "processingMode": mode,
		"metadata": manifest{"accessibleNamespaces": []string{MetadataNamespace}, "writableNamespaces": []string{MetadataNamespace}},
	}}}
	var why strings.Builder
	why.WriteString("Envoy asks about each call to upstream " + l.Name + ". No answer, a late one, or an error is a\nrefusal. Envoy's own 200 ms would be shorter than one token request.")
	for i := range l.route.Spec.Rules {
		if _, mark := l.removes(i); !mark && !p.opt.Patch {
			fmt.Fprintf(&why, "\nTo keep the mark from the upstream, add to rule %d of HTTPRoute %s the filter\n{type: RequestHeaderModifier, requestHeaderModifier: {remove: [%s]}}.", i, l.route, GuardHeader)
		}
	}
	return gatewayDocument{why.String(), l.named("EnvoyExtensionPolicy", spec)}
}

// guard refuses a request that this program did not mark for the upstream.
func (l *gatewayLeg) guard() gatewayDocument {
	return gatewayDocument{
		"The guard of upstream " + l.Name + ". A stream that ends without an error before a reply lets\nthe request through untouched, the caller's credentials included, even though\nfailOpen is false. Then the mark is missing.",
		l.named("SecurityPolicy", manifest{"authorization": manifest{
			"defaultAction": "Deny",
			"rules":         []manifest{{"name": "decided", "action": "Allow", "principal": manifest{"headers": []manifest{{"name": GuardHeader, "values": []string{l.Name}}}}}},
		}}),
	}
}

// backendTraffic is how a route's calls go on.
func (l *gatewayLeg) backendTraffic() gatewayDocument {
	spec := manifest{
		"timeout":        manifest{"http": manifest{"requestTimeout": "0s", "streamIdleTimeout": "1h", "connectionIdleTimeout": "4s"}},
		"circuitBreaker": circuitBreaker(),
		"connection":     manifest{"bufferLimit": quantity(buffers(l.target))},
	}
	why := "Calls to upstream " + l.Name + ": streams last, and an idle connection ends before common\nservers end it."
	var overrides []manifest
	if limit := l.bodyLimit(); limit > 0 {
		spec["requestBuffer"] = manifest{"limit": quantity(limit)}
		overrides = append(overrides, overridden(policy.BodyTooLarge.Status(), "Local", policy.BodyTooLarge))
		why += " Tool rules have the body read, up to tools.max_body."
	}
	if !l.keepsChallenge() {
		overrides = append(overrides, overridden(401, "Backend", policy.UpstreamRejected))
		why += " Its last 401 is about our credential and\nbecomes a 502, so that no client starts a login."
		if l.RetryOn401 {
			spec["retry"] = manifest{
				"numRetries": 1,
				"retryOn":    manifest{"triggers": []string{"retriable-status-codes"}, "httpStatusCodes": []int{401}},
				"perRetry":   manifest{"backOff": manifest{"baseInterval": "25ms", "maxInterval": "25ms"}},
			}
		}
	}
	if len(overrides) > 0 {
		spec["responseOverride"] = overrides
	}
	return gatewayDocument{why, l.named("BackendTrafficPolicy", spec)}
}

// overridden puts our refusal in the place of an answer.
func overridden(status int, source string, reason policy.Reason) manifest {
	set := make([]manifest, 0, 2)
	for _, h := range refusalHeaders(reason.String())[1:] {
		set = append(set, manifest{"name": h.GetHeader().GetKey(), "value": h.GetHeader().GetValue()})
	}
	return manifest{
		"match":  manifest{"statusCodes": []manifest{{"type": "Value", "value": status}}},
		"source": source,
		"response": manifest{
			"statusCode": reason.Status(), "contentType": "application/json",
			"body":   manifest{"type": "Inline", "inline": strings.ReplaceAll(string(reason.Body(nil)), "%", "%%")},
			"header": manifest{"set": set},
		},
	}
}

// quantity is a number of bytes as Kubernetes writes it.
func quantity(n uint32) string {
	if n%(1<<10) == 0 {
		return strconv.FormatUint(uint64(n>>10), 10) + "Ki"
	}
	return strconv.FormatUint(uint64(n), 10)
}
