package tokens

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// unlock deletes what is at a place while it is still the value given: a lock
// that ran out may be another's by now, and so may a token.
const unlock = `if redis.call("GET", KEYS[1]) == ARGV[1] then return redis.call("DEL", KEYS[1]) end return 0`

// rejectedKept is how many refused tokens are remembered: with one alone, who owns
// the server could put the last but one back, and that one again, in turns.
const rejectedKept = 8

// turn is what one fetch has to do with the shared cache. Its methods are for
// the goroutine of that fetch.
type turn struct {
	fleet       *Fleet
	entry       *entry
	secret      string
	token, lock string // places
	owner       string
	held        bool      // the lock is ours
	busy        bool      // the lock is another replica's
	until       time.Time // the end of the user's own token; zero for a token of the service
}

// Share makes the cache share its tokens through f, from the next fetch on; nil
// ends that. The caller closes the one that was there before.
func (c *Cache) Share(f *Fleet) { c.fleet.Store(f) }

// travel is fly for replicas that share tokens. First it looks whether another
// one has a newer token, or is about to have it; then it fetches like anybody. What
// is left to tell the others, it tells once the waiters have their answer.
func (e *entry) travel(f *flight) {
	t := e.turn(f)
	if t == nil || !t.borrow(f) {
		e.fly(f)
	}
	if t != nil {
		t.end(f)
	}
}

// turn returns nil when there is nobody to share with, or nothing.
func (e *entry) turn(f *flight) *turn {
	fleet := e.cache.fleet.Load()
	if fleet == nil {
		return nil
	}
	id, until := e.id, time.Time{}
	if e.user != nil {
		e.mu.Lock() // held by the launch, until it is complete
		who := f.who
		e.mu.Unlock()
		id, until = e.user.crowd.key.of(who), who.Expiry
	}
	if id == (key{}) {
		return nil
	}
	secret, err := fleet.secret()
	if err != nil {
		fleet.observe(codeOf(err))
		fleet.failed(codeOf(err), "")
		return nil
	}
	workload, bad := e.client.workload()
	if bad != nil {
		return nil // fly says so
	}
	place, err := placeOf(secret, id, workload)
	if err != nil {
		return nil
	}
	return &turn{
		fleet: fleet, entry: e, secret: secret, owner: rand.Text(), until: until,
		token: fleet.cfg.Spec.Prefix + ":token:" + place, lock: fleet.cfg.Spec.Prefix + ":lock:" + place,
	}
}

// borrow lands the token of another replica, and reports whether there was one.
// When there is none and nobody else fetches, it holds the lock. It waits for a
// fetch of another replica: as long as the lock lives when there still is a
// token, and not beyond coldPatience when calls wait.
func (t *turn) borrow(f *flight) bool {
	e, now := t.entry, t.entry.cache.cfg.Now
	for start := now(); ; {
		k, result := t.look()
		if result == "hit" {
			t.fleet.observe(result)
			f.got = granted{life: k.Life, refresh: k.Refresh, scope: k.Scope, at: k.At}
			f.token, f.borrowed = newToken(e.cache.key, k.Access, k.At, k.Life, k.Scope), true
			if r := e.land(f, nil, nil); e.user == nil {
				e.tell(r)
			}
			return true
		}
		patience := coldPatience
		if e.alive(now()) != nil {
			patience = lockLife
		}
		if !t.busy || now().Sub(start) >= patience {
			t.fleet.observe(result)
			return false
		}
		pause := time.NewTimer(pollPace)
		select {
		case <-pause.C:
		case <-e.cache.ctx.Done():
			pause.Stop()
			return false
		}
	}
}

// look asks for the lock and the token in one round trip. The lock comes first:
// whoever gets it sees the token that the last holder stored before it let go.
// The result is "hit" when there is a token to use, else why not.
func (t *turn) look() (kept, string) {
	f := t.fleet
	t.busy = false
	ctx, cancel := context.WithTimeout(t.entry.cache.ctx, f.patience)
	defer cancel()
	if !f.link.up(ctx) {
		return kept{}, "skipped"
	}
	before := f.cfg.Now()
	pipe := f.db.Pipeline()
	lock := pipe.SetNX(ctx, t.lock, t.owner, lockLife)
	lockTTL := pipe.PTTL(ctx, t.lock)
	value := pipe.GetRange(ctx, t.token, 0, maxSealed)
	ttl := pipe.PTTL(ctx, t.token)
	_, _ = pipe.Exec(ctx)
	t.held = lock.Val()
	place, err := t.lock, lock.Err()
	if codeOf(err) == "" {
		place, err = t.token, value.Err()
	}
	if code := codeOf(err); code != "" && !redis.HasErrorPrefix(err, "WRONGTYPE") {
		f.failed(code, place)
		return kept{}, code
	}
	// A lock without an end, or with a distant one, is none of ours.
	t.busy = !t.held && lockTTL.Val() > 0 && lockTTL.Val() <= lockLife
	switch {
	case value.Err() != nil:
		return kept{}, "bad_value"
	case value.Val() == "":
		return kept{}, "miss"
	}
	return t.judge(value.Val(), ttl.Val(), before)
}

