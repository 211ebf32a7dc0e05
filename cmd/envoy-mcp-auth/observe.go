package main

import "github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"

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
