package limits

import (
	"math"
	"time"
)

// bucket is one token bucket. Its shard's lock guards it.
//
// What a call takes is held until it is known whether the call passes, which may
// take as long as the service does. Meanwhile others take, and the bucket fills. To
// put all of it back then could be too much: had it not been taken, a full bucket
// would have run over. That part is lost to what is held, each taker's share alike,
// so that what was let pass never comes to more than burst + rate × time.
type bucket struct {
	limit, burst float64 // tokens in a second, and at most
	level        float64
	last         time.Time // when it had them: its clock does not go back
	// held is what may still be put back, and share how much is left of a token of it
	// for one that took when share was 1. A new round begins when nothing is left.
	held, share float64
	round       uint64

	key        uint64
	rule       string // its ID
	plan       uint64
	prev, next *bucket // nil when callers cannot make it up
}

const (
	// crumb is as good as nothing: what rounding leaves of what was held.
	crumb = 1e-6
	// leastShare keeps quotients of shares exact.
	leastShare = 1e-200
)

// advance lets the bucket fill until now.
func (b *bucket) advance(now time.Time) {
	if now.After(b.last) {
		b.level += b.limit * now.Sub(b.last).Seconds()
		b.last = now
	}
	b.level = min(b.level, b.burst)
	over := b.level + b.held - b.burst
	if b.held == 0 || over <= 0 {
		return
	}
	b.share *= max(0, 1-over/b.held)
	b.held -= over
	if b.held < crumb || b.share < leastShare {
		b.forgo()
	}
}

// forgo gives up what is held: it is not put back.
func (b *bucket) forgo() {
	b.held, b.share = 0, 1
	b.round++
}

// full reports whether it is as good as none.
func (b *bucket) full(now time.Time) bool {
	b.advance(now)
	return b.level >= b.burst
}

// take takes n. When there is too little, it takes nothing and says when there
// will be enough; 0 is never.
func (b *bucket) take(n float64, now time.Time) (time.Duration, bool) {
	b.advance(now)
	if n > b.burst {
		return 0, false
	}
	wait := math.Trunc((n - b.level) / b.limit * float64(time.Second))
	switch {
	case wait >= math.MaxInt64:
		return math.MaxInt64, false
	case wait > 0:
		return time.Duration(wait), false
	}
	b.level -= n
	b.held += n
	return 0, true
}

// follow takes the limit of a newer policy, from when that came into force. What
// was taken under another limit could be too much for it, and is not put back.
func (b *bucket) follow(r *rule) {
	b.plan = r.plan
	b.advance(r.since)
	if b.limit != r.limit || b.burst != float64(r.burst) {
		b.limit, b.burst = r.limit, float64(r.burst)
		b.forgo()
	}
}

// taken is what a request took of a bucket.
type taken struct {
	shard    *shard
	bucket   *bucket
	n, share float64
	round    uint64
}

// settle says what becomes of it: it is put back when the call was refused.
func (t *taken) settle(refused bool) {
	t.shard.mu.Lock()
	defer t.shard.mu.Unlock()
	b := t.bucket
	if b.round != t.round {
		return
	}
	n := t.n * b.share / t.share
	if refused {
		b.level += n
	}
	if b.held -= n; b.held < crumb {
		b.forgo()
	}
}
