package envoy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	filterManager = "envoy.filters.network.http_connection_manager"
	// filterRejected turns an upstream's last 401 into our 502.
	filterRejected = "mcp_auth.rejected"
)

// rejectedCode is rejectedResponse in Lua: Istio's proxy is built from a list of
// extensions of its own, and it is not known that custom_response is on it.
func rejectedCode() string {
	reason := policy.UpstreamRejected
	set := new(strings.Builder)
	for _, h := range refusalHeaders(reason.String()) {
		fmt.Fprintf(set, "  headers:replace(%q, %q)\n", h.GetHeader().GetKey(), h.GetHeader().GetValue())
	}
	return `function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get(":status") ~= "401" or headers:get("` + ReasonHeader + `") ~= nil then
    return
  end
  headers:replace(":status", "` + strconv.Itoa(reason.Status()) + `")
` + set.String() + `  headers:remove("content-encoding")
  headers:remove("etag")
  headers:replace("content-length", tostring(handle:body(true):setBytes([[` + string(reason.Body(nil)) + `]])))
end
`
}

// envoyFilter holds what Istio has no resource for.
func (m *istio) envoyFilter() (document, error) {
	var p packed
	var patches list
	patches = append(patches, m.processorPatch(&p)...)
	for _, t := range m.ups {
		if m.RouteLevel {
			break
		}
		patch, err := m.clusterPatch(&p, t)
		if err != nil {
			return document{}, err
		}
		patches = append(patches, patch)
	}
	for _, at := range m.places() {
		patches = append(patches, m.listenerPatches(&p, at)...)
	}
	for _, t := range m.ups {
		patches = append(patches, m.routePatches(&p, t)...)
	}
	key, value, _ := strings.Cut(m.Selector, "=")
	spec := object{
		{key: "workloadSelector", value: object{{key: "labels", value: object{{key: key, value: value}}}}},
		{key: "configPatches", value: patches},
	}
	remark := "What asks envoy-mcp-auth, in the cluster of each upstream: once for every attempt, after\nevery routing decision. Whatever fails on the way is a refusal."
	if m.RouteLevel {
		remark = "What asks envoy-mcp-auth, on the listener, for the routes of the upstreams alone. A\nrevoked token costs the call that finds it; the next one has a new token."
	}
	return document{remark, resource("networking.istio.io/v1alpha3", "EnvoyFilter", "mcp-auth", m.home(), spec)}, p.err
}

func (m *istio) context() field {
	if m.Gateway != "" {
		return field{key: "context", value: "GATEWAY"}
	}
	return field{key: "context", value: "SIDECAR_OUTBOUND"}
}

func patch(applyTo string, match object, operation string, value proto.Message) object {
	return object{
		{key: "applyTo", value: applyTo},
		{key: "match", value: match},
		{key: "patch", value: object{{key: "operation", value: operation}, {key: "value", value: value}}},
	}
}

// processorPatch makes the way to this program one that is passed over when it fails.
func (m *istio) processorPatch(p *packed) list {
	at := m.set.Server.Listen
	c, err := processorCluster(Options{Processor: at})
	if err != nil {
		p.err = err
		return nil
	}
	if m.unix {
		return list{patch("CLUSTER", object{m.context()}, "ADD", c)}
	}
	match := object{m.context(), {key: "cluster", value: object{{key: "service", value: serviceHost(m.Service)}, {key: "portNumber", value: m.port}}}}
	return list{patch("CLUSTER", match, "MERGE", &clusterv3.Cluster{
		ConnectTimeout:                c.GetConnectTimeout(),
		HealthChecks:                  c.GetHealthChecks(),
		OutlierDetection:              c.GetOutlierDetection(),
		CommonLbConfig:                c.GetCommonLbConfig(),
		TypedExtensionProtocolOptions: c.GetTypedExtensionProtocolOptions(),
	})}
}

// clusterPatch puts the chain into an upstream's cluster. Istio puts a map's entry in
// the place of its own, so the protocol is said here too.
func (m *istio) clusterPatch(p *packed, t meshTarget) (object, error) {
	chain, err := upstreamFilters(p, t.target)
	if err != nil {
		return nil, err
	}
	options := &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: seconds(4 * time.Second)},
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
			},
		},
		HttpFilters: chain,
	}
	match := object{m.context(), {key: "cluster", value: object{{key: "name", value: t.Cluster}}}}
	return patch("CLUSTER", match, "MERGE", &clusterv3.Cluster{
		PerConnectionBufferLimitBytes: u32(buffers(t.target)),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{protocolOptions: p.any(options)},
	}), nil
}

// place is a listener with upstreams behind it.
type place struct {
	port uint32 // 0 for the gateway's
	host string // one of those that it serves
}

func (m *istio) places() []place {
	if m.Gateway != "" {
		return []place{{host: m.ups[0].meshHost}}
	}
	var all []place
	for _, port := range m.ports() {
		all = append(all, place{port: port})
	}
	return all
}

// listenerMatch matches what is in the listener of a place; in names a filter of the
// connection manager.
func (m *istio) listenerMatch(at place, in string) object {
	filter := object{{key: "name", value: filterManager}}
	if in != "" {
		filter = append(filter, field{key: "subFilter", value: object{{key: "name", value: in}}})
	}
	chain := object{{key: "filter", value: filter}}
	listener := object{}
	if at.port != 0 {
		listener = append(listener, field{key: "portNumber", value: at.port})
	} else {
		chain = append(object{{key: "sni", value: at.host}}, chain...)
	}
	return object{m.context(), {key: "listener", value: append(listener, field{key: "filterChain", value: chain})}}
}

