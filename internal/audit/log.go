package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// strictPatience is how long a request waits for its line when that is required,
	// patience when it is not. A disk that is well takes some microseconds.
	strictPatience = 100 * time.Millisecond
	patience       = 10 * time.Millisecond
	// maxPending bounds the lines that wait to be written.
	maxPending = 16384
	// maxBatch bounds what is written at once, but for a line that is larger.
	maxBatch = 32 << 10
	// keptBody bounds what an entry keeps of its buffer.
	keptBody = 4 << 10
	// closeTime is how long Close and Commit wait for a disk or a reader.
	closeTime = 2 * time.Second
)

var (
	errSlow   = errors.New("the audit line was not written in time; see the last error of audit in /status")
	errFull   = errors.New("too many audit lines wait to be written; see the last error of audit in /status")
	errClosed = errors.New("the audit log is closed")
)

// SecretSource is where keys come from.
type SecretSource interface {
	Secret(ref policy.SecretRef) (policy.Secret, error)
}

// Config is what a Log needs.
type Config struct {
	// Secrets resolves the key, and the headers of a collector. Required with a policy that names any.
	Secrets SecretSource
	// Now is the clock. Required.
	Now func() time.Time
	// Stdout is where `stdout: true` writes. Required with a policy that says so.
	Stdout io.Writer
	// Log is told when writing begins to fail, and when it works again.
	Log zerolog.Logger
	// Version is told to collectors.
	Version string
}

// The ways to record.
const (
	off int32 = iota
	lenient
	strict
)

// Log keeps the record. It implements extproc.Auditor and extproc.OutcomeObserver;
// its methods may be called from any number of goroutines. A new one records
// nothing until a Change is committed.
type Log struct {
	cfg    Config
	ctx    context.Context // the life of the feeds, ended by Close
	cancel context.CancelFunc
	began  time.Time
	// patience and strictPatience are how long a request waits for its line, the
	// latter when that is required.
	patience, strictPatience time.Duration
	mode                     atomic.Int32
	pool                     sync.Pool
	// busy is when the writer began to write what it is writing, in nanoseconds
	// after began; 0 while it is not.
	busy atomic.Int64

	mu      sync.Mutex // guards what follows
	pending []*entry
	spare   []*entry // the other of the two slices
	closed  bool

	wake     chan struct{}
	commands chan func()
	over     chan struct{} // closed at the end of the writer
	current  atomic.Pointer[handle]
	counts   counts
	writer   writer
}

// New returns a Log. Close ends it.
func New(cfg Config) *Log {
	l := &Log{
		cfg: cfg, began: cfg.Now().Add(-time.Nanosecond), wake: make(chan struct{}, 1),
		patience: patience, strictPatience: strictPatience,
		commands: make(chan func(), 16), over: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.pool.New = func() any { return newEntry() }
	l.writer.log = l
	go l.writer.run()
	go l.keepSynced()
	return l
}

// Record writes the line of a decision. With `required`, an error means that it is
// not on record; else there is none.
func (l *Log) Record(d *extproc.Decision) error {
	mode := l.mode.Load()
	if mode == off {
		return nil
	}
	e := l.entry(kindDecision)
	e.body = appendDecision(e.body, d, l.cfg.Now())
	err := l.submit(e, mode == strict)
	if mode != strict {
		return nil
	}
	return err
}

// Ended puts the line of an outcome on its way. It waits for nothing.
func (l *Log) Ended(o *extproc.Outcome) {
	if l.mode.Load() == off {
		return
	}
	e := l.entry(kindOutcome)
	e.body = appendOutcome(e.body, o, l.cfg.Now())
	e.state.Store(alone)
	if err := l.enqueue(e); err != nil {
		l.free(e)
	}
}

func (l *Log) entry(k kind) *entry {
	e, _ := l.pool.Get().(*entry)
	e.kind = k
	e.state.Store(waiting)
	return e
}

func (l *Log) free(e *entry) {
	if cap(e.body) > keptBody {
		e.body = nil
	}
	l.pool.Put(e)
}

// submit queues a line and waits for it, unless that is known to be in vain.
func (l *Log) submit(e *entry, required bool) error {
	limit := l.patience
	if required {
		limit = l.strictPatience
	}
	if since := l.busy.Load(); since != 0 && l.since()-since > int64(limit) {
		if required {
			l.free(e)
			l.counts.drop(1)
			return errSlow
		}
		e.state.Store(alone)
	}
	left := e.state.Load() == alone
	if err := l.enqueue(e); err != nil {
		l.free(e)
		return err
	}
	if left {
		return nil
	}
	err, late := e.wait(limit, required)
	if late {
		return errSlow
	}
	l.free(e)
	return err
}

// since is now, as busy counts.
func (l *Log) since() int64 { return int64(l.cfg.Now().Sub(l.began)) }

func (l *Log) enqueue(e *entry) error {
	l.mu.Lock()
	if l.closed || len(l.pending) >= maxPending {
		closed := l.closed
		l.mu.Unlock()
		l.counts.drop(1)
		if closed {
			return errClosed
		}
		return errFull
	}
	l.pending = append(l.pending, e)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// take returns what waits. The slice is good until the next call.
func (l *Log) take() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.pending
	l.pending, l.spare = l.spare[:0], batch
	return batch
}

// keepSynced brings what was written to the disk, once a second. It does so beside
// the writer: a disk may take its time.
func (l *Log) keepSynced() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-l.over:
			return
		case <-tick.C:
		}
		h := l.current.Load()
		if h == nil {
			continue
		}
		err := h.sync()
		switch {
		case err == nil:
			l.counts.well(toSync)
		case l.current.Load() == h: // else it is closed already
			l.counts.failed(toSync, l.cfg.Now(), fmt.Errorf("bringing the audit to the disk: %w", err))
			l.cfg.Log.Error().Err(err).Msg("the audit does not come to the disk")
		}
	}
}

// do has the writer run f, and waits for that as long as is decent. It reports
// whether f ran; if not, it still will, unless the Log is closed.
func (l *Log) do(f func()) bool {
	ran := make(chan struct{})
	limit := time.NewTimer(closeTime)
	defer limit.Stop()
	select {
	case l.commands <- func() { defer close(ran); f() }:
	case <-limit.C:
		return false
	case <-l.over:
		return false
	}
	select {
	case <-ran:
		return true
	case <-l.over:
	case <-limit.C:
	}
	return false
}

// Close writes what waits and ends the record, both within 2 s.
func (l *Log) Close() {
	defer l.cancel()
	var feeds []*feed
	ended := l.do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.mode.Store(off)
		l.writer.flush()
		l.writer.finish(false)
		feeds = l.writer.feeds
		l.writer.quit = true
	})
	if !ended {
		return
	}
	for _, f := range feeds {
		f.close()
	}
}
