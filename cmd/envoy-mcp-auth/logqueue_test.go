package main

import (
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// stuckWriter blocks each write until open is closed, as a full pipe does.
type stuckWriter struct {
	open chan struct{}
	to   io.Writer
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.open
	return w.to.Write(p)
}

func TestLogNeverHoldsUpTheCaller(t *testing.T) {
	var out lockedBuffer
	stuck := &stuckWriter{open: make(chan struct{}), to: &out}
	var dropped atomic.Int64
	q := newLogQueue(stuck)
	q.onDrop = func() { dropped.Add(1) }
	log := zerolog.New(q)
	const lines = 3 * logQueueLines
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range lines {
			log.Info().Msg("line")
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("logging waits for the reader of the log")
	}
	// One line may be with the writer, the queue holds the rest.
	if n := dropped.Load(); n < lines-logQueueLines-1 || n > lines-logQueueLines {
		t.Errorf("%d lines dropped, want all but what the queue holds", n)
	}
	close(stuck.open)
	q.flush()
	got := out.String()
	if n := strings.Count(got, `"message":"line"`); int64(n) != lines-dropped.Load() {
		t.Errorf("%d lines written of %d, %d dropped", n, lines, dropped.Load())
	}
	if !strings.Contains(got, "log lines left out") {
		t.Error("the log does not say that lines are missing")
	}
}

func TestLogDoesNotHoldUpTheEnd(t *testing.T) {
	stuck := &stuckWriter{open: make(chan struct{}), to: io.Discard}
	defer close(stuck.open)
	q := newLogQueue(stuck)
	_, _ = q.Write([]byte("line\n"))
	start := time.Now()
	q.flush()
	if took := time.Since(start); took > 20*flushTime {
		t.Errorf("ending took %s", took)
	}
}

func TestRefusalsCannotFillTheDisk(t *testing.T) {
	var out lockedBuffer
	q := newLogQueue(&out)
	var dropped atomic.Int64
	q.onDrop = func() { dropped.Add(1) }
	log := q.refusals(zerolog.New(q))
	start := time.Now()
	for range 2000 {
		log.Warn().Msg("refused")
	}
	for range 300 {
		log.Error().Msg("internal error")
	}
	seconds := int(time.Since(start)/time.Second) + 2
	q.flush()
	if n := strings.Count(out.String(), "refused"); n < 1 || n > seconds*refusalsPerSecond {
		t.Errorf("%d refusals logged in %d s, want at most %d a second", n, seconds, refusalsPerSecond)
	}
	if n := strings.Count(out.String(), "internal error"); n != 300 {
		t.Errorf("%d errors logged, want all 300", n)
	}
	if dropped.Load() == 0 {
		t.Error("what was left out is not counted")
	}
}

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestO10_WhatADiskDoesNotTakeIsCounted.
func TestO10_WhatADiskDoesNotTakeIsCounted(t *testing.T) {
	var lost atomic.Int64
	q := newLogQueue(fullDisk{})
	q.onDrop = func() { lost.Add(1) }
	log := zerolog.New(q)
	for range 10 {
		log.Info().Msg("x")
	}
	q.flush()
	if lost.Load() < 10 {
		t.Errorf("want 10 lines counted, got %d", lost.Load())
	}
}
