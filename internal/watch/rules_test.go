package watch_test

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// scene is a watch at work, and what it told.
type scene struct {
	t *testing.T
	w *watch.Watch
	n int

	mu   sync.Mutex
	told []alert.Alert
}

// tell is what the watch calls.
func (s *scene) tell(a alert.Alert) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, a)
}

// play runs f with a watch in a bubble of its own time.
func play(t *testing.T, set *policy.Set, f func(*scene)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &scene{t: t}
		s.w = watch.New(watch.Config{Now: time.Now, Dice: half, Notify: s.tell})
		s.w.Load(set)
		ctx, cancel := context.WithCancel(t.Context())
		go s.w.Run(ctx)
		f(s)
		cancel()
		synctest.Wait()
	})
}

// both are all that a rule can do.
func both() policy.WatchResponse { return policy.WatchResponse{Alert: true, Disable: true} }

// rules are the defaults of the policy, with disable.
func rules() policy.WatchRules {
	return policy.WatchRules{
		AuthFailures:  policy.ShareRule{Share: 0.1, MinCalls: 20, Window: 5 * time.Minute, Do: both()},
		Errors:        policy.ShareRule{Share: 0.25, MinCalls: 20, Window: 5 * time.Minute, Do: both()},
		TokenEndpoint: policy.TokenEndpointRule{Failures: 5, For: time.Minute, Do: policy.WatchResponse{Alert: true}},
		Breaker:       policy.WatchBreaker{Open: 30 * time.Second, MaxOpen: 2 * time.Minute, Successes: 3, ProbeTimeout: 10 * time.Second},
		Throttle:      policy.WatchThrottle{Rate: policy.Rate{Count: 1, Every: time.Second}, For: 5 * time.Minute},
	}
}

// twoUpstreams are a and b, lent a key each, for the callers that are named.
func twoUpstreams(r policy.WatchRules, callers ...*policy.Caller) *policy.Set {
	lent := policy.Credential{Headers: []policy.SecretHeader{{}}}
	return &policy.Set{Callers: callers, Upstreams: []*policy.Upstream{
		{Name: "a", Watch: r, Credential: lent, Callers: callers}, {Name: "b", Watch: r, Credential: lent, Callers: callers},
	}}
}

func keyed(name string) *policy.Caller { return &policy.Caller{Name: name} }

// call makes a call as Envoy does: asked first, decided, and told of in the end.
// It returns why it was refused, or Allowed.
func (s *scene) call(upstream, caller string, status int) policy.Reason {
	s.n++
	d := &extproc.Decision{Upstream: upstream, Caller: caller, Attempt: 1, RequestID: fmt.Appendf(nil, "r-%d", s.n)}
	d.Reason, _ = s.w.Admit(s.t.Context(), d)
	s.w.Decided(d)
	o := &extproc.Outcome{
		Upstream: upstream, Caller: caller, Reason: d.Reason.String(), Decided: true, Attempts: 1, Status: status,
		RequestID: string(d.RequestID), Began: time.Now(),
	}
	if d.Reason != policy.Allowed {
		o.Refusal, o.Status = d.Reason.String(), http.StatusServiceUnavailable
	}
	s.w.Ended(o)
	return d.Reason
}

// refuse tells of a call of upstream a that was refused before the watch was asked.
func (s *scene) refuse(caller string, reason policy.Reason) {
	s.w.Decided(&extproc.Decision{Upstream: "a", Caller: caller, Attempt: 1, Reason: reason})
}

// breaker is that of upstream a.
func (s *scene) breaker() watch.BreakerStatus {
	for _, u := range s.w.Status().Upstreams {
		if u.Name == "a" {
			return u.Breaker
		}
	}
	return watch.BreakerStatus{}
}