// judge says whether a stored value is a token to use: one of ours, alive, newer
// than the one in place, and not the one that an upstream just refused. Its time
// comes back as one of this process's clock.
func (t *turn) judge(value string, ttl time.Duration, now time.Time) (kept, string) {
	e := t.entry
	k, err := unseal(t.secret, t.token, []byte(value))
	if err != nil || k.Life > e.client.o.MaxLifetime || ttl <= 0 {
		return kept{}, "bad_value"
	}
	// Two clocks say how long it lives, and the shorter life counts: the
	// server's, since those of two replicas may differ, and the sealed time,
	// since who owns the server may store an old value again.
	left := min(ttl, k.Life-max(now.Round(0).Sub(k.At), 0))
	if !t.until.IsZero() {
		left = min(left, t.until.Sub(now)) // no token outlives the proof that its user was there
	}
	if left <= 0 {
		return kept{}, "expired"
	}
	authorization := []byte("Bearer " + k.Access)
	if e.refused(authorization) {
		t.evict(value)
		return kept{}, "rejected"
	}
	current := e.alive(now)
	if current != nil && (hmac.Equal(current.Authorization(), authorization) || !now.Add(left).After(current.expiry)) {
		return kept{}, "miss"
	}
	k.At = now.Add(left - k.Life)
	return k, "hit"
}

// evict takes a refused token away from the other replicas, once and while it is
// still the one there.
func (t *turn) evict(value string) {
	f := t.fleet
	t.entry.cache.spawn(func() {
		ctx, cancel := context.WithTimeout(f.ctx, settlePatience)
		defer cancel()
		if code := codeOf(f.db.Eval(ctx, unlock, []string{t.token}, value).Err()); code != "" {
			f.observe(code)
			f.failed(code, t.token)
		}
	})
}

// end stores the token that this replica fetched and gives the lock back. The
// waiters have their answer by now.
func (t *turn) end(f *flight) {
	fleet := t.fleet
	ctx, cancel := context.WithTimeout(fleet.ctx, settlePatience)
	defer cancel()
	if !fleet.link.up(ctx) {
		return // the lock runs out by itself
	}
	pipe := fleet.db.Pipeline()
	var stored *redis.StatusCmd
	if value, left := t.sealed(f); value != nil {
		stored = pipe.Set(ctx, t.token, value, left)
	}
	if t.held {
		pipe.Eval(ctx, unlock, []string{t.lock}, t.owner)
	}
	if pipe.Len() == 0 {
		return
	}
	_, err := pipe.Exec(ctx)
	if code := codeOf(err); code != "" {
		fleet.observe(code)
		fleet.failed(code, t.token)
	} else if stored != nil {
		fleet.observe("stored")
	}
}

// sealed returns what to store of a flight, nil for nothing, and for how long.
func (t *turn) sealed(f *flight) ([]byte, time.Duration) {
	e, now := t.entry, t.entry.cache.cfg.Now()
	if f.borrowed || f.err != nil || f.token == nil {
		return nil, 0
	}
	left := f.token.expiry.Sub(now).Truncate(time.Millisecond)
	authorization := f.token.Authorization()
	if left < refreshFloor || e.refused(authorization) {
		return nil, 0
	}
	value, err := seal(t.secret, t.token, kept{
		Access: strings.TrimPrefix(string(authorization), "Bearer "), Life: f.token.lifetime,
		Refresh: f.got.refresh, Scope: f.token.scope, At: f.got.at.Round(0),
	})
	if err != nil || len(value) > maxSealed {
		return nil, 0
	}
	return value, left
}

// reject remembers an authorization that an upstream refused. mu is held.
func (e *entry) reject(authorization []byte) {
	mark := e.cache.mark(authorization)
	if i := e.rejection(mark); i >= 0 {
		e.rejected = slices.Delete(e.rejected, i, i+1)
	}
	e.rejected = slices.Insert(e.rejected, 0, mark)
	e.rejected = e.rejected[:min(len(e.rejected), rejectedKept)]
}

// refused reports whether an authorization is one of the last that an upstream
// refused.
func (e *entry) refused(authorization []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rejection(e.cache.mark(authorization)) >= 0
}

func (e *entry) rejection(mark []byte) int {
	return slices.IndexFunc(e.rejected, func(m []byte) bool { return hmac.Equal(m, mark) })
}

// mark is the keyed hash by which a refused authorization is remembered.
func (c *Cache) mark(authorization []byte) []byte {
	m := hmac.New(sha256.New, c.key)
	part(m, "rejected", string(authorization))
	return m.Sum(nil)
}
