// Package watch follows how the calls to each upstream fare, tells when that is
// not as it should be, and takes an upstream out of service when the policy wants
// that.
//
//	w := watch.New(watch.Config{Now: time.Now, Log: log, Notify: alerts.Notify})
//	w.Load(set)
//	go w.Run(ctx)
//
// It hears of every decision (Decided), of the end of every call when Envoy sends
// its access log (Ended), and of every token request (Fetched), and only counts
// then. Once a second, Run holds the counts against the rules. It is asked before
// anything is lent (Admit): an upstream that is switched off, and a caller that is
// held back, are refused there.
package watch

import (
	"context"
	"hash/maphash"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// patience is after how long a caller that left without an answer was made to
// wait. One that leaves before has reasons of its own.
const patience = 10 * time.Second

// tellTime is how long after its end a call may be told of by a healthy access log.
const tellTime = time.Minute

// Span is what the figures of a status are about.
const Span = points * width

// Config is what a Watch needs.
type Config struct {
	// Now is the clock. Required.
	Now func() time.Time
	// Log gets one line when an alert begins or ends, and when a breaker changes.
	Log zerolog.Logger
	// Dice returns random numbers in [0,1) that spread the times of probes, from any
	// goroutine. Required.
	Dice func() float64
	// Notify is told of an alert when it begins, when its figures change, and when it
	// is over. It must not block. Nil: nobody is.
	Notify func(alert.Alert)
	// Fired is told of each alert that begins, by names of the policy; upstream is
	// empty for a rule about all. It may be nil.
	Fired func(rule, upstream string)
}

// Watch is the watch. Its methods may be called from any number of goroutines,
// but for Load and Run, which are for one at a time.
type Watch struct {
	cfg   Config
	seed  maphash.Seed
	table atomic.Pointer[table]
	// outcomes is set with the first outcome.
	outcomes  atomic.Bool
	throttles throttles
	sweeps    sweeps

	mu     sync.Mutex // held by Load, by each look at the rules, and by Status
	firing map[alert.Subject]*firing
	found  []finding // scratch
}

// table is what a policy has to watch. It is immutable; what it points at is not.
type table struct {
	byName map[string]*seat
	sorted []*seat
	// anyone are the callers that anybody may be.
	anyone   map[string]bool
	sweep    policy.SweepRule
	throttle policy.WatchThrottle
}

// New returns a Watch of nothing.
func New(cfg Config) *Watch {
	if cfg.Notify == nil {
		cfg.Notify = func(alert.Alert) {}
	}
	if cfg.Fired == nil {
		cfg.Fired = func(string, string) {}
	}
	w := &Watch{cfg: cfg, seed: maphash.MakeSeed(), firing: map[alert.Subject]*firing{}}
	w.table.Store(&table{})
	return w
}

// Load puts a policy in force. What is known of an upstream stays, and its breaker
// too unless its rules changed.
func (w *Watch) Load(set *policy.Set) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old, now := w.table.Load(), w.cfg.Now()
	t := &table{byName: make(map[string]*seat, len(set.Upstreams)), anyone: map[string]bool{}}
	for _, c := range set.Callers {
		if c.Any {
			t.anyone[c.Name] = true
		}
	}
	if set.Watch != nil {
		t.sweep, t.throttle = set.Watch.Sweep, set.Watch.Throttle
	}
	for _, up := range set.Upstreams {
		s := newSeat(up, old.byName[up.Name], now)
		t.byName[up.Name] = s
		t.sorted = append(t.sorted, s)
	}
	w.table.Store(t)
}

// Run holds everything against the rules once a second, until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.tick()
		}
	}
}

// retryDisabled is what a caller of an upstream is told to wait that an operator
// has switched off: nobody knows how long.
const retryDisabled = time.Minute

// Admit implements extproc.Gate.
func (w *Watch) Admit(_ context.Context, d *extproc.Decision) (policy.Reason, time.Duration) {
	t := w.table.Load()
	s := t.byName[d.Upstream]
	if s == nil {
		return policy.Allowed, 0
	}
	if s.disabled {
		return policy.UpstreamDisabled, retryDisabled
	}
	now, who := w.cfg.Now(), w.principal(t, d.Caller, d.Issuer, d.Subject)
	if wait := w.throttles.admit(now, s.name, who); wait > 0 {
		return policy.RateLimited, wait
	}
	if s.alone {
		who = 0 // there are no others to leave a probe to
	}
	if passes, wait := s.breaker.admit(now, &s.rules.Breaker, d, who); !passes {
		return policy.UpstreamDisabled, wait
	}
	return policy.Allowed, 0
}

// Decided implements extproc.Observer. It counts, and allocates for tools and
// callers that it sees for the first time only.
func (w *Watch) Decided(d *extproc.Decision) {
	t := w.table.Load()
	s := t.byName[d.Upstream]
	if s == nil || d.Attempt > 1 && w.outcomes.Load() {
		return // a later attempt is the same call, and its outcome says how that ended
	}
	now := w.cfg.Now()
	who := w.principal(t, d.Caller, d.Issuer, d.Subject)
	b := s.window().at(now)
	if d.Attempt > 1 {
		if how := blame(d.Reason); how < counts {
			b.count(how, who)
		}
		return
	}
	if s.breaker.now() != closed {
		s.breaker.decided(now, &s.rules.Breaker, d, w.idOf(d.RequestID), w.outcomes.Load(), w.cfg.Dice())
	}
	b.count(calls, 0)
	switch d.Reason { //nolint:exhaustive // the others are the policy at work
	case policy.CallerUnknown, policy.CallerInvalid, policy.IssuerUnavailable:
		b.count(callerFailed, 0)
	case policy.RateLimited, policy.UpstreamDisabled:
		b.count(limited, 0)
	case policy.Allowed, policy.TokenUnavailable, policy.TokenRefused, policy.UpstreamRejected:
		b.count(tried, who)
		if how := blame(d.Reason); how < counts {
			b.count(how, who)
		}
	}
	w.ran(t, s, d, now, who)
}

