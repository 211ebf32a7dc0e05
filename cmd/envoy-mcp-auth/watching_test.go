package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestPageShowsTheWatch: breakers where a rule can open one, calls where there were
// any, and alerts with what was done.
func TestPageShowsTheWatch(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	can := policy.WatchRules{Errors: policy.ShareRule{Do: policy.WatchResponse{Disable: true}}}
	set := &policy.Set{Upstreams: []*policy.Upstream{{Name: "crm", Watch: can}, {Name: "off"}, {Name: "plain"}}}
	st := &watch.Status{
		Upstreams: []watch.UpstreamStatus{
			{
				Name: "crm", Calls: 40, Limited: 3, Failures: watch.Failures{Caller: 1, Token: 2, Upstream: 4, Errors: 8}, P50: 0.25, P99: 1.5,
				Breaker: watch.BreakerStatus{State: watch.HalfOpen, Since: at, NextProbe: at, Why: "it fails", Opened: 2, Successes: 1, Needed: 3},
				Series:  []watch.Point{{At: at, Calls: 7, Failures: 2, P50: 0.5, P99: 1}, {At: at.Add(10 * time.Second), Calls: 33}},
			},
			{Name: "off", Breaker: watch.BreakerStatus{State: watch.Disabled, Since: at}},
			{Name: "plain", Breaker: watch.BreakerStatus{State: watch.Closed}},
		},
		Alerts: []alert.Alert{{Rule: "errors", Upstream: "crm", Since: at, Summary: "It fails.", Done: []string{"upstream crm is switched off"}, Runbook: "Look."}},
	}
	v := &admin.View{Upstreams: []admin.Upstream{{Name: "plain"}, {Name: "off"}, {Name: "crm"}}}
	viewWatch(v, st, set)
	want := &admin.View{
		Upstreams: []admin.Upstream{
			{Name: "plain"},
			{Name: "off", Breaker: &admin.Breaker{State: "disabled", Since: at}},
			{
				Name: "crm", Breaker: &admin.Breaker{State: "half_open", Since: at, Until: at, Why: "it fails", Opened: 2, Successes: 1, Needed: 3},
				Traffic: &admin.Traffic{
					Window: 5 * time.Minute, Calls: 40, Failed: 15, AuthFailed: 7, Refused: 3, P50: 250 * time.Millisecond, P99: 1500 * time.Millisecond,
					Step: 10 * time.Second, Points: []admin.Point{{Calls: 7, Failed: 2, P50: 500 * time.Millisecond, P99: time.Second}, {Calls: 33}},
				},
			},
		},
		Alerts: []admin.Alert{{Since: at, Upstream: "crm", Rule: "errors", Text: "It fails.", Response: "Upstream crm is switched off. Look."}},
	}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
