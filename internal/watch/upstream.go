package watch

import (
	"sync/atomic"
	"time"
)

// upstream is what is known about one upstream.
type upstream struct {
	name string
	// counted is nil until the first call.
	counted atomic.Pointer[window]
}

// window returns what counts its calls.
func (u *upstream) window() *window {
	if w := u.counted.Load(); w != nil {
		return w
	}
	u.counted.CompareAndSwap(nil, newWindow(chartSpan))
	return u.counted.Load()
}

// status describes it.
func (u *upstream) status(now time.Time) UpstreamStatus {
	st := UpstreamStatus{Name: u.name, Breaker: BreakerStatus{State: Closed}}
	w := u.counted.Load()
	if w == nil {
		return st
	}
	s := w.sum(now, chartSpan-width, 0)
	st.Calls, st.Tried, st.Ended, st.Limited = s.counts[calls], s.counts[tried], s.counts[ended], s.counts[limited]
	st.Failures = s.failures()
	st.AuthFailureShare = s.authShare()
	st.ErrorShare = share(st.Failures.Errors, s.credential())
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
