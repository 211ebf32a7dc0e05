package watch

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// silentProbes is how many probes in a row may go without an end before the
	// upstream gets the benefit of the doubt: an open stream is a call that goes well,
	// and Envoy tells of it when it is over. Without this, an access log that broke
	// would keep an upstream off for good.
	silentProbes = 3
	// yield is how long a caller whose probe failed leaves the next one to others, and
	// at most a quarter of the time that the breaker was open: so that one caller whose
	// calls always fail cannot keep the upstream off for them.
	yield = 5 * time.Second
	// clockSlack is how far Envoy's clock may be behind ours, for calls without an id.
	clockSlack = 5 * time.Second
	// spreadBy is the share by which the time until a probe is varied.
	spreadBy = 0.1
)

// phase is what a breaker does.
type phase uint32

const (
	closed phase = iota
	open
	halfOpen
)

// breaker lets calls to an upstream pass, or not. While it is closed, that costs
// one atomic load.
type breaker struct {
	phase atomic.Uint32 // a phase; changed with mu held

	mu     sync.Mutex
	since  time.Time     // when the phase began
	until  time.Time     // when an open one lets a probe through
	pause  time.Duration // how long it is open this time
	rule   string
	why    string
	opened int // since it was last closed
	good   int // probes that succeeded in a row
	silent int // probes without an end in a row

	probe   probe
	free    time.Time // since when the next probe may be let through
	suspect uint64    // whose probe failed last; 0 for none
	late    [silentProbes]uint64
}

// probe is a call that was let through.
type probe struct {
	on bool
	at time.Time
	// decision is compared as an address, and only until that call was decided:
	// a call has one Decision from Admit to Decided, which nobody else has meanwhile.
	decision *extproc.Decision
	id       uint64 // of its request id; 0 when it has none
	who      uint64
}

func (b *breaker) now() phase { return phase(b.phase.Load()) }

// trip opens a closed breaker. One that was closed after now stays so: what is held
// against the upstream was before.
func (b *breaker) trip(now time.Time, spec *policy.WatchBreaker, dice float64, rule, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now() != closed || b.since.After(now) {
		return
	}
	b.rule, b.why, b.pause, b.opened, b.suspect = rule, why, spec.Open, 0, 0
	b.open(now, dice)
}

func (b *breaker) open(now time.Time, dice float64) {
	b.since, b.until = now, now.Add(time.Duration(float64(b.pause)*(1+spreadBy*(2*dice-1))))
	b.opened++
	b.good, b.silent, b.probe, b.late = 0, 0, probe{}, [silentProbes]uint64{}
	b.phase.Store(uint32(open))
}

// close lets calls pass again.
func (b *breaker) close(now time.Time) {
	b.since, b.until, b.rule, b.why = now, time.Time{}, "", ""
	b.opened, b.good, b.silent, b.probe, b.late, b.suspect = 0, 0, 0, probe{}, [silentProbes]uint64{}, 0
	b.phase.Store(uint32(closed))
}

// reset closes it whatever it was.
func (b *breaker) reset(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now() != closed {
		b.close(now)
	}
}

