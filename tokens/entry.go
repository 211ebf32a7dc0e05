package tokens

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// refreshFloor is the shortest life that is refreshed ahead. A token that an
// endpoint calls dead on arrival is fetched when somebody asks, not for ever in
// the background.
const refreshFloor = 2 * time.Second

// leastPatience is the least time that a request gets.
const leastPatience = 500 * time.Millisecond

// entry is one credential: its token, the one fetch in flight, and what is known
// of its failures.
//
// The request path reads current and nothing else while a token lives. All else
// is behind mu, which is never held during a request to the endpoint.
type entry struct {
	cache  *Cache
	client *client
	slots  chan struct{} // background fetches at this endpoint
	id     key           // in the shared cache; without one nothing is shared

	current atomic.Pointer[Token]

	// crowd is set for a credential of users, which has no token itself, and
	// user for the token of one of them.
	crowd *crowd
	user  *user

	mu      sync.Mutex
	names   []string // sorted
	flight  *flight  // nil when none
	timer   *time.Timer
	gen     uint64 // counts what makes an armed timer stale
	wake    time.Time
	stopped bool
	tried   bool
	fail    failure
	noted   bool // the missing expires_in was logged
	// rejected are the marks of the last authorizations that an upstream
	// refused, the newest first.
	rejected [][]byte
}

// failure is a run of failed fetches; the zero value is health.
type failure struct {
	err    *Error
	count  int
	since  time.Time
	next   time.Time // before it, callers get err
	secret []byte    // keyed hash of the secrets that were refused
	files  []byte    // of the files
}

// flight is one token request. Its result is there once done is closed.
type flight struct {
	done  chan struct{}
	who   *Principal // whose token it gets, nil for the service's own
	got   granted
	token *Token
	err   *Error
	// borrowed is whether the token came from the shared cache.
	borrowed bool
}

// alive returns the token while it lives.
func (e *entry) alive(now time.Time) *Token {
	if t := e.current.Load(); t != nil && now.Before(t.expiry) {
		return t
	}
	return nil
}

// stale returns the token that has expired less than grace ago, while the reason
// for having no other is that the endpoint is unavailable. It keeps the tries
// going that end that.
func (e *entry) stale(now time.Time, grace time.Duration) *Token {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.current.Load()
	if t == nil || !now.Before(t.expiry.Add(grace)) || e.fail.err == nil || e.fail.err.Kind != Unavailable {
		return nil
	}
	_, _ = e.join(now)
	return t
}

// token is the way of a call that found no living token: it joins the fetch in
// flight, or starts it, or learns that it is too early to.
func (e *entry) token(ctx context.Context, now time.Time) (*Token, error) {
	e.mu.Lock()
	if t := e.alive(now); t != nil {
		e.mu.Unlock()
		return t, nil
	}
	f, err := e.join(now) //nolint:contextcheck // the fetch is shared: it must outlive the call that wanted it
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.wait(ctx)
}

// replace is token for a call whose last authorization was rejected by the
// upstream. Only the call that finds the rejected token still in place evicts
// it, and pays for the fetch.
func (e *entry) replace(ctx context.Context, now time.Time, rejected []byte, pay func(time.Time) *Error) (*Token, error) {
	e.mu.Lock()
	t := e.alive(now)
	if t != nil && !bytes.Equal(t.Authorization(), rejected) {
		e.mu.Unlock()
		return t, nil
	}
	if t != nil {
		if e.flight == nil && e.held(now) == nil {
			if err := pay(now); err != nil {
				// The token stays: it may be good for another
				// upstream, and evicting it would only move the
				// fetch to the next call.
				e.mu.Unlock()
				return nil, err
			}
		}
		e.current.CompareAndSwap(t, nil)
	}
	e.reject(rejected)
	f, err := e.join(now) //nolint:contextcheck // the fetch is shared: it must outlive the call that wanted it
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	fresh, werr := f.wait(ctx)
	if werr == nil && bytes.Equal(fresh.Authorization(), rejected) {
		return nil, &Error{
			Kind: Rejected, Code: "same_token", RetryAfter: time.Second,
			Text: "the token endpoint answered with the token that the upstream had just refused",
		}
	}
	return fresh, werr
}

// join returns the flight to wait for. mu is held.
func (e *entry) join(now time.Time) (*flight, error) {
	if e.flight != nil {
		return e.flight, nil
	}
	if e.user != nil && e.user.who == nil {
		return nil, subjectGone()
	}
	if err := e.held(now); err != nil {
		return nil, err
	}
	if f := e.launch(); f != nil {
		return f, nil
	}
	return nil, unavailable("closed", "this process is stopping")
}

// held returns the failure that is too young to try again, or nil. mu is held.
func (e *entry) held(now time.Time) *Error {
	if e.fail.err == nil || !now.Before(e.fail.next) || e.secretChanged() {
		if e.user != nil {
			return e.user.crowd.held(now)
		}
		return nil
	}
	return e.fail.err.in(e.fail.next.Sub(now))
}

