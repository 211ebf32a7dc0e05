package tokens

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestT8_HerdOfOneUser: a thousand calls of one user are one exchange, and the
// first caller may leave.
func TestT8_HerdOfOneUser(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*userAS)
		want    string
	}{
		"cold": {func(f *userAS) { f.latency = 20 * time.Millisecond }, "ok"},
		"503":  {func(f *userAS) { f.latency, f.status = 20*time.Millisecond, 503 }, "http_503"},
		"hang": {func(f *userAS) { f.hang = true }, "wait_ended"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newUserWorld(t, nil)
				w.as.set(c.prepare)
				all := make([]*Principal, herd)
				for i := range all {
					all[i] = caller("alice") // each call has verified anew
				}
				gone, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := w.s.TokenFor(gone, all[0]); failed(t, err).Code != "wait_ended" {
					t.Errorf("got %v", err)
				}
				codes := everyone(t.Context(), w.s, all)
				if codes[c.want] != herd || w.as.requests() != 1 {
					t.Errorf("want %d times %s for 1 request, got %v for %d", herd, c.want, codes, w.as.requests())
				}
			})
		})
	}
}

// TestO5_AnOutageIsShared: a thousand users call all the time, and the endpoint
// sees one probe at a time, however many users there are.
func TestO5_AnOutageIsShared(t *testing.T) {
	for name, ill := range map[string]func(*userAS){
		"503":  func(f *userAS) { f.status = 503 },
		"hang": func(f *userAS) { f.hang = true },
		"html": func(f *userAS) { f.status, f.body = 200, "<html>" },
		"500":  func(f *userAS) { f.status = 500 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newUserWorld(t, func(c *Config) { c.Log = zerolog.New(&buffer{}) })
				w.as.set(ill)
				w.as.set(func(f *userAS) { f.latency = 20 * time.Millisecond })
				all, start := callers(herd), time.Now()
				for time.Since(start) < time.Minute {
					codes := everyone(t.Context(), w.s, all)
					if codes["ok"] > 0 {
						t.Fatalf("got %v", codes)
					}
					time.Sleep(time.Second)
				}
				n := w.as.requests()
				if n > atOnce+60 || w.as.mostAtOnce() > atOnce {
					t.Errorf("want at most %d requests in a minute and %d at once, got %d and %d", atOnce+60, atOnce, n, w.as.mostAtOnce())
				}
				w.as.set(func(f *userAS) { f.status, f.hang = 0, false })
				time.Sleep(callerCap + fetchDeadline)
				heldFor(t, w.s, all[0]) // the probe
				if codes := everyone(t.Context(), w.s, all); codes["ok"] < herd-2 {
					t.Errorf("after the outage: %v", codes)
				}
			})
		})
	}
}

// TestO5_AnOutageEndsForAllWithinSeconds: also for those who met it.
func TestO5_AnOutageEndsForAllWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		all := callers(100)
		w.as.set(func(f *userAS) { f.status, f.latency = 503, 20*time.Millisecond })
		for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(100 * time.Millisecond) {
			everyone(t.Context(), w.s, all)
		}
		w.as.set(func(f *userAS) { f.status = 0 })
		end := time.Now()
		for {
			if codes := everyone(t.Context(), w.s, all); codes["ok"] == len(all) {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(end); took > callerCap+500*time.Millisecond {
			t.Errorf("want everybody served %s after the end, got %s", callerCap, took)
		}
		if w.as.doubled != "" {
			t.Errorf("two requests at once for %s", w.as.doubled)
		}
	})
}

// TestO5_AtMostSoManyAtOnce: the others wait in turn, and get theirs.
func TestO5_AtMostSoManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.latency = 50 * time.Millisecond })
		if codes := everyone(t.Context(), w.s, callers(herd)); codes["ok"] != herd {
			t.Errorf("got %v", codes)
		}
		if got := w.as.mostAtOnce(); got != atOnce {
			t.Errorf("want %d at once, got %d", atOnce, got)
		}
	})
}

