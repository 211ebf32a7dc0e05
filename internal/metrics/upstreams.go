package metrics

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// index finds what is counted of an upstream. It is immutable; the counts are not.
type index struct {
	lanes   map[string]*lane // by upstream; that of "" is for requests that named none
	callers map[string]bool
}

// lane is one upstream of the policy.
type lane struct {
	upstream string
	// listed are the labels of tools that a rule lists by name.
	listed map[string]bool
	// held is nil until something happens: most of 10,000 upstreams are quiet. A
	// reload hands it on.
	held *atomic.Pointer[counts]
}

// counts are of one upstream.
type counts struct {
	decisions []atomic.Uint64 // by reason

	mu    sync.RWMutex
	calls map[callKey]*[classes]atomic.Uint64
	tools map[string]bool // those in calls that no rule lists

	failures                                   [stages]atomic.Uint64
	attempts, undecided, reset, sent, received atomic.Uint64
	total, own                                 durations
}

type callKey struct{ caller, tool string }

// counts returns the counts of the lane, made at the first use.
func (l *lane) counts() *counts {
	if c := l.held.Load(); c != nil {
		return c
	}
	c := &counts{
		decisions: make([]atomic.Uint64, len(policy.Reasons())+1),
		calls:     map[callKey]*[classes]atomic.Uint64{},
		tools:     map[string]bool{},
		total:     newDurations(callBuckets()),
		own:       newDurations(decisionBuckets()),
	}
	if l.held.CompareAndSwap(nil, c) {
		return c
	}
	return l.held.Load()
}

// Expect makes room for the upstreams of a policy that is about to be put in
// force. What is counted of the one before stays until Retain.
func (m *Metrics) Expect(set *policy.Set) {
	old := m.index.Load()
	next := newIndex(set, old)
	for name, l := range old.lanes {
		if next.lanes[name] == nil {
			next.lanes[name] = l
		}
	}
	for name := range old.callers {
		next.callers[name] = true
	}
	m.index.Store(next)
}

// Retain forgets the upstreams that are not in the policy in force: their series
// end. Expect and Retain must not be called at the same time.
func (m *Metrics) Retain(set *policy.Set) {
	old := m.index.Load()
	next := newIndex(set, old)
	m.index.Store(next)
	for name, l := range old.lanes {
		if next.lanes[name] != nil {
			continue
		}
		if c := l.held.Load(); c != nil {
			c.mu.RLock()
			m.pairs.Add(-int64(len(c.calls)))
			c.mu.RUnlock()
		}
		for _, vec := range m.byUpstream {
			vec.DeletePartialMatch(prometheus.Labels{"upstream": name})
		}
		// Endpoints that are still in use come back with their next answer.
		m.skew.Reset()
	}
}

// newIndex takes over what the old one holds of the same upstreams.
func newIndex(set *policy.Set, old *index) *index {
	in := &index{lanes: make(map[string]*lane, len(set.Upstreams)+1), callers: make(map[string]bool, len(set.Callers))}
	for _, c := range set.Callers {
		in.callers[c.Name] = true
	}
	add := func(name string, tools *policy.Tools) {
		l := &lane{upstream: name, listed: listedTools(tools), held: new(atomic.Pointer[counts])}
		if before := old.lanes[name]; before != nil {
			l.held = before.held
		}
		in.lanes[name] = l
	}
	add("", nil)
	for _, up := range set.Upstreams {
		add(up.Name, up.Tools)
	}
	return in
}

// listedTools returns the labels of what the rules list without a pattern.
func listedTools(tools *policy.Tools) map[string]bool {
	if tools == nil {
		return nil
	}
	listed := map[string]bool{}
	for _, r := range tools.Rules {
		for _, method := range r.Methods {
			if method != "tools/call" {
				listed[method] = true
				continue
			}
			for _, name := range r.Names {
				if !strings.Contains(name, "*") {
					listed[name] = true
				}
			}
		}
	}
	return listed
}

// toolLabel is the label of what a request would run: the name of a tool, else the
// method alone, since the URIs of resources have no end.
func toolLabel(tool string) string {
	method, _, _ := strings.Cut(tool, " ")
	return strings.Clone(method)
}

// durations is a histogram that its owner collects. prometheus.Histogram is 2 KB
// and a description each.
type durations struct {
	bounds []float64 // in seconds
	counts []atomic.Uint64
	sum    atomic.Int64 // in nanoseconds
}

func newDurations(bounds []float64) durations {
	return durations{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (d *durations) observe(took time.Duration) {
	i, _ := slices.BinarySearch(d.bounds, took.Seconds())
	d.counts[i].Add(1)
	d.sum.Add(int64(took))
}

func (d *durations) metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	var total uint64
	buckets := make(map[float64]uint64, len(d.bounds))
	for i := range d.counts {
		total += d.counts[i].Load()
		if i < len(d.bounds) {
			buckets[d.bounds[i]] = total
		}
	}
	return prometheus.MustNewConstHistogram(desc, total, time.Duration(d.sum.Load()).Seconds(), buckets, labels...)
}

// decisionBuckets are the bounds of our own share in seconds: with a token at hand
// microseconds, and at most server.deadline.
func decisionBuckets() []float64 {
	return []float64{.00001, .000025, .00005, .0001, .00025, .001, .005, .025, .1, .5, 1, 2.5}
}

// callBuckets are the bounds of whole calls in seconds. Streams last as long as
// they like.
func callBuckets() []float64 {
	return []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 300}
}
