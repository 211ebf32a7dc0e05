package watch

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxThrottles bounds how many callers are held back at once.
const maxThrottles = 1024

// target is whose calls, and to which upstream: the zero value of either is all.
type target struct {
	upstream string
	who      uint64
}

// throttle lets some calls of a target pass.
type throttle struct {
	limit   *rate.Limiter
	status  ThrottleStatus // Until and Refused are below
	until   atomic.Int64   // Unix nanoseconds
	refused atomic.Uint64
}

// throttles are those in force. The map is replaced, never changed.
type throttles struct {
	m atomic.Pointer[map[target]*throttle]
	// taking is held from looking at the throttles of a call until they are taken from.
	taking sync.Mutex
}

// admit asks all throttles that a call falls under. It takes of all or of none, so
// that who is refused by one costs those nothing who are under another.
func (t *throttles) admit(now time.Time, upstream string, who uint64) time.Duration {
	m := t.m.Load()
	if m == nil || len(*m) == 0 {
		return 0
	}
	about := [...]*throttle{(*m)[target{upstream, 0}], nil, nil}
	if who != 0 {
		about[1], about[2] = (*m)[target{"", who}], (*m)[target{upstream, who}]
	}
	if about == [len(about)]*throttle{} {
		return 0
	}
	t.taking.Lock()
	defer t.taking.Unlock()
	var wait time.Duration
	for _, th := range about {
		wait = max(wait, th.wait(now))
	}
	for _, th := range about {
		if wait == 0 && th.on(now) {
			th.limit.AllowN(now, 1)
		}
	}
	return wait
}

// on reports whether it is there and not over.
func (th *throttle) on(now time.Time) bool {
	return th != nil && now.UnixNano() < th.until.Load()
}

// wait returns 0 when a call may pass, else when the next one may. It takes nothing.
func (th *throttle) wait(now time.Time) time.Duration {
	if !th.on(now) {
		return 0
	}
	lacks := 1 - th.limit.TokensAt(now)
	wait := time.Duration(lacks / float64(th.limit.Limit()) * float64(time.Second))
	if wait <= 0 {
		return 0
	}
	th.refused.Add(1)
	return wait
}

// hold begins a throttle, or makes it last longer. It is for one at a time, like end.
func (t *throttles) hold(now time.Time, at target, spec policy.WatchThrottle, rule, caller string) {
	old := map[target]*throttle{}
	if m := t.m.Load(); m != nil {
		old = *m
	}
	th := old[at]
	if th == nil {
		if len(old) >= maxThrottles {
			return
		}
		perSecond := float64(spec.Rate.Count) / spec.Rate.Every.Seconds()
		th = &throttle{
			limit:  rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond))),
			status: ThrottleStatus{Upstream: at.upstream, Caller: caller, Rule: rule, Rate: perSecond, Since: now},
		}
		next := maps.Clone(old)
		next[at] = th
		t.m.Store(&next)
	}
	th.until.Store(now.Add(spec.For).UnixNano())
}

// end drops those that are over, and those for which gone says so.
func (t *throttles) end(now time.Time, gone func(target) bool) {
	m := t.m.Load()
	if m == nil {
		return
	}
	next := maps.Clone(*m)
	maps.DeleteFunc(next, func(at target, th *throttle) bool { return now.UnixNano() >= th.until.Load() || gone(at) })
	if len(next) < len(*m) {
		t.m.Store(&next)
	}
}

// list describes those in force.
func (t *throttles) list() []ThrottleStatus {
	all := []ThrottleStatus{}
	if m := t.m.Load(); m != nil {
		for _, th := range *m {
			st := th.status
			st.Until, st.Refused = time.Unix(0, th.until.Load()).UTC(), th.refused.Load()
			all = append(all, st)
		}
	}
	return all
}