// TestO17_WhoseFailureItIs: a refusal of the client, and an outage, are
// everybody's; what a user may have brought about alone is only that user's.
func TestO17_WhoseFailureItIs(t *testing.T) {
	for _, c := range []struct {
		name, sick string
		users      int // who are sick
		shared     bool
		again      time.Duration // when one of them may try again
	}{
		{"a dead grant", `400{"error":"invalid_grant"}`, 2, false, userHold},
		{"a bad subject token", `400{"error":"invalid_request"}`, 2, false, userHold},
		{"a scope", `400{"error":"invalid_scope"}`, 2, false, userHold},
		{"one 500", `500`, 1, false, time.Second},
		{"two 500", `500`, 2, true, time.Second},
		{"one bare 401", `401`, 1, false, time.Second},
		{"two bare 401", `401`, 2, true, permanentHold},
		{"invalid_client", `401{"error":"invalid_client"}`, 1, true, permanentHold},
		{"unauthorized_client", `400{"error":"unauthorized_client"}`, 1, true, permanentHold},
		{"503", `503`, 1, true, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newUserWorld(t, nil)
				all := callers(10)
				for i := range c.users {
					w.as.set(func(f *userAS) { f.sick[all[i].Subject] = c.sick })
					if _, err := w.s.TokenFor(t.Context(), all[i]); err == nil {
						t.Fatal("want an error")
					}
				}
				codes := everyone(t.Context(), w.s, all[2:])
				if shared := codes["ok"] == 0; shared != c.shared {
					t.Errorf("want shared %v, got %v", c.shared, codes)
				}
				if n := w.as.requests(); c.shared && n != c.users {
					t.Errorf("want %d requests, got %d", c.users, n)
				}
				// Whoever was refused does not ask again before its time.
				n := w.as.of(all[0].token())
				time.Sleep(c.again * 8 / 10)
				_, _ = w.s.TokenFor(t.Context(), all[0])
				if w.as.of(all[0].token()) != n {
					t.Errorf("asked again after %s", c.again*8/10)
				}
				w.as.set(func(f *userAS) { clear(f.sick) })
				time.Sleep(c.again)
				heldFor(t, w.s, all[0])
			})
		})
	}
}

// TestO17_T6_ANewSecretEndsARefusalForAll.
func TestO17_T6_ANewSecretEndsARefusalForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) {
			f.status, f.body, f.latency = 401, `{"error":"invalid_client"}`, 20*time.Millisecond
		})
		all := callers(herd)
		for range 12 {
			everyone(t.Context(), w.s, all)
			time.Sleep(20 * time.Second)
		}
		if n := w.as.requests(); n > unprovenAtOnce {
			t.Errorf("want no more requests than the first ones, got %d in 4 minutes", n)
		}
		time.Sleep(permanentHold)
		everyone(t.Context(), w.s, all)
		if n := w.as.requests(); n > unprovenAtOnce+1 {
			t.Errorf("want one probe after the hold, got %d", n-unprovenAtOnce)
		}
		st := w.s.Status()
		if st.Code != "invalid_client" || st.NextTry.IsZero() {
			t.Errorf("got %+v", st)
		}
		w.store.set("new", nil)
		w.as.set(func(f *userAS) { f.status = 0 })
		heldFor(t, w.s, caller("somebody"))
		time.Sleep(callerCap)
		if codes := everyone(t.Context(), w.s, all); codes["ok"] != len(all) {
			t.Errorf("got %v", codes)
		}
	})
}

// TestO17_HearsayIsNoFailure: who was turned away for what others met is served
// as soon as that is over.
func TestO17_HearsayIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) {
			f.status, f.body, f.latency = 401, `{"error":"invalid_client"}`, 20*time.Millisecond
		})
		all := callers(herd)
		if codes := everyone(t.Context(), w.s, all); codes["invalid_client"] != herd {
			t.Errorf("got %v", codes)
		}
		w.store.set("new", nil)
		w.as.set(func(f *userAS) { f.status, f.latency = 0, 0 })
		heldFor(t, w.s, caller("somebody"))
		if codes := everyone(t.Context(), w.s, all); codes["ok"] < herd-unprovenAtOnce {
			t.Errorf("got %v", codes)
		}
	})
}

