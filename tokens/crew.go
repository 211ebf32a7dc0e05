package tokens

import "sync"

// crew counts the goroutines that somebody must wait for at the end.
type crew struct {
	gate   sync.Mutex // guards closed, and wg.Add against wg.Wait
	closed bool
	wg     sync.WaitGroup
}

// spawn runs f in a goroutine that is waited for. It reports false, and runs
// nothing, once the crew is dismissed.
func (c *crew) spawn(f func()) bool {
	c.gate.Lock()
	defer c.gate.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// dismiss takes no more work. wg.Wait waits for what is under way.
func (c *crew) dismiss() {
	c.gate.Lock()
	defer c.gate.Unlock()
	c.closed = true
}
