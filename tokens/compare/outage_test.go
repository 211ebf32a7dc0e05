package compare

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

const (
	// pace is how often the one caller of these tests calls. At 10 calls a
	// second no two calls overlap, which would stop the fake clock of caches
	// that hold a mutex while they wait.
	pace      = 100 * time.Millisecond
	allowance = 1500 * time.Millisecond

	hourOf503   = "token requests in 1 h of 503"
	backSoon    = "good again, outage of 5 s"
	backLate    = "good again, outage of 5 min"
	failedCalls = "failed calls, token of 5 min, outages of 40 s"
)

// run calls at the pace for a while and tells of each call when it ended and
// whether it failed.
func run(c cache, length time.Duration, each func(begin time.Time, err error) (more bool)) {
	for end := time.Now().Add(length); time.Now().Before(end); {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), allowance)
		_, err := c.token(ctx)
		cancel()
		if !each(begin, err) {
			return
		}
		time.Sleep(max(0, pace-time.Since(begin)))
	}
}

// world runs do in fake time with an endpoint and a cache on it.
func world(t *testing.T, open func(testing.TB, wire) cache, m mode, do func(*testing.T, *endpoint, cache)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e := answers(m)
		do(t, e, open(t, wire{url: "http://127.0.0.1/token", transport: e, timeout: 5 * time.Second}))
	})
}

func down() mode { return mode{latency: 20 * time.Millisecond, status: 503} }
func up() mode   { return mode{latency: 50 * time.Millisecond, life: 5 * time.Minute} }

// refused counts the token requests of a time in which none succeeds.
func refused(t *testing.T, c contender, length time.Duration) (requests int) {
	t.Helper()
	world(t, c.open, down(), func(t *testing.T, e *endpoint, k cache) {
		t.Helper()
		run(k, length, func(_ time.Time, err error) bool {
			if err == nil {
				t.Error("want no token from an endpoint that is down")
			}
			return true
		})
		requests = e.requests()
	})
	return requests
}

// recovery returns the longest time from an endpoint's return to the end of the
// first good call, over many lengths about the one given.
func recovery(t *testing.T, c contender, outage time.Duration) (longest time.Duration) {
	t.Helper()
	for i := range 20 {
		length := outage + time.Duration(i)*137*time.Millisecond
		world(t, c.open, down(), func(t *testing.T, e *endpoint, k cache) {
			t.Helper()
			back := time.Now().Add(length)
			e.mu.Lock()
			e.mode = func(now time.Time) mode {
				if now.Before(back) {
					return down()
				}
				return up()
			}
			e.mu.Unlock()
			run(k, length+time.Minute, func(_ time.Time, err error) bool {
				if err != nil {
					return true
				}
				longest = max(longest, time.Since(back))
				return false
			})
		})
	}
	return longest
}

// withOutages counts failed calls over three hours in which the endpoint is down
// for 40 s of each 7 min, while tokens live for 5 min.
func withOutages(t *testing.T, c contender) (calls, failed int) {
	t.Helper()
	world(t, c.open, up(), func(t *testing.T, e *endpoint, k cache) {
		t.Helper()
		start := time.Now()
		e.mu.Lock()
		e.mode = func(now time.Time) mode {
			if now.Sub(start)%(7*time.Minute) < 40*time.Second && now.Sub(start) > time.Minute {
				return down()
			}
			return up()
		}
		e.mu.Unlock()
		run(k, 3*time.Hour, func(_ time.Time, err error) bool {
			calls++
			if err != nil {
				failed++
			}
			return true
		})
	})
	return calls, failed
}

// outages fills the table of what a cache does while its endpoint is down. brief
// watches the others for a tenth of the hour: their requests follow the calls.
func outages(t *testing.T, brief bool, x *table) {
	t.Helper()
	for _, c := range contenders() {
		t.Run(c.name, func(t *testing.T) {
			share := 1
			if brief && c.name != ours {
				share = 10
			}
			n := share * refused(t, c, time.Hour/time.Duration(share))
			calls, failed := withOutages(t, c)
			x.put(c.name, hourOf503, number(n))
			x.put(c.name, failedCalls, fmt.Sprintf("%s of %s", number(failed), number(calls)))
			if share > 1 {
				return
			}
			soon, late := recovery(t, c, 5*time.Second), recovery(t, c, 5*time.Minute)
			x.put(c.name, backSoon, seconds(soon))
			x.put(c.name, backLate, seconds(late))
			if c.name == ours && (n > 800 || soon > 2200*time.Millisecond || late > 5200*time.Millisecond || failed != 0) {
				t.Errorf("O2, O3: want at most 800 requests, good calls after 2 s and 5 s and none failed, got %d, %s, %s, %d", n, soon, late, failed)
			}
		})
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
