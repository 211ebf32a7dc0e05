package tokens

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/rs/zerolog"
)

func TestO16_RefreshAheadInTheWindow(t *testing.T) {
	for life, ahead := range map[time.Duration]time.Duration{
		10 * time.Second: 5 * time.Second, time.Minute: 30 * time.Second, 5 * time.Minute: time.Minute,
		time.Hour: 12 * time.Minute, 24 * time.Hour: 24 * time.Hour / 5,
	} {
		for _, dice := range []float64{0, 0.5, 0.999} {
			synctest.Test(t, func(t *testing.T) {
				as := newFake()
				as.life = life
				c := newCache(t, func(c *Config) { c.Transport = as; c.Dice = func() float64 { return dice } })
				s := source(t, c, "a", res("a"))
				if _, err := s.Token(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(life)
				want := life - time.Duration(float64(ahead)*(0.9+0.2*dice))
				if got := as.gap(); (got - want).Abs() > time.Millisecond {
					t.Errorf("life %s, dice %v: want the refresh after %s, got %s", life, dice, want, got)
				}
				if !s.Ready() {
					t.Error("want a living token at the old one's end")
				}
			})
		}
	}
}

// TestO16_NobodyWaits runs three lifetimes against a slow endpoint: after the
// first token no call waits.
func TestO16_NobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		w.as.latency = 2 * time.Second
		if _, err := s.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, failures, slowest, _ := load(s, 100*time.Millisecond, 3*time.Minute)
		if failures != 0 || slowest != 0 {
			t.Errorf("want no failure and no wait, got %d and %s", failures, slowest)
		}
	})
}

// TestO2_O3_OutagesWithinTheLife puts a 4 s outage at another place of each of
// 30 lifetimes of 10 s: no call fails while a token could have been fetched.
func TestO2_O3_OutagesWithinTheLife(t *testing.T) {
	for shift := range 10 {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s := source(t, w.cache, "a", res("a"))
			w.as.life, w.as.latency = 10*time.Second, 20*time.Millisecond
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			w.as.set(func(f *fake) {
				f.down = func(now time.Time) bool {
					at := (now.Sub(start) + time.Duration(shift)*time.Second) % (10 * time.Second)
					return at < 4*time.Second
				}
			})
			calls, failures, _, _ := load(s, 50*time.Millisecond, 5*time.Minute)
			if failures != 0 {
				t.Errorf("shift %d s: %d of %d calls failed", shift, failures, calls)
			}
		})
	}
}

func TestO16_AFailedRefreshNeverHurtsALivingToken(t *testing.T) {
	for _, status := range []int{503, 401} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			s := source(t, w.cache, "a", res("a"))
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w.as.set(func(f *fake) { f.status, f.body = status, `{"error":"invalid_client"}` })
			time.Sleep(time.Minute - time.Millisecond)
			if got, err := s.Token(t.Context()); err != nil || got != tok {
				t.Errorf("status %d: want the old token to its last moment, got %v, %v", status, got, err)
			}
			time.Sleep(time.Millisecond)
			if _, err := s.Token(t.Context()); err == nil {
				t.Errorf("status %d: want no token after its end", status)
			}
		})
	}
}

func TestO2_AnHourOfOutage(t *testing.T) {
	for name, most := range map[string]int{"load": 800, "idle": 135} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.as.status, w.as.latency = 503, 20*time.Millisecond
				s := source(t, w.cache, "a", res("a"))
				if name == "load" {
					calls, failures, _, _ := load(s, 50*time.Millisecond, time.Hour)
					if failures != calls {
						t.Errorf("want %d failures, got %d", calls, failures)
					}
				} else {
					w.cache.Warm(t.Context())
					time.Sleep(time.Hour)
				}
				if n := w.as.requests(); n > most || n < 100 {
					t.Errorf("want at most %d token requests, got %d", most, n)
				}
			})
		})
	}
}

