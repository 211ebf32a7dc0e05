package tokens

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// keyLife is how long a key set counts before it is read again, when its
	// Cache-Control does not say; keyLifeLeast and keyLifeMost bound what it
	// says. An hour is the most, because a key that was withdrawn counts that long.
	keyLife      = 10 * time.Minute
	keyLifeLeast = time.Minute
	keyLifeMost  = time.Hour
	// keysKept is how long the last good set counts while no other can be had.
	keysKept = 24 * time.Hour
	// renewPause is the least time between the starts of two fetches that
	// tokens can cause. It is what a new key waits at most, and what forged
	// tokens cost at most.
	renewPause = 10 * time.Second
	// renewWait is how long a call waits for such a fetch.
	renewWait = time.Second
	// codeUnknownKey is the code of a token whose key is not there, or not yet.
	codeUnknownKey = "unknown_key"
)

// ring is the keys of one issuer: the set in force, the one fetch in flight,
// and what is known of its failures. Verification reads held and nothing else.
type ring struct {
	v   *Verifier
	src keySource

	held atomic.Pointer[heldKeys]

	mu      sync.Mutex // guards all below
	flight  chan struct{}
	began   time.Time // the start of the last fetch
	good    time.Time // the end of the last good one
	due     time.Time // when the background fetches next
	from    string    // the URL of the last good set
	fail    failure
	timer   *time.Timer
	gen     uint64 // counts what makes an armed timer stale
	stopped bool
}

// keySource is an issuer and how its keys are reached.
type keySource struct {
	issuer, url, ca    string
	plaintext, private bool
}

// heldKeys is a set and the end of its time.
type heldKeys struct {
	set   *keySet
	until time.Time
}

// current returns the set in force, or nil.
func (r *ring) current(now time.Time) *keySet {
	if h := r.held.Load(); h != nil && now.Before(h.until) {
		return h.set
	}
	return nil
}