// secretChanged reports whether a permanent error was earned with another
// secret than today's. mu is held.
func (e *entry) secretChanged() bool {
	if e.fail.err == nil || !e.fail.err.permanent {
		return false
	}
	p, err := e.proof()
	return err == nil && !hmac.Equal(e.fail.secret, e.cache.sum(p))
}

// filesChanged is secretChanged for what is in files: it reads them, so no call
// of a caller asks it. mu is held.
func (e *entry) filesChanged() bool {
	return e.fail.err != nil && e.fail.err.permanent && !hmac.Equal(e.fail.files, e.cache.files(e.client))
}

// files is the keyed hash of the files that prove the client.
func (c *Cache) files(cl *client) []byte {
	m := hmac.New(sha256.New, c.key)
	jwt, _ := cl.workload()
	part(m, "files", jwt)
	if cl.o.Certificate != "" {
		if cert, err := readCertificate(cl.o.Certificate); err == nil {
			part(m, string(cert.Certificate[0]))
		}
	}
	return m.Sum(nil)
}

// sum is the keyed hash by which secrets are remembered.
func (c *Cache) sum(p proof) []byte {
	m := hmac.New(sha256.New, c.key)
	part(m, "secret", p.secret, p.key)
	return m.Sum(nil)
}

// launch starts a fetch that lives as long as the cache, not as long as the
// call that wanted it. It returns nil once the cache is closed. mu is held, and
// no flight is under way.
func (e *entry) launch() *flight {
	f := &flight{done: make(chan struct{})}
	if !e.cache.spawn(func() { e.travel(f) }) {
		return nil
	}
	e.flight = f
	e.disarm()
	if e.user != nil {
		f.who = e.user.who // it counts also when the user is dropped meanwhile
	}
	return f
}

// wait returns the flight's result, or the end of the call's own context.
func (f *flight) wait(ctx context.Context) (*Token, error) {
	select {
	case <-f.done:
	case <-ctx.Done():
		err := unavailable("wait_ended", "the call ended before the token endpoint answered")
		err.cause = ctx.Err()
		return nil, err
	}
	if f.err != nil {
		return nil, f.err
	}
	return f.token, nil
}

// fly makes the token request and lands its result.
func (e *entry) fly(f *flight) {
	if e.user != nil {
		e.user.fly(f)
		return
	}
	start := e.cache.cfg.Now()
	ctx, cancel := context.WithTimeout(e.cache.ctx, e.patience(start))
	defer cancel()
	p, err := e.proof()
	files := e.cache.files(e.client) // before the fetch: what changes meanwhile counts as changed
	if err == nil {
		p.assertion, err = e.client.workload()
	}
	if err == nil {
		f.got, err = e.client.fetch(ctx, p, e.cache.cfg.Now)
	}
	if e.cache.ctx.Err() != nil && err != nil {
		err = unavailable("closed", "this process is stopping")
	}
	if err == nil {
		f.token = newToken(e.cache.key, f.got.access, f.got.at, f.got.life, f.got.scope)
		f.got.access = ""
	}
	f.err = err
	r := e.land(f, e.cache.sum(p), files)
	r.fetch.Took = e.cache.cfg.Now().Sub(start)
	e.tell(r)
}

// patience is how long a request may take. While a token lives, a request that
// hangs must end in time for another one before the token does.
func (e *entry) patience(now time.Time) time.Duration {
	if t := e.alive(now); t != nil {
		return min(e.cache.deadline, max(t.expiry.Sub(now)/2, leastPatience))
	}
	return e.cache.deadline
}

// proof reads the client's secrets.
func (e *entry) proof() (proof, *Error) { return e.cache.prove(e.client) }

func (c *Cache) prove(cl *client) (proof, *Error) {
	var p proof
	for _, s := range []struct {
		ref  policy.SecretRef
		into *string
		what string
	}{
		{cl.o.ClientSecret, &p.secret, "client secret"}, {cl.o.PrivateKey, &p.key, "private key"},
	} {
		if s.ref.IsZero() {
			continue
		}
		v, err := c.cfg.Secrets.Secret(s.ref)
		if err != nil || v.Reveal() == "" {
			// The store's own words are not repeated: they are logged where
			// they arise, and nobody here can tell what they hold.
			return proof{}, unavailable("secret_unavailable", "the %s %s cannot be read", s.what, oneLine(s.ref.String(), 100))
		}
		*s.into = v.Reveal()
	}
	return p, nil
}

