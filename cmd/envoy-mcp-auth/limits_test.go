package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestLimitsFollowThePolicy: serve shows how the limits stand, and a policy whose
// connection cannot be made changes nothing.
func TestLimitsFollowThePolicy(t *testing.T) {
	var plain string
	with := func(more string) string {
		return plain + "limits:\n  rules: [{name: all, rate: 1/s, fleet: true}]\n  service: {address: \"127.0.0.1:1\", on_failure: refuse" + more + "}\n"
	}
	r := start(t, func(socket, admin, auth string) string {
		plain = servePolicy(socket, admin, auth)
		return with("")
	})
	status := func() string { return strings.ReplaceAll(r.get(t, "/status"), " ", "") }
	if got := status(); !strings.Contains(got, `"address":"127.0.0.1:1"`) || !strings.Contains(got, `"state":"untried"`) {
		t.Errorf("/status: %s", got)
	}
	r.write(t, with(", tls: {ca: gone.pem}"))
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 0")
	if got := status(); !strings.Contains(got, "limits.service:tls.ca:open") || !strings.Contains(got, `"state":"untried"`) {
		t.Errorf("/status: %s", got)
	}
	r.write(t, plain)
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 1")
	if got := status(); strings.Contains(got, `"limits"`) {
		t.Errorf("want nothing of limits when the policy has none: %s", got)
	}
}

// admits is a gate with one answer, which counts how often it is asked.
type admits struct {
	reason policy.Reason
	asked  int
}

func (a *admits) Admit(context.Context, *extproc.Decision) (policy.Reason, time.Duration) {
	a.asked++
	return a.reason, time.Minute
}

// TestGatesInOrder: the first that refuses decides, and the next one counts nothing.
func TestGatesInOrder(t *testing.T) {
	first, second := &admits{reason: policy.Allowed}, &admits{reason: policy.RateLimited}
	g := gates{first, second}
	if reason, wait := g.Admit(t.Context(), &extproc.Decision{}); reason != policy.RateLimited || wait != time.Minute {
		t.Errorf("got %v, %s", reason, wait)
	}
	first.reason, second.reason = policy.UpstreamDisabled, policy.Allowed
	if reason, wait := g.Admit(t.Context(), &extproc.Decision{}); reason != policy.UpstreamDisabled || wait != time.Minute || second.asked != 1 {
		t.Errorf("got %v, %s, %d", reason, wait, second.asked)
	}
	first.reason = policy.Allowed
	if reason, wait := g.Admit(t.Context(), &extproc.Decision{}); reason != policy.Allowed || wait != 0 {
		t.Errorf("got %v, %s", reason, wait)
	}
}
