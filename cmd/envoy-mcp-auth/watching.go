package main

import (
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// startWatch makes the watch, and the way to those that it alerts.
func (a *app) startWatch(log zerolog.Logger) {
	counts := metrics.NewWatch(a.metrics, func(yield func(string, bool)) { a.watch.Off(yield) })
	a.alerts = alert.New(alert.Config{
		Secrets: a.secrets, Now: time.Now, Dice: rand.Float64, Log: log, Delivered: counts.Delivered,
	})
	a.watch = watch.New(watch.Config{
		Now: time.Now, Log: log, Dice: rand.Float64, Notify: a.alerts.Notify, Fired: counts.Fired,
	})
}

// fetched is told of each token request. Those of before the watch are not: there
// are none.
func (a *app) fetched(f tokens.Fetch) {
	a.metrics.Fetched(f)
	a.watch.Fetched(f)
}

// viewWatch puts what the watch knows on the page.
func viewWatch(v *admin.View, st *watch.Status, set *policy.Set) {
	known := make(map[string]*watch.UpstreamStatus, len(st.Upstreams))
	for i := range st.Upstreams {
		known[st.Upstreams[i].Name] = &st.Upstreams[i]
	}
	breaks := make(map[string]bool, len(set.Upstreams))
	for _, up := range set.Upstreams {
		breaks[up.Name] = up.Watch.AuthFailures.Do.Disable || up.Watch.Errors.Do.Disable
	}
	for i := range v.Upstreams {
		u := &v.Upstreams[i]
		w := known[u.Name]
		if w == nil {
			continue
		}
		if breaks[u.Name] || w.Breaker.State != watch.Closed {
			u.Breaker = viewBreaker(&w.Breaker)
		}
		u.Traffic = viewTraffic(w)
	}
	for i := range st.Alerts {
		a := &st.Alerts[i]
		v.Alerts = append(v.Alerts, admin.Alert{
			Since: a.Since, Upstream: a.Upstream, Caller: a.Caller, Rule: a.Rule, Text: a.Summary,
			Response: strings.Join(slices.Concat(sentences(a.Done), []string{a.Runbook}), " "),
		})
	}
}

// sentences writes what was done as sentences.
func sentences(done []string) []string {
	all := make([]string, len(done))
	for i, s := range done {
		all[i] = strings.ToUpper(s[:1]) + s[1:] + "."
	}
	return all
}

func viewBreaker(b *watch.BreakerStatus) *admin.Breaker {
	return &admin.Breaker{
		State: string(b.State), Since: b.Since, Until: b.NextProbe, Why: b.Why,
		Opened: b.Opened, Successes: b.Successes, Needed: b.Needed,
	}
}

// viewTraffic is nil while there were no calls at all.
func viewTraffic(w *watch.UpstreamStatus) *admin.Traffic {
	if len(w.Series) == 0 {
		return nil
	}
	f := w.Failures
	t := &admin.Traffic{
		Window: watch.Span, Calls: w.Calls, Failed: f.Caller + f.Token + f.Upstream + f.Errors, AuthFailed: f.Caller + f.Token + f.Upstream,
		Refused: w.Limited, P50: seconds(w.P50), P99: seconds(w.P99), Step: w.Series[1].At.Sub(w.Series[0].At),
	}
	for _, p := range w.Series {
		t.Points = append(t.Points, admin.Point{Calls: p.Calls, Failed: p.Failures, P50: seconds(p.P50), P99: seconds(p.P99)})
	}
	return t
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