// TestRecovery: an outage under 10 s costs calls at most 2 s after its end, a
// longer one at most 5 s, and an idle credential is back within 30 s.
func TestRecovery(t *testing.T) {
	for outage := time.Second; outage < 30*time.Second; outage += 700 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.as.latency = time.Millisecond
			s := source(t, w.cache, "a", res("a"))
			end := time.Now().Add(outage)
			w.as.down = func(now time.Time) bool { return now.Before(end) }
			_, _, _, last := load(s, 10*time.Millisecond, outage+6*time.Second)
			limit := 2 * time.Second
			if outage >= 10*time.Second {
				limit = 5 * time.Second
			}
			if cost := last.Sub(end); cost > limit {
				t.Errorf("outage of %s: calls failed for %s after its end, want at most %s", outage, cost, limit)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		end := time.Now().Add(10 * time.Minute)
		w.as.down = func(now time.Time) bool { return now.Before(end) }
		s := source(t, w.cache, "a", res("a"))
		w.cache.Warm(t.Context())
		time.Sleep(10*time.Minute + 30*time.Second)
		if !s.Ready() {
			t.Error("want an idle credential back 30 s after the outage")
		}
	})
}

func TestT5_RetryAfterIsHonoured(t *testing.T) {
	for value, want := range map[string]time.Duration{"20": 20 * time.Second, "99999": time.Minute, "-5": 0} {
		for _, status := range []int{429, 503, 500} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.as.status, w.as.header = status, http.Header{"Retry-After": {value}}
				s := source(t, w.cache, "a", res("a"))
				_, err := s.Token(t.Context())
				e := failed(t, err)
				if status == 500 {
					want = 0
				}
				if e.RetryAfter < want || e.RetryAfter > time.Minute {
					t.Errorf("%d with %q: want RetryAfter %s, got %s", status, value, want, e.RetryAfter)
				}
				load(s, 100*time.Millisecond, 70*time.Second)
				if gap := w.as.gap(); gap < want || gap > max(want*11/10, 1200*time.Millisecond) {
					t.Errorf("%d with %q: want the next request after %s, got %s", status, value, want, gap)
				}
			})
		}
	}
}

func TestT6_O17_PermanentErrorsAreNotHammered(t *testing.T) {
	for _, code := range []string{
		"invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_target", "invalid_request",
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.as.status, w.as.body = 400, `{"error":"`+code+`"}`
			s := source(t, w.cache, "a", res("a"))
			_, failures, _, _ := load(s, 200*time.Millisecond, 10*time.Minute)
			if n := w.as.requests(); n > 10 || failures == 0 {
				t.Errorf("%s: want at most 10 requests in 10 minutes, got %d", code, n)
			}
			if _, err := s.Token(t.Context()); failed(t, err).Kind != Refused || failed(t, err).Code != code {
				t.Errorf("%s: got %v", code, err)
			}
			n := w.as.requests()
			w.as.set(func(f *fake) { f.status = 0 })
			w.store.set("another secret", nil)
			if _, err := s.Token(t.Context()); err != nil || w.as.requests() != n+1 {
				t.Errorf("%s: want a new secret to be tried at once, got %v", code, err)
			}
		})
	}
}

// TestT6_A401WithoutAWordOfOAuth could lock an account all the same.
func TestT6_A401WithoutAWordOfOAuth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.status, w.as.body = 401, "<html>"
		s := source(t, w.cache, "a", res("a"))
		load(s, 200*time.Millisecond, 10*time.Minute)
		if n := w.as.requests(); n > 10 {
			t.Errorf("want at most 10 requests in 10 minutes, got %d", n)
		}
	})
}

// TestO16_ALateCallerFindsTheToken is a call that saw no token, and gets the
// lock only when the fetch has landed.
func TestO16_ALateCallerFindsTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if late, err := s.entry.token(t.Context(), time.Now()); err != nil || late != tok || w.as.requests() != 1 {
			t.Errorf("want the token without a request, got %v, %v, %d requests", late, err, w.as.requests())
		}
	})
}

func TestO9_AnIdleCredentialNoticesItsNewSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.status, w.as.body = 401, `{"error":"invalid_client"}`
		s := source(t, w.cache, "a", res("a"))
		w.cache.Warm(t.Context())
		time.Sleep(time.Minute)
		if n := w.as.requests(); n != 1 {
			t.Errorf("want 1 request, got %d", n)
		}
		w.as.set(func(f *fake) { f.status = 0 })
		w.store.set("", errors.New("half written"))
		time.Sleep(10 * time.Second)
		w.store.set("another secret", nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !s.Ready() || w.as.requests() != 2 {
			t.Errorf("want a token within 5 s of the new secret; ready %v, %d requests", s.Ready(), w.as.requests())
		}
	})
}

