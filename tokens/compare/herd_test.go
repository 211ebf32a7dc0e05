package compare

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

const callers = 1000

// scenario is a herd and what it meets.
type scenario struct {
	name string
	mode mode
	// deadline is what a caller allows, timeout bounds one token request, cut
	// ends the experiment.
	deadline, timeout, cut time.Duration
	// settle is the time from a caller's counting itself to its standing in line.
	settle time.Duration
	// leaves makes the first caller start alone and give up while the others wait.
	leaves time.Duration
}

// scenarios are those of the tables. brief shortens all waits for tests that
// only count.
func scenarios(brief bool) []scenario {
	s := []scenario{
		{name: "cold", mode: mode{latency: 50 * time.Millisecond}, deadline: time.Minute, timeout: time.Minute, cut: 2 * time.Minute},
		{name: "503", mode: mode{latency: 20 * time.Millisecond, status: 503}, deadline: 2 * time.Minute, timeout: time.Minute, cut: 2 * time.Minute},
		{name: "hang", mode: mode{hang: true}, deadline: 1500 * time.Millisecond, timeout: 5 * time.Second, cut: 12 * time.Second},
		{name: "first caller leaves", mode: mode{latency: 300 * time.Millisecond}, deadline: time.Minute, timeout: time.Minute, cut: 2 * time.Minute, leaves: 100 * time.Millisecond},
	}
	for i := range s {
		s[i].settle = 20 * time.Millisecond
	}
	if brief {
		for i := range s {
			s[i].settle = 200 * time.Millisecond
		}
		s[1].mode.latency = 0
		s[2].deadline = 500 * time.Millisecond
	}
	return s
}

// outcome is what was seen.
type outcome struct {
	requests, good, failed int
	slowest                time.Duration
}

func (o outcome) waiting() int { return callers - o.good - o.failed }

// ended sorts the ends of calls into an outcome.
type ended struct {
	mu  sync.Mutex
	now outcome
}

func (e *ended) add(took time.Duration, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.now.failed++
	} else {
		e.now.good++
	}
	e.now.slowest = max(e.now.slowest, took)
}

// stampede lets the herd loose on a cache. The endpoint's first answer waits
// until all have called.
func stampede(s scenario, e *endpoint, open func() cache) outcome {
	gate := make(chan struct{})
	if s.leaves == 0 {
		e.gate = gate
	}
	c := open()
	var (
		ends           ended
		called, ending sync.WaitGroup
	)
	start := make(chan struct{})
	call := func(deadline time.Duration) {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		begin := time.Now()
		_, err := c.token(ctx)
		ends.add(time.Since(begin), err)
	}
	rest := callers
	if s.leaves > 0 {
		rest--
		ending.Go(func() { call(s.leaves) })
		for e.requests() == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	called.Add(rest)
	for range rest {
		ending.Go(func() {
			<-start
			called.Done()
			call(s.deadline)
		})
	}
	close(start)
	go func() {
		called.Wait()
		time.Sleep(s.settle)
		close(gate)
	}()
	all := make(chan struct{})
	go func() {
		ending.Wait()
		close(all)
	}()
	select {
	case <-all:
	case <-time.After(s.cut):
	}
	ends.mu.Lock()
	seen := ends.now
	ends.mu.Unlock()
	seen.requests = e.requests()
	e.set(mode{}) // lets those go who still wait in line
	return seen
}

func (s scenario) fails() bool { return s.mode.hang || s.mode.status != 0 }

// counts words an outcome without its times.
func (o outcome) counts(s scenario) string {
	switch {
	case o.waiting() > 0:
		return fmt.Sprintf("%s in %s; %s callers still wait", number(o.requests), spaced(s.cut), number(o.waiting()))
	case o.good == 0 && s.fails():
		return number(o.requests)
	case o.good == callers:
		return number(o.requests) + "; all served"
	}
	return fmt.Sprintf("%s; %s served", number(o.requests), number(o.good))
}

// herds runs all scenarios for all contenders. brief leaves the network out, and
// what takes longer than a test may.
func herds(t *testing.T, brief bool, counts, times *table) {
	t.Helper()
	for _, s := range scenarios(brief) {
		var first time.Duration
		for _, c := range contenders() {
			if brief && s.mode.hang && !c.free {
				continue
			}
			t.Run(s.name+"/"+c.name, func(t *testing.T) {
				e := answers(s.mode)
				w := wire{url: "http://127.0.0.1/token", transport: e, timeout: s.timeout}
				if !brief {
					network := &http.Transport{}
					t.Cleanup(network.CloseIdleConnections)
					w.url, w.transport = e.serve(t), network
				}
				got := stampede(s, e, func() cache { return c.open(t, w) })
				t.Logf("%+v", got)
				counts.put(c.name, s.name, got.counts(s))
				if c.name == ours {
					first = got.slowest
					promised(t, s, got)
				}
				times.put(c.name, s.name, lasted(got, s, first))
			})
		}
	}
}

// promised is what we say of our own cache.
func promised(t *testing.T, s scenario, o outcome) {
	t.Helper()
	good := map[string]int{"cold": callers, "first caller leaves": callers - 1}[s.name]
	if o.requests != 1 || o.good != good || o.waiting() != 0 {
		t.Errorf("T8 %s: want 1 token request, %d served and nobody waiting, got %+v", s.name, good, o)
	}
}

// lasted words the time of the slowest caller, next to ours.
func lasted(o outcome, s scenario, first time.Duration) string {
	if o.waiting() > 0 {
		return fmt.Sprintf("over %s (cut off)", number(int(s.cut.Milliseconds())))
	}
	ratio := float64(o.slowest) / float64(first)
	form := "%s (%.1f×)"
	if ratio >= 10 {
		form = "%s (%.0f×)"
	}
	return fmt.Sprintf(form, number(int(o.slowest.Milliseconds())), ratio)
}