// words are the alerts told so far, in short.
func (s *scene) words() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]string, 0, len(s.told))
	last := map[alert.Subject]string{}
	for i := range s.told {
		a := &s.told[i]
		word := strings.TrimSpace(a.Status() + " " + strings.Join(strings.Fields(a.Rule+" "+a.Upstream+" "+a.Stage+" "+a.Caller+" "+a.Tool), " "))
		if last[a.Subject()] != word {
			last[a.Subject()] = word
			all = append(all, word)
		}
	}
	return strings.Join(all, "; ")
}

func (s *scene) want(words string) {
	s.t.Helper()
	time.Sleep(1500 * time.Millisecond)
	if got := s.words(); got != words {
		s.t.Errorf("want %q told, got %q", words, got)
	}
}

// TestAuthFailureRate: more than 10 % of at least 20 calls, and not one less.
func TestAuthFailureRate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		good, bad int
		fires     bool
	}{
		"19 calls, all fail": {0, 19, false},
		"20 calls, 10 %":     {18, 2, false},
		"20 calls, 15 %":     {17, 3, true},
		"1000 calls, 10 %":   {900, 100, false},
		"1000 calls, 10.1 %": {899, 101, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
				for range c.good {
					s.call("a", "ci", 200)
				}
				for range c.bad {
					s.call("a", "ci", 401)
				}
				time.Sleep(1500 * time.Millisecond)
				if got := s.breaker().State == watch.Open; got != c.fires {
					t.Errorf("want it open: %v, got %+v, told %q", c.fires, s.breaker(), s.words())
				}
				if c.fires && s.words() != "firing auth_failures a credential" || !c.fires && s.words() != "" {
					t.Errorf("told %q", s.words())
				}
			})
		})
	}
}

// TestWindowSlides: what is more than five minutes ago does not count.
func TestWindowSlides(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
		for range 15 {
			s.call("a", "ci", 401)
		}
		time.Sleep(5*time.Minute + 20*time.Second)
		for range 15 {
			s.call("a", "ci", 401)
		}
		s.want("")
		for range 5 {
			s.call("a", "ci", 401)
		}
		s.want("firing auth_failures a credential")
	})
}

// TestBreakerOpensAndRecovers: off for its time, one probe at a time, twice as long
// after a bad one, and closed after three good ones. The other upstream is not concerned.
func TestBreakerOpensAndRecovers(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
		for range 20 {
			s.call("a", "ci", 401)
			s.call("b", "ci", 200)
		}
		s.want("firing auth_failures a credential")
		if got := s.call("a", "ci", 200); got != policy.UpstreamDisabled {
			t.Fatalf("want upstream_disabled, got %v", got)
		}
		if _, wait := s.w.Admit(t.Context(), &extproc.Decision{Upstream: "a", Caller: "ci"}); wait < 25*time.Second || wait > 31*time.Second {
			t.Errorf("want to be told to wait for the rest of 30 s, got %v", wait)
		}
		if got := s.call("b", "ci", 200); got != policy.Allowed {
			t.Errorf("b: %v", got)
		}
		time.Sleep(30 * time.Second)
		if got := s.call("a", "ci", 401); got != policy.Allowed {
			t.Fatalf("want a probe let through, got %v", got)
		}
		if st := s.breaker(); st.State != watch.Open || st.Opened != 2 || time.Until(st.NextProbe) < 50*time.Second {
			t.Errorf("want it open for twice as long after a bad probe, got %+v", st)
		}
		time.Sleep(time.Minute)
		probe := &extproc.Decision{Upstream: "a", Caller: "ci", Attempt: 1, RequestID: []byte("slow")}
		if probe.Reason, _ = s.w.Admit(t.Context(), probe); probe.Reason != policy.Allowed {
			t.Fatalf("want a probe let through, got %v", probe.Reason)
		}
		s.w.Decided(probe)
		if got := s.call("a", "ci", 200); got != policy.UpstreamDisabled {
			t.Errorf("want one probe at a time, got %v", got)
		}
		s.w.Ended(&extproc.Outcome{Upstream: "a", Caller: "ci", Reason: "allowed", Decided: true, Attempts: 1, Status: 200, RequestID: "slow", Began: time.Now()})
		for range 2 {
			s.call("a", "ci", 200)
		}
		if st := s.breaker(); st.State != watch.Closed {
			t.Errorf("want it closed after three good probes, got %+v", st)
		}
		s.want("firing auth_failures a credential; resolved auth_failures a credential")
		for range 100 {
			if got := s.call("a", "ci", 200); got != policy.Allowed {
				t.Fatalf("got %v", got)
			}
		}
		s.want("firing auth_failures a credential; resolved auth_failures a credential")
	})
}

