package policy

import "slices"

// Limits is the compiled `limits` block. It is immutable.
type Limits struct {
	// Rules are all held.
	Rules []LimitRule
	// Service counts for the rules with Fleet; nil when there is none.
	Service *LimitService
}

// LimitRule is one limit.
type LimitRule struct {
	// Name is for metrics and descriptors.
	Name string
	// ID says which rule of an earlier policy this one is: by its name, where the
	// file gives one, else by what it is about.
	ID string
	// Callers are the names of those it is about; empty means all.
	Callers []string
	// Tools are patterns of the tools it is about. Empty means every request.
	Tools []string
	// PerCaller, PerSubject, PerUpstream and PerTool say what is counted apart.
	PerCaller, PerSubject, PerUpstream, PerTool bool
	// Rate is zero when the service knows it.
	Rate Rate
	// Burst is above zero, but for Fleet.
	Burst int
	// Fleet is whether the service counts.
	Fleet bool

	upstreams []string // patterns; empty means all
}

// LimitService is the rate limit service.
type LimitService struct {
	// Address is HOST:PORT or unix:///PATH.
	Address string
	// Domain is the domain of its configuration.
	Domain string
	// Timeout bounds one call, in nanoseconds.
	Timeout Duration
	// Refuse is whether calls are refused while it cannot be asked.
	Refuse bool
	// TLS is whether the connection is TLS; CA, Certificate and PrivateKey are
	// paths, and may be empty.
	TLS                         bool
	CA, Certificate, PrivateKey string
}

// AboutUpstream reports whether the rule is about calls to an upstream.
func (r *LimitRule) AboutUpstream(name string) bool {
	return len(r.upstreams) == 0 || slices.ContainsFunc(r.upstreams, func(p string) bool { return glob(p, name) })
}

// AboutCaller reports whether the rule is about calls of a caller.
func (r *LimitRule) AboutCaller(name string) bool {
	return len(r.Callers) == 0 || slices.Contains(r.Callers, name)
}

// ByTool reports whether the rule counts calls of tools, and not requests.
func (r *LimitRule) ByTool() bool { return r.PerTool || len(r.Tools) > 0 }

// AboutCall reports whether a rule with ByTool counts a call.
func (r *LimitRule) AboutCall(c *Call) bool {
	return string(c.Method) == "tools/call" &&
		(len(r.Tools) == 0 || slices.ContainsFunc(r.Tools, func(p string) bool { return glob(p, string(c.Target)) }))
}
