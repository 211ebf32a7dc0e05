package audit

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// sink is a place where lines go.
type sink int

const (
	sinkFile sink = iota
	sinkStdout
	sinkSyslog
	sinkOTLP
	sinkCount int = iota
)

// String returns the sink's key in the policy.
func (s sink) String() string {
	return [sinkCount]string{"file", "stdout", "syslog", "otlp"}[s]
}

// task is something that may fail, and be well again, by itself.
type task int

const (
	toWrite task = iota
	toSync
	toRotate
	taskCount int = iota
)

// counts is what others may see of a Log.
type counts struct {
	lines    [kindCount]atomic.Uint64
	dropped  [sinkCount]atomic.Uint64
	failures atomic.Uint64
	// unsaid are lines dropped before they came to the writer, which no line tells of yet.
	unsaid atomic.Uint64

	mu      sync.Mutex    // guards what follows
	spec    *policy.Audit // in force
	sinks   []string
	main    sink
	seq     uint64
	head    []byte
	fault   string
	faultAt time.Time
	failing [taskCount]bool
}

// drop counts lines that never came to the writer.
func (c *counts) drop(n uint64) {
	c.unsaid.Add(n)
	c.mu.Lock()
	main := c.main
	c.mu.Unlock()
	c.dropped[main].Add(n)
}

func (c *counts) moved(to *chain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq, c.head = to.seq, append(c.head[:0], to.hash...)
}

// policy returns what is in force.
func (c *counts) policy() *policy.Audit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spec
}

// failed notes that a task failed.
func (c *counts) failed(t task, now time.Time, err error) {
	c.failures.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing[t], c.fault, c.faultAt = true, err.Error(), now
}

// well notes that a task succeeded.
func (c *counts) well(t task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failing[t] = false
}

// Status is the state of a Log, for status pages. Nothing in it is secret.
type Status struct {
	// Sinks are where lines go, by their keys in the policy; empty when nothing is recorded.
	Sinks []string `json:"sinks"`
	// File is the file in use.
	File     string `json:"file,omitempty"`
	Required bool   `json:"required"`
	// Seq and Head are number and hash of the last line: the anchor that `audit
	// verify --head` takes.
	Seq  uint64 `json:"seq"`
	Head string `json:"head"`
	// Failing is whether the last attempt to write, to sync or to put a file aside
	// failed. LastError stays, so that what is over can still be seen.
	Failing   bool       `json:"failing"`
	LastError string     `json:"last_error,omitempty"`
	FailedAt  *time.Time `json:"failed_at,omitempty"`
	// Failures counts the attempts that failed, Lines and Dropped the lines since the
	// start, by kind and by sink.
	Failures uint64            `json:"failures"`
	Lines    map[string]uint64 `json:"lines"`
	Dropped  map[string]uint64 `json:"dropped"`
}

// Status returns the state of the Log.
func (l *Log) Status() Status {
	c := &l.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{
		Sinks: c.sinks, Seq: c.seq, Head: string(c.head),
		Failing: slices.Contains(c.failing[:], true), LastError: c.fault, Failures: c.failures.Load(),
		Lines: map[string]uint64{}, Dropped: map[string]uint64{},
	}
	if c.spec != nil {
		s.File, s.Required = c.spec.File, c.spec.Required
	}
	if !c.faultAt.IsZero() {
		at := c.faultAt
		s.FailedAt = &at
	}
	for k := range kind(kindCount) {
		if k == kindDecision || k == kindOutcome {
			s.Lines[k.String()] = c.lines[k].Load()
		}
	}
	for k := range sink(sinkCount) {
		s.Dropped[k.String()] = c.dropped[k].Load()
	}
	return s
}
