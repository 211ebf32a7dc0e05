package tokens

import (
	"crypto/sha256"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxUsers bounds the users' tokens of a process, over all credentials.
	maxUsers = 100_000
	// shardCount spreads them, so that no two calls of different users wait
	// for one lock.
	shardCount = 64
	// idleUser is how long a user's token is kept that nobody asks for, and
	// sweepPace how often that is looked at.
	idleUser  = 15 * time.Minute
	sweepPace = time.Minute
)

// userName is a user's place in the table: keyed, so that whoever reads it learns
// nothing of whom it names, and dies with the process.
type userName [sha256.Size]byte

// users is the table of all users of all credentials, each in its place by name
// and by last use.
type users struct {
	now    func() time.Time
	limit  int64
	count  atomic.Int64
	shards [shardCount]shard
	// holders knows the users by their tokens.
	holders holders

	mu      sync.Mutex // guards the sweeper
	sweeper *time.Timer
	closed  bool
}

// shard is a part of the table. Its lock is held for a few instructions.
type shard struct {
	mu     sync.Mutex
	byName map[userName]*user
	// newest and oldest are the ends of the list by last use.
	newest, oldest *user
}

func newUsers(now func() time.Time) *users {
	us := &users{now: now, limit: maxUsers, holders: holders{m: map[string]*user{}}}
	for i := range us.shards {
		us.shards[i].byName = map[userName]*user{}
	}
	return us
}

func (us *users) shard(n userName) *shard { return &us.shards[int(n[0])%shardCount] }

// find returns the user of a name, and counts that as a use.
func (us *users) find(n userName, now time.Time) *user {
	sh := us.shard(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	u := sh.byName[n]
	if u != nil {
		sh.unlink(u)
		sh.link(u, now)
	}
	return u
}

// add puts a user in place, unless another call did so first: then that one
// counts. A user of a dropped credential gets no place: it serves the call that
// made it, and is gone.
func (us *users) add(u *user, now time.Time) *user {
	sh := us.shard(u.name)
	sh.mu.Lock()
	if old := sh.byName[u.name]; old != nil {
		sh.mu.Unlock()
		return old
	}
	if u.crowd.dropped.Load() {
		sh.mu.Unlock()
		return u
	}
	sh.byName[u.name] = u
	sh.link(u, now)
	u.crowd.users.Add(1)
	over := us.count.Add(1) > us.limit
	sh.mu.Unlock()
	if over {
		us.evict(u)
	}
	us.watch()
	return u
}

// evict makes room by dropping whom nobody asked for the longest. Exactly so it
// is only within a shard: the order of all would take a lock on all.
func (us *users) evict(spare *user) {
	for i := range shardCount {
		sh := &us.shards[(int(spare.name[0])+i)%shardCount]
		sh.mu.Lock()
		victim := sh.oldest
		if victim == spare {
			victim = victim.newer
		}
		if victim != nil {
			us.remove(sh, victim)
		}
		sh.mu.Unlock()
		if victim != nil {
			victim.wipe()
			return
		}
	}
}

// sweep drops those that hold.
func (us *users) sweep(gone func(*user) bool) {
	for i := range us.shards {
		sh := &us.shards[i]
		var out []*user
		sh.mu.Lock()
		for u := sh.oldest; u != nil; {
			next := u.newer
			if gone(u) {
				us.remove(sh, u)
				out = append(out, u)
			}
			u = next
		}
		sh.mu.Unlock()
		for _, u := range out {
			u.wipe()
		}
	}
}

// remove takes a user out. The shard is locked.
func (us *users) remove(sh *shard, u *user) {
	delete(sh.byName, u.name)
	sh.unlink(u)
	us.count.Add(-1)
	u.crowd.users.Add(-1)
}

// watch runs one timer for all, while there is anybody: a timer each would be
// a hundred thousand.
func (us *users) watch() {
	us.mu.Lock()
	defer us.mu.Unlock()
	if us.sweeper != nil || us.closed {
		return
	}
	us.sweeper = time.AfterFunc(sweepPace, func() {
		now := us.now()
		us.sweep(func(u *user) bool {
			return !now.Before(u.used.Add(idleUser)) || !now.Before(u.until)
		})
		us.mu.Lock()
		us.sweeper = nil
		us.mu.Unlock()
		if us.count.Load() > 0 {
			us.watch()
		}
	})
}

// close ends the sweeping and forgets everybody.
func (us *users) close() {
	us.mu.Lock()
	us.closed = true
	if us.sweeper != nil {
		us.sweeper.Stop()
	}
	us.mu.Unlock()
	us.sweep(func(*user) bool { return true })
}

// link puts a user at the newest end. The shard is locked.
func (sh *shard) link(u *user, now time.Time) {
	u.used, u.older, u.newer = now, sh.newest, nil
	if sh.newest != nil {
		sh.newest.newer = u
	} else {
		sh.oldest = u
	}
	sh.newest = u
}

// unlink takes a user off the list. The shard is locked.
func (sh *shard) unlink(u *user) {
	if u.newer != nil {
		u.newer.older = u.older
	} else {
		sh.newest = u.older
	}
	if u.older != nil {
		u.older.newer = u.newer
	} else {
		sh.oldest = u.newer
	}
	u.older, u.newer = nil, nil
}
