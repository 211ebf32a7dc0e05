package limits_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realratelimit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// theirs is the service's own configuration.
const theirs = `
domain: envoy-mcp-auth
descriptors:
  - key: rule
    value: theirs
    descriptors:
      - key: subject
        rate_limit: {unit: day, requests_per_unit: 3}
`

func realService(t *testing.T, config string) *realratelimit.Service {
	t.Helper()
	redis, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Stop)
	s, err := realratelimit.Start(t.Context(), realratelimit.Config{Binary: realratelimit.Require(t), Dir: t.TempDir(), Redis: redis.Addr, Limits: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// TestFleet: two replicas share one limit through the real service, by caller
// across upstreams, and by rules that the service's configuration has.
func TestFleet(t *testing.T) {
	t.Parallel()
	s := realService(t, theirs)
	block := fleet(s.Addr, "refuse", "{name: mine, fleet: true, rate: 10/day, per: [caller], callers: [ci, cron]}",
		"{name: theirs, fleet: true, per: [subject], callers: [people]}", "{name: gone, fleet: true, callers: [people]}",
		"{name: batch, fleet: true, rate: 5/day, per: [tool], callers: [cron], upstreams: [b]}")
	counts := [2]*tally{{}, {}}
	var replicas [2]*limits.Limits
	for i := range replicas {
		replicas[i] = gate(t, counts[i].config(time.Now), block)
	}
	var mu sync.Mutex
	allowed, waits := map[string]int{}, map[string]time.Duration{}
	var wg sync.WaitGroup
	for i, l := range replicas {
		for _, up := range []string{"a", "b"} {
			wg.Go(func() {
				for range 10 {
					d := by(up, "ci")
					reason, wait := l.Admit(t.Context(), &d)
					mu.Lock()
					if reason == policy.Allowed {
						allowed[fmt.Sprint(i, up)]++
						allowed["all"]++
					} else {
						waits[up] = max(waits[up], wait)
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if allowed["all"] != 10 {
		t.Errorf("want 10 of the caller's 40 calls through two replicas and two upstreams, got %v", allowed)
	}
	if left := untilTomorrow(); waits["a"] <= 0 || waits["a"] > left+5*time.Second || waits["a"] < left-time.Minute {
		t.Errorf("want to be told to come again when the day is over, in %s, got %s", left, waits["a"])
	}
	got := ""
	for i, d := range []string{"ann", "ann", "bob", "ann", "ann", "bob"} {
		p := who(d)
		reason, _ := replicas[i%2].Admit(t.Context(), &p)
		got += reason.String() + " "
	}
	if want := "allowed allowed allowed allowed rate_limited allowed "; got != want {
		t.Errorf("theirs: want %q, got %q", want, got)
	}
	if words := counts[0].take() + counts[1].take(); !strings.Contains(words, "unmatched") {
		t.Errorf("want told that the service does not know a rule, got %q", words)
	}
	// A batch is counted whole, each tool apart.
	got = ""
	for i, d := range [][]string{{"x", "x", "x", "y"}, {"x", "x", "x"}, {"y", "y"}, {"y", "y", "y", "y", "y", "y"}} {
		p := by("b", "cron", d...)
		reason, wait := replicas[i%2].Admit(t.Context(), &p)
		got += fmt.Sprint(reason, " ", wait > 0, " ")
	}
	if want := "allowed false rate_limited true allowed false rate_limited false "; got != want {
		t.Errorf("batch: want %q, got %q", want, got)
	}
}

// TestFleetOfThePage: the two configurations that docs/limits.md shows know each other.
func TestFleetOfThePage(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	_, config, _ := strings.Cut(string(text), "```yaml\n")
	config, _, _ = strings.Cut(config, "```")
	_, document, _ := strings.Cut(string(text), "<<'END'\n")
	document, _, _ = strings.Cut(document, "END\n")
	s, count := realService(t, config), &tally{}
	document = strings.Replace(document, `"127.0.0.1:8081"`, fmt.Sprintf("%q, timeout: 1s", s.Addr), 1)
	set, err := policy.Parse("policy.yaml", []byte(document), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	l := limits.New(count.config(time.Now))
	p, err := l.Build(set)
	if err != nil {
		t.Fatal(err)
	}
	l.Use(p)
	t.Cleanup(l.Close)
	d := extproc.Decision{Upstream: "wiki", Caller: "people", Issuer: "https://idp.company.com", Subject: "ann"}
	if reason, _ := l.Admit(t.Context(), &d); reason != policy.Allowed || count.take() != "up:true ok" {
		t.Errorf("want a rule and a limit to meet, got %v", reason)
	}
}

func untilTomorrow() time.Duration {
	now := time.Now().UTC()
	return now.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now)
}

// TestFleetOutage: the real service killed, stopped and back again, for both choices.
func TestFleetOutage(t *testing.T) {
	t.Parallel()
	s := realService(t, theirs)
	block := func(choice string) string {
		return strings.Replace(fleet(s.Addr, choice, "{name: all, fleet: true, rate: 1000000/day}", "{name: local, rate: 2/day, callers: [cron]}"), "timeout: 1s", "timeout: 250ms", 1)
	}
	counts := [2]*tally{{}, {}}
	open, shut := gate(t, counts[0].config(time.Now), block("allow")), gate(t, counts[1].config(time.Now), block("refuse"))
	admit := func(l *limits.Limits, caller string) policy.Reason {
		d := by("a", caller)
		reason, _ := l.Admit(t.Context(), &d)
		return reason
	}
	up := func(what string) {
		t.Helper()
		for _, l := range []*limits.Limits{open, shut} {
			for end := time.Now().Add(20 * time.Second); admit(l, "ci") != policy.Allowed || l.Status().Service.State != "up"; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: want the service used again by itself, got %+v", what, l.Status().Service)
				}
			}
		}
	}
	down := func(what string) {
		t.Helper()
		counts[0].take()
		begin := time.Now()
		for range 50 {
			if a, b := admit(open, "ci"), admit(shut, "ci"); a != policy.Allowed || b != policy.RateLimited {
				t.Errorf("%s: want allowed and refused, got %v and %v", what, a, b)
			}
		}
		// Three of 250 ms for each, and at most one more in each second.
		took := time.Since(begin)
		if took > 10*time.Second {
			t.Errorf("%s: want 100 calls not to wait for a broken service, took %s", what, took)
		}
		words := counts[0].take()
		if asked := 50 - strings.Count(words, "skipped"); asked > tolerated+1+int(took/time.Second) {
			t.Errorf("%s: want three calls that ask, and then one a second, got %d in %s", what, asked, took)
		}
		t.Logf("%s: 100 calls in %s", what, took)
	}
	up("at first")
	s.Stop()
	down("killed")
	if a, b := admit(open, "cron"), admit(open, "cron"); a != policy.Allowed || b != policy.Allowed || admit(open, "cron") != policy.RateLimited {
		t.Error("want the limits of this process held meanwhile")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	up("restarted")
	if err := s.Pause(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); admit(shut, "ci") == policy.Allowed; { // a signal takes its time
		if time.Now().After(end) {
			t.Fatal("want the stopped service to answer nothing")
		}
	}
	down("stopped")
	if err := s.Continue(); err != nil {
		t.Fatal(err)
	}
	up("continued")
}

const tolerated = 3