// TestO14_ADeadTokenIsNoHotLoop: expires_in 0 counts as a second, costs at most
// a request per second under load, and none while nobody asks.
func TestO14_ADeadTokenIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.life, w.as.latency = 0, 10*time.Millisecond
		s := source(t, w.cache, "a", res("a"))
		if _, failures, _, _ := load(s, 5*time.Millisecond, time.Minute); failures != 0 {
			t.Errorf("%d calls failed", failures)
		}
		n := w.as.requests()
		if n > 60 {
			t.Errorf("want at most 60 requests in a minute, got %d", n)
		}
		time.Sleep(time.Hour)
		if w.as.requests() != n {
			t.Errorf("want none while idle, got %d", w.as.requests()-n)
		}
	})
}

func TestO16_AHangIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.hang = true
		s := source(t, w.cache, "a", res("a"))
		start := time.Now()
		_, err := s.Token(t.Context())
		if e := failed(t, err); e.Code != "timeout" || time.Since(start) != fetchDeadline {
			t.Errorf("want timeout after %s, got %v after %s", fetchDeadline, e, time.Since(start))
		}
		time.Sleep(3 * time.Second) // past the back-off
		start = time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		_, err = s.Token(ctx)
		if e := failed(t, err); e.Kind != Unavailable || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 1500*time.Millisecond {
			t.Errorf("want the call's own deadline to count, got %v after %s", e, time.Since(start))
		}
	})
}

// stepped moves the wall clock of a time and leaves its monotonic reading, as a
// clock that was set does. Only the package time can build such a value.
func stepped(at time.Time, d time.Duration) time.Time {
	wall := (*uint64)(unsafe.Pointer(&at)) //nolint:gosec // the wall clock is the first word, its seconds start at bit 30
	*wall += uint64(d/time.Second) << 30   // wraps for negative steps, as it should
	return at
}

// TestT10 runs on the real clock: the fake one has no monotonic reading.
func TestT10_AClockThatStepsNeitherKillsNorRevivesAToken(t *testing.T) {
	for _, step := range []time.Duration{time.Hour, -time.Hour} {
		as := newFake()
		as.life = 1900 * time.Millisecond // never refreshed ahead
		var off atomic.Int64
		c := newCache(t, func(c *Config) {
			c.Transport = as
			c.Now = func() time.Time { return stepped(time.Now(), time.Duration(off.Load())) }
		})
		s := source(t, c, "a", res("a"))
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		off.Store(int64(step))
		if d := c.cfg.Now().Round(0).Sub(time.Now().Round(0)).Round(time.Second); d != step {
			t.Fatalf("the test's clock stepped by %s", d)
		}
		got, err := s.Token(t.Context())
		if slow := !time.Now().Before(tok.Expiry()); !slow && (err != nil || got != tok) {
			t.Errorf("step %s: want the same token, got %v, %v", step, got, err)
		}
		time.Sleep(time.Until(tok.Expiry()) + 10*time.Millisecond)
		if s.Ready() {
			t.Errorf("step %s: want the token dead after its life", step)
		}
	}
}

func TestO18_OneRequestPerRejectedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.latency = 50 * time.Millisecond
		s := source(t, w.cache, "a", res("a"))
		old, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				got, err := s.Replace(t.Context(), old.Authorization())
				if err != nil || got == old {
					t.Errorf("want a new token, got %v, %v", got, err)
				}
			})
		}
		wg.Wait()
		if n := w.as.requests(); n != 2 {
			t.Errorf("want 2 requests, got %d", n)
		}
		fresh, err := s.Replace(t.Context(), old.Authorization())
		if err != nil || fresh == old || w.as.requests() != 2 {
			t.Errorf("a late caller gets the newer token without a request: %v, %v", fresh, err)
		}
	})
}

