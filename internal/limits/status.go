package limits

import (
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Status is how the limits stand. It has names of the policy, and none of people or tools.
type Status struct {
	// Buckets is how many are held.
	Buckets int `json:"buckets"`
	// Rules are in the order of the file.
	Rules []RuleStatus `json:"rules"`
	// Service is missing when no rule asks one.
	Service *ServiceStatus `json:"service,omitempty"`
}

// RuleStatus is what became of one rule.
type RuleStatus struct {
	Name string `json:"name"`
	// Rate is as the file has it, empty when the service knows it.
	Rate string `json:"rate,omitempty"`
	// Per is what is counted apart, empty when all is counted together.
	Per []string `json:"per,omitempty"`
	// Fleet is whether the service counts.
	Fleet bool `json:"fleet,omitempty"`
	// Refused is how many requests this process refused because of it, and Last when.
	Refused uint64     `json:"refused"`
	Last    *time.Time `json:"last,omitempty"`
}

// ServiceStatus is how the rate limit service stands.
type ServiceStatus struct {
	Address string `json:"address"`
	// State is up, down, or untried.
	State string     `json:"state"`
	Since *time.Time `json:"since,omitempty"`
	// Error is the last failure, empty while it works.
	Error string `json:"error,omitempty"`
	// OnFailure is allow or refuse: what its outage means.
	OnFailure string `json:"on_failure"`
}

// tally counts the refusals of a rule.
type tally struct {
	count atomic.Uint64
	last  atomic.Int64 // Unix nanoseconds
}

func (t *tally) add(now time.Time) {
	t.count.Add(1)
	t.last.Store(now.UnixNano())
}

// tallies returns those of a plan's rules, by their ID.
func (p *Plan) tallies() map[string]*tally {
	m := make(map[string]*tally, len(p.all))
	for _, r := range p.all {
		m[r.ID] = r.refused
	}
	return m
}

// Status returns how the limits stand; nil without any.
func (l *Limits) Status() *Status {
	p := l.plan.Load()
	if len(p.all) == 0 {
		return nil
	}
	st := &Status{Buckets: l.table.len(), Rules: make([]RuleStatus, 0, len(p.all))}
	for _, r := range p.all {
		st.Rules = append(st.Rules, r.status())
	}
	if p.service != nil {
		st.Service = p.service.status()
	}
	return st
}

func (r *rule) status() RuleStatus {
	st := RuleStatus{Name: r.Name, Rate: r.Rate.String(), Fleet: r.Fleet, Refused: r.refused.count.Load()}
	for _, per := range []struct {
		name string
		is   bool
	}{{"upstream", r.PerUpstream}, {"caller", r.PerCaller}, {"subject", r.PerSubject}, {"tool", r.PerTool}} {
		if per.is {
			st.Per = append(st.Per, per.name)
		}
	}
	if n := r.refused.last.Load(); n != 0 {
		last := time.Unix(0, n)
		st.Last = &last
	}
	return st
}

// String says what the rule is, such as "100/s for each upstream and caller".
func (r *RuleStatus) String() string {
	text := r.Rate
	if text == "" {
		text = "a rate of the service"
	}
	if len(r.Per) > 0 {
		text += " for each " + strings.Join(r.Per, " and ")
	}
	if r.Fleet {
		text += ", all replicas"
	}
	return text + ": " + strconv.FormatUint(r.Refused, 10) + " refused"
}

func (s *service) status() *ServiceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &ServiceStatus{Address: s.spec.Address, State: s.state, OnFailure: "allow"}
	if s.spec.Refuse {
		st.OnFailure = "refuse"
	}
	if s.state == "" {
		st.State = "untried"
	} else {
		since := s.since
		st.Since = &since
	}
	if s.fails.Load() > 0 {
		st.Error = s.cause
	}
	return st
}
