package watch

import (
	"maps"
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
}

// admit asks all throttles that a call falls under.
func (t *throttles) admit(now time.Time, upstream string, who uint64) time.Duration {
	m := t.m.Load()
	if m == nil || len(*m) == 0 {
		return 0
	}
	var wait time.Duration
	for _, at := range [...]target{{upstream, 0}, {"", who}, {upstream, who}} {
		if th := (*m)[at]; th != nil && at != (target{}) {
			wait = max(wait, th.take(now))
		}
	}
	return wait
}

// take returns 0 when a call may pass, else when the next one may.
func (th *throttle) take(now time.Time) time.Duration {
	if now.UnixNano() >= th.until.Load() {
		return 0
	}
	r := th.limit.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
		th.refused.Add(1)
	}
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
