package envoy

import (
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// sharedRoutes are the routes of the shared listener: by the first path segment,
// or by host. Upstreams with a listener of their own are not among them: one door
// per upstream is easier to reason about than two.
func sharedRoutes(set *policy.Set, ups []target) *routev3.RouteConfiguration {
	rc := &routev3.RouteConfiguration{Name: mainListener}
	routes := []*routev3.Route{unclearPath()}
	for _, t := range ups {
		switch {
		case t.Listen != "":
		case set.Envoy.ByHost:
			own := append([]*routev3.Route{unclearPath()}, metadataRoutes(set, t, "")...)
			rc.VirtualHosts = append(rc.VirtualHosts, virtualHost(t.Name, policy.HostName(t.Name, set.Envoy.Host), append(own, route(t, "", t.path), noPolicy())...))
		default:
			routes = append(append(routes, metadataRoutes(set, t, "/"+t.Name)...), route(t, "/"+t.Name, t.path))
		}
	}
	rc.VirtualHosts = append(rc.VirtualHosts, virtualHost(mainListener, "*", append(routes, noPolicy())...))
	return rc
}

// ownRoutes are the routes of an upstream's own listener. Every path passes
// unchanged: the legacy SSE transport names its second path in an event, which
// no route can rewrite.
func ownRoutes(set *policy.Set, t target) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name:         mainListener + "_" + t.Name,
		VirtualHosts: []*routev3.VirtualHost{virtualHost(t.Name, "*", append(metadataRoutes(set, t, ""), route(t, "", ""))...)},
	}
}

func virtualHost(name, domain string, routes ...*routev3.Route) *routev3.VirtualHost {
	return &routev3.VirtualHost{
		Name:    name,
		Domains: []string{domain},
		// Envoy overwrites what a caller sends, so the server can trust it.
		IncludeRequestAttemptCount: true,
		Routes:                     routes,
	}
}

// route sends prefix+path and what is below it to the upstream's path. The query
// is no part of either and stays.
func route(t target, prefix, path string) *routev3.Route {
	r := &routev3.Route{Name: t.routeName(), Match: pathMatch(prefix + path)}
	action := &routev3.RouteAction{
		ClusterSpecifier:     &routev3.RouteAction_Cluster{Cluster: t.Cluster},
		HostRewriteSpecifier: &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: t.authority},
		Timeout:              seconds(0),
		IdleTimeout:          seconds(time.Hour),
	}
	switch {
	case prefix == "":
	case path == "":
		// prefix_rewrite would make //x of /NAME/x, or nothing of /NAME.
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern:      &matcherv3.RegexMatcher{Regex: "^" + regexp.QuoteMeta(prefix) + "/?(.*)$"},
			Substitution: `/\1`,
		}
	default:
		action.PrefixRewrite = path
	}
	var p packed // what is packed here always can be
	r.TypedPerFilterConfig = toolOverrides(&p, t)
	if t.Credential.None() {
		r.TypedPerFilterConfig[filterCustomResponse] = disabledFilter()
	} else {
		r.ResponseHeadersToRemove = []string{challengeHeader}
		if t.RetryOn401 {
			action.RetryPolicy = retryOn401()
		}
	}
	r.Action = &routev3.Route_Route{Route: action}
	return r
}

// routeName is what xds.route_name tells the server. A pattern of the policy
// names someone else's routes, so it is of no use here.
func (t target) routeName() string {
	if t.Route != "" && !strings.HasSuffix(t.Route, "*") {
		return t.Route
	}
	return t.Name
}

// pathMatch matches the path and everything below it, and no neighbour:
// /a/mcp, /a/mcp/x and /a/mcp?q, not /a/mcpx.
func pathMatch(path string) *routev3.RouteMatch {
	if path == "" {
		path = "/"
	}
	if strings.HasSuffix(path, "/") {
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: path}}
	}
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: path}}
}

func retryOn401() *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:              "retriable-status-codes",
		RetriableStatusCodes: []uint32{401},
		NumRetries:           u32(1),
		RetryBackOff:         &routev3.RetryPolicy_RetryBackOff{BaseInterval: seconds(25 * time.Millisecond), MaxInterval: seconds(25 * time.Millisecond)},
	}
}

// disabledFilter switches a filter off for one route. Packing it cannot fail.
func disabledFilter() *anypb.Any {
	var p packed
	return p.any(&routev3.FilterConfig{Disabled: true})
}

// unclearPath takes the paths that Envoy reads as below an upstream's and the
// upstream may not, so that a caller cannot leave the path of its url with our
// token. A server that drops path parameters makes .. of ..;x, which Envoy looks
// for before it decodes %2e and not after, and a server that decodes, or trims,
// once more than Envoy does makes it of %252e, ..%3b or ..%20.
func unclearPath() *routev3.Route {
	r := noPolicy()
	r.Name = "unclear_path"
	r.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: `(?i).*/(\.|%(25)+2e){1,2}([;%/].*)?`},
	}}
	return r
}

// noPolicy answers what no upstream's route took: never Envoy's bare 404, which
// a client takes for a missing server.
func noPolicy() *routev3.Route {
	reason := policy.NoPolicy
	return &routev3.Route{
		Name:  reason.String(),
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: uint32(reason.Status()), //nolint:gosec // a status has three digits
			Body:   inlineString(string(reason.Body(nil))),
		}},
		ResponseHeadersToAdd: refusalHeaders(reason.String()),
	}
}
