package tokens

import (
	"crypto/sha256"
	"sync"
	"time"
)

const (
	// seenLife is the most that a verdict is believed without a new look (rule J11).
	seenLife = time.Minute
	// seenShards, seenMost and seenBytes bound what is kept: 64 shards, 10,000
	// tokens and 32 MiB in all, the least of which counts.
	seenShards = 64
	seenMost   = 10_000 / seenShards
	seenBytes  = 32 << 20 / seenShards
)

// seen remembers tokens that were verified, by their hash. A token is not taken
// for good by another rule than the one it was verified by, nor under other keys.
type seen struct{ shards [seenShards]seenShard }

// seenShard is a part of it with a lock of its own.
type seenShard struct {
	mu    sync.Mutex
	m     map[seenKey]proven
	bytes int
}

type seenKey struct {
	sum  [sha256.Size]byte
	rule *Rule
}

// proven is a verified token.
type proven struct {
	p     *Principal
	keys  *keySet
	until time.Time
}

func (v proven) size() int { return len(v.p.token()) }

// get returns the principal of a token that was verified under these keys.
func (s *seen) get(k seenKey, keys *keySet, now time.Time) *Principal {
	shard := &s.shards[k.sum[0]%seenShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	v, ok := shard.m[k]
	if !ok {
		return nil
	}
	if v.keys != keys || !now.Before(v.until) {
		shard.drop(k, v)
		return nil
	}
	return v.p
}

// put remembers a verdict. When there is no room, what is dead goes first, and
// then whatever the map has at its front, which is a matter of chance.
func (s *seen) put(k seenKey, v proven, now time.Time) {
	shard := &s.shards[k.sum[0]%seenShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.m == nil {
		shard.m = map[seenKey]proven{}
	}
	if old, ok := shard.m[k]; ok {
		shard.drop(k, old)
	}
	full := func() bool { return len(shard.m) >= seenMost || shard.bytes+v.size() > seenBytes }
	if full() {
		for k, v := range shard.m {
			if !now.Before(v.until) {
				shard.drop(k, v)
			}
		}
	}
	for k, v := range shard.m {
		if !full() {
			break
		}
		shard.drop(k, v)
	}
	shard.m[k] = v
	shard.bytes += v.size()
}

// drop forgets one. mu is held.
func (s *seenShard) drop(k seenKey, v proven) {
	delete(s.m, k)
	s.bytes -= v.size()
}

// keep forgets what other rules than these verified.
func (s *seen) keep(rules map[*Rule]bool) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		for k, v := range shard.m {
			if !rules[k.rule] {
				shard.drop(k, v)
			}
		}
		shard.mu.Unlock()
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
