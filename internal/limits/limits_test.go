package limits_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var _ extproc.Gate = (*limits.Limits)(nil)

// document is a policy with a limits block.
func document(block string) string {
	return `
version: 1
callers:
  ci: {key: {sha256: 4c806362b613f7496abf284146efd31da90e4b16169fe001841ca17290f427c4}}
  cron: {key: {sha256: 2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683}}
  people: {jwt: {issuer: https://idp.example, audience: https://mcp.example}}
defaults: {callers: [ci, cron, people], credential: none}
limits:
` + block + `
upstreams:
  a: {url: https://a.example/mcp, tools: {default: allow}}
  b: {url: https://b.example/mcp, tools: {default: allow}}
`
}

// fatal is what testing.TB and rapid.T have alike.
type fatal interface {
	Helper()
	Fatal(args ...any)
}

func parse(tb fatal, block string) *policy.Set {
	tb.Helper()
	set, err := policy.Parse("policy.yaml", []byte(document(block)), func(string) (string, bool) { return "", false })
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

// clock is a clock of the test's own.
type clock struct{ at time.Time }

func (c *clock) now() time.Time       { return c.at }
func (c *clock) pass(d time.Duration) { c.at = c.at.Add(d) }
func newClock() *clock                { return &clock{time.Unix(1_800_000_000, 0)} }
func rules(lines ...string) string    { return "  rules:\n    - " + strings.Join(lines, "\n    - ") }

func tool(names ...string) []policy.Call {
	var calls []policy.Call
	for _, name := range names {
		calls = append(calls, policy.Call{Method: []byte("tools/call"), Target: []byte(name)})
	}
	return calls
}

// gate is a gate with the limits in force.
func gate(tb testing.TB, cfg limits.Config, block string) *limits.Limits {
	tb.Helper()
	l := limits.New(cfg)
	use(tb, l, block)
	tb.Cleanup(l.Close)
	return l
}

func use(tb testing.TB, l *limits.Limits, block string) {
	tb.Helper()
	p, err := l.Build(parse(tb, block))
	if err != nil {
		tb.Fatal(err)
	}
	l.Use(p)
}

// step is one request and what becomes of it.
type step struct {
	d    extproc.Decision
	pass time.Duration // before it
	want string        // "" for allowed, else the time to wait
}

func by(upstream, caller string, tools ...string) extproc.Decision {
	return extproc.Decision{Upstream: upstream, Caller: caller, Calls: tool(tools...)}
}

func who(subject string) extproc.Decision {
	return extproc.Decision{Upstream: "a", Caller: "people", Issuer: "https://idp.example", Subject: subject}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rules []string
		steps []step
	}{
		"no rule is about the upstream": {
			[]string{"{rate: 1/s, upstreams: [b]}"},
			[]step{{d: by("a", "ci")}, {d: by("a", "ci")}, {d: by("b", "ci")}, {d: by("b", "ci"), want: "1s"}},
		},
		"without per all share": {
			[]string{"{rate: 2/s}"},
			[]step{{d: by("a", "ci")}, {d: by("b", "cron")}, {d: by("a", "cron"), want: "500ms"}, {d: by("a", "cron"), pass: 499 * time.Millisecond, want: "1ms"}, {d: by("a", "cron"), pass: time.Millisecond}},
		},
		"per caller across upstreams": {
			[]string{"{rate: 1/s, per: [caller]}"},
			[]step{{d: by("a", "ci")}, {d: by("b", "ci"), want: "1s"}, {d: by("a", "cron")}, {d: by("b", "cron"), want: "1s"}},
		},
		"per caller and upstream": {
			[]string{"{rate: 1/s, per: [caller, upstream]}"},
			[]step{{d: by("a", "ci")}, {d: by("b", "ci")}, {d: by("a", "ci"), want: "1s"}, {d: by("b", "ci"), want: "1s"}},
		},
		"per upstream": {
			[]string{"{rate: 1/s, per: [upstream]}"},
			[]step{{d: by("a", "ci")}, {d: by("a", "cron"), want: "1s"}, {d: by("b", "cron")}},
		},
		"per subject, and by caller without one": {
			[]string{"{rate: 1/s, per: [subject]}"},
			[]step{{d: who("ann")}, {d: who("bob")}, {d: who("ann"), want: "1s"}, {d: by("a", "ci")}, {d: by("b", "ci"), want: "1s"}, {d: by("b", "cron")}},
		},
		"callers": {
			[]string{"{rate: 1/s, callers: [ci]}"},
			[]step{{d: by("a", "ci")}, {d: by("a", "ci"), want: "1s"}, {d: by("a", "cron")}, {d: by("a", "cron")}},
		},
		"tools are counted apart from requests": {
			[]string{`{rate: 1/min, tools: ["t_*"]}`},
			[]step{{d: by("a", "ci", "other")}, {d: by("a", "ci")}, {d: by("a", "ci", "t_1")}, {d: by("a", "ci", "t_2"), want: "1m0s"}, {d: by("a", "ci", "other")}},
		},
		"per tool": {
			[]string{"{rate: 1/h, per: [tool]}"},
			[]step{{d: by("a", "ci", "x")}, {d: by("a", "ci", "y")}, {d: by("a", "ci", "x"), want: "1h0m0s"}},
		},
		"a batch counts each call": {
			[]string{"{rate: 3/s, burst: 3}"},
			[]step{{d: by("a", "ci", "x", "y")}, {d: by("a", "ci", "x", "y"), want: "333.333333ms"}, {d: by("a", "ci")}},
		},
		"a batch per tool, refused whole": {
			[]string{"{rate: 2/min, per: [tool]}"},
			[]step{{d: by("a", "ci", "x", "y", "x")}, {d: by("a", "ci", "y", "x"), want: "30s"}, {d: by("a", "ci", "y")}, {d: by("a", "ci", "y"), want: "30s"}},
		},
		"a batch larger than the limit never passes": {
			[]string{"{rate: 2/s, burst: 2}"},
			[]step{{d: by("a", "ci", "1", "2", "3"), want: "0s"}, {d: by("a", "ci", "1", "2")}},
		},
		"the longest wait, and what another rule took is given back": {
			[]string{"{rate: 5/s, burst: 2}", "{rate: 1/min, callers: [ci]}"},
			[]step{{d: by("a", "ci")}, {d: by("a", "ci"), want: "1m0s"}, {d: by("a", "ci"), want: "1m0s"}, {d: by("a", "cron")}, {d: by("a", "cron"), want: "200ms"}},
		},
		"a burst, then the rate": {
			[]string{"{rate: 600/min, burst: 2}"},
			[]step{{d: by("a", "ci")}, {d: by("a", "ci")}, {d: by("a", "ci"), want: "100ms"}, {d: by("a", "ci"), pass: 100 * time.Millisecond}, {d: by("a", "ci"), want: "100ms"}},
		},
		"a clock that goes back gives nothing": {
			[]string{"{rate: 1/s}"},
			[]step{{d: by("a", "ci")}, {d: by("a", "ci"), pass: -time.Second, want: "1s"}, {d: by("a", "ci"), pass: time.Second, want: "1s"}},
		},
		"an answer of the client counts as a request": {
			[]string{"{rate: 1/s}", "{rate: 100/s, per: [tool]}"},
			[]step{{d: extproc.Decision{Upstream: "a", Caller: "ci", Calls: []policy.Call{{}}}}, {d: by("a", "ci"), want: "1s"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock := newClock()
			l := gate(t, limits.Config{Now: clock.now, Log: zerolog.Nop()}, rules(c.rules...))
			for i, s := range c.steps {
				clock.pass(s.pass)
				reason, wait := l.Admit(t.Context(), &s.d)
				got := ""
				if reason != policy.Allowed {
					got = wait.String()
				}
				if got != s.want || reason != policy.Allowed && reason != policy.RateLimited || reason == policy.Allowed && wait != 0 {
					t.Errorf("step %d: want %q, got %v %q", i+1, s.want, reason, got)
				}
			}
		})
	}
}

// TestReload: rules that stay keep what they counted, and a changed rate holds at once.
func TestReload(t *testing.T) {
	t.Parallel()
	const named, other = "{name: n, rate: %s, per: [caller]}", "{rate: %s, upstreams: [b]}"
	clock := newClock()
	l := gate(t, limits.Config{Now: clock.now, Log: zerolog.Nop()}, rules(fmt.Sprintf(named, "10/s, burst: 10"), fmt.Sprintf(other, "1/h")))
	passes := func(upstream string) (n int) {
		for range 100 {
			d := by(upstream, "ci")
			if reason, _ := l.Admit(t.Context(), &d); reason == policy.Allowed {
				n++
			}
		}
		return n
	}
	want := func(what, upstream string, want int) {
		t.Helper()
		if got := passes(upstream); got != want {
			t.Errorf("%s: want %d to pass, got %d", what, want, got)
		}
	}
	want("fresh", "b", 1)
	want("fresh", "a", 9)
	use(t, l, rules(fmt.Sprintf(other, "1/h"), fmt.Sprintf(named, "10/s, burst: 10")))
	want("the same in another order", "a", 0)
	clock.pass(time.Second)
	use(t, l, rules(fmt.Sprintf(named, "10/s, burst: 3"), fmt.Sprintf(other, "1/h")))
	want("lowered", "a", 3)
	use(t, l, rules(fmt.Sprintf(named, "10/s, burst: 50"), fmt.Sprintf(other, "3600/h")))
	clock.pass(time.Second)
	want("raised fills at its rate", "a", 10)
	clock.pass(time.Second)
	want("a rule without a name is known by what it is about", "b", 2)
	var said []string
	for _, r := range l.Status().Rules {
		said = append(said, fmt.Sprintf("%s %s, %s ago", r.Name, &r, clock.now().Sub(*r.Last)))
	}
	if diff := cmp.Diff([]string{"n 10/s for each caller: 378 refused, 1s ago", "rule_2 3600/h: 197 refused, 0s ago"}, said); diff != "" {
		t.Errorf("refusals are counted on over reloads (-want +got):\n%s", diff)
	}
	if n := l.Status().Buckets; n != 2 {
		t.Errorf("want 2 buckets, got %d", n)
	}
	use(t, l, rules("{name: new, rate: 1/s}"))
	if n := l.Status().Buckets; n != 0 {
		t.Errorf("want the buckets of rules that are gone dropped, got %d", n)
	}
	p, err := l.Build(&policy.Set{})
	if err != nil {
		t.Fatal(err)
	}
	l.Use(p)
	want("no limits", "a", 100)
}

// TestRefusalsAreTold: by the names of the policy alone.
func TestRefusalsAreTold(t *testing.T) {
	t.Parallel()
	told := map[string]int{}
	cfg := limits.Config{Now: newClock().now, Log: zerolog.Nop(), Limited: func(upstream, rule string) { told[upstream+" "+rule]++ }}
	l := gate(t, cfg, rules("{name: all, rate: 1/s}", "{rate: 2/s, per: [tool], upstreams: [b]}"))
	for range 3 {
		for _, up := range []string{"a", "b"} {
			d := by(up, "ci", "x", "x", "x")
			l.Admit(context.Background(), &d)
		}
	}
	if got := fmt.Sprint(told); got != "map[a all:3 b all:3]" {
		t.Errorf("got %s", got)
	}
}