// TestO15_ANewTokenOfTheSameUserIsExchangedAnew: it may carry other rights. The
// old one goes when it is idle.
func TestO15_ANewTokenOfTheSameUserIsExchangedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = time.Hour })
		old, fresh := callerWith("alice", "1", time.Hour), callerWith("alice", "2", time.Hour)
		a := heldFor(t, w.s, old)
		if w.s.CachedFor(fresh) != nil {
			t.Error("the new token must not reuse what the old one got")
		}
		if b := heldFor(t, w.s, fresh); b == a || w.s.CachedFor(old) != a || w.as.requests() != 2 {
			t.Errorf("want a token each, got %d requests", w.as.requests())
		}
		for range 20 {
			time.Sleep(time.Minute)
			w.s.CachedFor(fresh)
		}
		if n := w.s.Status().Users; n != 1 {
			t.Errorf("want the old one gone, got %d", n)
		}
	})
}

// TestO16_RefreshIsDrivenByCalls: a user's token is renewed while it lives when
// its user calls, and not when nobody does.
func TestO16_RefreshIsDrivenByCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life, f.latency = 5*time.Minute, 20*time.Millisecond })
		p := caller("alice")
		first := heldFor(t, w.s, p)
		for range 2 * 60 * 10 {
			if w.s.CachedFor(p) == nil {
				t.Fatal("a call found no token")
			}
			time.Sleep(time.Second)
		}
		if n := w.as.requests(); n < 4 || n > 6 || w.s.CachedFor(p) == first {
			t.Errorf("want a request each 4 minutes of 20, got %d", n)
		}
		synctest.Wait()
		n := w.as.requests()
		time.Sleep(time.Hour)
		if w.as.requests() != n || w.s.Status().Users != 0 {
			t.Errorf("want no request without a call, got %d", w.as.requests()-n)
		}
	})
}

// TestO16_AFailedRefreshOfAUserIsTriedAgain: with pauses, and the token serves
// to its end.
func TestO16_AFailedRefreshOfAUserIsTriedAgain(t *testing.T) {
	for name, ill := range map[string]func(*userAS){
		"503":           func(f *userAS) { f.status = 503 },
		"invalid_grant": func(f *userAS) { f.status, f.body = 400, `{"error":"invalid_grant"}` },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newUserWorld(t, nil)
				w.as.set(func(f *userAS) { f.life = 5 * time.Minute })
				p := caller("alice")
				tok := heldFor(t, w.s, p)
				w.as.set(ill)
				for time.Now().Before(tok.Expiry()) {
					if w.s.CachedFor(p) != tok {
						t.Fatal("the living token is not served")
					}
					time.Sleep(10 * time.Millisecond)
				}
				if n := w.as.requests(); n < 3 || n > 25 {
					t.Errorf("want a few tries in the last minute, got %d", n-1)
				}
			})
		})
	}
}

// TestO15_NoTokenOutlivesItsSubject: the life is capped, nothing is renewed past
// the end, and what has ended is refused without a request.
func TestO15_NoTokenOutlivesItsSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = time.Hour })
		p := callerWith("alice", "1", 10*time.Minute)
		tok := heldFor(t, w.s, p)
		if tok.Expiry().After(p.Expiry) || tok.Lifetime() > 10*time.Minute {
			t.Errorf("want an end by %s, got %s", p.Expiry, tok.Expiry())
		}
		for time.Now().Before(p.Expiry) {
			w.s.CachedFor(p)
			time.Sleep(time.Second)
		}
		if w.s.CachedFor(p) != nil {
			t.Error("lent past the end")
		}
		_, err := w.s.TokenFor(t.Context(), p)
		if e := failed(t, err); e.Code != "subject_expired" || e.Kind != Refused {
			t.Errorf("got %v", err)
		}
		_, err = w.s.ReplaceFor(t.Context(), w.s.Mark(p), tok.Authorization())
		if e := failed(t, err); e.Code != "subject_gone" || e.Kind != Unavailable {
			t.Errorf("got %v", err)
		}
		if n := w.as.requests(); n != 1 {
			t.Errorf("want 1 request, got %d", n)
		}
		time.Sleep(2 * sweepPace)
		if n := w.s.Status().Users; n != 0 {
			t.Errorf("want it dropped, got %d", n)
		}
	})
}