// get returns the set in force. When there is none, it waits for the one fetch
// in flight, as long as ctx allows.
func (r *ring) get(ctx context.Context) (*keySet, *Error) {
	now := r.v.cfg.Now()
	if s := r.current(now); s != nil {
		return s, nil
	}
	r.mu.Lock()
	if r.flight == nil {
		if r.fail.err != nil && now.Before(r.fail.next) {
			defer r.mu.Unlock()
			return nil, r.fail.err.in(r.fail.next.Sub(now))
		}
		r.launch()
	}
	flight := r.flight
	r.mu.Unlock()
	if bad := r.wait(ctx, flight); bad != nil {
		return nil, bad
	}
	if s := r.current(r.v.cfg.Now()); s != nil {
		return s, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return nil, cmp.Or(r.fail.err, unavailable("closed", "this process is stopping"))
}

// renew is for a token that old does not verify: the issuer may have changed its
// keys since. It returns a newer set, or old. However many tokens ask, there is
// one fetch in renewPause, and it does not matter who asked first: real tokens
// share it with forged ones. The error is why there is no newer set, nil when
// old is what the issuer has.
func (r *ring) renew(ctx context.Context, old *keySet) (*keySet, *Error) {
	now := r.v.cfg.Now()
	r.mu.Lock()
	if s := r.current(now); s != nil && s != old {
		r.mu.Unlock()
		return s, nil
	}
	if r.flight == nil {
		if now.Before(r.began.Add(renewPause)) {
			defer r.mu.Unlock()
			return old, r.fail.err
		}
		r.launch()
	}
	flight := r.flight
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, renewWait)
	defer cancel()
	if bad := r.wait(ctx, flight); bad != nil {
		return old, bad
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.current(r.v.cfg.Now()); s != nil {
		return s, r.fail.err
	}
	return old, r.fail.err
}

// wait waits for a fetch; nil is one that could not start.
func (r *ring) wait(ctx context.Context, flight chan struct{}) *Error {
	if flight == nil {
		return unavailable("closed", "this process is stopping")
	}
	select {
	case <-flight:
		return nil
	case <-ctx.Done():
		bad := unavailable("wait_ended", "the call ended before the keys of %s came", r.src.issuer)
		bad.cause = ctx.Err()
		return bad
	}
}

// launch starts a fetch that lives as long as the verifier. mu is held, and no
// flight is under way.
func (r *ring) launch() {
	flight := make(chan struct{})
	if !r.v.spawn(func() { r.fly(flight) }) {
		return
	}
	r.flight, r.began = flight, r.v.cfg.Now()
	r.disarm()
}

// fly makes the fetch and lands its result.
func (r *ring) fly(flight chan struct{}) {
	ctx, cancel := context.WithTimeout(r.v.ctx, r.v.deadline)
	defer cancel()
	set, life, from, bad := r.fetch(ctx)
	if r.v.ctx.Err() != nil && bad != nil {
		bad = unavailable("closed", "this process is stopping")
	}
	r.tell(r.land(flight, set, life, from, bad))
}

// fetch finds the keys and reads them.
func (r *ring) fetch(ctx context.Context) (*keySet, time.Duration, string, *Error) {
	from, guarded := r.src.url, false
	s := server{issuer: r.src.issuer, ca: r.src.ca, plaintext: r.src.plaintext, keys: true}
	if from == "" {
		m, bad := r.v.dir.about(ctx, s)
		if bad != nil {
			return nil, 0, "", bad
		}
		from = m.keys
		guarded = !r.src.private && !sameHost(from, r.src.issuer)
	}
	base, err := r.v.net.transport(trust{ca: r.src.ca, guarded: guarded}, "")
	if err != nil {
		return nil, 0, from, unavailable("ca_unreadable", "the authorities of %s cannot be read from its ca file", r.src.issuer)
	}
	body, header, bad := get(ctx, base, from, "keys", r.v.cfg.Now)
	var set *keySet
	if bad == nil {
		set, bad = parseKeys(body, r.src.issuer)
	}
	if bad != nil {
		r.v.dir.doubt(s) // they may have moved
		return nil, 0, from, bad
	}
	return set, keysLife(header), from, nil
}

func sameHost(a, b string) bool {
	x, errX := url.Parse(a)
	y, errY := url.Parse(b)
	return errX == nil && errY == nil && strings.EqualFold(x.Hostname(), y.Hostname())
}

// keysLife reads Cache-Control (RFC 9111 §5.2.2).
func keysLife(h http.Header) time.Duration {
	life := keyLife
	for d := range strings.SplitSeq(strings.ToLower(strings.Join(h.Values("Cache-Control"), ",")), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(d), "=")
		switch name {
		case "no-store", "no-cache":
			return keyLifeLeast
		case "max-age":
			if secs, err := strconv.Atoi(strings.Trim(value, `"`)); err == nil {
				life = time.Duration(min(max(secs, 0), int(keyLifeMost/time.Second))) * time.Second
			}
		}
	}
	return min(max(life, keyLifeLeast), keyLifeMost)
}

// landing is what the end of a fetch has to tell the world.
type landing struct {
	bad       *Error
	changed   bool // the failure is new, or another one
	recovered bool
	fresh     *keySet // nil when the set is the one from before
}

// land puts the result in place, plans what comes next, and wakes the waiters.
func (r *ring) land(flight chan struct{}, set *keySet, life time.Duration, from string, bad *Error) landing {
	now, dice := r.v.cfg.Now(), r.v.cfg.Dice()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer close(flight)
	r.flight = nil
	l := landing{bad: bad}
	if bad == nil {
		l.recovered = r.fail.err != nil
		if h := r.held.Load(); h != nil && h.set.sum == set.sum {
			set = h.set
		} else {
			l.fresh = set
		}
		r.held.Store(&heldKeys{set, now.Add(keysKept)})
		r.fail, r.good, r.from = failure{}, now, from
		r.arm(now, life-time.Duration(dice*spreadShare*float64(life)))
		return l
	}
	l.changed = r.fail.err == nil || r.fail.err.Code != bad.Code
	if r.fail.count == 0 {
		r.fail.since = now
	}
	r.fail.count++
	next, wake := plan(bad, r.fail.count, now.Sub(r.fail.since), 0, dice)
	r.fail.err, r.fail.next = bad.in(next), now.Add(next)
	r.fail.err.Kind = Unavailable // whatever the issuer did, the caller is not to blame
	r.arm(now, wake)
	return l
}