// TestOneCallerCannotSwitchOff: whatever one caller does, others are served. What
// it fails at itself is told at most.
func TestOneCallerCannotSwitchOff(t *testing.T) {
	t.Parallel()
	people := &policy.Caller{Name: "people", JWT: &policy.JWT{}}
	for name, c := range map[string]struct {
		set   *policy.Set
		fault func(*scene)
		told  string
	}{
		"wrong keys": {twoUpstreams(rules(), keyed("ci")), func(s *scene) { s.refuse("", policy.CallerInvalid) }, "firing auth_failures a caller"},
		"no keys":    {twoUpstreams(rules(), keyed("ci")), func(s *scene) { s.refuse("", policy.CallerUnknown) }, "firing auth_failures a caller"},
		"forged tokens": {
			twoUpstreams(rules(), people), func(s *scene) { s.refuse("people", policy.CallerInvalid) }, "firing auth_failures a caller",
		},
		"403 of its own making, others there": {
			twoUpstreams(rules(), keyed("ci"), keyed("evil")), func(s *scene) { s.call("a", "evil", 403); s.call("a", "ci", 200) }, "firing auth_failures a credential",
		},
		"403 of its own making, others away": {
			twoUpstreams(rules(), keyed("ci"), keyed("evil")), func(s *scene) { s.call("a", "evil", 403) }, "firing auth_failures a credential",
		},
		"requests that crash it": {
			twoUpstreams(rules(), keyed("ci"), keyed("evil")), func(s *scene) { s.call("a", "evil", 500) }, "firing errors a",
		},
		"one person of many": {twoUpstreams(rules(), people), func(s *scene) { s.call("a", "people", 401) }, "firing auth_failures a credential"},
		"a tool that is denied": {
			twoUpstreams(rules(), keyed("ci")), func(s *scene) { s.refuse("ci", policy.ToolDenied) }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, up := range c.set.Upstreams { // holding the upstream back would hit others as well
				up.Watch.AuthFailures.Do.Throttle, up.Watch.Errors.Do.Throttle = true, true
			}
			play(t, c.set, func(s *scene) {
				for range 500 {
					c.fault(s)
				}
				s.want(c.told)
				if st := s.breaker(); st.State != watch.Closed || len(s.w.Status().Throttles) > 0 {
					t.Errorf("want a open for others, got %+v, %+v", st, s.w.Status().Throttles)
				}
				for range 10 {
					if got := s.call("a", "ci", 200); got != policy.Allowed {
						t.Fatalf("want others served, got %v", got)
					}
				}
			})
		})
	}
}

// left tells of a call of upstream a that ended without an answer after that long,
// nobody knows by whom: what outcomes by the headers of answers say of it.
func (s *scene) left(after time.Duration) policy.Reason {
	s.n++
	d := &extproc.Decision{Upstream: "a", Caller: "ci", Attempt: 1, RequestID: fmt.Appendf(nil, "r-%d", s.n)}
	d.Reason, _ = s.w.Admit(s.t.Context(), d)
	s.w.Decided(d)
	if d.Reason == policy.Allowed {
		began := time.Now()
		s.w.Ended(&extproc.Outcome{
			Upstream: "a", Caller: "ci", Reason: "allowed", Decided: true, Attempts: 1, RequestID: string(d.RequestID),
			Began: began.Add(-after), Took: after, Reset: true, Left: true,
		})
	}
	return d.Reason
}

