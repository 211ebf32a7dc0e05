package tokens

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestO18_EvictFetchesOnce: what the access log tells of a call that is over
// costs one token request for each rejected token, and no call a failure.
func TestO18_EvictFetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		old, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.as.set(func(f *fake) { f.latency = 100 * time.Millisecond })
		if s.Evict("00000000") || s.Evict("") || !s.Ready() {
			t.Error("a fingerprint of no token of ours must change nothing")
		}
		if !s.Evict(old.Fingerprint()) || s.Ready() {
			t.Error("want the token gone")
		}
		for range 100 { // as many calls were cut off by the same 401
			if s.Evict(old.Fingerprint()) {
				t.Error("want it evicted once")
			}
		}
		fresh, err := s.Token(t.Context())
		if err != nil || fresh == old {
			t.Errorf("want a new token, got %v, %v", fresh, err)
		}
		if s.Evict(old.Fingerprint()) || s.Cached() != fresh {
			t.Error("a late entry must not evict the newer token")
		}
		if again, err := s.Replace(t.Context(), old.Authorization()); err != nil || again != fresh {
			t.Errorf("a second attempt gets the newer token, got %v, %v", again, err)
		}
		time.Sleep(time.Second)
		if n := w.as.requests(); n != 2 {
			t.Errorf("want 2 requests, got %d", n)
		}
	})
}

// TestO18_EvictNeedsNoCaller: the fetch begins at once, and the next call finds its token.
func TestO18_EvictNeedsNoCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		old, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Evict(old.Fingerprint())
		synctest.Wait()
		if fresh := s.Cached(); fresh == nil || fresh == old {
			t.Errorf("want a new token, got %v", fresh)
		}
	})
}

// TestO4_O5_EvictionsShareTheBucket: an hour of calls whose outcome is a 401,
// with and without a second attempt, is bounded by one bucket.
func TestO4_O5_EvictionsShareTheBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		s := source(t, w.cache, "a", res("a"))
		start := time.Now()
		refused := 0
		for i := 0; time.Since(start) < time.Hour; i++ {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				if again, err := s.Replace(t.Context(), tok.Authorization()); err == nil {
					tok = again
				}
			}
			if !s.Evict(tok.Fingerprint()) {
				refused++
			}
			time.Sleep(50 * time.Millisecond)
		}
		// One for the first token, 3 at once, one each 5 s, and few refreshes: no token grows old.
		if n := w.as.requests(); n > 1+3+720+60 || n < 700 || refused == 0 {
			t.Errorf("want about 724 requests in an hour of 401s, got %d", n)
		} else {
			t.Logf("%d requests", n)
		}
		if s.Cached() == nil {
			t.Error("beyond the bucket, the token stays: it may be good elsewhere")
		}
	})
}

// TestO18_EvictDuringARefresh joins it and is not charged.
func TestO18_EvictDuringARefresh(t *testing.T) {
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
		if !s.Evict(old.Fingerprint()) {
			t.Error("want it evicted")
		}
		time.Sleep(10 * time.Second)
		if n := w.as.requests(); n != 2 || s.bucket.level != bucketSize || !s.Ready() {
			t.Errorf("want the refresh's token, no third request and no charge, got %d requests", n)
		}
	})
}

// TestO8_EvictBarsTheStaleToken: an expired token that stands in (stale_grace) is
// lent no more once the upstream refused it, and dead ones are no reason to fetch.
func TestO8_EvictBarsTheStaleToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		o := res("a")
		o.StaleGrace = time.Hour
		s := source(t, w.cache, "a", o)
		old, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.as.set(func(f *fake) { f.status, f.body = 503, "" })
		time.Sleep(time.Until(old.Expiry()) + time.Second)
		if got, err := s.Token(t.Context()); got != old {
			t.Fatalf("want the stale token, got %v, %v", got, err)
		}
		if s.Evict(old.Fingerprint()) {
			t.Error("there was nothing to evict")
		}
		if got, err := s.Token(t.Context()); err == nil {
			t.Errorf("want no token, got %v", got)
		}
	})
}

// TestO18_EvictTakesItsTurn: many tokens revoked at once do not fall upon one
// endpoint together.
func TestO18_EvictTakesItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var all []*Source
		for i := range 100 {
			s := source(t, w.cache, fmt.Sprintf("u%d", i), res(fmt.Sprintf("u%d", i)))
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		w.as.set(func(f *fake) { f.latency = time.Second })
		for _, s := range all {
			s.Evict(s.Cached().Fingerprint())
		}
		synctest.Wait()
		if n := w.as.requests() - 100; n != perEndpoint {
			t.Errorf("want %d requests at once, got %d", perEndpoint, n)
		}
		time.Sleep(time.Minute)
		for _, s := range all {
			if !s.Ready() {
				t.Fatalf("%s: want a token", s.Name())
			}
		}
	})
}
