package watch

import (
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// shards divide the callers, so that a call locks few others out.
	shards = 64
	// maxCallers bounds the callers whose tools are remembered.
	maxCallers = 10_000
)

// sweeps remembers which tools each caller ran of late.
type sweeps struct{ shard [shards]sweepShard }

type sweepShard struct {
	mu sync.Mutex
	m  map[uint64]*sweeper
}

// sweeper is one caller.
type sweeper struct {
	person person
	last   int64
	tools  []used
}

// used is when a tool was last run, in tens of seconds.
type used struct {
	tool uint64
	at   int64
}

// add notes that somebody ran a tool. It allocates for what is new only, and
// remembers no more tools than break the rule.
func (s *sweeps) add(p *person, tool uint64, now time.Time, r *policy.SweepRule) {
	sh := &s.shard[p.who%shards]
	n := numberOf(now)
	old := n - int64(r.Window/width)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	who := sh.m[p.who]
	if who == nil {
		who = sh.insert(p)
	}
	who.last = n
	free := -1
	for i := range who.tools {
		switch u := &who.tools[i]; {
		case u.tool == tool:
			u.at = n
			return
		case u.at < old:
			free = i
		}
	}
	switch {
	case free >= 0:
		who.tools[free] = used{tool, n}
	case len(who.tools) <= r.Tools:
		who.tools = append(who.tools, used{tool, n})
	}
}

// insert makes room by forgetting who was not seen for longest.
func (sh *sweepShard) insert(p *person) *sweeper {
	if sh.m == nil {
		sh.m = map[uint64]*sweeper{}
	}
	if len(sh.m) >= maxCallers/shards {
		var oldest *sweeper
		for _, s := range sh.m {
			if oldest == nil || s.last < oldest.last {
				oldest = s
			}
		}
		delete(sh.m, oldest.person.who)
	}
	s := &sweeper{person: *p}
	sh.m[p.who] = s
	return s
}

// each yields who ran more tools than the rule allows, or still runs many, and how many.
func (s *sweeps) each(now time.Time, r *policy.SweepRule, yield func(p person, tools int)) {
	old := numberOf(now) - int64(r.Window/width)
	for i := range s.shard {
		s.shard[i].each(old, r, yield)
	}
}

func (sh *sweepShard) each(old int64, r *policy.SweepRule, yield func(person, int)) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for who, s := range sh.m {
		if s.last < old {
			delete(sh.m, who)
			continue
		}
		if len(s.tools) <= r.Tools {
			continue
		}
		n := 0
		for _, u := range s.tools {
			if u.at >= old {
				n++
			}
		}
		if n > r.Tools {
			yield(s.person, n)
		}
	}
}
