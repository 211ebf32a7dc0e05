package tokens

import (
	"context"
	"encoding/base64"
	"sync/atomic"
	"time"
)

// user is one user's token for one credential: an entry that keeps no timer, is
// dropped when idle, and knows for whom it asks.
type user struct {
	entry
	name  userName
	until time.Time // the end of the subject token, and with it of this
	// renew is when the next call starts a refresh; nil for never.
	renew      atomic.Pointer[time.Time]
	refreshing atomic.Bool

	who    *Principal // nil once dropped; the entry's mu guards it
	healed time.Time  // the last fetch for a 401; the entry's mu guards it
	pause  time.Duration
	filed  string // the fingerprint it is known by; the entry's mu guards it

	// The shard's lock guards these.
	used         time.Time
	older, newer *user
}

func subjectGone() *Error {
	return unavailable("subject_gone", "the caller's token is no longer at hand: the next call brings it")
}

func (cr *crowd) newUser(n userName, p *Principal) *user {
	u := &user{name: n, who: p, until: p.Expiry}
	u.cache, u.client, u.slots, u.crowd, u.user = cr.cache, cr.client, cr.base.slots, cr, u
	return u
}

// person returns who it is, whatever token it shows.
func (p *Principal) person() person { return person{p.Issuer, p.Subject} }

// fly makes the requests for a user's token and lands the result.
func (u *user) fly(f *flight) {
	u.mu.Lock() // held by the launch, until it is complete
	now, who := u.cache.cfg.Now, f.who
	u.mu.Unlock()
	if now().Before(who.Expiry) {
		f.got, f.err = u.crowd.exchange(who)
	} else {
		f.err = subjectExpired()
	}
	if f.err == nil {
		// No token outlives the proof that its user was there.
		if f.got.life = min(f.got.life, who.Expiry.Sub(f.got.at)); f.got.life <= 0 {
			f.err = subjectExpired()
		} else {
			f.token = newToken(u.cache.key, f.got.access, f.got.at, f.got.life, f.got.scope)
		}
		f.got.access = ""
	}
	if f.err != nil && f.err.secondHand {
		u.pass(f, now())
		return
	}
	if f.err != nil {
		own := *f.err
		if own.permanent = false; aboutUser(f.err) {
			own.after = userHold
		}
		f.err = &own
	}
	r := u.land(f, nil, nil)
	if r.err != nil && r.changed {
		u.cache.cfg.Log.Debug().Strs("upstreams", u.crowd.base.upstreams()).Str("code", r.err.Code).Msg("no token for a user: " + r.err.Text)
	}
}

func subjectExpired() *Error {
	return refused("subject_expired", "the caller's token has expired")
}

// pass lands a failure that is not this user's: it leaves no mark here.
func (u *user) pass(f *flight, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.flight, u.tried = nil, true
	if u.alive(now) != nil {
		u.arm(now, f.err.RetryAfter)
	}
	close(f.done)
}

// plan sets when the next call starts a refresh. A token that ends with its
// subject token has no successor. mu is held.
func (u *user) plan(at time.Time) {
	if u.who != nil && at.Before(u.who.Expiry) {
		if t := u.current.Load(); t == nil || t.expiry.Before(u.who.Expiry.Add(-refreshFloor)) {
			u.renew.Store(&at)
		}
	}
}

// ahead starts a refresh when it is time. The call that found it so does not
// wait.
func (u *user) ahead(now time.Time) {
	at := u.renew.Load()
	if at == nil || now.Before(*at) || !u.refreshing.CompareAndSwap(false, true) {
		return
	}
	u.cache.spawn(func() {
		defer u.refreshing.Store(false)
		u.refresh(u.due)
	})
}

// due reports whether the refresh that was asked for is still wanted. When it is
// too early after a failure, it is put off, so that not every call asks. mu is
// held.
func (u *user) due() bool {
	now, at := u.cache.cfg.Now(), u.renew.Load()
	if u.who == nil || at == nil || now.Before(*at) || !now.Before(u.who.Expiry) {
		return false
	}
	if err := u.held(now); err != nil {
		u.plan(now.Add(err.RetryAfter))
		return false
	}
	return true
}