// TestCallersThatLeave: a call that its caller cancels says nothing about the
// upstream, as a probe neither; one that was waited for in vain does.
func TestCallersThatLeave(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
		for range 50 {
			s.left(100 * time.Millisecond)
		}
		s.want("")
		for range 50 {
			s.left(30 * time.Second)
		}
		s.want("firing errors a")
		time.Sleep(40 * time.Second)
		if got := s.left(100 * time.Millisecond); got != policy.Allowed {
			t.Fatalf("want a probe let through, got %v", got)
		}
		if st := s.breaker(); st.State != watch.HalfOpen || st.Opened != 1 {
			t.Errorf("want the next probe let through after one that was cancelled, got %+v", st)
		}
		if got := s.left(30 * time.Second); got != policy.Allowed {
			t.Fatalf("want a probe let through, got %v", got)
		}
		if st := s.breaker(); st.State != watch.Open || st.Opened != 2 {
			t.Errorf("want it open after a probe that was waited for in vain, got %+v", st)
		}
	})
}

// TestCallersAgree: two callers that see most of their calls fail are enough.
func TestCallersAgree(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci"), keyed("robot")), func(s *scene) {
		for range 10 {
			s.call("a", "ci", 500)
			s.call("a", "robot", 500)
		}
		s.want("firing errors a")
		if s.breaker().State != watch.Open {
			t.Errorf("got %+v", s.breaker())
		}
	})
}

// TestProbesOfOneCallerDoNotKeepItOff: a caller whose calls always fail leaves the
// next probe to others.
func TestProbesOfOneCallerDoNotKeepItOff(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci"), keyed("evil")), func(s *scene) {
		for range 20 {
			s.call("a", "ci", 401)
			s.call("a", "evil", 401)
		}
		s.want("firing auth_failures a credential")
		for end := time.Now().Add(5 * time.Minute); time.Now().Before(end) && s.breaker().State != watch.Closed; time.Sleep(100 * time.Millisecond) {
			s.call("a", "evil", 401) // always first
			s.call("a", "ci", 200)
		}
		if st := s.breaker(); st.State != watch.Closed {
			t.Errorf("want the others' probes to close it, got %+v", st)
		}
	})
}

// TestSilentProbes: without the ends of calls, the upstream gets the benefit of the doubt.
func TestSilentProbes(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
		for range 20 {
			s.call("a", "ci", 401)
		}
		s.want("firing auth_failures a credential")
		for range 600 { // the access log is gone
			d := &extproc.Decision{Upstream: "a", Caller: "ci", Attempt: 1}
			d.Reason, _ = s.w.Admit(t.Context(), d)
			s.w.Decided(d)
			time.Sleep(time.Second)
		}
		if st := s.breaker(); st.State != watch.Closed {
			t.Errorf("want it closed, got %+v", st)
		}
	})
}

// TestReloadKeepsState: a reload keeps counts, alerts and breakers; changed rules
// begin anew, and an upstream that is gone takes its alert with it.
func TestReloadKeepsState(t *testing.T) {
	t.Parallel()
	play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
		for range 15 {
			s.call("a", "ci", 401)
		}
		s.w.Load(twoUpstreams(rules(), keyed("ci")))
		for range 5 {
			s.call("a", "ci", 401)
		}
		s.want("firing auth_failures a credential")
		s.w.Load(twoUpstreams(rules(), keyed("ci")))
		if st := s.breaker(); st.State != watch.Open {
			t.Errorf("want it open after a reload, got %+v", st)
		}
		other := rules()
		other.AuthFailures.Share = 0.9999
		s.w.Load(twoUpstreams(other, keyed("ci")))
		if st := s.breaker(); st.State != watch.Closed {
			t.Errorf("want it closed with other rules, got %+v", st)
		}
		set := twoUpstreams(rules(), keyed("ci"))
		set.Upstreams = set.Upstreams[1:]
		s.w.Load(set)
		s.want("firing auth_failures a credential; resolved auth_failures a credential")
		if got := s.call("a", "ci", 200); got != policy.Allowed {
			t.Errorf("an upstream that is not watched: %v", got)
		}
	})
}

