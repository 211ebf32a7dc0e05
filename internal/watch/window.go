package watch

import (
	"math"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// width is how long a bucket of a window is.
	width = 10 * time.Second
	// points is how many buckets pages are shown.
	points = 30
	// lanes is how many groups callers are put into, to tell what one of them sees
	// from what all see.
	lanes = 8
)

// count is one thing that is counted.
type count int

const (
	calls          count = iota // decided on
	callerFailed                // refused: who calls is unknown or not proved
	tried                       // got as far as the credential
	tokenFailed                 // refused: no token
	ended                       // told by the access log, refusals of ours left out
	rejected                    // the upstream answered 401
	forbidden                   // the upstream answered 403
	upstreamFailed              // the upstream answered 5xx, broke off, or did not answer
	limited                     // refused by a limit, a throttle or a breaker
	counts
)

// fault is what callers see go wrong that the upstream answers for.
type fault int

const (
	blamed fault = iota // its credential failed
	broken              // it failed itself
	faults
)

// lane is what one group of callers saw.
type lane struct {
	tried, ended atomic.Uint32
	faults       [faults]atomic.Uint32
}

// witness tells whether one caller saw a fault, or several.
type witness struct {
	first   atomic.Uint64
	several atomic.Bool
}

func (w *witness) saw(who uint64) {
	if !w.several.Load() && !w.first.CompareAndSwap(0, who) && w.first.Load() != who {
		w.several.Store(true)
	}
}

// bucket is ten seconds.
type bucket struct {
	number    atomic.Int64 // which ten seconds since the epoch of Unix
	counts    [counts]atomic.Uint32
	lanes     [lanes]lane
	witnesses [faults]witness
	took      histogram
}

// count counts one thing, and who saw it, 0 for one that anybody may be.
func (b *bucket) count(c count, who uint64) {
	b.counts[c].Add(1)
	if who == 0 {
		return
	}
	l := &b.lanes[who%lanes]
	switch c {
	case tried:
		l.tried.Add(1)
	case ended:
		l.ended.Add(1)
	case tokenFailed, rejected, forbidden:
		l.faults[blamed].Add(1)
		b.witnesses[blamed].saw(who)
	case upstreamFailed:
		l.faults[broken].Add(1)
		b.witnesses[broken].saw(who)
	case calls, callerFailed, limited, counts:
	}
}

// window is a ring of buckets. Counting takes no lock but for the first count of
// each ten seconds.
type window struct {
	buckets []bucket
	turn    sync.Mutex // held to reuse a bucket
}

// newWindow covers at least span.
func newWindow(span time.Duration) *window {
	return &window{buckets: make([]bucket, max(int((span+width-1)/width), points)+1)}
}

func numberOf(now time.Time) int64 { return now.UnixNano() / int64(width) }

// at returns the bucket of a time. A time before what the window covers gets the
// bucket in its place.
func (w *window) at(now time.Time) *bucket {
	n := numberOf(now)
	b := &w.buckets[n%int64(len(w.buckets))]
	if b.number.Load() < n {
		w.reuse(b, n)
	}
	return b
}

// reuse empties a bucket. What somebody still counts of the time before, at this
// very moment, may be lost: the bucket was more than a whole window old.
func (w *window) reuse(b *bucket, n int64) {
	w.turn.Lock()
	defer w.turn.Unlock()
	if b.number.Load() >= n {
		return
	}
	for i := range b.counts {
		b.counts[i].Store(0)
	}
	for i := range b.lanes {
		l := &b.lanes[i]
		l.tried.Store(0)
		l.ended.Store(0)
		for f := range l.faults {
			l.faults[f].Store(0)
		}
	}
	for i := range b.witnesses {
		b.witnesses[i].first.Store(0)
		b.witnesses[i].several.Store(false)
	}
	b.took.reset()
	b.number.Store(n)
}

// sums are the counts of a span of time.
type sums struct {
	counts    [counts]uint64
	lanes     [lanes]laneSum
	witnesses [faults]witnessSum
}

type laneSum struct {
	tried, ended uint64
	faults       [faults]uint64
}

type witnessSum struct {
	first   uint64
	several bool
}

func (s *witnessSum) add(w *witness) {
	first := w.first.Load()
	s.several = s.several || w.several.Load() || s.first != 0 && first != 0 && first != s.first
	s.first = max(s.first, first)
}

// agreed reports whether callers agree about a fault: more than half of those that
// called see more than a share of their own calls fail, and, unless the upstream has
// but one caller, they are at least two. However many calls of its own one caller
// makes fail, it cannot make that so for others.
func (s *sums) agreed(f fault, limit float64, alone bool) bool {
	active, failing := 0, 0
	for i := range s.lanes {
		l := &s.lanes[i]
		all := max(l.tried, l.ended)
		if all == 0 {
			continue
		}
		active++
		if share(l.faults[f], all) > limit {
			failing++
		}
	}
	return 2*failing > active && (alone || s.witnesses[f].several)
}