func TestO4_O5_A401LoopIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		other := source(t, w.cache, "b", res("a"))
		start := time.Now()
		rejections := 0
		for time.Since(start) < time.Minute {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Replace(t.Context(), tok.Authorization()); err != nil {
				if e := failed(t, err); e.Kind != Rejected || e.RetryAfter > 5*time.Second {
					t.Fatalf("want rejected, got %v", e)
				}
				rejections++
			}
			time.Sleep(time.Millisecond)
		}
		// One for the first token, the refreshes, 3 at once, and one each 5 s.
		if n := w.as.requests(); n > 1+3+12+2 || n < 14 || rejections == 0 {
			t.Errorf("want about 16 requests in a minute of 401s, got %d", n)
		}
		tok, err := other.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Replace(t.Context(), tok.Authorization()); err != nil {
			t.Errorf("the bucket is per upstream, got %v", err)
		}
	})
}

func TestO18_AServerThatRepeatsTheRejectedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.status, w.as.body = 200, `{"access_token":"same","token_type":"bearer","expires_in":60}`
		s := source(t, w.cache, "a", res("a"))
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Replace(t.Context(), tok.Authorization())
		if e := failed(t, err); e.Kind != Rejected || e.Code != "same_token" {
			t.Errorf("want rejected same_token, got %v", e)
		}
	})
}

func TestO18_ReplaceJoinsARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		old, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.as.set(func(f *fake) { f.latency = 4 * time.Second })
		for w.as.requests() == 1 {
			time.Sleep(100 * time.Millisecond)
		}
		fresh, err := s.Replace(t.Context(), old.Authorization())
		if err != nil || fresh == old || w.as.requests() != 2 {
			t.Errorf("want the refresh's token and no third request, got %v, %v, %d", fresh, err, w.as.requests())
		}
		if s.bucket.level != bucketSize {
			t.Error("a joined fetch must not be charged")
		}
	})
}

func TestWarmIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.latency = 100 * time.Millisecond
		sources := make([]*Source, 100)
		for i := range sources {
			sources[i] = source(t, w.cache, fmt.Sprint("up", i), res(fmt.Sprint("r", i)))
		}
		w.cache.Warm(t.Context())
		time.Sleep(2 * time.Second)
		for _, s := range sources {
			if !s.Tried() || !s.Ready() {
				t.Fatalf("%s was not warmed", s.Name())
			}
		}
		w.cache.Warm(t.Context())
		synctest.Wait()
		if w.as.most != 16 || w.as.requests() != 100 {
			t.Errorf("want 100 requests, 16 at a time, got %d, %d", w.as.requests(), w.as.most)
		}
	})
}

// TestWarmRespectsTheBackOff: a call tries, and fails, before the warm-up gets
// to that credential.
func TestWarmRespectsTheBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.latency, w.as.status = 100*time.Millisecond, 503
		for i := range perEndpoint {
			source(t, w.cache, fmt.Sprint("up", i), res(fmt.Sprint("r", i)))
		}
		w.cache.Warm(t.Context())
		synctest.Wait()
		late := source(t, w.cache, "late", res("late"))
		w.cache.Warm(t.Context()) // waits for a turn
		w.as.set(func(f *fake) { f.latency = 50 * time.Millisecond })
		if _, err := late.Token(t.Context()); err == nil {
			t.Fatal("want a failure")
		}
		time.Sleep(500 * time.Millisecond)
		if n := w.as.of("late"); n != 1 {
			t.Errorf("want 1 request within the back-off, got %d", n)
		}
	})
}

func TestWarmStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.latency = time.Second
		for i := range 40 {
			source(t, w.cache, fmt.Sprint("up", i), res(fmt.Sprint("r", i)))
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.cache.Warm(ctx)
		time.Sleep(500 * time.Millisecond)
		cancel()
		time.Sleep(5 * time.Second)
		if n := w.as.requests(); n != 16 {
			t.Errorf("want the 16 that had begun, got %d", n)
		}
	})
}