// land puts the result in place, wakes the waiters, and plans what comes next.
func (e *entry) land(f *flight, secret, files []byte) report {
	now := e.cache.cfg.Now()
	dice := e.cache.cfg.Dice()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flight, e.tried = nil, true
	r := report{borrowed: f.borrowed, fetch: Fetch{Upstreams: e.names, Endpoint: e.client.host, Result: "ok", Skew: f.got.skew}}
	if f.err == nil {
		r.recovered = e.fail.err != nil
		r.noLife = f.got.noLife && !e.noted
		e.noted = e.noted || r.noLife
		r.fetch.Expiry = f.token.expiry
		e.fail = failure{}
		e.current.Store(f.token)
		if e.user != nil {
			e.user.file(f.token)
		}
		if f.token.lifetime >= refreshFloor {
			e.arm(now, f.got.at.Add(refreshAfter(f.token.lifetime, f.got.refresh, dice)).Sub(now))
		}
		close(f.done)
		return r
	}
	r.changed = e.fail.err == nil || e.fail.err.Code != f.err.Code || e.fail.err.Kind != f.err.Kind
	r.fetch.Result, r.fetch.Kind = f.err.Code, f.err.Kind
	if e.fail.count == 0 {
		e.fail.since = now
	}
	e.fail.count++
	var left time.Duration
	if t := e.alive(now); t != nil {
		left = t.expiry.Sub(now)
	}
	next, wake := plan(f.err, e.fail.count, now.Sub(e.fail.since), left, dice)
	f.err = f.err.in(next)
	r.err = f.err
	e.fail.err, e.fail.next, e.fail.secret, e.fail.files = f.err, now.Add(next), secret, files
	e.arm(now, wake)
	close(f.done)
	return r
}

// arm sets the one timer of the entry. mu is held.
func (e *entry) arm(now time.Time, d time.Duration) {
	e.disarm()
	if e.stopped {
		return
	}
	e.wake = now.Add(d)
	if e.user != nil {
		e.user.plan(e.wake)
		return // who asks next looks at the time: no timer for each user
	}
	if e.fail.err != nil && e.fail.err.permanent {
		d = min(d, secretPoll)
	}
	gen := e.gen
	e.timer = time.AfterFunc(d, func() { e.tick(gen) })
}

// disarm makes the timer stale, also one that has just fired. mu is held.
func (e *entry) disarm() {
	e.gen++
	e.wake = time.Time{}
	if e.user != nil {
		e.user.renew.Store(nil)
	}
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
}

// tick is the timer's end: a refresh, or another look at the secret.
func (e *entry) tick(gen uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gen != gen {
		return
	}
	now := e.cache.cfg.Now()
	if e.held(now) != nil && now.Before(e.wake) && !e.filesChanged() {
		e.arm(now, e.wake.Sub(now))
		return
	}
	e.cache.spawn(func() { e.refresh(func() bool { return e.gen == gen }) })
}

// refresh fetches in the background, in its turn. wanted is asked with mu held
// when the turn has come: much may have happened since. refresh returns when
// the fetch has ended.
func (e *entry) refresh(wanted func() bool) {
	for _, slots := range []chan struct{}{e.slots, e.cache.slots} {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-e.cache.ctx.Done():
			return
		}
	}
	e.mu.Lock()
	var f *flight
	if wanted() && e.flight == nil && !e.stopped {
		f = e.launch()
	}
	e.mu.Unlock()
	if f != nil {
		<-f.done
	}
}

// stop ends all background work. A flight under way ends by itself, for those
// who wait for it.
func (e *entry) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	e.disarm()
}

func (e *entry) wasTried() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tried
}

// share adds an upstream to those who use the entry.
func (e *entry) share(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(e.names, name) {
		e.names = slices.Sorted(slices.Values(append(slices.Clone(e.names), name)))
	}
}

// shared replaces the list of those who use the entry.
func (e *entry) shared(names []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names = slices.Compact(slices.Sorted(slices.Values(names)))
}

// upstreams lists those who use the entry.
func (e *entry) upstreams() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.names
}

// report is what a landing has to tell the world.
type report struct {
	fetch     Fetch
	err       *Error
	changed   bool // the failure is new, or another one
	recovered bool
	noLife    bool
	borrowed  bool // there was no token request
}

// tell logs what changed and reports the fetch. No lock is held.
func (e *entry) tell(r report) {
	log := e.cache.cfg.Log.With().Strs("upstreams", r.fetch.Upstreams).Str("endpoint", r.fetch.Endpoint).Logger()
	switch {
	case r.err != nil && r.changed && r.err.Code != "closed":
		log.Warn().Str("kind", r.err.Kind.String()).Str("code", r.err.Code).Int("status", r.err.Status).
			Dur("next_try_ms", r.err.RetryAfter).Msg("no token: " + r.err.Text)
	case r.recovered:
		log.Info().Time("expiry", r.fetch.Expiry).Bool("from_shared_cache", r.borrowed).Msg("there is a token again")
	}
	if r.noLife {
		log.Warn().Msg("the token answer has no expires_in: default_lifetime counts")
	}
	if e.cache.cfg.Observe != nil && !r.borrowed {
		e.cache.cfg.Observe(r.fetch)
	}
}