// credential returns the calls of which it is known, or assumed, how their
// credential fared. An access log tells of a call when it is over, so that either
// count may be ahead of the other; a share of the lower one would be too high.
func (s *sums) credential() uint64 { return max(s.counts[tried], s.counts[ended]) }

// sum adds up the last span of time, the bucket that is not over included, but
// nothing of floor or before.
func (w *window) sum(now time.Time, span time.Duration, floor int64) sums {
	var s sums
	last := numberOf(now)
	first := max(last-int64((span+width-1)/width), floor+1)
	for i := range w.buckets {
		b := &w.buckets[i]
		if n := b.number.Load(); n < first || n > last {
			continue
		}
		for i := range b.counts {
			s.counts[i] += uint64(b.counts[i].Load())
		}
		for i := range b.lanes {
			from, to := &b.lanes[i], &s.lanes[i]
			to.tried += uint64(from.tried.Load())
			to.ended += uint64(from.ended.Load())
			for f := range to.faults {
				to.faults[f] += uint64(from.faults[f].Load())
			}
		}
		for f := range s.witnesses {
			s.witnesses[f].add(&b.witnesses[f])
		}
	}
	return s
}

// failures are the counts of calls that failed, by stage.
func (s *sums) failures() Failures {
	return Failures{
		Caller: s.counts[callerFailed], Token: s.counts[tokenFailed],
		Upstream: s.counts[rejected] + s.counts[forbidden], Errors: s.counts[upstreamFailed],
	}
}

// authShare is the share of all calls that failed authentication at any stage.
func (s *sums) authShare() float64 {
	f := s.failures()
	return share(f.Caller+f.Token+f.Upstream, s.all())
}

// all returns the calls, like credential.
func (s *sums) all() uint64 { return max(s.counts[calls], s.counts[callerFailed]+s.credential()) }

func share(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return min(float64(part)/float64(whole), 1)
}

// used reports whether anything was counted since.
func (w *window) used(since time.Time) bool {
	n := numberOf(since)
	for i := range w.buckets {
		if w.buckets[i].number.Load() >= n {
			return true
		}
	}
	return false
}

// exactly returns a bucket by its number, nil when nothing was counted then.
func (w *window) exactly(n int64) *bucket {
	b := &w.buckets[n%int64(len(w.buckets))]
	if b.number.Load() != n {
		return nil
	}
	return b
}

// point describes the bucket, and adds its durations to all.
func (b *bucket) point(p *Point, all *spread) {
	var own spread
	own.add(&b.took)
	all.add(&b.took)
	p.Calls = uint64(b.counts[calls].Load())
	for _, c := range [...]count{callerFailed, tokenFailed, rejected, forbidden, upstreamFailed} {
		p.Failures += uint64(b.counts[c].Load())
	}
	p.P50, p.P99 = own.quantile(0.5), own.quantile(0.99)
}

// The bins of a histogram: four for each doubling, from 1 ms to a minute and beyond.
const (
	binBits = 2
	perStep = 1 << binBits
	bins    = 16 * perStep
)

// histogram counts durations. A bin is a fifth to a quarter wider than the one before.
type histogram struct{ n [bins]atomic.Uint32 }

// bin returns where d is counted: by the place of its highest bit, and the two
// bits after that.
func bin(d time.Duration) int {
	parts := uint64(max(d, 0)) / uint64(time.Millisecond/perStep)
	if parts < perStep {
		return 0
	}
	shift := bits.Len64(parts) - 1 - binBits
	return min(shift*perStep+int(parts>>shift&(perStep-1)), bins-1)
}

// middle returns the middle of a bin, in seconds.
func middle(i int) float64 {
	step := i / perStep
	return math.Ldexp(1+(float64(i%perStep)+0.5)/perStep, step) / 1000
}

func (h *histogram) add(d time.Duration) { h.n[bin(d)].Add(1) }

func (h *histogram) reset() {
	for i := range h.n {
		h.n[i].Store(0)
	}
}

// spread is a histogram at rest.
type spread [bins]uint64

func (s *spread) add(h *histogram) {
	for i := range h.n {
		s[i] += uint64(h.n[i].Load())
	}
}

// quantile returns a quantile in seconds, 0 when nothing was counted.
func (s *spread) quantile(q float64) float64 {
	var all uint64
	for _, n := range s {
		all += n
	}
	rank := uint64(math.Ceil(q * float64(all)))
	for i, n := range s {
		if n >= rank && rank > 0 {
			return middle(i)
		}
		rank -= n
	}
	return 0
}
