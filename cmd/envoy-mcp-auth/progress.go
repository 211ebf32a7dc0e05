package main

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// progressAfter is how long many requests may take before it is said how far
// they are, and the time between two such lines.
const progressAfter = time.Second

// each runs do for 0 to n-1, some at once, and waits for all of them. When that
// takes its time, it says how far it is: on the error stream, so that what
// is printed can go into a pipe.
func each(w io.Writer, verb string, n int, do func(i int)) {
	var done, next atomic.Int64
	var workers sync.WaitGroup
	for range min(fetchers, n) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
				done.Add(1)
			}
		})
	}
	ended := make(chan struct{})
	var teller sync.WaitGroup
	teller.Go(func() {
		tick := time.NewTicker(progressAfter)
		defer tick.Stop()
		for n > 1 {
			select {
			case <-ended:
				return
			case <-tick.C:
				say(w, "%d of %d %s\n", done.Load(), n, verb)
			}
		}
	})
	workers.Wait()
	close(ended)
	teller.Wait()
}