// listenerPatches are about the requests that come in.
func (m *istio) listenerPatches(p *packed, at place) list {
	ups := m.plainTargets(at.port)
	manager := m.manager(p, ups)
	all := list{patch("NETWORK_FILTER", m.listenerMatch(at, ""), "MERGE", &listenerv3.Filter{
		Name:       filterManager,
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: p.any(manager)},
	})}
	converter := httpFilter(filterRejected, p.any(&luav3.Lua{DefaultSourceCode: inlineString(rejectedCode())}))
	chain := append([]*hcmv3.HttpFilter{disabled(converter)}, toolFilters(p, ups)...)
	if m.RouteLevel {
		for _, t := range m.ups {
			if at.port != 0 && t.meshPort != at.port {
				continue
			}
			chain = append(chain, m.routeFilters(p, t)...)
		}
	}
	for _, f := range chain {
		all = append(all, patch("HTTP_FILTER", m.listenerMatch(at, filterRouter), "INSERT_BEFORE", f))
	}
	if limit := buffers(ups...); limit > bufferLimit {
		match := object{m.context()}
		if at.port != 0 {
			match = append(match, field{key: "listener", value: object{{key: "portNumber", value: at.port}}})
		}
		all = append(all, patch("LISTENER", match, "MERGE", &listenerv3.Listener{PerConnectionBufferLimitBytes: u32(limit)}))
	}
	return all
}

// manager are the settings of a connection manager that decide whether the policy
// and an upstream read one request alike.
func (m *istio) manager(p *packed, ups []target) *hcmv3.HttpConnectionManager {
	full := connectionManager(p, mainListener, nil, ups)
	own := &hcmv3.HttpConnectionManager{
		UseRemoteAddress:              full.GetUseRemoteAddress(),
		NormalizePath:                 full.GetNormalizePath(),
		MergeSlashes:                  full.GetMergeSlashes(),
		PathWithEscapedSlashesAction:  full.GetPathWithEscapedSlashesAction(),
		StripPortMode:                 full.GetStripPortMode(),
		StripTrailingHostDot:          full.GetStripTrailingHostDot(),
		CommonHttpProtocolOptions:     full.GetCommonHttpProtocolOptions(),
		StreamIdleTimeout:             full.GetStreamIdleTimeout(),
		LocalReplyConfig:              full.GetLocalReplyConfig(),
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{takeOff(p, m.ownHeaders()...)},
	}
	if m.unix {
		own.AccessLog = full.GetAccessLog()
	}
	return own
}

// ownHeaders are those that no caller may bring. Envoy counts attempts where it
// routes, which is after a listener's filters.
func (m *istio) ownHeaders() []string {
	if m.RouteLevel {
		return []string{GuardHeader, attemptHeader}
	}
	return []string{GuardHeader}
}

// routeFilters is the chain of one upstream for its listener, off but for its route.
// An answer of ours passes all filters of a listener, so the one that takes an
// upstream's reasons off is the route here.
func (m *istio) routeFilters(p *packed, t meshTarget) []*hcmv3.HttpFilter {
	chain := askingFilters(p, t.target, unmarking())
	for _, f := range chain {
		f.Name += "/" + t.Name
		disabled(f)
	}
	return chain
}

// virtualHostName is what Istio calls the virtual host of an upstream.
func (m *istio) virtualHostName(t meshTarget) string {
	port := t.meshPort
	if m.Gateway != "" {
		port = gatewayPort
	}
	return fmt.Sprintf("%s:%d", t.meshHost, port)
}

// routePatches switch on, for the route of an upstream alone, what its listener has.
func (m *istio) routePatches(p *packed, t meshTarget) list {
	name := m.virtualHostName(t)
	vhost := object{m.context(), {key: "routeConfiguration", value: object{{key: "vhost", value: object{{key: "name", value: name}}}}}}
	route := object{m.context(), {key: "routeConfiguration", value: object{{key: "vhost", value: object{
		{key: "name", value: name}, {key: "route", value: object{{key: "name", value: t.routeName()}}},
	}}}}}
	on := toolOverrides(p, t.target)
	if !t.keepsChallenge() {
		on[filterRejected] = p.any(&luav3.LuaPerRoute{Override: &luav3.LuaPerRoute_SourceCode{SourceCode: inlineString(rejectedCode())}})
	}
	if m.RouteLevel {
		// Each says nothing new: being said at all is what switches a filter on.
		on[filterHeaderMutation+"/"+t.Name] = p.any(&headerv3.HeaderMutationPerRoute{Mutations: &headerv3.Mutations{}})
		on[filterExtProc+"/"+t.Name] = p.any(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Overrides{Overrides: &extprocv3.ExtProcOverrides{}}})
		on[filterGuard+"/"+t.Name] = p.any(&luav3.LuaPerRoute{Override: &luav3.LuaPerRoute_SourceCode{SourceCode: inlineString(guardCode(t.Name))}})
	}
	return list{
		patch("VIRTUAL_HOST", vhost, "MERGE", &routev3.VirtualHost{IncludeRequestAttemptCount: true}),
		patch("HTTP_ROUTE", route, "MERGE", &routev3.Route{
			TypedPerFilterConfig: on,
			Action:               &routev3.Route_Route{Route: &routev3.RouteAction{Timeout: seconds(0), IdleTimeout: seconds(time.Hour)}},
		}),
	}
}
