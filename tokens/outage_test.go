package tokens

import (
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestO2_AnHourOfOutageInMidRun: while the token lives nothing is felt, then
// calls fail at once, requests stay few, and the end is noticed within seconds.
func TestO2_AnHourOfOutageInMidRun(t *testing.T) {
	for _, life := range []time.Duration{5 * time.Minute, 2 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.as.life, w.as.latency = life, 20*time.Millisecond
			s := source(t, w.cache, "a", res("a"))
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(life / 4)
			tok := s.Cached()
			begin := time.Now()
			end := begin.Add(time.Hour)
			w.as.set(func(f *fake) { f.down = func(now time.Time) bool { return !now.Before(begin) && now.Before(end) } })
			before := w.as.requests()
			alive := min(time.Until(tok.Expiry()), time.Hour) - time.Second
			if calls, failures, slowest, _ := load(s, 100*time.Millisecond, alive); failures != 0 || slowest != 0 {
				t.Errorf("life %s: while the token lived, %d of %d calls failed and one took %s", life, failures, calls, slowest)
			}
			_, failures, _, last := load(s, 100*time.Millisecond, time.Until(end)+10*time.Second)
			if cost := last.Sub(end); cost > 5*time.Second {
				t.Errorf("life %s: calls failed for %s after the outage", life, cost)
			}
			if dead := tok.Expiry().Before(end); dead != (failures > 0) || !s.Ready() {
				t.Errorf("life %s: want failures %v and a token at last, got %d failures", life, dead, failures)
			}
			if n := w.as.requests() - before; n > 800 {
				t.Errorf("life %s: want at most 800 requests, got %d", life, n)
			} else {
				t.Logf("life %s: %d requests, %d failed calls", life, n, failures)
			}
		})
	}
}

// unsteady is a fake that fails a share of its requests by chance.
type unsteady struct {
	*fake

	mu    sync.Mutex
	dice  *rand.Rand
	share float64
	fail  func(*http.Request) (*http.Response, error)
	lost  int
}

func (u *unsteady) RoundTrip(r *http.Request) (*http.Response, error) {
	u.mu.Lock()
	hit := u.dice.Float64() < u.share
	if hit {
		u.lost++
	}
	u.mu.Unlock()
	if !hit {
		return u.fake.RoundTrip(r)
	}
	return u.fail(r)
}

// TestO3_T4_AnUnsteadyEndpoint: an endpoint that errs half of the time and takes
// 2 s for it, or a line that loses one answer in a hundred, is felt by no call. A
// short life leaves room for about nine tries, and chance has one call in some
// hundreds of lives meet nine errors in a row.
func TestO3_T4_AnUnsteadyEndpoint(t *testing.T) {
	errs := func(r *http.Request) (*http.Response, error) {
		time.Sleep(2 * time.Second)
		return &http.Response{StatusCode: http.StatusInternalServerError, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
	}
	cut := func(r *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, r.Body)
		return nil, io.ErrUnexpectedEOF
	}
	for name, c := range map[string]struct {
		share float64
		fail  func(*http.Request) (*http.Response, error)
		life  time.Duration
		run   time.Duration
		most  int // failed calls in 100,000
	}{
		"O3 half of them err, 2 s":       {0.5, errs, time.Hour, 240 * time.Hour, 0},
		"O3 the same with a life of 5 m": {0.5, errs, 5 * time.Minute, 24 * time.Hour, 100},
		"T4 one in 100 is lost":          {0.01, cut, 10 * time.Second, 2 * time.Hour, 0},
		"T4 one in 5 is cut off":         {0.2, cut, 30 * time.Second, 2 * time.Hour, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			as := &unsteady{fake: newFake(), dice: rand.New(rand.NewPCG(3, 4)), share: c.share, fail: c.fail} // the same each time
			as.life, as.latency = c.life, 2*time.Second
			cache := newCache(t, func(cfg *Config) { cfg.Transport, cfg.Dice = as, func() float64 { return 0.5 } })
			s := source(t, cache, "a", res("a"))
			for !s.Ready() {
				_, _ = s.Token(t.Context())
				time.Sleep(time.Second)
			}
			calls, failures, slowest, _ := load(s, c.life/100, c.run)
			if failures*100_000 > c.most*calls || slowest > 0 && c.most == 0 {
				t.Errorf("%s: want hardly a call to notice, got %d of %d failed, the slowest good one %s", name, failures, calls, slowest)
			}
			if as.lost < 3 {
				t.Errorf("%s: want some requests lost, got %d", name, as.lost)
			}
		})
	}
}
