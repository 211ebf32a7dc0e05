package watch

import (
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxTools bounds the tools of an upstream whose usage is watched. Their names are
// the callers' to choose, where the policy does not list them.
const maxTools = 256

// toolTable is the usage of the tools of one upstream. Reading it takes no lock.
type toolTable struct {
	m    atomic.Pointer[map[string]*usage]
	grow sync.Mutex
}

// usage is how often a tool is called.
type usage struct {
	tool      string // as it may be shown
	now, past atomic.Uint32
	most      candidate
	// What follows belongs to the tick.
	first, began time.Time // the first window, and this one
	windows      int       // that are over
	mean         float64   // calls in a window
}

// candidate is the only caller who can have made more than half of the calls of a
// window (Boyer and Moore's vote), and how many it made since it was noticed, at least.
type candidate struct {
	mu     sync.Mutex
	person person
	votes  int
	made   uint32
}

// person is who calls.
type person struct {
	who                     uint64 // 0 for a caller that anybody may be
	caller, issuer, subject string
}

// add counts one call. It allocates for a new tool only.
func (t *toolTable) add(tool []byte, p *person) {
	m := t.m.Load()
	if m == nil || (*m)[string(tool)] == nil {
		if m != nil && len(*m) >= maxTools {
			return
		}
		m = t.insert(string(tool))
	}
	if u := (*m)[string(tool)]; u != nil {
		u.now.Add(1)
		u.most.vote(p)
	}
}

func (t *toolTable) insert(tool string) *map[string]*usage {
	t.grow.Lock()
	defer t.grow.Unlock()
	next := map[string]*usage{}
	if m := t.m.Load(); m != nil {
		if (*m)[tool] != nil || len(*m) >= maxTools {
			return m
		}
		next = maps.Clone(*m)
	}
	next[tool] = &usage{tool: shown(tool, 128)}
	t.m.Store(&next)
	return &next
}

func (c *candidate) vote(p *person) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case p.who != 0 && p.who == c.person.who:
		c.votes++
		c.made++
	case c.votes > 0:
		c.votes--
	case p.who != 0:
		c.person, c.votes, c.made = *p, 1, 1
	}
}

// heavy returns who made more than half of n calls, when somebody did.
func (c *candidate) heavy(n float64) (person, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.person, c.person.who != 0 && float64(c.made) > n/2
}

func (c *candidate) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.person, c.votes, c.made = person{}, 0, 0
}

// turn ends a window when its time has come. What a window teaches is bounded by
// what the rule lets pass, or a surge would be usual soon.
func (u *usage) turn(now time.Time, r *policy.ToolUsageRule) {
	if u.first.IsZero() {
		u.first, u.began = now, now
	}
	for now.Sub(u.began) >= r.Window {
		n := u.now.Swap(0)
		u.past.Store(n)
		calls := float64(n)
		if u.learnt(r) {
			calls = min(calls, float64(r.Factor)*max(u.mean, 1))
		}
		u.windows++
		u.mean += (calls - u.mean) * max(1/float64(u.windows), float64(r.Window)/float64(r.Learn))
		u.most.reset()
		if u.began = u.began.Add(r.Window); now.Sub(u.began) > r.Learn {
			u.began = now // the machine slept
		}
	}
}

// learnt reports whether it is known what is usual.
func (u *usage) learnt(r *policy.ToolUsageRule) bool {
	return time.Duration(u.windows)*r.Window >= r.Learn
}

// lately estimates the calls within the last window: those of the present one, and
// of the one before the part that is not over a window ago.
func (u *usage) lately(now time.Time, r *policy.ToolUsageRule) float64 {
	left := 1 - float64(now.Sub(u.began))/float64(r.Window)
	return float64(u.now.Load()) + math.Max(left, 0)*float64(u.past.Load())
}

// unusual reports whether the rule is broken, or, when it lasts, still broken.
func (u *usage) unusual(now time.Time, r *policy.ToolUsageRule, lasts bool) bool {
	n := u.lately(now, r)
	return u.learnt(r) && (lasts || n >= float64(r.MinCalls)) && n > float64(r.Factor)*u.mean
}

// prune forgets tools that are as good as unused, to make room for others.
func (t *toolTable) prune() {
	t.grow.Lock()
	defer t.grow.Unlock()
	m := t.m.Load()
	if m == nil || len(*m) < maxTools {
		return
	}
	next := maps.Clone(*m)
	maps.DeleteFunc(next, func(_ string, u *usage) bool {
		return u.windows > 0 && u.mean < 0.01 && u.now.Load() == 0 && u.past.Load() == 0
	})
	t.m.Store(&next)
}

// shown returns at most limit characters of what a caller or an issuer chose:
// visible ASCII and single blanks, and ? for the rest.
func shown(s string, limit int) string {
	out := make([]byte, 0, min(len(s), limit))
	for i := 0; i < len(s) && len(out) < limit; i++ {
		c := s[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		out = append(out, c)
	}
	return string(out)
}