// TestUsersAreDroppedWhenIdle: after 15 minutes, with their subject tokens.
func TestUsersAreDroppedWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = 10 * time.Hour })
		idle, busy := caller("idle"), caller("busy")
		heldFor(t, w.s, busy)
		tok := heldFor(t, w.s, idle)
		u := w.cache.users.find(w.s.entry.crowd.nameOf(idle), time.Now())
		for range 14 {
			time.Sleep(time.Minute)
			w.s.CachedFor(busy)
		}
		if w.s.Status().Users != 2 {
			t.Errorf("want both after 14 minutes, got %d", w.s.Status().Users)
		}
		for range 3 {
			time.Sleep(time.Minute)
			w.s.CachedFor(busy)
		}
		if w.s.Status().Users != 1 || w.s.CachedFor(busy) == nil {
			t.Errorf("want the busy one, got %d", w.s.Status().Users)
		}
		u.mu.Lock()
		if u.who != nil || u.current.Load() != nil {
			t.Error("want the subject token and the token forgotten")
		}
		u.mu.Unlock()
		_, err := w.s.ReplaceFor(t.Context(), w.s.Mark(idle), tok.Authorization())
		if failed(t, err).Code != "subject_gone" {
			t.Errorf("got %v", err)
		}
		w.cache.Close()
		if w.cache.users.count.Load() != 0 {
			t.Error("want none after Close")
		}
	})
}

// TestUsersAreBounded: the limit holds, and those who called last stay.
func TestUsersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.cache.users.limit = 1000
		w.as.set(func(f *userAS) { f.life = time.Hour })
		star := caller("star")
		heldFor(t, w.s, star)
		for i := range 5000 {
			heldFor(t, w.s, caller(fmt.Sprint("user", i)))
			if w.s.CachedFor(star) == nil {
				t.Fatalf("the busiest was dropped after %d", i)
			}
			if n := w.cache.users.count.Load(); n > 1000 {
				t.Fatalf("want at most 1000, got %d", n)
			}
		}
		kept := 0
		for i := range w.cache.users.shards {
			kept += len(w.cache.users.shards[i].byName)
		}
		if kept != 1000 || w.s.Status().Users != 1000 {
			t.Errorf("want 1000, got %d and %d", kept, w.s.Status().Users)
		}
		for i := 4900; i < 5000; i++ {
			if w.s.CachedFor(caller(fmt.Sprint("user", i))) == nil {
				t.Errorf("user %d of the last ones was dropped", i)
			}
		}
	})
}

// TestO18_OneRequestPerRejectedTokenOfAUser: however many calls were refused.
func TestO18_OneRequestPerRejectedTokenOfAUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life, f.latency = time.Hour, 20*time.Millisecond })
		p, other := caller("alice"), caller("bob")
		old, bobs, mark := heldFor(t, w.s, p), heldFor(t, w.s, other), w.s.Mark(p)
		var wg sync.WaitGroup
		for range herd {
			wg.Go(func() {
				tok, err := w.s.ReplaceFor(t.Context(), mark, old.Authorization())
				if err != nil || string(tok.Authorization()) != "Bearer alice.1.sig.3" {
					t.Errorf("got %v %v", tok, err)
				}
			})
		}
		wg.Wait()
		if w.as.requests() != 3 || w.s.CachedFor(other) != bobs {
			t.Errorf("want one new request and bob untouched, got %d", w.as.requests()-2)
		}
		for name, mark := range map[string]string{"unknown": w.s.Mark(caller("carol")), "empty": "", "junk": "%", "padded": mark + "="} {
			_, err := w.s.ReplaceFor(t.Context(), mark, old.Authorization())
			if e := failed(t, err); e.Kind != Unavailable || e.Code != "subject_gone" {
				t.Errorf("%s: got %v", name, err)
			}
		}
		elsewhere := source(t, w.cache, "b", userSpec("https://other.test/token"))
		if _, err := elsewhere.ReplaceFor(t.Context(), mark, old.Authorization()); failed(t, err).Code != "subject_gone" {
			t.Errorf("a mark of another credential: got %v", err)
		}
	})
}

