package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWatchFile(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "testdata/good/watch.yaml")
	all := WatchResponse{Alert: true, Disable: true, Throttle: true}
	throttle := WatchThrottle{Rate: Rate{Count: 10, Every: time.Minute}, For: time.Hour}
	want := &Watch{
		Sweep: SweepRule{Tools: 20, Window: 5 * time.Minute, Do: WatchResponse{Throttle: true}}, Throttle: throttle,
		Alerts: WatchAlerts{
			Webhook: &WatchWebhook{URL: "http://alerts.internal:8080/mcp", CA: "testdata/good/hook-ca.pem", Secret: SecretRef{SecretFile, "testdata/good/hook-secret"}},
			Slack:   &WatchSlack{URL: SecretRef{SecretFile, "testdata/good/slack-url"}, CA: "testdata/good/chat-ca.pem"},
			Alertmanager: &WatchAlertmanager{
				URLs:          []string{"https://am-0.example/api/v2/alerts", "http://am-1.internal:9093/prefix/api/v2/alerts"},
				Authorization: SecretRef{SecretText, "Bearer ${AM_TOKEN}"}, Labels: []Param{{"cluster", "eu1"}, {"team", "platform"}}, CA: "testdata/good/am-ca.pem",
			},
			Link: "https://grafana.example/d/mcp?orgId=1",
		},
	}
	if diff := cmp.Diff(want, set.Watch); diff != "" {
		t.Errorf("watch (-want +got):\n%s", diff)
	}
	if got := len(set.Watch.Secrets()); got != 3 {
		t.Errorf("want 3 secrets to be read, got %d", got)
	}
	a := WatchRules{
		AuthFailures:  ShareRule{Share: 0.05, MinCalls: 10, Window: time.Minute, Do: WatchResponse{Alert: true, Disable: true}},
		Errors:        ShareRule{Share: 0.125, MinCalls: 40, Window: 10 * time.Minute, Do: all},
		TokenEndpoint: TokenEndpointRule{Failures: 3, For: 30 * time.Second, Do: WatchResponse{Alert: true}},
		ToolUsage:     ToolUsageRule{Factor: 5, MinCalls: 100, Window: 10 * time.Minute, Learn: 2 * time.Hour, Do: WatchResponse{Alert: true, Throttle: true}},
		Breaker:       WatchBreaker{Open: 5 * time.Second, MaxOpen: time.Minute, Successes: 2, ProbeTimeout: 4 * time.Second}, Throttle: throttle,
	}
	if diff := cmp.Diff(a, set.Upstreams[0].Watch); diff != "" {
		t.Errorf("upstream a (-want +got):\n%s", diff)
	}
	// A rule of the upstream stands in the place of the file's, as a whole.
	b := a
	b.AuthFailures = ShareRule{Share: 0.1, MinCalls: 20, Window: 5 * time.Minute}
	b.Errors = ShareRule{Share: 0.5, MinCalls: 20, Window: 5 * time.Minute, Do: WatchResponse{Alert: true}}
	b.TokenEndpoint = TokenEndpointRule{Failures: 5, For: time.Minute}
	b.ToolUsage = ToolUsageRule{Factor: 10, MinCalls: 50, Window: 5 * time.Minute, Learn: 24 * time.Hour}
	b.Breaker = WatchBreaker{Open: time.Second, MaxOpen: 10 * time.Minute, Successes: 3, ProbeTimeout: 10 * time.Second}
	b.Throttle = WatchThrottle{Rate: Rate{Count: 1, Every: time.Second}, For: time.Minute}
	if diff := cmp.Diff(b, set.Upstreams[1].Watch); diff != "" {
		t.Errorf("upstream b (-want +got):\n%s", diff)
	}
	if !set.Upstreams[1].Disabled || set.Upstreams[0].Disabled {
		t.Error("want b disabled, and a not")
	}
}

// TestWatchDefaults: what is not written is not watched, watch: {} only tells, and
// an upstream may be watched alone.
func TestWatchDefaults(t *testing.T) {
	t.Parallel()
	parse := func(top, of string) *Set {
		t.Helper()
		set, err := Parse("policy.yaml", []byte("version: 1\n"+top+"callers: {ci: {key: {sha256: 5e884898da28047151d0e56f8dc6292773603d0d6aabbd62a11ef721d1542d8a}}, anyone: {any: true}}\nupstreams:\n"+
			"  a: {url: https://a.example, callers: [ci], credential: none"+of+"}\n"), testEnv)
		if err != nil {
			t.Fatal(err)
		}
		return set
	}
	if set := parse("", ""); set.Watch != nil || set.Upstreams[0].Watch != (WatchRules{}) {
		t.Errorf("want nothing without watch, got %+v, %+v", set.Watch, set.Upstreams[0].Watch)
	}
	r := parse("watch: {}\n", "").Upstreams[0].Watch
	tell := WatchResponse{Alert: true}
	for name, do := range map[string]WatchResponse{"auth_failures": r.AuthFailures.Do, "errors": r.Errors.Do, "token_endpoint": r.TokenEndpoint.Do, "tool_usage": r.ToolUsage.Do} {
		if do != tell {
			t.Errorf("%s: want an alert alone, got %+v", name, do)
		}
	}
	if r.AuthFailures.Share != 0.1 || r.AuthFailures.MinCalls != 20 || r.AuthFailures.Window != 5*time.Minute {
		t.Errorf("want more than 10%% of at least 20 calls in 5m, got %+v", r.AuthFailures)
	}
	if set := parse("", ", watch: {}"); set.Watch != nil || set.Upstreams[0].Watch != r {
		t.Errorf("want the defaults for one upstream, got %+v", set.Upstreams[0].Watch)
	}
	if set := parse("", ", watch: {breaker: {open: 1h}}"); set.Upstreams[0].Watch.Breaker.MaxOpen != time.Hour {
		t.Errorf("want max_open to be open at least, got %+v", set.Upstreams[0].Watch.Breaker)
	}
	if set := parse("", ", watch: {errors: {do: [disable]}}"); len(set.Warnings) != 0 {
		t.Errorf("want no warning for a caller with a proof, got %v", set.Warnings)
	}
}

// TestWatchAnybodyDisables warns where disable never happens.
func TestWatchAnybodyDisables(t *testing.T) {
	t.Parallel()
	set, err := Parse("policy.yaml", []byte(`version: 1
callers: {anyone: {any: true}}
upstreams:
  a: {url: https://a.example, callers: [anyone], credential: none, watch: {errors: {do: [disable]}}}
`), testEnv)
	if err != nil || len(set.Warnings) == 0 || !strings.Contains(set.Warnings[len(set.Warnings)-1].Text, "never switches an upstream off") {
		t.Errorf("want a warning, got %v, %v", set.Warnings, err)
	}
}
