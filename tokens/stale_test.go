package tokens

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// An operator must see that an expired token is in use: once for each token and
// upstream, not for each call.
func TestStaleGraceIsLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log buffer
		as := newFake()
		cache := newCache(t, func(c *Config) {
			c.Transport, c.Secrets, c.Log = as, &store{secret: canary}, zerolog.New(&log)
			c.Dice = func() float64 { return 0.5 }
		})
		o := res("a")
		o.StaleGrace = 10 * time.Minute
		s := source(t, cache, "lenient", o)
		lent := func() {
			t.Helper()
			for range 20 {
				if tok, err := s.Token(t.Context()); err != nil || tok == nil {
					t.Fatalf("want a token, got %v", err)
				}
				time.Sleep(100 * time.Millisecond)
			}
		}
		strict := source(t, cache, "strict", res("a"))
		lines := func() int { return strings.Count(log.String(), "is lent on (stale_grace)") }
		lent()
		if lines() != 0 || s.Stale() {
			t.Errorf("want nothing said of a living token, got\n%s", log.String())
		}
		for outage := 1; outage <= 2; outage++ {
			as.set(func(f *fake) { f.status = 503 })
			time.Sleep(as.life - 2*callerCap)
			if st := s.Status(); !st.Ready || st.Failures == 0 || st.Stale {
				t.Errorf("want a living token whose refresh failed, and nothing stale, got %+v", st)
			}
			time.Sleep(2 * callerCap)
			lent()
			if lines() != outage || !strings.Contains(log.String(), `"upstream":"lenient"`) {
				t.Errorf("want %d lines, got\n%s", outage, log.String())
			}
			if !s.Stale() || !s.Status().Stale || strict.Stale() || strict.Status().Stale {
				t.Error("want it told of this upstream, and of no other")
			}
			as.set(func(f *fake) { f.status = 0 })
			time.Sleep(callerCap)
			lent()
			if s.Stale() || s.Status().Stale {
				t.Error("want it over")
			}
			time.Sleep(callerCap)
		}
		if strings.Contains(log.String(), canary) {
			t.Error("a secret is in the log")
		}
	})
}