// TestO4_O5_OneUsersLoopLeavesTheBucketToOthers: a user whose every call comes
// back with 401 cannot keep the others from healing theirs.
func TestO4_O5_OneUsersLoopLeavesTheBucketToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = 10 * time.Hour })
		mallory, alice := caller("mallory"), caller("alice")
		heldFor(t, w.s, mallory)
		heldFor(t, w.s, alice)
		denied := 0
		for i := range 3600 {
			_, _ = w.s.ReplaceFor(t.Context(), w.s.Mark(mallory), heldFor(t, w.s, mallory).Authorization())
			if i%60 == 59 {
				if _, err := w.s.ReplaceFor(t.Context(), w.s.Mark(alice), heldFor(t, w.s, alice).Authorization()); err != nil {
					denied++
				}
			}
			time.Sleep(time.Second)
		}
		if n := w.as.of(mallory.token()); n > 20 {
			t.Errorf("want the loop slowed down, got %d requests in an hour", n)
		}
		// Alice's own pause grows too: that is hers, and not for mallory to bring about.
		if denied > 48 {
			t.Errorf("alice was denied %d of 60 times", denied)
		}
		// One upstream that refuses everybody stays bounded as ever.
		n := w.as.requests()
		all := callers(100)
		everyone(t.Context(), w.s, all)
		for range 60 {
			for _, p := range all {
				_, _ = w.s.ReplaceFor(t.Context(), w.s.Mark(p), heldFor(t, w.s, p).Authorization())
			}
			time.Sleep(time.Second)
		}
		if got := w.as.requests() - n - len(all); got > bucketSize+60/5+1 {
			t.Errorf("want at most a bucket and one each 5 s, got %d", got)
		}
	})
}

// TestS4_AMarkSaysNothing: not even to who knows the user and its token.
func TestS4_AMarkSaysNothing(t *testing.T) {
	a, b := newUserWorld(t, nil), newUserWorld(t, nil)
	p := caller("alice")
	plain := keyOf(userSpec("https://as.test/token")).of(p)
	if m := a.s.Mark(p); m == b.s.Mark(p) || m != a.s.Mark(p) || len(m) != 43 || m == base64.RawURLEncoding.EncodeToString(plain[:]) {
		t.Errorf("want a mark that only this process can make, got %s", m)
	}
	heldFor(t, a.s, p)
	if _, err := b.s.ReplaceFor(t.Context(), a.s.Mark(p), nil); failed(t, err).Code != "subject_gone" {
		t.Errorf("got %v", err)
	}
}

// TestReloadDropsTheUsersOfADroppedCredential.
func TestReloadDropsTheUsersOfADroppedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		w.as.set(func(f *userAS) { f.life = time.Hour })
		gone := source(t, w.cache, "b", userSpec("https://other.test/token"))
		p := caller("alice")
		kept := heldFor(t, w.s, p)
		heldFor(t, gone, p)
		w.cache.Retain([]*Source{w.s})
		if w.s.CachedFor(p) != kept || gone.CachedFor(p) != nil || w.cache.users.count.Load() != 1 || len(w.cache.gates) != 1 {
			t.Errorf("want only the kept credential's user, got %d users and %d gates", w.cache.users.count.Load(), len(w.cache.gates))
		}
		// A call that still holds the old handle is served, and leaves nothing.
		heldFor(t, gone, p)
		if w.cache.users.count.Load() != 1 {
			t.Error("a dropped credential keeps users")
		}
		if again := source(t, w.cache, "b", userSpec("https://other.test/token")); again == gone || again.CachedFor(p) != nil {
			t.Error("want a handle without a past")
		}
	})
}