// wipe forgets whom it was for. Calls that wait get what is under way.
func (u *user) wipe() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.who = nil
	u.stopped = true
	u.disarm()
	u.current.Store(nil)
	u.file(nil)
}

// UserBound reports whether each caller gets a token of its own: then CachedFor,
// TokenFor and ReplaceFor stand for Cached, Token and Replace.
func (s *Source) UserBound() bool { return s.entry.crowd != nil }

// CachedFor is Cached for a user: its living token, or nil. Near the token's end
// it starts a refresh, and does not wait for it. The Principal must be that of a
// token that was verified for this call.
func (s *Source) CachedFor(p *Principal) *Token {
	if s.entry.crowd == nil || !p.shown() {
		return nil
	}
	now := s.now()
	u := s.entry.cache.users.find(s.entry.crowd.nameOf(p), now)
	if u == nil {
		return nil
	}
	t := u.alive(now)
	if t != nil {
		u.ahead(now)
	}
	return t
}

// TokenFor is Token for a user: it exchanges the user's token for one that the
// upstream takes. What it returns is never handed to another user, and never
// lives longer than the token it was exchanged for. All calls with one token
// share one exchange; outages of the endpoint, and refusals of the client, are
// shared by all users. An expired token is never lent, whatever the StaleGrace:
// its user may have left. Errors are *Error.
func (s *Source) TokenFor(ctx context.Context, p *Principal) (*Token, error) {
	if s.entry.crowd == nil {
		return nil, refused("not_user_bound", "the credential of %s is the service's own, not the caller's", s.name)
	}
	if !p.shown() {
		return nil, refused("no_subject", "the caller has shown no token that could be exchanged: let it prove itself by a jwt")
	}
	n := s.entry.crowd.nameOf(p)
	for tries := 1; ; tries++ {
		now := s.now()
		if !now.Before(p.Expiry) {
			return nil, subjectExpired()
		}
		u := s.entry.cache.users.find(n, now)
		if u == nil {
			u = s.entry.cache.users.add(s.entry.crowd.newUser(n, p), now)
		}
		if t := u.alive(now); t != nil {
			u.ahead(now)
			return t, nil
		}
		t, err := u.token(ctx, now)
		if e, ok := err.(*Error); ok && e.Code == "subject_gone" && tries < 5 { //nolint:errorlint // it is not wrapped
			continue // dropped between the two lines above: it comes anew
		}
		return t, err
	}
}

// Mark returns a name for the user's token that can be kept where a caller's
// token cannot: it says nothing of the user, and means nothing to another
// process. ReplaceFor takes it.
func (s *Source) Mark(p *Principal) string {
	if s.entry.crowd == nil || !p.shown() {
		return ""
	}
	n := s.entry.crowd.nameOf(p)
	return base64.RawURLEncoding.EncodeToString(n[:])
}

// ReplaceFor is Replace for the user of a Mark. The caller's token is no longer
// on the request, so the one of its last call is exchanged again. When that is
// not at hand any more, the answer is an *Error of kind Unavailable and code
// subject_gone.
func (s *Source) ReplaceFor(ctx context.Context, mark string, rejected []byte) (*Token, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(mark)
	if s.entry.crowd == nil || err != nil || len(b) != len(userName{}) {
		return nil, subjectGone()
	}
	now := s.now()
	u := s.entry.cache.users.find(userName(b), now)
	if u == nil || u.crowd != s.entry.crowd || !now.Before(u.until) {
		return nil, subjectGone()
	}
	return u.replace(ctx, now, rejected, s.healing(u))
}

// healing pays for a fetch that a user's 401 causes. The function is called with
// the user's mu held.
func (s *Source) healing(u *user) func(time.Time) *Error {
	return func(now time.Time) *Error { return u.heal(now, s.bucket.take) }
}

// shown reports whether there is a token to exchange.
func (p *Principal) shown() bool { return p != nil && p.token != nil }
