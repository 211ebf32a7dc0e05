package envoy

import (
	"fmt"
	"slices"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	mcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/mcp/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// toolsFilter checks what an ext_proc filter must allow for the tool rules of an
// upstream.
func (c *checker) toolsFilter(config tree, up *target) {
	switch up.proof() {
	case policy.ProofBody:
		at := config.get("allow_mode_override")
		modes := config.get("allowed_override_modes").items()
		allowed := len(modes) == 0 || slices.ContainsFunc(modes, func(m tree) bool {
			return m.get("request_body_mode").enum(extprocv3.ProcessingMode_BodySendMode_name) == "BUFFERED" && m.get("response_header_mode").enum(extprocv3.ProcessingMode_HeaderSendMode_name) == answers(*up).String() &&
				m.get("request_trailer_mode").enum(extprocv3.ProcessingMode_HeaderSendMode_name) == "SKIP" && m.get("response_trailer_mode").enum(extprocv3.ProcessingMode_HeaderSendMode_name) == "SKIP"
		})
		if !at.yes() || !allowed {
			c.report(at, problem{
				"no-mode-override", fmt.Sprintf("the processor may not ask for a body, and upstream %q has tool rules that need it", up.Name),
				"No tool can be proved, so the guard refuses every call", "set allow_mode_override: true, and allowed_override_modes as `render envoy` does",
			})
		}
	case policy.ProofMCPFilter:
		at := config.get("metadata_options", "forwarding_namespaces", "untyped")
		if !slices.Contains(at.strs(), filterMCP) {
			c.report(at, problem{
				"no-filter-namespace", fmt.Sprintf("what the mcp filter reads is not sent, and the tool rules of upstream %q go by it", up.Name),
				"No tool can be proved, so every call is refused", "add " + filterMCP + " to metadata_options.forwarding_namespaces.untyped",
			})
		}
	case policy.ProofHeaders:
	}
}

// toolsLeg checks what a listener must do on the way to an upstream with tool rules.
func (c *checker) toolsLeg(hcm tree, l leg, asks bool) {
	for _, name := range l.clusters() {
		up := c.upOf[name]
		if up == nil {
			continue
		}
		if asks {
			for _, f := range running(filters(hcm.get("http_filters")), l) {
				if c.ours(f) {
					c.toolsFilter(f.config, up)
				}
			}
		}
		if up.proof() == policy.ProofMCPFilter {
			c.mcpFilter(hcm, l, up)
		}
		if up.proof() == policy.ProofBody && c.guarded[name] {
			c.bodyLimit(hcm, l, name, up)
		}
	}
}

// bodyLimit checks that a large body ends before it comes to the cluster's chain,
// whose buffer it would fill for ever.
func (c *checker) bodyLimit(hcm tree, l leg, cluster string, up *target) {
	limit, ok := limitOf(hcm, l)
	if !ok {
		c.report(l.route, problem{
			"no-body-limit", fmt.Sprintf("nothing limits the size of a body on the way to upstream %q, whose tool rules need it read", up.Name),
			"A body over the cluster's buffer is never answered, and holds memory until the caller gives up",
			fmt.Sprintf("put a %s filter before the router with max_request_bytes: %d for this route", filterBuffer, up.bodyLimit()),
		})
		return
	}
	cl, _ := c.cluster(cluster)
	at := cl.get("per_connection_buffer_limit_bytes")
	buffer, set := at.number()
	if !set {
		buffer = bufferLimit
	}
	if buffer <= limit {
		c.report(at, problem{
			"buffer-too-small", fmt.Sprintf("the cluster's buffer is %d bytes, and bodies of %d may come, which tool rules need read", buffer, limit),
			"A body that does not fit is never answered", fmt.Sprintf("set per_connection_buffer_limit_bytes: %d", limit+bufferRoom),
		})
	}
}

// limitOf returns the smallest limit of the filters that limit bodies on a route.
func limitOf(hcm tree, l leg) (limit uint64, ok bool) {
	for _, f := range filters(hcm.get("http_filters")) {
		if f.kind != "Buffer" && f.kind != "BodySizeLimit" {
			continue
		}
		config, on := effective(f, l)
		if own := config.get("buffer"); own.ok() { // BufferPerRoute
			config = own
		}
		if n, has := config.get("max_request_bytes").number(); on && has && (!ok || n < limit) {
			limit, ok = n, true
		}
	}
	return limit, ok
}

// effective returns the configuration of a filter on a route, and whether it runs
// there: the most specific override wins.
func effective(f filter, l leg) (config tree, on bool) {
	config, on = f.config, !f.entry.get("disabled").yes()
	for _, level := range slices.Backward(l.levels) {
		over := level.get("typed_per_filter_config").child(f.entry.get("name").str())
		if !over.ok() {
			continue
		}
		own, _ := over.config()
		return own, !own.get("disabled").yes()
	}
	return config, on
}

// mcpFilter checks that Envoy's mcp filter refuses what it cannot read.
func (c *checker) mcpFilter(hcm tree, l leg, up *target) {
	for _, f := range filters(hcm.get("http_filters")) {
		if f.kind != "Mcp" {
			continue
		}
		config, on := effective(f, l)
		if on && config.get("traffic_mode").enum(mcpv3.Mcp_TrafficMode_name) == "REJECT_NO_MCP" && config.get("reject_duplicate_keys").yes() && f.config.get("attribute_source").enum(mcpv3.Mcp_AttributeSource_name) == "VERIFY" {
			return
		}
	}
	c.report(l.route, problem{
		"mcp-filter-open", fmt.Sprintf("the mcp filter does not run strictly on the way to upstream %q, whose tool rules go by its word", up.Name),
		"A batch, a second name or a long body would hide the tool, and the call be refused or misjudged",
		"put it before the router with traffic_mode: REJECT_NO_MCP, reject_duplicate_keys: true and attribute_source: VERIFY, as `render envoy` does",
	})
}
