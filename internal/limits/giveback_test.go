package limits_test

import (
	"testing"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestRefusedByTheServiceTakesNothing of a limit of this process that others share,
// whatever they do while the service is asked; and gives nobody more than the limit.
func TestRefusedByTheServiceTakesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit string
		used  int           // before
		batch int           // what is asked for, and refused by the service
		round time.Duration // how long that takes
		calls []int         // of others at its end, as batches
		want  int           // what is left then
	}{
		"nobody else":               {"100/s, burst: 100", 50, 1, 20 * time.Millisecond, nil, 52},
		"another one":               {"100/s, burst: 100", 50, 1, 20 * time.Millisecond, []int{1}, 51},
		"another one without room":  {"1/s, burst: 100", 98, 1, 20 * time.Millisecond, []int{2}, 2},
		"all others without room":   {"1/h, burst: 1", 0, 1, 20 * time.Millisecond, []int{1, 1, 1}, 1},
		"what would have run over":  {"100/s, burst: 100", 0, 50, 250 * time.Millisecond, []int{75}, 25},
		"full again meanwhile":      {"100/s, burst: 100", 0, 50, time.Second, []int{100}, 0},
		"some of it would have":     {"100/s, burst: 100", 20, 50, 250 * time.Millisecond, []int{50}, 50},
		"a batch, and others do so": {"100/s, burst: 100", 50, 30, 100 * time.Millisecond, []int{10, 10}, 40},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clock, s := newClock(), &scripted{}
			l := gate(t, (&tally{}).config(clock.now), fleet(s.serve(t), "refuse", "{name: all, fleet: true, callers: [ci]}", "{name: local, rate: "+c.limit+"}"))
			passes := func(n int) bool {
				d := by("a", "cron", make([]string, n)...)
				reason, _ := l.Admit(t.Context(), &d)
				return reason == policy.Allowed
			}
			for range c.used {
				passes(1)
			}
			s.set(func(r *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
				clock.pass(c.round)
				for _, n := range c.calls {
					passes(n)
				}
				return respond(over, over, 1000, time.Second)(r)
			})
			d := by("a", "ci", make([]string, c.batch)...)
			if reason, _ := l.Admit(t.Context(), &d); reason != policy.RateLimited {
				t.Fatalf("want it refused by the service, got %v", reason)
			}
			left := 0
			for passes(1) {
				left++
			}
			if left != c.want {
				t.Errorf("want %d left, got %d", c.want, left)
			}
		})
	}
}
