package envoy

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	mcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/mcp/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	filterBuffer = "envoy.filters.http.buffer"
	filterMCP    = "envoy.filters.http.mcp"
)

// proof is what proves the tools of an upstream, empty where no rule governs them.
func (t target) proof() policy.Proof {
	if t.Tools == nil {
		return ""
	}
	return t.Tools.Proof
}

// bodyLimit is the largest body that may be sent to the upstream, 0 for any.
func (t target) bodyLimit() uint32 {
	if t.Tools == nil || t.Tools.Proof == policy.ProofHeaders {
		return 0
	}
	return uint32(min(t.Tools.MaxBody, policy.MaxBody)) //nolint:gosec // at most 16 MiB
}

// buffers is what a connection must be able to hold for these upstreams. A body
// that is read has to fit with room to spare: at the limit itself, Envoy stops
// reading and waits for ever in a cluster's chain.
func buffers(ups ...target) uint32 {
	most := uint32(bufferLimit)
	for _, t := range ups {
		limit := t.bodyLimit()
		if t.served {
			limit = max(limit, bufferLimit) // see toolFilters
		}
		if limit > 0 {
			most = max(most, limit+bufferRoom)
		}
	}
	return most
}

// toolFilters are the filters of a listener with such upstreams, off but for the
// routes that say how large a body may be: the whole body is there before it is
// sent on, or it is refused. ext_proc in a cluster's chain cannot refuse one that
// its buffer does not hold.
func toolFilters(p *packed, ups []target) []*hcmv3.HttpFilter {
	var all []*hcmv3.HttpFilter
	limited, filtered := false, false
	for _, t := range ups {
		// Served, it is always there: the first upstream with tool rules would
		// else change the listener, and so drain every connection.
		limited = limited || t.bodyLimit() > 0 || t.served
		filtered = filtered || t.proof() == policy.ProofMCPFilter
	}
	if limited {
		all = append(all, disabled(httpFilter(filterBuffer, p.any(&bufferv3.Buffer{MaxRequestBytes: u32(bufferLimit)}))))
	}
	if filtered {
		all = append(all, disabled(httpFilter(filterMCP, p.any(&mcpv3.Mcp{
			TrafficMode:         mcpv3.Mcp_REJECT_NO_MCP,
			RejectDuplicateKeys: wrapperspb.Bool(true),
			AttributeSource:     mcpv3.Mcp_VERIFY,
		}))))
	}
	return all
}

func disabled(f *hcmv3.HttpFilter) *hcmv3.HttpFilter {
	f.Disabled = true
	return f
}

// toolOverrides switch those filters on for a route.
func toolOverrides(p *packed, t target) map[string]*anypb.Any {
	on := map[string]*anypb.Any{}
	if limit := t.bodyLimit(); limit > 0 {
		on[filterBuffer] = p.any(&bufferv3.BufferPerRoute{Override: &bufferv3.BufferPerRoute_Buffer{
			Buffer: &bufferv3.Buffer{MaxRequestBytes: u32(limit)},
		}})
	}
	if t.proof() == policy.ProofMCPFilter {
		on[filterMCP] = p.any(&mcpv3.McpOverride{
			TrafficMode:         mcpv3.Mcp_REJECT_NO_MCP,
			MaxRequestBodySize:  u32(t.bodyLimit()),
			RejectDuplicateKeys: true,
		})
	}
	return on
}

// tooLarge gives Envoy's own refusal of a large body our words.
func tooLarge(ups []target) *hcmv3.LocalReplyConfig {
	if len(toolFilters(new(packed), ups)) == 0 {
		return nil
	}
	reason := policy.BodyTooLarge
	return &hcmv3.LocalReplyConfig{Mappers: []*hcmv3.ResponseMapper{{
		Filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
			StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
				Op:    accesslogv3.ComparisonFilter_EQ,
				Value: &corev3.RuntimeUInt32{DefaultValue: uint32(reason.Status()), RuntimeKey: "envoy_mcp_auth.body_too_large"}, //nolint:gosec // a status has three digits
			}},
		}},
		Body: inlineString(string(reason.Body(nil))),
		BodyFormatOverride: &corev3.SubstitutionFormatString{
			Format:      &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: inlineString("%LOCAL_REPLY_BODY%")},
			ContentType: "application/json",
		},
		HeadersToAdd: refusalHeaders(reason.String()),
	}}}
}

// onBodies lets the server ask for a request's body, and for nothing else.
func onBodies(f *extprocv3.ExternalProcessor) {
	f.AllowModeOverride = true
	f.AllowedOverrideModes = []*extprocv3.ProcessingMode{{
		ResponseHeaderMode:  f.GetProcessingMode().GetResponseHeaderMode(),
		RequestBodyMode:     extprocv3.ProcessingMode_BUFFERED,
		ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
		RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
		ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
	}}
}
