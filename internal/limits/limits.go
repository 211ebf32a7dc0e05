// Package limits holds calls to the limits of the policy: in this process, and
// for all replicas together through the rate limit service.
//
//	l := limits.New(limits.Config{Now: time.Now, Log: log})
//	next, err := l.Build(set) // all that can fail
//	l.Use(next)               // in force
//
// It is the extproc.Gate of the server.
package limits

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// defaultBuckets bounds the buckets of subjects and tools, which callers can make
// up: 25 MB of them.
const defaultBuckets = 100_000

// Config is what Limits needs.
type Config struct {
	// Now is the clock. Required.
	Now func() time.Time
	// Log gets one line when the service becomes unusable or usable again.
	Log zerolog.Logger
	// Limited is told of each refusal, by names of the policy. It may be nil.
	Limited func(upstream, rule string)
	// Asked is told how each call to the service ended: a word of Results. It may be nil.
	Asked func(result string)
	// Up is told when the service becomes usable or unusable. It may be nil.
	Up func(up bool)
	// Off is told when there is another service, or none any more. It may be nil.
	Off func()
	// Buckets is how many buckets of subjects and tools are kept; 0 means 100,000.
	Buckets int
}

// Limits is the gate. Its methods may be called from any number of goroutines,
// but for Build and Use, which are for one at a time.
type Limits struct {
	cfg   Config
	table *table
	plan  atomic.Pointer[Plan]
	count uint64 // of plans built
}

// Plan is a policy's limits, ready to be put in force.
type Plan struct {
	all     []*rule            // as the file has them
	rules   map[string][]*rule // by upstream; those that a process counts come first
	service *service           // nil when no rule asks it
}

// rule is one limit as it is counted.
type rule struct {
	policy.LimitRule
	limit float64 // tokens in a second
	burst int
	// plan numbers the policies: a bucket takes its limit from the newest, as of
	// the time since when it is in force.
	plan  uint64
	since time.Time
	// refused is shared with the same rule of the policies before and after.
	refused *tally
}

// New returns Limits that let everything pass until Use.
func New(cfg Config) *Limits {
	if cfg.Buckets == 0 {
		cfg.Buckets = defaultBuckets
	}
	l := &Limits{cfg: cfg, table: newTable(cfg.Buckets)}
	l.plan.Store(&Plan{})
	return l
}

// Build makes the limits of a policy, and changes nothing. An error is about
// files that the connection to the service needs.
func (l *Limits) Build(set *policy.Set) (*Plan, error) {
	p := &Plan{rules: map[string][]*rule{}}
	if set.Limits == nil {
		return p, nil
	}
	l.count++
	tallies, asks := l.plan.Load().tallies(), false
	for i := range set.Limits.Rules {
		r := &rule{LimitRule: set.Limits.Rules[i], plan: l.count}
		if r.Rate.Count > 0 {
			r.limit, r.burst = float64(r.Rate.Count)/r.Rate.Every.Seconds(), r.Burst
		}
		if r.refused = tallies[r.ID]; r.refused == nil {
			r.refused = new(tally)
		}
		p.all, asks = append(p.all, r), asks || r.Fleet
	}
	for _, up := range set.Upstreams {
		for _, fleet := range []bool{false, true} {
			for _, r := range p.all {
				if r.Fleet == fleet && r.AboutUpstream(up.Name) {
					p.rules[up.Name] = append(p.rules[up.Name], r)
				}
			}
		}
	}
	if !asks {
		return p, nil
	}
	if old := l.plan.Load().service; old != nil && old.spec == *set.Limits.Service {
		p.service = old
		return p, nil
	}
	var err error
	p.service, err = newService(*set.Limits.Service, &l.cfg)
	return p, err
}

// Use puts a plan in force. Rules that the policy before it had as well keep what
// they counted, and a changed rate holds from the next call on.
func (l *Limits) Use(p *Plan) {
	kept, now := map[string]bool{}, l.cfg.Now()
	for _, rules := range p.rules {
		for _, r := range rules {
			kept[r.ID] = true
			r.since = now
		}
	}
	old := l.plan.Swap(p)
	if old.service != nil && old.service != p.service {
		old.service.close()
		if l.cfg.Off != nil {
			l.cfg.Off()
		}
	}
	l.table.retain(kept)
}