// TestAUserBoundSourceHasNoTokenItself.
func TestAUserBoundSourceHasNoTokenItself(t *testing.T) {
	w := newUserWorld(t, nil)
	plain := source(t, w.cache, "plain", spec("https://as.test/token"))
	w.cache.Warm(t.Context())
	for name, c := range map[string]struct {
		call func() (*Token, error)
		code string
	}{
		"Token":                   {func() (*Token, error) { return w.s.Token(t.Context()) }, "user_bound"},
		"Replace":                 {func() (*Token, error) { return w.s.Replace(t.Context(), []byte("Bearer x")) }, "user_bound"},
		"nobody":                  {func() (*Token, error) { return w.s.TokenFor(t.Context(), nil) }, "no_subject"},
		"without a token":         {func() (*Token, error) { return w.s.TokenFor(t.Context(), &Principal{Subject: "x"}) }, "no_subject"},
		"without an end":          {func() (*Token, error) { return w.s.TokenFor(t.Context(), newPrincipal(Principal{}, "a.b.c")) }, "subject_expired"},
		"TokenFor of a service":   {func() (*Token, error) { return plain.TokenFor(t.Context(), caller("alice")) }, "not_user_bound"},
		"ReplaceFor of a service": {func() (*Token, error) { return plain.ReplaceFor(t.Context(), w.s.Mark(caller("alice")), nil) }, "subject_gone"},
	} {
		if tok, err := c.call(); tok != nil || failed(t, err).Code != c.code {
			t.Errorf("%s: want %s, got %v", name, c.code, err)
		}
	}
	if plain.UserBound() || plain.CachedFor(caller("alice")) != nil || plain.Mark(caller("alice")) != "" {
		t.Error("a service's credential has no users")
	}
	if !w.s.UserBound() || !w.s.Tried() || !w.s.Ready() || w.s.Cached() != nil || w.s.CachedFor(nil) != nil || w.s.Mark(nil) != "" {
		t.Error("want a credential that is ready, and has nothing of its own")
	}
	if n := w.as.requests(); n > 1 { // Warm has tried the plain one
		t.Errorf("want no request, got %d", n)
	}
	heldFor(t, w.s, caller("alice"))
	b, err := json.Marshal(w.s.Status())
	if st := w.s.Status(); err != nil || !st.UserBound || st.Users != 1 || !st.Ready || st.Fingerprint != "" || st.Grant != "token_exchange" {
		t.Errorf("got %s", b)
	}
}

// TestU11_IDJAGOutagesAreThoseOfTheirEndpoint: an identity provider that is down
// is not asked for each user, and the other endpoint is not asked at all.
func TestU11_IDJAGOutagesAreThoseOfTheirEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		s := source(t, w.cache, "jag", jagSpec("https://ras.test/token", "https://ras.test", "https://idp.test/token"))
		w.as.set(func(f *userAS) { f.latency = 10 * time.Millisecond })
		if codes := everyone(t.Context(), s, callers(100)); codes["ok"] != 100 || w.as.at["ras.test"] != 100 || w.as.at["idp.test"] != 100 {
			t.Errorf("got %v, %v", codes, w.as.at)
		}
		w.as.set(func(f *userAS) { f.status = 503; clear(f.at) })
		if _, err := s.TokenFor(t.Context(), caller("x")); err == nil {
			t.Error("want an error")
		}
		more := everyone(t.Context(), s, callers(300)[100:])
		if more["http_503"] != 200 || w.as.at["idp.test"] != 1 || w.as.at["ras.test"] != 0 {
			t.Errorf("got %v, %v", more, w.as.at)
		}
		// Those who exchange elsewhere know nothing of it.
		w.as.set(func(f *userAS) { f.status = 0 })
		heldFor(t, w.s, caller("y"))
	})
}

// TestT10_AUsersTokenAndSteppedClocks.
func TestT10_AUsersTokenAndSteppedClocks(t *testing.T) {
	for _, step := range []time.Duration{-time.Hour, time.Hour} {
		base, moved := time.Now(), time.Duration(0)
		var mu sync.Mutex
		w := newUserWorld(t, func(c *Config) {
			c.Now = func() time.Time {
				mu.Lock()
				defer mu.Unlock()
				return stepped(time.Now(), moved)
			}
		})
		p := newPrincipal(Principal{Issuer: "i", Subject: "s", Expiry: base.Round(0).Add(24 * time.Hour)}, "s.1.sig")
		tok := heldFor(t, w.s, p)
		mu.Lock()
		moved = step
		mu.Unlock()
		if w.s.CachedFor(p) != tok {
			t.Errorf("a step of %s must neither kill nor replace it", step)
		}
	}
}

