package envoy

import (
	"encoding/json"
	"fmt"
	"slices"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	skipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const (
	xdsListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	xdsRoutes   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	xdsCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// patches collects the operations of an EnvoyPatchPolicy.
type patches struct {
	all []manifest
	err error
}

// add sets a member, wherever the JSONPath at leads; an empty one leads to the top.
func (p *patches) add(kind, name, at, path string, value any) {
	if m, ok := value.(proto.Message); ok {
		value = p.plain(m)
	}
	operation := manifest{"op": "add", "path": path, "value": value}
	if at != "" {
		operation["jsonPath"] = at
	}
	p.all = append(p.all, manifest{"type": kind, "name": name, "operation": operation})
}

// plain turns a message into what YAML is written from.
func (p *patches) plain(m proto.Message) any {
	var v any
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil && p.err == nil {
		p.err = err
	}
	return v
}

// patch is what Envoy Gateway has no words for.
func (p *gatewayPlan) patch(g *gatewayResource) (gatewayDocument, error) {
	var all patches
	var counted []string
	for _, l := range p.legs {
		if !slices.Contains(l.gateways, g) {
			continue
		}
		for _, name := range l.listeners(g) {
			l.patchListener(&all, name)
			if !slices.Contains(counted, name) {
				counted = append(counted, name)
				all.add(xdsRoutes, name, "$.virtual_hosts[*]", "/include_request_attempt_count", true)
			}
			l.patchRoutes(&all, name)
		}
		for _, cluster := range l.clusters() {
			filters, err := l.healingFilters()
			if err != nil {
				return gatewayDocument{}, err
			}
			value := make([]any, len(filters))
			for i, f := range filters {
				value[i] = all.plain(f)
			}
			all.add(xdsCluster, cluster, "", "/typed_extension_protocol_options/"+protocolOptions+"/http_filters", value)
		}
	}
	return gatewayDocument{
		fmt.Sprintf("What Envoy Gateway has no words for, on Gateway %s. In the cluster of each upstream, Envoy\nasks again before a second attempt, so that a revoked token heals inside the call; the guard there\ndemands this upstream's mark, wherever a route leads, and takes it off; trailers end. In the\nlistener, only what a decision reads is sent, and only what the policy touches may change.\nAssumed: Envoy Gateway's own names of listeners (NAMESPACE/GATEWAY/LISTENER) and clusters\n(httproute/NAMESPACE/NAME/rule/N).", g),
		named(gatewayAPI, "EnvoyPatchPolicy", g.Metadata.Namespace, gatewayName+"-"+g.Metadata.Name, manifest{
			"targetRef": manifest{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": g.Metadata.Name},
			"type":      "JSONPatch", "jsonPatches": all.all,
		}),
	}, all.err
}

// extProcName is Envoy Gateway's name of the route's filter, without what is before
// the last slash of the kind, and of the cluster that the filter calls.
func (l *gatewayLeg) extProcName() string {
	return "envoyextensionpolicy/" + l.route.Metadata.Namespace + "/" + l.policyName() + "/extproc/0"
}

// patchListener narrows what the route's filter sends and what a reply may change.
func (l *gatewayLeg) patchListener(all *patches, name string) {
	at := "$..http_filters[?(@.name == '" + filterExtProc + "/" + l.extProcName() + "')].typed_config"
	var pack packed // what is packed here always can be
	ours := processor(&pack, l.target)
	all.add(xdsListener, name, at, "/mutation_rules", ours.GetMutationRules())
	all.add(xdsListener, name, at, "/route_cache_action", ours.GetRouteCacheAction().String())
	if rules := ours.GetForwardRules(); rules != nil {
		all.add(xdsListener, name, at, "/forward_rules", rules)
	}
}

// patchRoutes takes off what says too much, in either direction.
func (l *gatewayLeg) patchRoutes(all *patches, name string) {
	for i, cluster := range l.clusters() {
		at := "$..routes[?(@.route.cluster == '" + cluster + "')]"
		all.add(xdsRoutes, name, at, "/route/append_x_forwarded_host", false)
		if others, mark := l.removes(i); mark {
			// The guard of the cluster needs the mark, and takes it off.
			all.add(xdsRoutes, name, at, "/request_headers_to_remove", append([]string{}, others...))
		}
		modified := slices.ContainsFunc(l.route.Spec.Rules[i].Filters, func(f gatewayFilter) bool { return f.Type == "ResponseHeaderModifier" })
		if !l.keepsChallenge() && !modified {
			all.add(xdsRoutes, name, at, "/response_headers_to_remove", []string{challengeHeader})
		}
	}
}

// healingFilters is the chain of a cluster behind the filter of a route. The first
// attempt was decided before it came here, and has our mark.
func (l *gatewayLeg) healingFilters() ([]*hcmv3.HttpFilter, error) {
	var p packed
	plain, err := upstreamFilters(&p, l.target)
	if err != nil {
		return nil, err
	}
	tidy := &headerv3.HeaderMutation{Mutations: &headerv3.Mutations{
		RequestTrailersMutations:  []*mutationv3.HeaderMutation{removeAll()},
		ResponseMutations:         []*mutationv3.HeaderMutation{removeHeader(ReasonHeader)},
		ResponseTrailersMutations: []*mutationv3.HeaderMutation{removeHeader(ReasonHeader)},
	}}
	ask := processor(&p, l.target)
	ask.GrpcService.TargetSpecifier = &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: l.extProcName()}}
	// The cluster has a name of Envoy Gateway's, and the policy one of its own.
	ask.RequestAttributes = slices.DeleteFunc(ask.GetRequestAttributes(), func(a string) bool { return a == "xds.cluster_name" })
	ask.ProcessingMode.ResponseHeaderMode = extprocv3.ProcessingMode_SKIP
	first := matches("attempt", p.any(&matcherv3.HttpRequestHeaderMatchInput{HeaderName: attemptHeader}),
		&xdsmatcherv3.StringMatcher{MatchPattern: &xdsmatcherv3.StringMatcher_Exact{Exact: "1"}})
	later := &matchingv3.ExtensionWithMatcher{
		XdsMatcher: &xdsmatcherv3.Matcher{MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: first,
				OnMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
					Action: &xdscorev3.TypedExtensionConfig{Name: "skip", TypedConfig: p.any(&skipv3.SkipFilter{})},
				}},
			}},
		}}},
		ExtensionConfig: &corev3.TypedExtensionConfig{Name: filterExtProc, TypedConfig: p.any(ask)},
	}
	return []*hcmv3.HttpFilter{
		httpFilter(filterHeaderMutation, p.any(tidy)),
		httpFilter(filterExtProc, p.any(later)),
		plain[2], // the guard
		plain[3], // the codec
	}, p.err
}
