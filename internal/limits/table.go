package limits

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
)

const (
	// shardCount keeps calls of different callers out of each other's way.
	shardCount = 64
	// looked bounds how many buckets are looked at for one to forget.
	looked = 8
)

// table holds the buckets: one for each rule and whatever the rule counts apart.
//
// Only buckets whose names callers can make up, by subject or tool, are limited
// in number. A full one is as good as none, so only full ones are forgotten. When
// all are in use, those that come new share one for their caller, upstream and
// shard, since a bucket of their own would be a way past the limit, and none a way
// to lock everybody out.
type table struct {
	seed   maphash.Seed
	shards [shardCount]shard
}

type shard struct {
	mu      sync.Mutex
	buckets map[uint64]*bucket
	// chosen is a ring of those that callers can make up, the last used first;
	// size is how many there are, and room how many there may be.
	chosen     bucket
	size, room int
	_          [32]byte // a cache line apart
}

func newTable(buckets int) *table {
	t := &table{seed: maphash.MakeSeed()}
	for i := range t.shards {
		s := &t.shards[i]
		s.buckets, s.room = map[uint64]*bucket{}, max(1, buckets/shardCount)
		s.chosen.prev, s.chosen.next = &s.chosen, &s.chosen
	}
	return t
}

// take takes n of the bucket for a call of a tool, or of no tool. When there is
// too little in it, it takes nothing and says when there will be enough; 0 is never.
func (t *table) take(r *rule, d *extproc.Decision, tool []byte, n int, now time.Time) (taken, time.Duration, bool) {
	key := t.key(r, d, tool)
	s := &t.shards[key%shardCount]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.buckets[key]
	switch {
	case b != nil:
		s.used(b)
	case r.PerTool || r.PerSubject && d.Subject != "":
		b = s.admit(key, t.shared(r, d), r, now)
	default:
		b = s.add(key, r, now)
	}
	if b.plan < r.plan { // a call that began under an older policy changes nothing back
		b.follow(r)
	}
	if wait, ok := b.take(float64(n), now); !ok {
		return taken{}, wait, false
	}
	return taken{shard: s, bucket: b, n: float64(n), share: b.share, round: b.round}, 0, true
}

// add makes a bucket, full.
func (s *shard) add(key uint64, r *rule, now time.Time) *bucket {
	most := float64(r.burst)
	b := &bucket{limit: r.limit, burst: most, level: most, last: now, share: 1, key: key, rule: r.ID, plan: r.plan}
	s.buckets[key] = b
	return b
}

// admit makes a bucket that callers can make up, and returns the shared one when
// there is no room. Who took of the shared one before has that taken of its own.
func (s *shard) admit(key, shared uint64, r *rule, now time.Time) *bucket {
	crowd := s.buckets[shared]
	if s.size >= s.room && !s.forget(now) {
		if crowd == nil {
			crowd = s.add(shared, r, now)
		}
		return crowd
	}
	b := s.add(key, r, now)
	s.size++
	s.push(b)
	if crowd == nil {
		return b
	}
	if crowd.plan < r.plan {
		crowd.follow(r)
	}
	if crowd.full(now) {
		s.drop(crowd)
	} else {
		b.level = min(b.level, crowd.level)
	}
	return b
}

// used moves a bucket to the front of those that callers can make up.
func (s *shard) used(b *bucket) {
	if b.next != nil && s.chosen.next != b {
		b.unlink()
		s.push(b)
	}
}

// forget drops a full bucket among those that were not used for the longest.
// Those that it finds in use count as used, so that the next search goes on.
func (s *shard) forget(now time.Time) bool {
	for range looked {
		b := s.chosen.prev
		if b == &s.chosen {
			return false
		}
		if b.full(now) {
			s.drop(b)
			return true
		}
		b.unlink()
		s.push(b)
	}
	return false
}

func (s *shard) drop(b *bucket) {
	delete(s.buckets, b.key)
	if b.next != nil {
		b.unlink()
		s.size--
	}
}

func (s *shard) push(b *bucket) {
	b.prev, b.next = &s.chosen, s.chosen.next
	b.prev.next, b.next.prev = b, b
}

func (b *bucket) unlink() { b.prev.next, b.next.prev = b.next, b.prev }

// retain drops the buckets of all other rules.
func (t *table) retain(rules map[string]bool) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, b := range s.buckets {
			if !rules[b.rule] {
				s.drop(b)
			}
		}
		s.mu.Unlock()
	}
}

// len counts the buckets.
func (t *table) len() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.buckets)
		s.mu.Unlock()
	}
	return n
}

// key names a bucket: the rule and what it counts apart. Two that collide would
// share a bucket; the seed is nobody's to know.
func (t *table) key(r *rule, d *extproc.Decision, tool []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	part(&h, 'r', r.ID)
	if r.PerUpstream {
		part(&h, 'u', d.Upstream)
	}
	if r.PerCaller {
		part(&h, 'c', d.Caller)
	}
	if r.PerSubject && d.Subject != "" {
		part(&h, 'i', d.Issuer)
		part(&h, 's', d.Subject)
	} else if r.PerSubject {
		part(&h, 'c', d.Caller)
	}
	if r.PerTool {
		_ = h.WriteByte('t')
		_, _ = h.Write(tool)
	}
	return h.Sum64()
}

// shared names the bucket of a caller and an upstream for all that has none.
func (t *table) shared(r *rule, d *extproc.Decision) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	part(&h, 'o', r.ID)
	part(&h, 'u', d.Upstream)
	part(&h, 'c', d.Caller)
	return h.Sum64()
}

// part adds a part with its kind and length, so that no two lists of parts read the same.
func part(h *maphash.Hash, kind byte, text string) {
	var head [9]byte
	head[0] = kind
	binary.LittleEndian.PutUint64(head[1:], uint64(len(text)))
	_, _ = h.Write(head[:])
	_, _ = h.WriteString(text)
}