// TestAUsersCredentialMustFitItsGrant.
func TestAUsersCredentialMustFitItsGrant(t *testing.T) {
	c := newCache(t, func(c *Config) { c.Transport = newUserAS() })
	jag := func() *policy.OAuth2 {
		return jagSpec("https://as.test/token", "https://as.test", "https://idp.test/token")
	}
	for name, o := range map[string]*policy.OAuth2{
		"client_credentials with a subject": with(userSpec("https://as.test/token"), func(o *policy.OAuth2) { o.Grant = policy.ClientCredentials }),
		"token_exchange without":            with(userSpec("https://as.test/token"), func(o *policy.OAuth2) { o.SubjectCaller = false }),
		"jwt_bearer with a file too": with(userSpec("https://as.test/token"), func(o *policy.OAuth2) {
			o.Grant, o.Assertion = policy.JWTBearer, "file"
		}),
		"no client":         with(userSpec("https://as.test/token"), func(o *policy.OAuth2) { o.AuthMethod = policy.NoClientAuth }),
		"unknown":           with(userSpec("https://as.test/token"), func(o *policy.OAuth2) { o.Grant = "password" }),
		"idp for exchange":  with(jag(), func(o *policy.OAuth2) { o.Grant = policy.TokenExchange }),
		"no idp":            with(jag(), func(o *policy.OAuth2) { o.IDP = nil }),
		"idp no audience":   with(jag(), func(o *policy.OAuth2) { o.IDP.Audience = "" }),
		"idp no resource":   with(jag(), func(o *policy.OAuth2) { o.Resource = "" }),
		"idp no client":     with(jag(), func(o *policy.OAuth2) { o.IDP.AuthMethod = policy.NoClientAuth }),
		"no client for jag": with(jag(), func(o *policy.OAuth2) { o.AuthMethod = policy.NoClientAuth }),
		"subject in params": with(userSpec("https://as.test/token"), func(o *policy.OAuth2) {
			o.Params = []policy.Param{{Name: "subject_token", Value: "x"}}
		}),
		"actor in params": with(userSpec("https://as.test/token"), func(o *policy.OAuth2) {
			o.Params = []policy.Param{{Name: "actor_token", Value: "x"}}
		}),
	} {
		if _, err := c.Source("a", o); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
	if _, err := c.Source("a", jag()); err != nil {
		t.Error(err)
	}
}

func with(o *policy.OAuth2, change func(*policy.OAuth2)) *policy.OAuth2 {
	change(o)
	return o
}

// TestOneLineForAllUsers: an outage is one line in the log and its end another.
func TestOneLineForAllUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log buffer
		results := map[string]int{}
		var mu sync.Mutex
		w := newUserWorld(t, func(c *Config) {
			c.Log = zerolog.New(&log).Level(zerolog.InfoLevel)
			c.Observe = func(f Fetch) {
				mu.Lock()
				defer mu.Unlock()
				results[f.Result+" "+f.Upstreams[0]+" "+f.Endpoint]++
			}
		})
		w.as.set(func(f *userAS) { f.status, f.latency = 503, 10*time.Millisecond })
		all := callers(herd)
		for range 10 {
			everyone(t.Context(), w.s, all)
			time.Sleep(3 * time.Second)
		}
		mu.Lock()
		got := maps.Clone(results)
		mu.Unlock()
		if n := w.as.requests(); got["http_503 a as.test"] != n || len(got) != 1 {
			t.Errorf("want each of %d requests observed, got %v", n, got)
		}
		w.as.set(func(f *userAS) { f.status = 0 })
		time.Sleep(2 * callerCap)
		everyone(t.Context(), w.s, all)
		everyone(t.Context(), w.s, all)
		if lines := countLines(log.String()); lines != 2 {
			t.Errorf("want 2 lines, got %d:\n%s", lines, log.String())
		}
	})
}

func countLines(s string) (n int) {
	for _, c := range s {
		if c == '\n' {
			n++
		}
	}
	return n
}