// admit says whether a call may pass, and if not, when to try again.
func (b *breaker) admit(now time.Time, spec *policy.WatchBreaker, d *extproc.Decision, who uint64) (bool, time.Duration) {
	if b.now() == closed {
		return true, 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.now() {
	case closed:
		return true, 0
	case open:
		if now.Before(b.until) {
			return false, b.until.Sub(now)
		}
		b.since, b.free = now, now
		b.phase.Store(uint32(halfOpen))
	case halfOpen:
	}
	if b.probe.on {
		if now.Before(b.probe.at.Add(spec.ProbeTimeout)) {
			return false, time.Second
		}
		if b.unanswered(now); b.now() == closed {
			return true, 0
		}
	}
	if others := b.free.Add(min(yield, b.pause/4)); who == b.suspect && who != 0 && now.Before(others) {
		return false, others.Sub(now)
	}
	b.probe = probe{on: true, at: now, decision: d, who: who}
	return true, 0
}

// unanswered gives a probe up that has not ended in time. Its end still counts
// when it comes.
func (b *breaker) unanswered(now time.Time) {
	b.late[b.silent%silentProbes] = b.probe.id
	b.silent++
	b.probe, b.free = probe{}, now
	if b.silent >= silentProbes {
		b.close(now)
	}
}

// answer is what a probe says.
type answer int

const (
	probeGone answer = iota // nothing about the upstream
	probeGood
	probeBad
)

// decided hears what became of a call. ends is whether its end will be told.
func (b *breaker) decided(now time.Time, spec *policy.WatchBreaker, d *extproc.Decision, id uint64, ends bool, dice float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.probe.on || b.probe.decision != d {
		return
	}
	b.probe.decision, b.probe.id = nil, id
	says, who := probeGone, b.probe.who
	switch {
	case d.Reason == policy.Allowed && ends:
		return
	case d.Reason == policy.Allowed:
		says = probeGood
	case blame(d.Reason) < counts:
		says = probeBad
	}
	b.probe, b.free = probe{}, now
	b.settle(now, spec, says, who, dice)
}

// ended hears of the end of a call.
func (b *breaker) ended(now time.Time, spec *policy.WatchBreaker, o *extproc.Outcome, id, who uint64, dice float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.now() != halfOpen || !o.Decided:
	case b.isProbe(o, id):
		b.probe, b.free = probe{}, now
		b.settle(now, spec, b.judge(o), who, dice)
	case b.wasProbe(id):
		b.settle(now, spec, b.judge(o), who, dice)
	}
}

// isProbe reports whether a call is the probe. One that began before is not, though
// it ends now.
func (b *breaker) isProbe(o *extproc.Outcome, id uint64) bool {
	if !b.probe.on || b.probe.decision != nil || b.probe.id != id {
		return false
	}
	return id != 0 || o.Began.IsZero() || !o.Began.Before(b.probe.at.Add(-clockSlack))
}

// wasProbe reports whether a call is a probe that was given up, once.
func (b *breaker) wasProbe(id uint64) bool {
	for i := range b.late {
		if id != 0 && b.late[i] == id {
			b.late[i] = 0
			return true
		}
	}
	return false
}

// judge says what the end of a probe means. A 403 may be about what the call
// wanted, so it only counts when that is what the breaker is open for.
func (b *breaker) judge(o *extproc.Outcome) answer {
	switch verdict(o) {
	case forbidden:
		if b.rule != ruleErrors {
			return probeBad
		}
	case tokenFailed, rejected, upstreamFailed:
		return probeBad
	case calls, callerFailed, tried, ended, limited, counts:
		if o.Status == 0 || o.Refusal != "" {
			return probeGone // the caller left, or Envoy answered for us
		}
	}
	return probeGood
}

// settle goes on after a probe.
func (b *breaker) settle(now time.Time, spec *policy.WatchBreaker, says answer, who uint64, dice float64) {
	switch says {
	case probeGone:
	case probeGood:
		b.silent = 0
		if who == b.suspect {
			b.suspect = 0
		}
		if b.good++; b.good >= spec.Successes {
			b.close(now)
		}
	case probeBad:
		b.suspect = who
		b.pause = min(2*b.pause, spec.MaxOpen)
		b.open(now, dice)
	}
}

// status describes it.
func (b *breaker) status(now time.Time, spec *policy.WatchBreaker) BreakerStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := BreakerStatus{State: Closed, Since: b.since, Rule: b.rule, Why: b.why, Opened: b.opened}
	switch b.now() {
	case closed:
		return st
	case open:
		st.State, st.NextProbe = Open, b.until
		if now.Before(b.until) {
			return st
		}
		st.Since, st.NextProbe = b.until, time.Time{} // the next call is the probe
	case halfOpen:
	}
	st.State, st.Successes, st.Needed = HalfOpen, b.good, spec.Successes
	return st
}
