package watch

import (
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// The rules, by their keys in the policy.
const (
	ruleAuth     = "auth_failures"
	ruleErrors   = "errors"
	ruleEndpoint = "token_endpoint"
	ruleUsage    = "tool_usage"
	ruleSweep    = "sweep"
)

// The stages of auth_failures that are told apart: what a caller proved, which
// anybody can fail at, and what the upstream's credential was good for.
const (
	stageCaller     = "caller"
	stageCredential = "credential"
)

// forgotten is after how long without a call an upstream's counts are given up.
const forgotten = time.Hour

// finding is a rule that is broken now.
type finding struct {
	alert alert.Alert
	tell  bool // somebody is to be told
}

// firing is a finding that lasts.
type firing struct {
	finding
	seen bool
}

// tick holds everything against the rules.
func (w *Watch) tick() {
	now := w.cfg.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.table.Load()
	j := &judge{w: w, t: t, now: now, found: w.found[:0]}
	for _, s := range t.sorted {
		j.upstream(s)
	}
	j.sweeps()
	w.throttles.end(now, func(at target) bool { return at.upstream != "" && t.byName[at.upstream] == nil })
	w.settle(j.found, now)
	w.found = j.found
}

// judge is one look at everything.
type judge struct {
	w     *Watch
	t     *table
	now   time.Time
	found []finding
}

// lasts reports whether an alert lasts already: what ends it is less than what
// begins it, so that it does not come and go.
func (j *judge) lasts(s alert.Subject) bool { return j.w.firing[s] != nil }

func (j *judge) upstream(s *seat) {
	j.follow(s) // before the rules: what was before it closed is not held against it
	if win := s.counted.Load(); win != nil {
		if s.breaker.now() == closed && !win.used(j.now.Add(-forgotten)) {
			s.counted.CompareAndSwap(win, nil)
		}
		j.authFailures(s, win)
		j.errors(s, win)
	}
	j.tokenEndpoint(s)
	j.toolUsage(s)
	j.follow(s)
}

// follow logs what a breaker does, and begins counting anew when it has closed:
// what was before is not held against the upstream twice.
func (j *judge) follow(s *seat) {
	before, is := s.logged, s.breaker.now()
	if before == is {
		return
	}
	s.logged = is
	st := s.breaker.status(j.now, &s.rules.Breaker)
	switch is {
	case closed:
		s.floor = numberOf(j.now)
		j.w.cfg.Log.Info().Str("upstream", s.name).Msg("the upstream is switched on again")
	case open:
		j.w.cfg.Log.Warn().Str("upstream", s.name).Str("rule", st.Rule).Time("next_probe", st.NextProbe).Int("opened", st.Opened).
			Msg("the upstream is switched off: " + st.Why)
	case halfOpen:
		j.w.cfg.Log.Info().Str("upstream", s.name).Msg("the upstream is tried again, one call at a time")
	}
}

// exceeds holds a share against a rule.
func exceeds(part, whole uint64, r *policy.ShareRule, lasts bool) bool {
	return whole > 0 && (lasts || whole >= uint64(r.MinCalls)) && share(part, whole) > r.Share //nolint:gosec // checked to be above 0
}

// authFailures looks at callers and credential apart, and at both together. What
// callers bring about is told and nothing more: whoever reaches Envoy can present
// a wrong key as often as it likes.
func (j *judge) authFailures(s *seat, win *window) {
	r := &s.rules.AuthFailures
	if r.Do.Off() {
		return
	}
	sum := win.sum(j.now, r.Window, s.floor)
	about := func(stage string) alert.Subject {
		return alert.Subject{Rule: ruleAuth, Upstream: s.name, Stage: stage}
	}
	f := sum.failures()
	bad, all := f.Token+f.Upstream, sum.credential()
	own := exceeds(bad, all, r, j.lasts(about(stageCredential)))
	caller := exceeds(f.Caller, sum.all(), r, j.lasts(about(stageCaller)))
	if !own && !caller && exceeds(bad+f.Caller, sum.all(), r, false) {
		own, caller = bad >= f.Caller, bad < f.Caller
	}
	if caller {
		j.found = append(j.found, finding{callerAlert(s.name, r, &sum), r.Do.Alert})
	}
	if !own && !s.opened(ruleAuth) {
		return
	}
	a := credentialAlert(s.name, r, &sum)
	j.respond(s, &a, r.Do, own, own && exceeds(bad, all, r, false) && sum.agreed(blamed, r.Share, s.alone))
}

// errors looks at what an upstream fails at besides authentication.
func (j *judge) errors(s *seat, win *window) {
	r := &s.rules.Errors
	if r.Do.Off() {
		return
	}
	sum := win.sum(j.now, r.Window, s.floor)
	about := alert.Subject{Rule: ruleErrors, Upstream: s.name}
	is := exceeds(sum.counts[upstreamFailed], sum.credential(), r, j.lasts(about))
	if !is && !s.opened(ruleErrors) {
		return
	}
	a := errorsAlert(s.name, r, &sum)
	j.respond(s, &a, r.Do, is, exceeds(sum.counts[upstreamFailed], sum.credential(), r, false) && sum.agreed(broken, r.Share, s.alone))
}

// opened reports whether the rule keeps the upstream off: no calls, no failures,
// and still nothing is well.
func (u *upstream) opened(rule string) bool {
	if u.breaker.now() == closed {
		return false
	}
	u.breaker.mu.Lock()
	defer u.breaker.mu.Unlock()
	return u.breaker.rule == rule
}

// respond switches an upstream off or throttles it, when that is wanted and
// callers agree that it is the upstream's fault, and files the alert. When the rule
// is not broken any more, the upstream is still off because of it.
func (j *judge) respond(s *seat, a *alert.Alert, do policy.WatchResponse, is, agreed bool) {
	if was := j.w.firing[a.Subject()]; was != nil && !is {
		a.Summary, a.Figures = was.alert.Summary, was.alert.Figures // nothing is called, so that there is nothing new
	}
	if do.Disable && agreed {
		s.breaker.trip(j.now, &s.rules.Breaker, j.w.cfg.Dice(), a.Rule, a.Summary)
	}
	if do.Throttle && agreed {
		j.w.throttles.hold(j.now, target{upstream: s.name}, s.rules.Throttle, a.Rule, "")
		a.Done = append(a.Done, throttledUpstream(s.name, s.rules.Throttle))
	}
	if s.opened(a.Rule) {
		a.Done = append(a.Done, disabled(s.name))
		a.Severity = alert.Critical
	}
	j.found = append(j.found, finding{*a, do.Alert})
}

func (j *judge) tokenEndpoint(s *seat) {
	r := &s.rules.TokenEndpoint
	if r.Do.Off() {
		return
	}
	st := s.endpoint.status()
	if st.broken(j.now, r, j.lasts(alert.Subject{Rule: ruleEndpoint, Upstream: s.name})) {
		j.found = append(j.found, finding{endpointAlert(s.name, st, j.now), r.Do.Alert})
	}
}

func (j *judge) toolUsage(s *seat) {
	m := s.tools.m.Load()
	if m == nil || !s.usage {
		return
	}
	r := &s.rules.ToolUsage
	for _, u := range *m {
		u.turn(j.now, r)
		if !u.unusual(j.now, r, j.lasts(alert.Subject{Rule: ruleUsage, Upstream: s.name, Tool: u.tool})) {
			continue
		}
		n := u.lately(j.now, r)
		p, heavy := u.most.heavy(n)
		a := usageAlert(s.name, u, r, n, p, heavy)
		if heavy && r.Do.Throttle {
			j.w.throttles.hold(j.now, target{s.name, p.who}, s.rules.Throttle, ruleUsage, p.label())
			a.Done = append(a.Done, throttledCaller(p, s.name, s.rules.Throttle))
		}
		j.found = append(j.found, finding{a, r.Do.Alert})
	}
	s.tools.prune()
}

// sweeps looks for callers that run many tools.
func (j *judge) sweeps() {
	r := &j.t.sweep
	if r.Do.Off() {
		return
	}
	j.w.sweeps.each(j.now, r, func(p person, tools int) {
		a := sweepAlert(p, r, tools)
		if r.Do.Throttle {
			j.w.throttles.hold(j.now, target{who: p.who}, j.t.throttle, ruleSweep, p.label())
			a.Done = append(a.Done, throttledCaller(p, "", j.t.throttle))
		}
		j.found = append(j.found, finding{a, r.Do.Alert})
	})
}

// settle tells what began and what is over.
func (w *Watch) settle(found []finding, now time.Time) {
	for _, f := range found {
		about := f.alert.Subject()
		was := w.firing[about]
		if was == nil {
			f.alert.Since = now
			was = &firing{finding: f}
			w.firing[about] = was
			w.begin(&f)
		} else {
			f.alert.Since, f.alert.Severity = was.alert.Since, was.alert.Severity // a label stays as it was
			changed := f.alert.Summary != was.alert.Summary || len(f.alert.Done) != len(was.alert.Done)
			was.alert = f.alert
			if f.tell && (changed || !was.tell) {
				w.cfg.Notify(f.alert)
			}
			was.tell = was.tell || f.tell // a reload changes it, and who was told waits for the end
		}
		was.seen = true
	}
	for about, was := range w.firing {
		if was.seen {
			was.seen = false
			continue
		}
		delete(w.firing, about)
		was.alert.Until = now
		w.end(&was.finding)
	}
}

func (w *Watch) begin(f *finding) {
	a := &f.alert
	w.cfg.Log.Warn().Str("rule", a.Rule).Str("upstream", a.Upstream).Str("caller", a.Caller).Str("tool", a.Tool).
		Strs("done", a.Done).Msg(a.Summary)
	w.cfg.Fired(a.Rule, a.Upstream)
	if f.tell {
		w.cfg.Notify(*a)
	}
}

func (w *Watch) end(f *finding) {
	a := &f.alert
	w.cfg.Log.Info().Str("rule", a.Rule).Str("upstream", a.Upstream).Str("caller", a.Caller).Str("tool", a.Tool).
		Dur("lasted_ms", a.Until.Sub(a.Since)).Msg("over: " + a.Summary)
	if f.tell {
		w.cfg.Notify(*a)
	}
}