// TestAlertSwitchedOnOrOffByAReload: a rule that begins to tell tells what lasts, and
// who was told is told of the end, whatever the rule says by then.
func TestAlertSwitchedOnOrOffByAReload(t *testing.T) {
	t.Parallel()
	const firing, over = "firing errors a", "firing errors a; resolved errors a"
	quiet, loud := policy.WatchResponse{Throttle: true}, policy.WatchResponse{Throttle: true, Alert: true}
	for name, c := range map[string]struct {
		first, then        policy.WatchResponse
		before, after, end string
	}{
		"on":    {quiet, loud, "", firing, over},
		"off":   {loud, quiet, firing, firing, over},
		"never": {quiet, quiet, "", "", ""},
		// Changed rules close a breaker, and with that the alert is over.
		"off, and the upstream on": {both(), policy.WatchResponse{Disable: true}, firing, over, over},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			with := func(do policy.WatchResponse) *policy.Set {
				r := rules()
				r.Errors.Do = do
				return twoUpstreams(r, keyed("ci"))
			}
			play(t, with(c.first), func(s *scene) {
				for range 20 {
					s.call("a", "ci", 500)
				}
				s.want(c.before)
				s.w.Load(with(c.then))
				s.want(c.after)
				s.call("a", "ci", 500) // other figures
				s.want(c.after)
				time.Sleep(6 * time.Minute)
				s.want(c.end)
			})
		})
	}
}

// TestDisabledByThePolicy: disabled: true refuses whatever the rules say.
func TestDisabledByThePolicy(t *testing.T) {
	t.Parallel()
	set := twoUpstreams(policy.WatchRules{}, keyed("ci"))
	set.Upstreams[0].Disabled = true
	play(t, set, func(s *scene) {
		if got := s.call("a", "ci", 200); got != policy.UpstreamDisabled || s.breaker().State != watch.Disabled {
			t.Errorf("got %v, %+v", got, s.breaker())
		}
		if got := s.call("b", "ci", 200); got != policy.Allowed {
			t.Errorf("b: %v", got)
		}
	})
}

// TestTokenEndpointRule: five failures in a row, or two over a minute; one success ends it.
func TestTokenEndpointRule(t *testing.T) {
	t.Parallel()
	fail := tokens.Fetch{Upstreams: []string{"a"}, Result: "unavailable", Kind: tokens.Unavailable}
	const fired = "firing token_endpoint a"
	for name, c := range map[string]struct {
		failures int
		every    time.Duration
		want     string
	}{
		"four at once": {4, time.Millisecond, ""}, "five at once": {5, time.Millisecond, fired},
		"two in a minute": {2, 62 * time.Second, fired}, "one": {1, 2 * time.Minute, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, twoUpstreams(rules(), keyed("ci")), func(s *scene) {
				for range c.failures {
					s.w.Fetched(fail)
					time.Sleep(c.every)
				}
				s.want(c.want)
				s.w.Fetched(tokens.Fetch{Upstreams: []string{"a"}, Result: "ok"})
				if c.want != "" {
					s.want(fired + "; resolved token_endpoint a")
				}
			})
		})
	}
}

// tools makes a decision about a call of a tool.
func (s *scene) tool(upstream, caller, tool string) policy.Reason {
	s.n++
	d := &extproc.Decision{
		Upstream: upstream, Caller: caller, Attempt: 1, RequestID: fmt.Appendf(nil, "r-%d", s.n),
		Calls: []policy.Call{{Method: []byte("tools/call"), Target: []byte(tool)}},
	}
	d.Reason, _ = s.w.Admit(s.t.Context(), d)
	s.w.Decided(d)
	return d.Reason
}

