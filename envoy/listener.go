package envoy

import (
	"fmt"
	"slices"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	grpclogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	customv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/custom_response/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/custom_response/local_response_policy/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// mainListener is the name of the shared listener and of its routes.
const mainListener = "mcp"

// listeners returns the shared listener, then those that upstreams have of their own.
func listeners(set *policy.Set, ups []target) ([]*listenerv3.Listener, error) {
	shared, err := listener(mainListener, set.Envoy.Listen, set, sharedRoutes(set, ups), ups)
	if err != nil {
		return nil, fmt.Errorf("envoy.listen: %w", err)
	}
	all := []*listenerv3.Listener{shared}
	for _, t := range ups {
		if t.Listen == "" {
			continue
		}
		own, err := listener(mainListener+"_"+t.Name, t.Listen, set, ownRoutes(set, t), []target{t})
		if err != nil {
			return nil, fmt.Errorf("upstream %q: envoy.listen: %w", t.Name, err)
		}
		all = append(all, own)
	}
	return all, nil
}

func listener(name, listen string, set *policy.Set, routes *routev3.RouteConfiguration, ups []target) (*listenerv3.Listener, error) {
	addr, err := address(listen)
	if err != nil {
		return nil, err
	}
	var p packed
	chain := &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: p.any(connectionManager(&p, name, routes, ups))},
	}}}
	if set.Envoy.TLS != nil {
		chain.TransportSocket = &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.tls",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: p.any(downstreamTLS(set.Envoy.TLS, ups))},
		}
	}
	return &listenerv3.Listener{
		Name:                          name,
		Address:                       addr,
		PerConnectionBufferLimitBytes: u32(buffers(ups...)),
		FilterChains:                  []*listenerv3.FilterChain{chain},
	}, p.err
}

func connectionManager(p *packed, name string, routes *routev3.RouteConfiguration, ups []target) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:                   name,
		CodecType:                    hcmv3.HttpConnectionManager_AUTO,
		UseRemoteAddress:             yes(),
		NormalizePath:                yes(),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		StripPortMode:                &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		StripTrailingHostDot:         true,
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		RequestHeadersTimeout:         seconds(10 * time.Second),
		RequestTimeout:                seconds(5 * time.Minute),
		StreamIdleTimeout:             seconds(time.Hour),
		ServerHeaderTransformation:    hcmv3.HttpConnectionManager_PASS_THROUGH,
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{earlyRemoval(p)},
		RouteSpecifier:                &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: routes},
		AccessLog:                     outcomes(p, ups),
		LocalReplyConfig:              tooLarge(ups),
		HttpFilters: append(toolFilters(p, ups),
			httpFilter(filterCustomResponse, p.any(rejectedResponse(p))),
			httpFilter(filterRouter, p.any(&routerv3.Router{})),
		),
	}
}

// earlyRemoval takes our own mark off before anything reads the request, and what
// a caller could write to make an upstream believe in another host or path.
func earlyRemoval(p *packed) *corev3.TypedExtensionConfig {
	return takeOff(p, append([]string{GuardHeader}, misleadingHeaders()...)...)
}

func takeOff(p *packed, headers ...string) *corev3.TypedExtensionConfig {
	var all []*mutationv3.HeaderMutation
	for _, name := range headers {
		all = append(all, removeHeader(name))
	}
	return &corev3.TypedExtensionConfig{
		Name:        "envoy.http.early_header_mutation.header_mutation",
		TypedConfig: p.any(&earlyv3.HeaderMutation{Mutations: all}),
	}
}

// misleadingHeaders are read by frameworks instead of Host and path, or by a mesh
// instead of a peer's certificate, and Envoy passes them on as they come.
func misleadingHeaders() []string {
	return []string{
		"forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-uri", "x-forwarded-server",
		"x-original-url", "x-original-uri", "x-original-host", "x-rewrite-url",
		"x-envoy-peer-metadata", "x-envoy-peer-metadata-id",
	}
}

func removeHeader(name string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}}
}

// outcomes sends us the end of every call: status, attempts and the metadata of
// our decision. Nothing waits for it, and a call goes the same way without it. It is
// left out where the headers of answers tell of every call.
func outcomes(p *packed, ups []target) []*accesslogv3.AccessLog {
	if len(ups) > 0 && !slices.ContainsFunc(ups, func(t target) bool { return !t.OutcomesFromHeaders }) {
		return nil
	}
	config := &grpclogv3.HttpGrpcAccessLogConfig{
		CommonConfig: &grpclogv3.CommonGrpcAccessLogConfig{
			LogName: MetadataNamespace,
			GrpcService: &corev3.GrpcService{
				TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ProcessorCluster}},
			},
			TransportApiVersion: corev3.ApiVersion_V3,
			BufferFlushInterval: seconds(100 * time.Millisecond),
		},
		AdditionalRequestHeadersToLog:  []string{SessionHeader},
		AdditionalResponseHeadersToLog: []string{ReasonHeader, SessionHeader},
	}
	return []*accesslogv3.AccessLog{{
		Name:       "envoy.access_loggers.http_grpc",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: p.any(config)},
	}}
}

