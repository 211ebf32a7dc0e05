package audit

import (
	"sync/atomic"
	"time"
)

// The states of an entry.
const (
	waiting int32 = iota // in the queue
	taken                // being written
	done                 // written, or not: the word is in the channel
	alone                // nobody waits for it
	gone                 // who waited was told that it failed
)

// entry is one line on its way. It is reused.
type entry struct {
	kind  kind
	body  []byte // an open line
	seq   uint64
	state atomic.Int32
	told  chan error
	timer *time.Timer
}

func newEntry() *entry {
	e := &entry{told: make(chan error, 1), timer: time.NewTimer(time.Hour)}
	e.timer.Stop()
	return e
}

// take reports whether the entry is still wanted.
func (e *entry) take() bool {
	return e.state.CompareAndSwap(waiting, taken) || e.state.Load() == alone
}

// wait waits until the entry is written, at most that long. late is whether it was
// not by then; then the entry is the writer's, which leaves it out when it still can
// and strict is set.
func (e *entry) wait(patience time.Duration, strict bool) (err error, late bool) { //nolint:revive // the error is the answer, late is about whose it is
	e.timer.Reset(patience)
	select {
	case err := <-e.told:
		e.timer.Stop()
		return err, false
	case <-e.timer.C:
	}
	next := alone
	if strict {
		next = gone
	}
	if e.state.CompareAndSwap(waiting, next) || e.state.CompareAndSwap(taken, next) {
		return nil, true
	}
	return <-e.told, false
}

// finish tells who waits. withdrawn is whether that one was told before that it failed;
// free, whether nobody has a use for the entry any more.
func (e *entry) finish(err error) (withdrawn, free bool) {
	if e.state.CompareAndSwap(taken, done) {
		e.told <- err
		return false, false
	}
	return e.state.Load() == gone, true
}