// TestSweep: one caller that runs many tools, over all upstreams together, is told
// of and held back everywhere; others are not.
func TestSweep(t *testing.T) {
	t.Parallel()
	set := twoUpstreams(rules(), keyed("ci"), keyed("thief"))
	set.Watch = &policy.Watch{
		Sweep:    policy.SweepRule{Tools: 20, Window: time.Minute, Do: policy.WatchResponse{Alert: true, Throttle: true}},
		Throttle: policy.WatchThrottle{Rate: policy.Rate{Count: 1, Every: time.Second}, For: time.Minute},
	}
	play(t, set, func(s *scene) {
		for i := range 10 {
			for _, up := range []string{"a", "b"} {
				s.tool(up, "thief", fmt.Sprint("t", i))
				s.tool(up, "ci", "always the same")
			}
		}
		s.want("")
		s.tool("a", "thief", "one more")
		s.want("firing sweep thief")
		refused := 0
		for range 10 {
			if s.tool("b", "thief", "t1") == policy.RateLimited {
				refused++
			}
			if got := s.tool("b", "ci", "t1"); got != policy.Allowed {
				t.Errorf("ci is not concerned: %v", got)
			}
		}
		if st := s.w.Status().Throttles; refused != 9 || len(st) != 1 || st[0].Caller != "thief" || st[0].Refused != 9 {
			t.Errorf("want 9 of 10 refused, got %d, %+v", refused, st)
		}
		time.Sleep(3 * time.Minute)
		s.want("firing sweep thief; resolved sweep thief")
		if got := s.tool("b", "thief", "t1"); got != policy.Allowed || len(s.w.Status().Throttles) != 0 {
			t.Errorf("want it over, got %v, %+v", got, s.w.Status().Throttles)
		}
	})
}

// TestThrottlesTakeNothingOfEachOther: a caller that anybody may be is asked for
// once, and who is refused by a throttle of its own costs others nothing.
func TestThrottlesTakeNothingOfEachOther(t *testing.T) {
	t.Parallel()
	r := rules()
	r.Errors.Do = policy.WatchResponse{Throttle: true}
	r.Throttle.For = time.Hour
	set := twoUpstreams(r, &policy.Caller{Name: "anyone", Any: true}, keyed("ci"), keyed("cron"))
	set.Watch = &policy.Watch{Sweep: policy.SweepRule{Tools: 5, Window: time.Hour, Do: policy.WatchResponse{Throttle: true}}, Throttle: r.Throttle}
	play(t, set, func(s *scene) {
		for i := range 20 {
			s.call("a", "ci", 500)
			s.call("a", "cron", 500)
			s.tool("b", "cron", fmt.Sprint("t", i))
		}
		s.want("")
		if st := s.w.Status().Throttles; len(st) != 2 {
			t.Fatalf("want the upstream and the sweeper throttled, got %+v", st)
		}
		for i := range 5 {
			time.Sleep(time.Second)
			if got := s.call("a", "anyone", 200); got != policy.Allowed {
				t.Errorf("second %d: want one call in a second to pass, got %v", i+1, got)
			}
			if got := s.call("a", "anyone", 200); got != policy.RateLimited {
				t.Errorf("second %d: want the next one refused, got %v", i+1, got)
			}
		}
		for i := range 5 {
			time.Sleep(time.Second)
			if got := s.call("b", "cron", 200); got != policy.Allowed {
				t.Errorf("second %d: b is not throttled, got %v", i+1, got)
			}
			for range 3 { // what it may is used up, at the other upstream
				if got := s.call("a", "cron", 200); got != policy.RateLimited {
					t.Errorf("second %d: want the sweeper refused, got %v", i+1, got)
				}
			}
			if got := s.call("a", "ci", 200); got != policy.Allowed {
				t.Errorf("second %d: want others served, got %v", i+1, got)
			}
			if got := s.call("a", "cron", 200); got != policy.RateLimited {
				t.Errorf("second %d: want the sweeper refused, got %v", i+1, got)
			}
		}
		time.Sleep(time.Second)
		if got := s.call("a", "ci", 200); got != policy.Allowed {
			t.Errorf("want others served, got %v", got)
		}
		if got := s.call("a", "cron", 200); got != policy.RateLimited {
			t.Errorf("want the upstream's throttle to hold, got %v", got)
		}
		if got := s.call("b", "cron", 200); got != policy.Allowed {
			t.Errorf("want what the upstream's throttle refused to cost a caller nothing, got %v", got)
		}
	})
}

