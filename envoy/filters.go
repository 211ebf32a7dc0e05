package envoy

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	headerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	codecv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	previousv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func httpFilter(name string, config *anypb.Any) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
}

// upstreamFilters is the chain of one upstream's cluster. The order is the point:
// the mark goes, the server may set it, the guard demands it.
func upstreamFilters(p *packed, t target) ([]*hcmv3.HttpFilter, error) {
	if strings.ContainsAny(t.Name, "\"\\\r\n]") {
		return nil, fmt.Errorf("name %q cannot be written into the guard", t.Name)
	}
	unmark := unmarking()
	// Only what the upstream answers comes this way. A refusal by one of
	// the filters below leaves the chain at once.
	unmark.Mutations.ResponseMutations = []*mutationv3.HeaderMutation{removeHeader(ReasonHeader)}
	unmark.Mutations.ResponseTrailersMutations = []*mutationv3.HeaderMutation{removeHeader(ReasonHeader)}
	return append(askingFilters(p, t, unmark), httpFilter(filterUpstreamCodec, p.any(&codecv3.UpstreamCodec{}))), nil
}

// askingFilters are the filters that ask and hold a request to the answer.
func askingFilters(p *packed, t target, unmark *headerv3.HeaderMutation) []*hcmv3.HttpFilter {
	return []*hcmv3.HttpFilter{
		httpFilter(filterHeaderMutation, p.any(unmark)),
		httpFilter(filterExtProc, p.any(processor(p, t))),
		httpFilter(filterGuard, p.any(&luav3.Lua{DefaultSourceCode: inlineString(guardCode(t.Name))})),
	}
}

// unmarking takes off what the server alone may set, and trailers.
func unmarking() *headerv3.HeaderMutation {
	return &headerv3.HeaderMutation{Mutations: &headerv3.Mutations{
		RequestMutations:         []*mutationv3.HeaderMutation{removeHeader(GuardHeader)},
		RequestTrailersMutations: []*mutationv3.HeaderMutation{removeAll()},
	}}
}

// removeAll takes every trailer of a request off. The server is not asked about
// them, no MCP client sends any, and over HTTP/2 a caller's own authorization
// would reach the upstream in one.
func removeAll() *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: ".*"}},
		}},
	}}
}

// processor is the ext_proc filter: one message per attempt, and a refusal
// whenever there is no answer.
func processor(p *packed, t target) *extprocv3.ExternalProcessor {
	ours := &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{MetadataNamespace}}
	read := ours
	if t.proof() == policy.ProofMCPFilter {
		read = &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: []string{MetadataNamespace, filterMCP}}
	}
	f := &extprocv3.ExternalProcessor{
		GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: cmp.Or(t.asks, ProcessorCluster)}},
			InitialMetadata: identity(t),
			Timeout:         seconds(messageTimeout),
			RetryPolicy:     askAgain(p),
		},
		MessageTimeout: seconds(messageTimeout),
		ProcessingMode: &extprocv3.ProcessingMode{
			RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
			ResponseHeaderMode:  answers(t),
			RequestBodyMode:     extprocv3.ProcessingMode_NONE,
			ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
			RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
			ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
		},
		RequestAttributes: attributes(t),
		ForwardRules:      forwardRules(t),
		MutationRules:     mutationRules(t),
		RouteCacheAction:  extprocv3.ExternalProcessor_RETAIN,
		MetadataOptions:   &extprocv3.MetadataOptions{ForwardingNamespaces: read, ReceivingNamespaces: ours},
	}
	if t.proof() == policy.ProofBody {
		onBodies(f)
	}
	return f
}

