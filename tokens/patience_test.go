package tokens

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestO3_HangsWithinTheLife is TestO2_O3_OutagesWithinTheLife for an endpoint that
// takes requests and never answers them, after its outage neither: a request that
// fell into it must not keep the next one waiting until the token is dead.
func TestO3_HangsWithinTheLife(t *testing.T) {
	for shift := range 40 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s := source(t, w.cache, "a", res("a"))
			w.as.life, w.as.latency = 10*time.Second, 20*time.Millisecond
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			w.as.set(func(f *fake) {
				f.stuck = func(now time.Time) bool {
					at := (now.Sub(start) + time.Duration(shift)*250*time.Millisecond) % (10 * time.Second)
					return at < 4*time.Second
				}
			})
			calls, failures, _, _ := load(s, 50*time.Millisecond, 2*time.Minute)
			if failures != 0 {
				t.Errorf("shift %d: %d of %d calls failed", shift, failures, calls)
			}
		})
	}
}