// TestToolUsage: ten times as many calls of a tool as usual, once that is known.
func TestToolUsage(t *testing.T) {
	t.Parallel()
	r := rules()
	r.ToolUsage = policy.ToolUsageRule{Factor: 10, MinCalls: 50, Window: 5 * time.Minute, Learn: time.Hour, Do: policy.WatchResponse{Alert: true, Throttle: true}}
	set := twoUpstreams(r, keyed("ci"), keyed("loop"))
	set.Upstreams[0].Tools = &policy.Tools{}
	play(t, set, func(s *scene) {
		for range 60 {
			s.tool("a", "ci", "search") // 100 at once would be nothing: it is not known yet
		}
		s.want("")
		for range 60 * 4 {
			for range 2 {
				s.tool("a", "ci", "search")
			}
			time.Sleep(time.Minute)
		}
		s.want("")
		for range 200 {
			s.tool("a", "loop", "search")
		}
		s.want("firing tool_usage a search")
		if got := s.tool("a", "loop", "search"); got != policy.Allowed {
			t.Errorf("want one a second to pass, got %v", got)
		}
		if got := s.tool("a", "loop", "search"); got != policy.RateLimited {
			t.Errorf("want the caller held back that makes most of the calls, got %v", got)
		}
		if got := s.tool("a", "ci", "search"); got != policy.Allowed {
			t.Errorf("ci: %v", got)
		}
		time.Sleep(20 * time.Minute)
		s.want("firing tool_usage a search; resolved tool_usage a search")
	})
}

// TestManyCallersAndToolsAreBounded: what callers choose does not grow without bound.
func TestManyCallersAndToolsAreBounded(t *testing.T) {
	t.Parallel()
	r := rules()
	r.ToolUsage = policy.ToolUsageRule{Factor: 10, MinCalls: 50, Window: 5 * time.Minute, Learn: time.Hour, Do: policy.WatchResponse{Alert: true}}
	set := twoUpstreams(r, &policy.Caller{Name: "people", JWT: &policy.JWT{}})
	set.Upstreams[0].Tools = &policy.Tools{}
	set.Watch = &policy.Watch{Sweep: policy.SweepRule{Tools: 50, Window: 10 * time.Minute, Do: policy.WatchResponse{Alert: true}}}
	w := watch.New(watch.Config{Now: time.Now, Dice: half})
	w.Load(set)
	grow := func(from, n int) {
		for i := from; i < from+n; i++ {
			w.Decided(&extproc.Decision{
				Upstream: "a", Caller: "people", Subject: fmt.Sprint("s", i), Attempt: 1, Reason: policy.Allowed,
				Calls: []policy.Call{{Method: []byte("tools/call"), Target: fmt.Append(nil, "t", i)}},
			})
		}
	}
	grow(0, 20_000)
	before := heap()
	grow(20_000, 40_000)
	if after := heap(); after > before+(2<<20) {
		t.Errorf("want no growth beyond the bounds, got %d kB more", (after-before)>>10)
	}
	runtime.KeepAlive(w)
}

// heap is what is in use now.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
