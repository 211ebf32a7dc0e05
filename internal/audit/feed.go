package audit

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxWaiting bounds, in bytes, the lines that wait for a feed.
const maxWaiting = 8 << 20

// lingers is how long lines wait for others where each delivery costs a round trip,
// and maxDelivery, in bytes, how many go at once then.
const (
	lingers     = time.Second
	maxDelivery = 256 << 10
)

// sender takes whole lines to a place, and returns how many of them came there. It
// may wait; it is called by one goroutine.
type sender interface {
	send(ctx context.Context, lines [][]byte) (int, error)
	close()
}

// feed brings the lines that are on record to a further sink, off the request path.
// What that does not take is dropped and counted.
type feed struct {
	sink    sink
	to      sender
	log     *Log
	lingers time.Duration
	chunks  chan chunk
	waiting atomic.Int64
	ctx     context.Context // its life, ended by close
	cancel  context.CancelFunc
	once    sync.Once
	ended   chan struct{}
	ill     bool
}

type chunk struct {
	bytes []byte
	lines int
}

func (l *Log) newFeed(s sink, to sender, lingers time.Duration) *feed {
	f := &feed{sink: s, to: to, log: l, lingers: lingers, chunks: make(chan chunk, 4096), ended: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(l.ctx)
	go f.run()
	return f
}

// newFeeds makes the feeds of a policy: every sink but the first of file and stdout,
// which the writer writes itself.
func (l *Log) newFeeds(spec *policy.Audit) ([]*feed, error) {
	var feeds []*feed
	if spec.OTLP != nil {
		to, err := l.newOTLP(spec.OTLP)
		if err != nil {
			return nil, err
		}
		feeds = append(feeds, l.newFeed(sinkOTLP, to, lingers))
	}
	if spec.File != "" && spec.Stdout {
		feeds = append(feeds, l.newFeed(sinkStdout, stream{l.cfg.Stdout}, 0))
	}
	if spec.Syslog.Address != "" {
		feeds = append(feeds, l.newFeed(sinkSyslog, &syslogServer{spec: spec.Syslog, now: l.cfg.Now}, 0))
	}
	return feeds, nil
}

// offer queues lines. It never waits.
func (f *feed) offer(b []byte, lines int) {
	if f.waiting.Add(int64(len(b))) > maxWaiting {
		f.refuse(b, lines)
		return
	}
	select {
	case f.chunks <- chunk{b, lines}:
	default:
		f.refuse(b, lines)
	}
}

func (f *feed) refuse(b []byte, lines int) {
	f.waiting.Add(-int64(len(b)))
	f.log.counts.dropped[f.sink].Add(uint64(lines)) //nolint:gosec // a count
}

func (f *feed) run() {
	defer close(f.ended)
	defer f.to.close()
	for c := range f.chunks {
		f.deliver(f.gather(c.bytes))
	}
}

// gather waits for more lines, where that is worth it.
func (f *feed) gather(b []byte) []byte {
	if f.lingers == 0 {
		return b
	}
	b = bytes.Clone(b) // the other feeds have it too
	limit := time.NewTimer(f.lingers)
	defer limit.Stop()
	for len(b) < maxDelivery {
		select {
		case c, ok := <-f.chunks:
			if !ok {
				return b
			}
			b = append(b, c.bytes...)
		case <-limit.C:
			return b
		}
	}
	return b
}

func (f *feed) deliver(b []byte) {
	defer f.waiting.Add(-int64(len(b)))
	if f.ctx.Err() != nil { // its time is over, and the policy may name another place
		f.log.counts.dropped[f.sink].Add(uint64(bytes.Count(b, []byte{'\n'}))) //nolint:gosec // a count
		return
	}
	lines := bytes.SplitAfter(b, []byte{'\n'})
	lines = lines[:len(lines)-1]
	n, err := f.to.send(f.ctx, lines)
	switch {
	case err == nil && f.ill:
		f.log.cfg.Log.Info().Stringer("sink", f.sink).Msg("the audit is sent again")
	case err != nil && !f.ill:
		f.log.cfg.Log.Error().Err(err).Stringer("sink", f.sink).Msg("the audit is not sent, lines are dropped")
	}
	f.ill = err != nil
	f.log.counts.dropped[f.sink].Add(uint64(len(lines) - n)) //nolint:gosec // a count
}

// refuses reports whether a line is a decision against a request.
func refuses(line []byte) bool {
	return bytes.Contains(line, []byte(`"kind":"decision"`)) && !bytes.Contains(line, []byte(`"reason":"allowed"`))
}

// close lets the feed end what waits, for 2 s at most.
func (f *feed) close() {
	f.once.Do(func() { close(f.chunks) })
	limit := time.NewTimer(closeTime)
	defer limit.Stop()
	select {
	case <-f.ended:
	case <-limit.C:
	}
	f.cancel()
}
