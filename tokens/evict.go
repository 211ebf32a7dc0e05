package tokens

import (
	"sync"
	"time"
)

// Evict is Replace, or ReplaceFor, for a call that is over: what tells of the 401
// is the access log, so nobody waits. If the token with that fingerprint is still
// a cached one, it is dropped and one new token is fetched in the background; a
// call that comes meanwhile joins that fetch. It reports whether the token was
// dropped: not when a newer one is in place already, and not when the upstream
// refuses new tokens too often, as with Replace. It does not block.
func (s *Source) Evict(fingerprint string) bool {
	if s.UserBound() {
		return s.evictUser(fingerprint)
	}
	t := s.entry.current.Load()
	if t == nil || t.fingerprint != fingerprint {
		return false
	}
	s.barred.Store(t)
	return s.entry.evict(s.now(), t, s.bucket.take)
}

func (s *Source) evictUser(fingerprint string) bool {
	u := s.entry.cache.users.holders.of(fingerprint)
	if u == nil || u.crowd != s.entry.crowd {
		return false
	}
	t := u.current.Load()
	if t == nil || t.fingerprint != fingerprint {
		return false
	}
	return u.evict(s.now(), t, s.healing(u))
}

func (e *entry) evict(now time.Time, t *Token, pay func(time.Time) *Error) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.alive(now) != t {
		return false
	}
	if e.flight == nil && e.held(now) == nil && pay(now) != nil {
		return false // for the reason that replace has
	}
	if !e.current.CompareAndSwap(t, nil) {
		return false
	}
	e.reject(t.Authorization()) // another replica may have stored it
	// In its turn, unlike the fetch that a call waits for: 10,000 tokens may be
	// revoked at once.
	e.cache.spawn(func() {
		e.refresh(func() bool { now := e.cache.cfg.Now(); return e.alive(now) == nil && e.held(now) == nil })
	})
	return true
}

// holders finds the user of a token by the token's fingerprint. Only landings and
// evictions come here, no call that finds a living token. Of two tokens with one
// fingerprint the later one counts: the other can be evicted by ReplaceFor only.
type holders struct {
	mu sync.Mutex
	m  map[string]*user
}

func (h *holders) of(fingerprint string) *user {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.m[fingerprint]
}

// move files a user under the fingerprint of its new token in place of the old
// one's. Empty ones are none.
func (h *holders) move(u *user, from, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.m[from] == u {
		delete(h.m, from)
	}
	if to != "" {
		h.m[to] = u
	}
}

// file makes the user known by its token, or by none. mu is held. Whoever has no
// place in the table gets none here, where nobody would take it away.
func (u *user) file(t *Token) {
	to := ""
	if t != nil && u.who != nil && !u.crowd.dropped.Load() {
		to = t.fingerprint
	}
	if u.filed != "" || to != "" {
		u.cache.users.holders.move(u, u.filed, to)
	}
	u.filed = to
}
