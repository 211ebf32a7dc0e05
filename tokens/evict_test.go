package tokens

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
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

// TestO4_EvictBarsTheStaleToken: an expired token that stands in (stale_grace) is
// lent no more once the upstream refused it, and dead ones are no reason to fetch.
func TestO4_EvictBarsTheStaleToken(t *testing.T) {
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

// known returns how many users can be found by their tokens.
func (c *Cache) known() int {
	c.users.holders.mu.Lock()
	defer c.users.holders.mu.Unlock()
	return len(c.users.holders.m)
}

// TestO18_EvictAUsersToken: what the access log tells touches the user of that
// token, and nobody else.
func TestO18_EvictAUsersToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = time.Hour })
		all := callers(1000)
		everyone(t.Context(), w.s, all)
		alice, others := all[0], all[1:]
		old := w.s.CachedFor(alice)
		elsewhere := source(t, w.cache, "b", userSpec("https://other.test/token"))
		if w.s.Evict("00000000") || w.s.Evict("") || elsewhere.Evict(old.Fingerprint()) {
			t.Error("a fingerprint of no token of this credential must change nothing")
		}
		if !w.s.Evict(old.Fingerprint()) || w.s.CachedFor(alice) != nil {
			t.Error("want the token gone")
		}
		for range 100 { // as many calls were cut off by the same 401
			if w.s.Evict(old.Fingerprint()) {
				t.Error("want it evicted once")
			}
		}
		synctest.Wait()
		fresh := w.s.CachedFor(alice)
		if fresh == nil || fresh == old || w.as.of(alice.token()) != 2 {
			t.Errorf("want one more exchange, and its token without a call, got %v after %d", fresh, w.as.of(alice.token()))
		}
		if w.s.Evict(old.Fingerprint()) || w.s.CachedFor(alice) != fresh {
			t.Error("a late entry must not evict the newer token")
		}
		for _, p := range others {
			if w.s.CachedFor(p) == nil {
				t.Fatalf("%s lost its token", p)
			}
		}
		if n := w.as.requests(); n != len(all)+1 {
			t.Errorf("want %d requests, got %d", len(all)+1, n)
		}
	})
}

// TestO4_O5_EvictionsOfUsersShareTheBucket: an upstream that refuses everybody
// costs no more by its outcomes than by its second attempts.
func TestO4_O5_EvictionsOfUsersShareTheBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = 10 * time.Hour })
		all := callers(100)
		everyone(t.Context(), w.s, all)
		for range 60 {
			for _, p := range all {
				w.s.Evict(heldFor(t, w.s, p).Fingerprint())
			}
			time.Sleep(time.Second)
		}
		if got := w.as.requests() - len(all); got > bucketSize+60/5+1 || got < bucketSize {
			t.Errorf("want at most a bucket and one each 5 s, got %d", got)
		}
	})
}

// TestO18_UsersAreForgottenByTheirTokens: a token that is renewed, dropped,
// refused a place or evicted leaves nothing behind.
func TestO18_UsersAreForgottenByTheirTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.cache.users.limit = 50
		known := w.cache.known
		for round := range 5 { // each minute all tokens are new, and half of the users are
			for i := range 40 {
				heldFor(t, w.s, caller(fmt.Sprint("user", 20*round+i)))
			}
			time.Sleep(time.Minute)
		}
		if n := known(); n > 50 || n < 40 {
			t.Errorf("want one for each user in place, got %d", n)
		}
		time.Sleep(2 * idleUser)
		if n := known(); n != 0 {
			t.Errorf("want none once they are idle, got %d", n)
		}
		old := heldFor(t, w.s, caller("alice"))
		w.cache.Retain(nil)
		if known() != 0 || w.s.Evict(old.Fingerprint()) {
			t.Error("want none of a dropped credential")
		}
		heldFor(t, w.s, caller("late"))
		if known() != 0 {
			t.Error("want none filed after that")
		}
	})
}

// TestO18_EvictInAFleet: a token whose refusal the access log told of is not
// adopted again from the shared cache.
func TestO18_EvictInAFleet(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	s := enlist(t, r.URL(), busy, nil).source(t, "a", spec(as.TokenURL()))
	first := authorization(t, s)
	settled(t, raw(t, r), 1)
	if !s.Evict(s.Cached().Fingerprint()) {
		t.Fatal("want it evicted")
	}
	if second := authorization(t, s); second == first || as.Requests() != 2 {
		t.Errorf("want another token by one more request, got %d", as.Requests())
	}
}
