package envoy

import (
	"fmt"
	"slices"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// outcomeLog checks the access log that is sent to us, and that there is one for
// the upstreams behind this listener whose outcomes it tells.
func (c *checker) outcomeLog(logs tree, mine []leg) {
	told := false
	for _, l := range logs.items() {
		config, kind := l.config()
		at := config.get("common_config", "grpc_service", "envoy_grpc", "cluster_name")
		_, ours := c.processorNames[at.str()]
		for name := range c.processorNames { // Envoy Gateway makes a cluster of its own for it
			ours = ours || c.leadsTo(at.str(), name)
		}
		if kind != "HttpGrpcAccessLogConfig" || !ours {
			continue
		}
		told = true
		if headers := config.get("additional_response_headers_to_log"); !listsHeader(headers, ReasonHeader) {
			c.report(headers, problem{
				"outcome-without-reason", "the access log that goes to envoy-mcp-auth has no " + ReasonHeader,
				"A token that an upstream refused cannot be told from other failures, so calls too large to be sent again go on failing",
				"set additional_response_headers_to_log: [" + ReasonHeader + ", " + SessionHeader + "]",
			})
		} else if !listsHeader(headers, SessionHeader) && c.bindsSessions() {
			c.report(headers, problem{
				"outcome-without-session", "the access log that goes to envoy-mcp-auth has no " + SessionHeader + " of answers",
				"Whom an upstream gave a session is not learnt, so it is whose who uses it first",
				"add " + SessionHeader + " to additional_response_headers_to_log",
			})
		}
		if headers := config.get("additional_request_headers_to_log"); !listsHeader(headers, SessionHeader) && c.bindsSessions() {
			c.report(headers, problem{
				"session-end-unseen", "the access log that goes to envoy-mcp-auth has no " + SessionHeader + " of requests",
				"That a session ended is not learnt, so it is remembered for a day",
				"set additional_request_headers_to_log: [" + SessionHeader + "]",
			})
		}
	}
	if waiting := c.upstreamsOf(mine, func(u *target) bool { return !u.OutcomesFromHeaders }); !told && len(waiting) > 0 {
		c.report(logs, problem{
			"no-outcome-log", fmt.Sprintf("no access log goes to envoy-mcp-auth, and it tells how calls to upstream %q end", waiting[0].Name),
			"Nothing is counted or watched, a refused token stays in use for calls too large to be sent again, and sessions are whose who uses them first",
			"add the access_log of `render envoy`, or write envoy: {outcomes: response_headers} for the upstream",
		})
	}
}

// upstreamsOf returns the upstreams of the policy that these legs lead to.
func (c *checker) upstreamsOf(legs []leg, want func(*target) bool) []*target {
	var all []*target
	for _, l := range legs {
		for _, name := range l.clusters() {
			if up := c.upOf[name]; up != nil && want(up) {
				all = append(all, up)
			}
		}
	}
	return all
}

// answersIn is answers for a listener's chain.
func (c *checker) answersIn(all []filter, mine []leg) {
	ups := c.upstreamsOf(mine, func(*target) bool { return true })
	for i, f := range all {
		if c.ours(f) {
			c.answers(all, i, false, ups)
		}
	}
}

// answers checks whether the headers of answers are sent where they tell how calls
// end, and only there. ups are the upstreams of the chain, as far as the policy knows.
func (c *checker) answers(all []filter, i int, upstream bool, ups []*target) {
	at := all[i].config.get("processing_mode", "response_header_mode")
	told := slices.IndexFunc(ups, func(u *target) bool { return u.OutcomesFromHeaders })
	switch {
	case told < 0 && !upstream && at.enum(extprocv3.ProcessingMode_HeaderSendMode_name) != "SKIP":
		c.report(at, problem{
			"response-headers-sent", "response headers are sent to the processor", "Envoy's own 400 and 431 then reach the caller as a closed connection",
			"set response_header_mode: SKIP, or write envoy: {outcomes: response_headers} in the policy where there is no access log",
		})
	case told >= 0 && at.enum(extprocv3.ProcessingMode_HeaderSendMode_name) == "SKIP":
		c.report(at, problem{
			"answers-not-sent", fmt.Sprintf("response headers are not sent, and the policy has them tell how calls to upstream %q end", ups[told].Name),
			"Every call looks as if it had no answer", "set response_header_mode: SEND",
		})
	case told >= 0 && slices.ContainsFunc(all[i+1:], func(f filter) bool { return f.kind == "CustomResponse" && f.config.mentions("401") }):
		c.report(all[i].entry, problem{
			"answers-replaced", "a custom_response behind ext_proc answers in an upstream's place, where ext_proc does not see it",
			"The 401 that says a token is refused is never told", "put custom_response before ext_proc",
		})
	}
}

// bindsSessions reports whether the policy binds any; without one, it might.
func (c *checker) bindsSessions() bool {
	return c.set == nil || slices.ContainsFunc(c.set.Upstreams, func(u *policy.Upstream) bool { return u.BindsSessions })
}