// Drop gives a plan up that was built and not used.
func (l *Limits) Drop(p *Plan) {
	if p != nil && p.service != nil && p.service != l.plan.Load().service {
		p.service.close()
	}
}

// Close gives the connection up.
func (l *Limits) Close() { l.Use(&Plan{}) }

// Admit implements extproc.Gate: policy.Allowed when every rule has room, else
// policy.RateLimited and when there will be. The time is 0 when there never will,
// for a batch that is larger than a limit.
//
// What a refused call took is given back, but for what the service counted, whose
// protocol knows no way back.
func (l *Limits) Admit(ctx context.Context, d *extproc.Decision) (policy.Reason, time.Duration) {
	p := l.plan.Load()
	rules := p.rules[d.Upstream]
	if len(rules) == 0 {
		return policy.Allowed, 0
	}
	a := attempt{table: l.table, now: l.cfg.Now(), d: d}
	for i, r := range rules {
		if r.Fleet {
			if a.by == nil {
				a.ask(ctx, p.service, rules[i:])
			}
			break
		}
		if r.AboutCaller(d.Caller) {
			a.count(r)
		}
	}
	a.settle()
	if a.by == nil {
		return policy.Allowed, 0
	}
	a.by.refused.add(a.now)
	if l.cfg.Limited != nil {
		l.cfg.Limited(d.Upstream, a.by.Name)
	}
	return policy.RateLimited, a.wait
}

// attempt is one request that wants room.
type attempt struct {
	table *table
	now   time.Time
	d     *extproc.Decision
	// few holds what was taken, used entries of it, and more what does not fit.
	few  [8]taken
	used int
	more []taken
	// by is the rule that refuses, nil while none does, and wait the longest time
	// that one wants; 0 is longer than any.
	by   *rule
	wait time.Duration
}

// count takes room of one rule.
func (a *attempt) count(r *rule) {
	if !r.ByTool() {
		a.take(r, nil, max(1, len(a.d.Calls)))
		return
	}
	eachTool(r, a.d.Calls, func(tool []byte, n int) { a.take(r, tool, n) })
}

// eachTool calls f for what a rule counts of the calls of tools: how many, each
// tool apart where the rule has them so.
func eachTool(r *rule, calls []policy.Call, f func(tool []byte, n int)) {
	total := 0
	for i := range calls {
		if !r.AboutCall(&calls[i]) {
			continue
		}
		if total++; !r.PerTool {
			continue
		}
		n, first := 0, true
		for j := range calls {
			if r.AboutCall(&calls[j]) && string(calls[j].Target) == string(calls[i].Target) {
				n++
				first = first && j >= i
			}
		}
		if first {
			f(calls[i].Target, n)
		}
	}
	if total > 0 && !r.PerTool {
		f(nil, total)
	}
}

// take takes n of one bucket.
func (a *attempt) take(r *rule, tool []byte, n int) {
	t, wait, ok := a.table.take(r, a.d, tool, n, a.now)
	switch {
	case !ok:
		a.refuse(r, wait)
	case a.used < len(a.few):
		a.few[a.used] = t
		a.used++
	default:
		a.more = append(a.more, t)
	}
}

// refuse notes a rule without room. Another one may want a longer wait.
func (a *attempt) refuse(r *rule, wait time.Duration) {
	if a.by == nil || a.wait > 0 && (wait == 0 || wait > a.wait) {
		a.by, a.wait = r, wait
	}
}

// settle puts back what was taken when a rule refuses.
func (a *attempt) settle() {
	for i := range a.used {
		a.few[i].settle(a.by != nil)
	}
	for i := range a.more {
		a.more[i].settle(a.by != nil)
	}
}

// ask has the service count, for the rules that it counts.
func (a *attempt) ask(ctx context.Context, s *service, rules []*rule) {
	var q question
	for _, r := range rules {
		if !r.AboutCaller(a.d.Caller) {
			continue
		}
		if !r.ByTool() {
			q.add(r, a.d, nil, max(1, len(a.d.Calls)))
			continue
		}
		eachTool(r, a.d.Calls, func(tool []byte, n int) { q.add(r, a.d, tool, n) })
	}
	if len(q.rules) == 0 {
		return
	}
	if by, wait := s.ask(ctx, &q); by != nil {
		a.refuse(by, wait)
	}
}