// arm sets the one timer. mu is held.
func (r *ring) arm(now time.Time, d time.Duration) {
	r.disarm()
	if r.stopped {
		return
	}
	r.due = now.Add(d)
	gen := r.gen
	r.timer = time.AfterFunc(d, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.gen == gen && r.flight == nil {
			r.launch()
		}
	})
}

// disarm makes the timer stale, also one that has just fired. mu is held.
func (r *ring) disarm() {
	r.gen++
	r.due = time.Time{}
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// resume takes up a ring that was stopped; first also starts the first fetch.
func (r *ring) resume(first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = false
	if r.flight == nil && r.timer == nil && (first || !r.began.IsZero()) {
		r.launch()
	}
}

// stop ends the background work.
func (r *ring) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	r.disarm()
}

// tell logs what changed. No lock is held.
func (r *ring) tell(l landing) {
	log := r.v.cfg.Log.With().Str("issuer", r.src.issuer).Logger()
	switch {
	case l.bad != nil && l.changed && l.bad.Code != "closed":
		log.Warn().Str("code", l.bad.Code).Int("status", l.bad.Status).Msg("no keys: " + l.bad.Text)
	case l.recovered:
		log.Info().Msg("the issuer's keys can be read again")
	}
	if l.fresh != nil && len(l.fresh.skipped) > 0 {
		log.Warn().Strs("skipped", l.fresh.skipped).Msg("some of the issuer's keys do not count")
	}
}

// IssuerStatus is how the keys of an issuer stand. Nothing in it is secret.
type IssuerStatus struct {
	// Issuer is that of the policy; URL is where its keys were found.
	Issuer string `json:"issuer"`
	URL    string `json:"url,omitempty"`
	// Ready is whether tokens can be verified.
	Ready bool `json:"ready"`
	// Keys are the keys that count, each as kid and algorithm; Skipped says
	// which others there are, and why they do not.
	Keys    []string `json:"keys,omitempty"`
	Skipped []string `json:"skipped,omitempty"`
	// LastGood is when the keys were last read, Refresh when they are next.
	LastGood time.Time `json:"last_good,omitzero"`
	Refresh  time.Time `json:"refresh,omitzero"`
	// Failures counts the failed fetches since; LastError and Code are of the last.
	Failures  int    `json:"failures,omitzero"`
	LastError string `json:"last_error,omitempty"`
	Code      string `json:"last_error_code,omitempty"`
}

// Discover reads the issuer's keys, unless they are there, and says how they
// stand. Errors are *Error.
func (r *Rule) Discover(ctx context.Context) (IssuerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchDeadline)
	defer cancel()
	_, bad := r.ring.get(ctx)
	st := r.ring.status()
	if bad != nil {
		return st, bad
	}
	return st, nil
}

func (r *ring) status() IssuerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := IssuerStatus{Issuer: r.src.issuer, URL: cmp.Or(r.from, r.src.url), LastGood: r.good.Round(0), Refresh: r.due.Round(0)}
	if s := r.current(r.v.cfg.Now()); s != nil {
		st.Ready, st.Skipped = true, slices.Clone(s.skipped)
		for _, k := range s.keys {
			st.Keys = append(st.Keys, strings.TrimSpace(oneLine(k.id, maxQuote)+" "+k.alg))
		}
	}
	if r.fail.err != nil {
		st.Failures, st.LastError, st.Code = r.fail.count, r.fail.err.Text, r.fail.err.Code
	}
	return st
}