func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, shared := source(t, w.cache, "a", res("a")), source(t, w.cache, "b", res("b")), source(t, w.cache, "a2", res("a"))
		if a.entry != shared.entry || a == shared {
			t.Fatal("equal credentials share an entry, not a handle")
		}
		if again := source(t, w.cache, "a", res("a")); again != a {
			t.Error("the same question must get the same handle")
		}
		tok, err := a.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Token(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A call waits on an entry while a reload drops it.
		w.as.set(func(f *fake) { f.latency = time.Second })
		c := source(t, w.cache, "c", res("c"))
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Token(t.Context()); err != nil {
				t.Errorf("a reload must not fail a call that waits: %v", err)
			}
		})
		synctest.Wait()
		w.cache.Retain([]*Source{a, shared})
		wg.Wait()
		w.as.set(func(f *fake) { f.latency = 0 })
		time.Sleep(10 * time.Minute)
		if a, b, c := w.as.of("a"), w.as.of("b"), w.as.of("c"); a < 10 || b != 1 || c != 1 {
			t.Errorf("want only a refreshed, got %d, %d, %d", a, b, c)
		}
		if again := source(t, w.cache, "a", res("a")); again != a || !again.Ready() {
			t.Error("a kept handle stays, with its token")
		}
		if got, err := b.Token(t.Context()); err != nil || got == tok {
			t.Errorf("a call with an old handle is served: %v", err)
		}
		if len(w.cache.entries) != 1 || len(w.cache.endpoints) != 1 {
			t.Errorf("want one entry, got %d", len(w.cache.entries))
		}
	})
}

// TestClose: synctest fails the test if a goroutine is left.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s, lively := source(t, w.cache, "a", res("a")), source(t, w.cache, "b", res("b"))
		tok, err := lively.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.as.set(func(f *fake) { f.hang = true })
		for i := range 50 {
			source(t, w.cache, fmt.Sprint("up", i), res(fmt.Sprint("r", i)))
		}
		w.cache.Warm(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Token(t.Context())
			if e := failed(t, err); e.Code != "closed" || e.Kind != Unavailable {
				t.Errorf("want unavailable closed, got %v", e)
			}
		})
		synctest.Wait()
		start := time.Now()
		w.cache.Close()
		wg.Wait()
		if time.Since(start) != 0 {
			t.Errorf("Close took %s", time.Since(start))
		}
		if _, err := s.Token(t.Context()); failed(t, err).Code != "closed" {
			t.Errorf("want closed, got %v", err)
		}
		if got, err := lively.Token(t.Context()); err != nil || got != tok {
			t.Errorf("a token that was there stays good: %v", err)
		}
		n := w.as.requests()
		time.Sleep(time.Hour)
		if w.as.requests() != n {
			t.Error("a closed cache made a request")
		}
		w.cache.Close()
	})
}

func TestOneLogLinePerChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log buffer
		var fetches []Fetch
		as := newFake()
		c := newCache(t, func(c *Config) {
			c.Transport, c.Log = as, zerolog.New(&log)
			c.Observe = func(f Fetch) { fetches = append(fetches, f) }
		})
		s := source(t, c, "a", res("a"))
		as.status = 503
		load(s, time.Second, time.Minute)
		as.set(func(f *fake) { f.status, f.body = 200, "<html>" })
		load(s, time.Second, time.Minute)
		as.set(func(f *fake) { f.status = 0 })
		load(s, time.Second, 2*time.Minute)
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 3 || !strings.Contains(lines[0], "http_503") || !strings.Contains(lines[1], "not_json") || !strings.Contains(lines[2], "again") {
			t.Errorf("want three lines, got\n%s", log.String())
		}
		if len(fetches) != as.requests() || fetches[0].Result != "http_503" || fetches[0].Endpoint != "as.test" || fetches[0].Upstreams[0] != "a" {
			t.Errorf("want a report of each of %d requests, got %d: %+v", as.requests(), len(fetches), fetches[0])
		}
		if last := fetches[len(fetches)-1]; last.Result != "ok" || last.Expiry.IsZero() {
			t.Errorf("got %+v", last)
		}
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		if st := s.Status(); st.Tried || st.Ready || st.Endpoint != "https://as.test/token" || st.ClientID != clientID {
			t.Errorf("got %+v", st)
		}
		tok, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st := s.Status(); !st.Tried || !st.Ready || st.Fingerprint != tok.Fingerprint() || !st.Refresh.Before(st.Expiry) || st.Lifetime != 60 {
			t.Errorf("got %+v", st)
		}
		w.as.set(func(f *fake) { f.status, f.body = 400, `{"error":"invalid_scope","error_description":"no such scope"}` })
		time.Sleep(2 * time.Minute)
		if st := s.Status(); st.Ready || st.Failures != 1 || st.Code != "invalid_scope" || !strings.Contains(st.LastError, "no such scope") || !st.NextTry.After(time.Now()) {
			t.Errorf("got %+v", st)
		}
	})
}
