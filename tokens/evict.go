package tokens

import "time"

// Evict is Replace for a call that is over: what tells of the 401 is the access
// log, so nobody waits. If the token with that fingerprint is still the cached
// one, it is dropped and one new token is fetched in the background; a call that
// comes meanwhile joins that fetch. It reports whether the token was dropped:
// not when a newer one is in place already, and not when the upstream refuses
// new tokens too often, as with Replace. It does not block.
func (s *Source) Evict(fingerprint string) bool {
	t := s.entry.current.Load()
	if t == nil || t.fingerprint != fingerprint {
		return false
	}
	s.barred.Store(t)
	return s.entry.evict(s.now(), t, s.bucket.take)
}

// EvictFor is Evict for the token of the user of a Mark. It fetches nothing: the
// next call brings the caller's token, and a user who makes none needs none.
func (s *Source) EvictFor(mark, fingerprint string) bool {
	now := s.now()
	u := s.marked(mark, now)
	if u == nil {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	t := u.alive(now)
	if t == nil || t.fingerprint != fingerprint || u.flight == nil && s.pay(u, now) != nil {
		return false
	}
	return u.current.CompareAndSwap(t, nil)
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
	// In its turn, unlike the fetch that a call waits for: 10,000 tokens may be
	// revoked at once.
	e.cache.spawn(func() {
		e.refresh(func() bool { now := e.cache.cfg.Now(); return e.alive(now) == nil && e.held(now) == nil })
	})
	return true
}