// askAgain has another server decide when the one that was asked is gone before it
// answered. Nothing was lent by then, so that no call is at risk: what one did and
// could not tell is on its record, and is done again.
func askAgain(p *packed) *corev3.RetryPolicy {
	return &corev3.RetryPolicy{
		RetryOn:      "reset", // connections that fail or are refused included
		NumRetries:   u32(3),
		RetryBackOff: &corev3.BackoffStrategy{BaseInterval: seconds(10 * time.Millisecond), MaxInterval: seconds(100 * time.Millisecond)},
		RetryHostPredicate: []*corev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &corev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: p.any(&previousv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 3,
	}
}

// answers says whether the headers of answers are sent, which tell how a call ended
// where no access log does.
func answers(t target) extprocv3.ProcessingMode_HeaderSendMode {
	if t.OutcomesFromHeaders {
		return extprocv3.ProcessingMode_SEND
	}
	return extprocv3.ProcessingMode_SKIP
}

// identity is what a request's upstream is known by. Served configuration also
// says where the cluster leads, because it may be a moment behind the policy.
func identity(t target) []*corev3.HeaderValue {
	all := []*corev3.HeaderValue{{Key: UpstreamMetadata, Value: t.Name}}
	if t.served {
		all = append(all, &corev3.HeaderValue{Key: URLMetadata, Value: t.URL})
	}
	return all
}

func attributes(t target) []string {
	all := []string{"xds.cluster_name", "xds.route_name"}
	if t.mtls() {
		all = append(all, "connection.uri_san_peer_certificate", "connection.dns_san_peer_certificate")
	}
	return all
}

// forwardRules sends only the headers that a decision reads. Nil sends all.
func forwardRules(t target) *extprocv3.HeaderForwardingRules {
	names, prefixes, all := t.Inspected()
	if all {
		return nil
	}
	var list []*matcherv3.StringMatcher
	for _, n := range sortedCopy(append(slices.Clone(names), attemptHeader)) {
		list = append(list, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}})
	}
	for _, n := range sortedCopy(prefixes) {
		list = append(list, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: n}})
	}
	return &extprocv3.HeaderForwardingRules{AllowedHeaders: &matcherv3.ListStringMatcher{Patterns: list}}
}

// mutationRules lets a reply touch what this upstream's policy touches. Anything
// else fails the request instead of being dropped in silence.
func mutationRules(t target) *mutationv3.HeaderMutationRules {
	names, prefixes, all := writable(t)
	rules := &mutationv3.HeaderMutationRules{DisallowIsError: yes()}
	if all {
		// Any header of the caller may have to go. Envoy still protects
		// host and x-envoy-*.
		rules.DisallowSystem = yes()
		return rules
	}
	rules.DisallowAll = yes()
	rules.AllowExpression = &matcherv3.RegexMatcher{Regex: anyOf(names, prefixes)}
	return rules
}

// writable is what a reply may write: the headers of a request that the policy
// touches, our mark, and those of a refusal. Envoy holds immediate responses
// against the same rules, and answers them without any of our headers when one
// of them is not allowed.
func writable(t target) (names, prefixes []string, all bool) {
	names, prefixes, all = t.Mutable()
	names = append(slices.Clone(names), GuardHeader, "cache-control", "content-type", "retry-after")
	if issuers, _ := t.issuers(); len(issuers) > 0 {
		names = append(names, challengeHeader)
	}
	return names, prefixes, all
}

// anyOf is a regular expression for these names and everything with these
// prefixes. Envoy matches it against the whole name, in lower case. A name that a
// prefix covers is left out: Envoy limits the size of an expression.
func anyOf(names, prefixes []string) string {
	var alternatives []string
	covered := func(n, self string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return p != self && strings.HasPrefix(n, p) })
	}
	for _, n := range sortedCopy(names) {
		if !covered(n, "") {
			alternatives = append(alternatives, regexp.QuoteMeta(n))
		}
	}
	for _, n := range sortedCopy(prefixes) {
		if !covered(n, n) {
			alternatives = append(alternatives, regexp.QuoteMeta(n)+".*")
		}
	}
	return strings.Join(alternatives, "|")
}

// guardCode refuses a request that the server did not mark for this upstream. A
// stream that ends without an error before a reply lets the request through
// untouched, whatever failure_mode_allow says; this is what stops it.
func guardCode(name string) string {
	return `function envoy_on_request(handle)
  local mark = handle:headers():get("` + GuardHeader + `")
  handle:headers():remove("` + GuardHeader + `")
  if mark ~= "` + name + `" then
    handle:respond({
      [":status"] = "403",
      ["content-type"] = "application/json",
      ["cache-control"] = "no-store",
      ["` + ReasonHeader + `"] = "` + guardWord + `",
    }, [[` + string(policy.RefusalBody(403, guardWord, guardText)) + `]])
  end
end
`
}
