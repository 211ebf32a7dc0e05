package watch

import (
	"fmt"
	"strconv"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// What alerts say: what happens and the figures in a sentence, and in another what
// to do.

func callerAlert(up string, r *policy.ShareRule, s *sums) alert.Alert {
	f := s.failures()
	return alert.Alert{
		Rule: ruleAuth, Upstream: up, Stage: stageCaller, Severity: alert.Warning,
		Summary: fmt.Sprintf("%s of the %d calls to upstream %s in the last %s were refused because the caller proved nothing, or its proof does not hold (%d calls).",
			percent(f.Caller, s.all()), s.all(), up, policy.DurationText(r.Window), f.Caller),
		Figures: figures("calls", s.all(), "failed", f.Caller, "share", share(f.Caller, s.all())),
		Runbook: "Look for caller_unknown, caller_invalid and issuer_unavailable in the log: a key or a token that was rotated on one side only, or somebody who tries keys. " +
			"Other callers are served as before; to keep an address out, use Envoy.",
	}
}

func credentialAlert(up string, r *policy.ShareRule, s *sums) alert.Alert {
	f, all := s.failures(), s.credential()
	return alert.Alert{
		Rule: ruleAuth, Upstream: up, Stage: stageCredential, Severity: alert.Critical,
		Summary: fmt.Sprintf("%s of the %d calls in the last %s failed because of the credential of upstream %s: %d for want of a token, %d answered 401, %d answered 403.",
			percent(f.Token+f.Upstream, all), all, policy.DurationText(r.Window), up, f.Token, s.counts[rejected], s.counts[forbidden]),
		Figures: figures("calls", all, "failed", f.Token+f.Upstream, "share", share(f.Token+f.Upstream, all),
			"no_token", f.Token, "answered_401", s.counts[rejected], "answered_403", s.counts[forbidden]),
		Runbook: "Run envoy-mcp-auth token --upstream " + up + " and look at the token's last error on /status. " +
			"With 401 or 403, ask the upstream's operator whether the client was revoked, or audience or scopes changed.",
	}
}

func errorsAlert(up string, r *policy.ShareRule, s *sums) alert.Alert {
	n, all := s.counts[upstreamFailed], s.credential()
	return alert.Alert{
		Rule: ruleErrors, Upstream: up, Severity: alert.Warning,
		Summary: fmt.Sprintf("%s of the %d calls to upstream %s in the last %s failed: it answered 5xx, broke off, or did not answer (%d calls).",
			percent(n, all), all, up, policy.DurationText(r.Window), n),
		Figures: figures("calls", all, "failed", n, "share", share(n, all)),
		Runbook: "The calls were authenticated. Look at the upstream itself, and at the statistics of its cluster in Envoy.",
	}
}

func endpointAlert(up string, st *EndpointStatus, now time.Time) alert.Alert {
	since := now.Sub(st.FailingSince).Truncate(time.Second)
	return alert.Alert{
		Rule: ruleEndpoint, Upstream: up, Severity: alert.Critical,
		Summary: fmt.Sprintf("The last %d token requests for upstream %s failed, since %s, the last one with %s. Calls go on as long as the present token lives.",
			st.Failures, up, st.FailingSince.UTC().Format(time.RFC3339), st.Last),
		Figures: figures("failures", uint64(st.Failures), "seconds", since.Seconds()), //nolint:gosec // a count
		Runbook: "Run envoy-mcp-auth token --upstream " + up + ": it asks once and says what came. Check that the token endpoint can be reached from here, " +
			"and that the client and its secret are still good.",
	}
}

func usageAlert(up string, u *usage, r *policy.ToolUsageRule, n float64, p person, heavy bool) alert.Alert {
	a := alert.Alert{
		Rule: ruleUsage, Upstream: up, Tool: u.tool, Severity: alert.Warning,
		Summary: fmt.Sprintf("Tool %s of upstream %s was called about %.0f times in the last %s; usual are %.1f.", u.tool, up, n, policy.DurationText(r.Window), u.mean),
		Figures: figures("calls", n, "usual", u.mean),
		Runbook: "Look in the log and the audit for who calls it: a new job, a loop, or a stolen credential. What is usual adapts over " + policy.DurationText(r.Learn) + ".",
	}
	if heavy {
		a.Summary += " More than half of them were by " + p.label() + "."
	}
	return a
}

func sweepAlert(p person, r *policy.SweepRule, tools int) alert.Alert {
	return alert.Alert{
		Rule: ruleSweep, Caller: p.label(), Severity: alert.Warning,
		Summary: fmt.Sprintf("Caller %s ran more than %d different tools in the last %s, of all upstreams together, refused ones included.", p.label(), r.Tools, policy.DurationText(r.Window)),
		Figures: figures("tools", uint64(tools)), //nolint:gosec // a count
		Runbook: "Ask who that is whether it is meant: an agent that tries things out, or somebody with a stolen credential. To shut it out, take the caller off the upstreams in the policy.",
	}
}

// label names a person: the caller, and the subject of its token.
func (p *person) label() string {
	if p.subject == "" {
		return p.caller
	}
	return p.caller + " (" + shown(p.subject, 64) + ")"
}

func disabled(up string) string {
	return "upstream " + up + " is switched off (503 upstream_disabled) until probes succeed"
}

func throttledUpstream(up string, t policy.WatchThrottle) string {
	return "calls to upstream " + up + " are held to " + rateText(t)
}

func throttledCaller(p person, up string, t policy.WatchThrottle) string {
	if up == "" {
		return "caller " + p.label() + " is held to " + rateText(t)
	}
	return "caller " + p.label() + " is held to " + rateText(t) + " at upstream " + up
}

func rateText(t policy.WatchThrottle) string {
	return fmt.Sprintf("%d calls in %s", t.Rate.Count, policy.DurationText(t.Rate.Every))
}

// percent writes a share, to the tenth when it is small.
func percent(part, whole uint64) string {
	p := 100 * share(part, whole)
	if p < 10 {
		return strconv.FormatFloat(p, 'f', 1, 64) + " %"
	}
	return strconv.FormatFloat(p, 'f', 0, 64) + " %"
}

// figures makes a map of names and numbers.
func figures(pairs ...any) map[string]float64 {
	m := make(map[string]float64, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		name, _ := pairs[i].(string)
		switch n := pairs[i+1].(type) {
		case uint64:
			m[name] = float64(n)
		case float64:
			m[name] = n
		}
	}
	return m
}