// rejectedResponse turns a final 401 of an upstream into our 502: the caller
// cannot do anything about our credential, and a 401 would send it to a login.
// Upstreams that are lent nothing switch it off on their route. A 401 of our own
// is for the caller and stays: it alone has a reason, because the cluster's chain
// takes that header off whatever the upstream answers. also are further conditions.
func rejectedResponse(p *packed, also ...*predicate) *customv3.CustomResponse {
	reason := policy.UpstreamRejected
	reply := &localv3.LocalResponsePolicy{
		StatusCode:           u32(uint32(reason.Status())), //nolint:gosec // a status has three digits
		Body:                 inlineString(string(reason.Body(nil))),
		ResponseHeadersToAdd: refusalHeaders(reason.String()),
	}
	is401 := matches("status", p.any(&matcherv3.HttpResponseStatusCodeMatchInput{}),
		&xdsmatcherv3.StringMatcher{MatchPattern: &xdsmatcherv3.StringMatcher_Exact{Exact: "401"}})
	isOurs := hasHeader(p, "reason", ReasonHeader)
	both := &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher{
		AndMatcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList{Predicate: append([]*predicate{
			is401, {MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: isOurs}},
		}, also...)},
	}}
	return &customv3.CustomResponse{CustomResponseMatcher: &xdsmatcherv3.Matcher{
		MatcherType: &xdsmatcherv3.Matcher_MatcherList_{MatcherList: &xdsmatcherv3.Matcher_MatcherList{
			Matchers: []*xdsmatcherv3.Matcher_MatcherList_FieldMatcher{{
				Predicate: both,
				OnMatch: &xdsmatcherv3.Matcher_OnMatch{OnMatch: &xdsmatcherv3.Matcher_OnMatch_Action{
					Action: &xdscorev3.TypedExtensionConfig{Name: reason.String(), TypedConfig: p.any(reply)},
				}},
			}},
		}},
	}}
}

// hasHeader matches an answer with that header: one that is absent matches no
// expression, and an empty one this one.
func hasHeader(p *packed, name, header string) *predicate {
	return matches(name, p.any(&matcherv3.HttpResponseHeaderMatchInput{HeaderName: header}),
		&xdsmatcherv3.StringMatcher{MatchPattern: &xdsmatcherv3.StringMatcher_SafeRegex{SafeRegex: &xdsmatcherv3.RegexMatcher{
			EngineType: &xdsmatcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &xdsmatcherv3.RegexMatcher_GoogleRE2{}}, Regex: ".*",
		}}})
}

type predicate = xdsmatcherv3.Matcher_MatcherList_Predicate

// matches compares one input with one value.
func matches(name string, input *anypb.Any, value *xdsmatcherv3.StringMatcher) *predicate {
	return &predicate{MatchType: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{
		SinglePredicate: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate{
			Input:   &xdscorev3.TypedExtensionConfig{Name: name, TypedConfig: input},
			Matcher: &xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{ValueMatch: value},
		},
	}}
}

// refusalHeaders are the headers of an answer that Envoy itself makes.
func refusalHeaders(word string) []*corev3.HeaderValueOption {
	all := make([]*corev3.HeaderValueOption, 0, 3)
	for _, h := range [][2]string{{"content-type", "application/json"}, {"cache-control", "no-store"}, {ReasonHeader, word}} {
		all = append(all, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: h[0], Value: h[1]},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return all
}

func inlineString(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

func file(path string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

// downstreamTLS asks for a client certificate when there is an authority to
// verify it with, and demands one when no upstream has another kind of caller.
func downstreamTLS(files *policy.TLSSpec, ups []target) *tlsv3.DownstreamTlsContext {
	common := &tlsv3.CommonTlsContext{
		TlsParams:       &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
		AlpnProtocols:   []string{"h2", "http/1.1"},
		TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: file(files.Certificate), PrivateKey: file(files.PrivateKey)}},
	}
	ctx := &tlsv3.DownstreamTlsContext{CommonTlsContext: common}
	if files.ClientCA == "" {
		return ctx
	}
	common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
		ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: file(files.ClientCA)},
	}
	if onlyMTLS(ups) {
		ctx.RequireClientCertificate = yes()
	}
	return ctx
}

func onlyMTLS(ups []target) bool {
	for _, t := range ups {
		for _, c := range t.Callers {
			if len(c.SANs) == 0 {
				return false
			}
		}
	}
	return len(ups) > 0
}
