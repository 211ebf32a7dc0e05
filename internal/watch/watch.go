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
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// patience is after how long a caller that left without an answer was made to
// wait. One that leaves before has reasons of its own.
const patience = 10 * time.Second

// chartSpan is what the figures of a status are about.
const chartSpan = points * width

// Config is what a Watch needs.
type Config struct {
	// Now is the clock. Required.
	Now func() time.Time
	// Log gets one line when an alert begins or ends, and when a breaker changes.
	Log zerolog.Logger
}

// Watch is the watch. Its methods may be called from any number of goroutines,
// but for Load and Run, which are for one at a time.
type Watch struct {
	cfg   Config
	seed  maphash.Seed
	table atomic.Pointer[table]
	// outcomes is set with the first outcome.
	outcomes atomic.Bool
}

// table is what a policy has to watch. It is immutable; what it points at is not.
type table struct {
	byName map[string]*upstream
	sorted []*upstream
	// anyone are the callers that anybody may be.
	anyone map[string]bool
}

// New returns a Watch of nothing.
func New(cfg Config) *Watch {
	w := &Watch{cfg: cfg, seed: maphash.MakeSeed()}
	w.table.Store(&table{})
	return w
}

// Load puts a policy in force. What was counted of upstreams that stay is kept.
func (w *Watch) Load(set *policy.Set) {
	old := w.table.Load()
	t := &table{byName: make(map[string]*upstream, len(set.Upstreams)), anyone: map[string]bool{}}
	for _, c := range set.Callers {
		if c.Any {
			t.anyone[c.Name] = true
		}
	}
	for _, up := range set.Upstreams {
		u := old.byName[up.Name]
		if u == nil {
			u = &upstream{name: up.Name}
		}
		t.byName[up.Name] = u
		t.sorted = append(t.sorted, u)
	}
	w.table.Store(t)
}

// Admit implements extproc.Gate.
func (*Watch) Admit(context.Context, *extproc.Decision) (policy.Reason, time.Duration) {
	return policy.Allowed, 0
}

// Decided implements extproc.Observer. It counts, and does not allocate.
func (w *Watch) Decided(d *extproc.Decision) {
	t := w.table.Load()
	u := t.byName[d.Upstream]
	if u == nil || d.Attempt > 1 && w.outcomes.Load() {
		return // a later attempt is the same call, and its outcome says how that ended
	}
	b := u.window().at(w.cfg.Now())
	if d.Attempt > 1 {
		if how := blame(d.Reason); how < counts {
			b.count(how, w.lane(t, b, d.Caller, d.Issuer, d.Subject))
		}
		return
	}
	b.counts[calls].Add(1)
	switch d.Reason { //nolint:exhaustive // the others are the policy at work
	case policy.CallerUnknown, policy.CallerInvalid, policy.IssuerUnavailable:
		b.counts[callerFailed].Add(1)
	case policy.RateLimited, policy.UpstreamDisabled:
		b.counts[limited].Add(1)
	case policy.Allowed, policy.TokenUnavailable, policy.TokenRefused, policy.UpstreamRejected:
		l := w.lane(t, b, d.Caller, d.Issuer, d.Subject)
		b.count(tried, l)
		if how := blame(d.Reason); how < counts {
			b.count(how, l)
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

// lane returns where a caller is counted, nil for one that anybody may be.
func (w *Watch) lane(t *table, b *bucket, caller, issuer, subject string) *lane {
	if caller == "" || t.anyone[caller] {
		return nil
	}
	return &b.lanes[w.principal(caller, issuer, subject)%lanes]
}

// principal tells callers apart: the person, where a token says who that is.
func (w *Watch) principal(caller, issuer, subject string) uint64 {
	if subject == "" {
		return maphash.String(w.seed, caller)
	}
	return maphash.String(w.seed, issuer)*31 ^ maphash.String(w.seed, subject)
}

// Ended implements extproc.OutcomeObserver. It counts, and does not allocate.
func (w *Watch) Ended(o *extproc.Outcome) {
	t := w.table.Load()
	u := t.byName[o.Upstream]
	if u == nil {
		return
	}
	if !w.outcomes.Load() {
		w.outcomes.Store(true)
	}
	refused := o.Decided && o.Reason != policy.Allowed.String()
	if refused && o.Attempts <= 1 {
		return // counted when it was decided
	}
	b := u.window().at(w.cfg.Now())
	l := w.lane(t, b, o.Caller, o.Issuer, o.Subject)
	b.count(ended, l)
	if how := verdict(o); how < counts {
		b.count(how, l)
	}
	if !refused && o.Took > 0 {
		b.took.add(o.Took)
	}
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
