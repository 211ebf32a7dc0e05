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

// sender takes whole lines to a place. It may wait; it is called by one goroutine.
type sender interface {
	send(ctx context.Context, lines [][]byte) error
	close()
}

// feed brings the lines that are on record to a further sink, off the request path.
// What that does not take is dropped and counted.
type feed struct {
	sink    sink
	to      sender
	log     *Log
	chunks  chan chunk
	waiting atomic.Int64
	cancel  context.CancelFunc
	once    sync.Once
	ended   chan struct{}
	ill     string
}

type chunk struct {
	bytes []byte
	lines int
}

func (l *Log) newFeed(s sink, to sender) *feed {
	ctx, cancel := context.WithCancel(l.ctx)
	f := &feed{sink: s, to: to, log: l, chunks: make(chan chunk, 4096), cancel: cancel, ended: make(chan struct{})}
	go f.run(ctx)
	return f
}

// newFeeds makes the feeds of a policy: every sink but the first of file and stdout,
// which the writer writes itself.
func (l *Log) newFeeds(spec *policy.Audit) ([]*feed, error) { //nolint:unparam // TODO
	var feeds []*feed
	if spec.File != "" && spec.Stdout {
		feeds = append(feeds, l.newFeed(sinkStdout, stream{l.cfg.Stdout}))
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

func (f *feed) run(ctx context.Context) {
	defer close(f.ended)
	defer f.to.close()
	for c := range f.chunks {
		f.deliver(ctx, c)
	}
}

func (f *feed) deliver(ctx context.Context, c chunk) {
	defer f.waiting.Add(-int64(len(c.bytes)))
	lines := bytes.SplitAfter(c.bytes, []byte{'\n'})
	err := f.to.send(ctx, lines[:len(lines)-1])
	if err == nil {
		if f.ill != "" {
			f.ill = ""
			f.log.cfg.Log.Info().Stringer("sink", f.sink).Msg("the audit is sent again")
		}
		return
	}
	f.log.counts.dropped[f.sink].Add(uint64(c.lines)) //nolint:gosec // a count
	if f.ill == "" {
		f.ill = err.Error()
		f.log.cfg.Log.Error().Err(err).Stringer("sink", f.sink).Msg("the audit is not sent")
	}
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
