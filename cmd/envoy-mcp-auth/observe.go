package main

import (
	"context"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// observers hand each decision and each outcome to all who want to know. None of
// them may block.
type observers struct {
	decisions []extproc.Observer
	outcomes  []extproc.OutcomeObserver
}

// Decided implements extproc.Observer.
func (o *observers) Decided(d *extproc.Decision) {
	for _, each := range o.decisions {
		each.Decided(d)
	}
}

// Ended implements extproc.OutcomeObserver.
func (o *observers) Ended(out *extproc.Outcome) {
	for _, each := range o.outcomes {
		each.Ended(out)
	}
}

// gates ask one after the other: the first that refuses decides, and those after
// it count nothing.
type gates []extproc.Gate

// Admit implements extproc.Gate.
func (g gates) Admit(ctx context.Context, d *extproc.Decision) (policy.Reason, time.Duration) {
	for _, each := range g {
		if reason, wait := each.Admit(ctx, d); reason != policy.Allowed {
			return reason, wait
		}
	}
	return policy.Allowed, 0
}
