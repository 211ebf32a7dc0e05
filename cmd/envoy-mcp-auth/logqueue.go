package main

import (
	"bytes"
	"io"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	// logQueueLines bounds the lines that wait for the reader of the log.
	logQueueLines = 4096
	// flushTime is how long the end of the program waits for that reader.
	flushTime = time.Second
	// refusalsPerSecond bounds the lines about refused calls: who may not call
	// must not be able to fill the disk either.
	refusalsPerSecond = 100
)

// logQueue writes log lines from a goroutine of its own. A refusal is logged on
// the request path, and standard error may be a pipe whose reader is slow or
// stuck: writing to it directly would hold the call up, and with it Envoy's
// stream. Lines that find the queue full are dropped and counted.
type logQueue struct {
	w       io.Writer
	lines   chan []byte
	stop    chan struct{}
	done    chan struct{}
	dropped atomic.Int64
	// onDrop is called for each dropped line. It is set before there is a
	// second goroutine that logs.
	onDrop func()
}

func newLogQueue(w io.Writer) *logQueue {
	q := &logQueue{
		w: w, lines: make(chan []byte, logQueueLines), stop: make(chan struct{}), done: make(chan struct{}),
		onDrop: func() {},
	}
	go q.run()
	return q
}

// Write implements io.Writer. It never blocks and never fails.
func (q *logQueue) Write(p []byte) (int, error) {
	select {
	case q.lines <- bytes.Clone(p):
	default:
		q.drop()
	}
	return len(p), nil
}

func (q *logQueue) drop() {
	q.dropped.Add(1)
	q.onDrop()
}

// Sample implements zerolog.Sampler as the end of a chain: what comes here is not logged.
func (q *logQueue) Sample(zerolog.Level) bool {
	q.drop()
	return false
}

// refusals bounds the lines of one logger to so many a second.
func (q *logQueue) refusals(log zerolog.Logger) zerolog.Logger {
	return log.Sample(zerolog.LevelSampler{WarnSampler: &zerolog.BurstSampler{
		Burst: refusalsPerSecond, Period: time.Second, NextSampler: q,
	}})
}

func (q *logQueue) run() {
	defer close(q.done)
	log := zerolog.New(q.w).With().Timestamp().Logger()
	tell := time.NewTicker(time.Second)
	defer tell.Stop()
	for {
		select {
		case line := <-q.lines:
			q.write(line)
		case <-tell.C:
			q.tell(log)
		case <-q.stop:
			for len(q.lines) > 0 {
				q.write(<-q.lines)
			}
			q.tell(log)
			return
		}
	}
}

// write counts what a full disk, or a pipe without a reader, does not take.
func (q *logQueue) write(line []byte) {
	if _, err := q.w.Write(line); err != nil {
		q.drop()
	}
}

// tell says how many lines are missing.
func (q *logQueue) tell(log zerolog.Logger) {
	if n := q.dropped.Swap(0); n > 0 {
		log.Warn().Int64("lines", n).Msg("log lines left out, see mcp_auth_log_lines_dropped_total")
	}
}

// flush ends the queue once what waits is written, or after a second.
func (q *logQueue) flush() {
	close(q.stop)
	select {
	case <-q.done:
	case <-time.After(flushTime):
	}
}