// ran notes the tools that a call runs, or would have run if that were not denied.
func (w *Watch) ran(t *table, s *seat, d *extproc.Decision, now time.Time, who uint64) {
	runs := d.Reason == policy.Allowed
	usage, sweep := s.usage && runs, who != 0 && !t.sweep.Do.Off() && (runs || d.Reason == policy.ToolDenied || d.Reason == policy.ScopeMissing)
	if !usage && !sweep {
		return
	}
	p := person{who, d.Caller, d.Issuer, d.Subject}
	for i := range d.Calls {
		c := &d.Calls[i]
		if string(c.Method) != "tools/call" || c.Target == nil {
			continue
		}
		if usage {
			s.tools.add(c.Target, &p)
		}
		if sweep {
			w.sweeps.add(&p, maphash.Bytes(w.seed, c.Target)*31^maphash.String(w.seed, s.name), now, &t.sweep)
		}
	}
}

// blame says what a refusal counts as that is about the credential of the
// upstream, counts for any other.
func blame(reason policy.Reason) count {
	switch reason { //nolint:exhaustive // the others are not
	case policy.TokenUnavailable, policy.TokenRefused:
		return tokenFailed
	case policy.UpstreamRejected:
		return rejected
	}
	return counts
}

// principal tells callers apart: the person, where a token says who that is. It is
// 0 for a caller that anybody may be, and for none.
func (w *Watch) principal(t *table, caller, issuer, subject string) uint64 {
	switch {
	case caller == "" || t.anyone[caller]:
		return 0
	case subject == "":
		return max(maphash.String(w.seed, caller), 1)
	}
	return max(maphash.String(w.seed, issuer)*31^maphash.String(w.seed, subject), 1)
}

// idOf is a request id as an outcome has it, as a number: 0 for none.
func (w *Watch) idOf(id []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(w.seed)
	n := 0
	for _, c := range id[:min(len(id), 64)] {
		if c > ' ' && c < 0x7f {
			_ = h.WriteByte(c)
			n++
		}
	}
	if n == 0 {
		return 0
	}
	return max(h.Sum64(), 1)
}

// Ended implements extproc.OutcomeObserver. It counts, and does not allocate.
func (w *Watch) Ended(o *extproc.Outcome) {
	t := w.table.Load()
	s := t.byName[o.Upstream]
	if s == nil {
		return
	}
	if !w.outcomes.Load() {
		w.outcomes.Store(true)
	}
	refused := o.Decided && o.Reason != policy.Allowed.String()
	if refused && o.Attempts <= 1 {
		return // counted when it was decided
	}
	now := w.cfg.Now()
	who := w.principal(t, o.Caller, o.Issuer, o.Subject)
	if s.breaker.now() == halfOpen {
		s.breaker.ended(now, &s.rules.Breaker, o, w.idOf([]byte(o.RequestID)), who, w.cfg.Dice())
	}
	b := s.window().at(endOf(o, now))
	b.count(ended, who)
	if how := verdict(o); how < counts {
		if !s.lends && how != upstreamFailed {
			who = 0 // what is refused is the caller's own credential
		}
		b.count(how, who)
	}
	if !refused && o.Took > 0 {
		b.took.add(o.Took)
	}
}

// endOf is when a call ended, as far as that can be believed. Envoy tells of it a
// moment later, and by then the upstream may have been switched off and on again:
// what was before must not count as what is after.
func endOf(o *extproc.Outcome, now time.Time) time.Time {
	at := o.Began.Add(o.Took)
	if o.Began.IsZero() || at.After(now) || now.Sub(at) > tellTime {
		return now
	}
	return at
}

// verdict says what a call that ended counts as, counts when as no failure.
func verdict(o *extproc.Outcome) count {
	switch {
	case o.Decided && o.Reason != policy.Allowed.String(): // at a later attempt
		return blame(reasonOf(o.Reason))
	case o.Decided && o.Rejected():
		return rejected
	case o.Refusal != "": // by Envoy, in our name
	case o.Decided && o.Status == http.StatusForbidden:
		return forbidden
	case failed(o):
		return upstreamFailed
	}
	return counts
}

// reasonOf returns the reason about a credential that a word stands for.
func reasonOf(word string) policy.Reason {
	for _, r := range [...]policy.Reason{policy.TokenUnavailable, policy.TokenRefused, policy.UpstreamRejected} {
		if r.String() == word {
			return r
		}
	}
	return policy.Undecided
}

// failed reports whether an upstream failed at a call: it answered 5xx (Envoy
// does so in its place when it cannot be reached or takes too long), broke off,
// or was waited for in vain. A 429 is not a failure: it is about how much is
// called. A caller that goes away is not one either.
func failed(o *extproc.Outcome) bool {
	switch {
	case o.Status >= http.StatusInternalServerError:
		return true
	case o.Left:
		return o.Status == 0 && o.Took >= patience
	}
	return o.Reset
}
