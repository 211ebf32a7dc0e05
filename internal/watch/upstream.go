package watch

import (
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// upstream is what is known about one upstream. It outlives a policy.
type upstream struct {
	name     string
	span     atomic.Int64           // what counted covers, a duration
	counted  atomic.Pointer[window] // nil until the first call
	tools    toolTable
	endpoint endpoint
	breaker  breaker
	// What follows belongs to the tick.
	floor  int64 // the last ten seconds that no rule looks at
	logged phase // as it was last logged
}

// seat is an upstream as a policy has it. It is immutable.
type seat struct {
	*upstream
	rules policy.WatchRules
	// disabled is whether the policy switches it off, and since when.
	disabled bool
	since    time.Time
	// lends is whether it is lent a credential, and userBound whether each caller has
	// one of its own.
	lends, userBound bool
	// alone is whether the policy has one caller of it that is nobody else: no people,
	// and not anybody.
	alone bool
	// usage is whether the usage of its tools is watched.
	usage bool
}

// newSeat takes over what is known, old being nil for a new upstream.
func newSeat(up *policy.Upstream, old *seat, now time.Time) *seat {
	s := &seat{
		rules: up.Watch, disabled: up.Disabled, lends: !up.Credential.None(),
		userBound: up.Credential.OAuth2 != nil && up.Credential.OAuth2.UserBound(),
		usage:     up.Tools != nil && !up.Watch.ToolUsage.Do.Off(),
	}
	s.alone = len(up.Callers) == 1 && !up.Callers[0].Any && up.Callers[0].JWT == nil
	if s.disabled {
		s.since = now
	}
	if old == nil {
		s.upstream = &upstream{name: up.Name}
	} else {
		s.upstream = old.upstream
		if old.disabled {
			s.since = old.since
		}
		if s.rules != old.rules {
			s.breaker.reset(now)
			s.tools.m.Store(nil)
		}
	}
	span := max(Span, s.rules.AuthFailures.Window, s.rules.Errors.Window)
	if s.span.Swap(int64(span)) < int64(span) {
		s.counted.Store(nil)
	}
	return s
}

// window returns what counts its calls.
func (u *upstream) window() *window {
	for {
		if w := u.counted.Load(); w != nil {
			return w
		}
		u.counted.CompareAndSwap(nil, newWindow(time.Duration(u.span.Load())))
	}
}

// status describes it.
func (s *seat) status(now time.Time) UpstreamStatus {
	st := UpstreamStatus{Name: s.name, Breaker: s.breaker.status(now, &s.rules.Breaker), TokenEndpoint: s.endpoint.status()}
	if s.disabled {
		st.Breaker = BreakerStatus{State: Disabled, Since: s.since, Why: "the policy says disabled: true"}
	}
	w := s.counted.Load()
	if w == nil {
		return st
	}
	sum := w.sum(now, Span-width, 0)
	st.Calls, st.Tried, st.Ended, st.Limited = sum.counts[calls], sum.counts[tried], sum.counts[ended], sum.counts[limited]
	st.Failures = sum.failures()
	st.AuthFailureShare = sum.authShare()
	st.ErrorShare = share(st.Failures.Errors, sum.credential())
	minute := w.sum(now, time.Minute-width, 0)
	st.Rate = float64(minute.counts[calls]) / time.Minute.Seconds()
	var all spread
	st.Series = make([]Point, points)
	for i := range st.Series {
		n := numberOf(now) - points + 1 + int64(i)
		st.Series[i].At = time.Unix(0, n*int64(width)).UTC()
		if b := w.exactly(n); b != nil {
			b.point(&st.Series[i], &all)
		}
	}
	st.P50, st.P99 = all.quantile(0.5), all.quantile(0.99)
	return st
}
