package watch_test

import (
	"math"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func TestStatusFigures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := watch.New(watch.Config{Now: time.Now, Dice: half})
		w.Load(&policy.Set{Upstreams: []*policy.Upstream{{Name: "a"}, {Name: "b"}}})
		for i := range 60 {
			w.Decided(&extproc.Decision{Upstream: "a", Caller: "ci", Reason: policy.Allowed, Attempt: 1})
			w.Ended(&extproc.Outcome{
				Upstream: "a", Caller: "ci", Reason: "allowed", Decided: true, Attempts: 1,
				Status: 200, Took: time.Duration(i+1) * 10 * time.Millisecond,
			})
			time.Sleep(time.Second)
		}
		decide := func(r policy.Reason) {
			w.Decided(&extproc.Decision{Upstream: "a", Caller: "ci", Reason: r, Attempt: 1})
		}
		decide(policy.CallerUnknown)
		decide(policy.TokenRefused)
		w.Ended(&extproc.Outcome{Upstream: "a", Decided: true, Reason: "token_refused", Refusal: "token_refused", Status: 502, Attempts: 1})
		decide(policy.RateLimited)
		decide(policy.Allowed)
		w.Ended(&extproc.Outcome{Upstream: "a", Caller: "ci", Reason: "allowed", Decided: true, Attempts: 2, Status: 502, Refusal: "upstream_rejected"})
		decide(policy.Allowed)
		w.Ended(&extproc.Outcome{Upstream: "a", Caller: "ci", Reason: "allowed", Decided: true, Attempts: 1, Status: 429})
		w.Decided(&extproc.Decision{Upstream: "no such", Reason: policy.Allowed, Attempt: 1})
		w.Ended(&extproc.Outcome{Upstream: "no such"})

		st := w.Status()
		a, b := st.Upstreams[0], st.Upstreams[1]
		if !st.Outcomes || b.Calls != 0 || b.Series != nil || len(a.Series) != 30 {
			t.Errorf("want outcomes, nothing of b and 30 points of a, got %v, %+v, %d", st.Outcomes, b, len(a.Series))
		}
		if a.Calls != 65 || a.Tried != 63 || a.Ended != 62 || a.Limited != 1 || a.Failures != (watch.Failures{Caller: 1, Token: 1, Upstream: 1}) {
			t.Errorf("want 65 calls, 63 tried, 62 ended, 1 limited, one failure each but errors, got %+v", a)
		}
		if math.Abs(a.P50-0.3)/0.3 > 0.13 || math.Abs(a.P99-0.6)/0.6 > 0.13 {
			t.Errorf("want p50 and p99 within an eighth of 0.3 and 0.6, got %v and %v", a.P50, a.P99)
		}
		if math.Abs(a.AuthFailureShare-3.0/65) > 1e-9 || a.ErrorShare != 0 {
			t.Errorf("want 3 of 65 and no errors (a 429 is none), got %v, %v", a.AuthFailureShare, a.ErrorShare)
		}
		if total := points(a.Series); total != 65 || a.Series[29].Calls != 5 || a.Series[28].Calls != 10 {
			t.Errorf("want 65 calls in the points, 10 in the last but one, got %d: %+v", total, a.Series)
		}
		time.Sleep(5 * time.Minute)
		if a = w.Status().Upstreams[0]; a.Calls != 0 || a.P99 != 0 || points(a.Series) != 0 {
			t.Errorf("want nothing after five minutes, got %+v", a)
		}
	})
}

func half() float64 { return 0.5 }

func points(series []watch.Point) (n uint64) {
	for _, p := range series {
		n += p.Calls
	}
	return n
}

// TestFailed says what counts as a failure of the upstream.
func TestFailed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcome extproc.Outcome
		want    watch.Failures
	}{
		"answer":                              {extproc.Outcome{Status: 200}, watch.Failures{}},
		"429 of a provider":                   {extproc.Outcome{Status: 429}, watch.Failures{}},
		"401":                                 {extproc.Outcome{Status: 401}, watch.Failures{Upstream: 1}},
		"403":                                 {extproc.Outcome{Status: 403}, watch.Failures{Upstream: 1}},
		"404":                                 {extproc.Outcome{Status: 404}, watch.Failures{}},
		"500":                                 {extproc.Outcome{Status: 500}, watch.Failures{Errors: 1}},
		"upstream timeout":                    {extproc.Outcome{Status: 504, Reset: true}, watch.Failures{Errors: 1}},
		"broken off":                          {extproc.Outcome{Status: 200, Reset: true}, watch.Failures{Errors: 1}},
		"stream that the caller closed":       {extproc.Outcome{Status: 200, Reset: true, Left: true, Took: time.Hour}, watch.Failures{}},
		"caller left at once":                 {extproc.Outcome{Reset: true, Left: true, Took: time.Second}, watch.Failures{}},
		"caller waited in vain":               {extproc.Outcome{Reset: true, Left: true, Took: 30 * time.Second}, watch.Failures{Errors: 1}},
		"answered by Envoy with our refusal":  {extproc.Outcome{Status: 503, Refusal: "audit_unavailable"}, watch.Failures{}},
		"second attempt found no token":       {extproc.Outcome{Status: 503, Reason: "token_unavailable", Refusal: "token_unavailable", Attempts: 2}, watch.Failures{Token: 1}},
		"refused at the first, counted there": {extproc.Outcome{Status: 503, Reason: "token_unavailable", Refusal: "token_unavailable", Attempts: 1}, watch.Failures{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := watch.New(watch.Config{Now: time.Now, Dice: half})
			w.Load(&policy.Set{Upstreams: []*policy.Upstream{{Name: "a", Credential: policy.Credential{Headers: []policy.SecretHeader{{}}}}}})
			c.outcome.Upstream, c.outcome.Decided = "a", true
			if c.outcome.Reason == "" {
				c.outcome.Reason, c.outcome.Attempts = "allowed", 1
			}
			w.Ended(&c.outcome)
			if got := w.Status().Upstreams[0].Failures; got != c.want {
				t.Errorf("want %+v, got %+v", c.want, got)
			}
		})
	}
}

func BenchmarkDecidedEnded(b *testing.B) {
	w := watch.New(watch.Config{Now: time.Now, Dice: half})
	set := &policy.Set{}
	for i := range 100 {
		set.Upstreams = append(set.Upstreams, &policy.Upstream{Name: "up" + strconv.Itoa(i)})
	}
	w.Load(set)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		d := extproc.Decision{Upstream: "up1", Caller: "ci", Reason: policy.Allowed, Attempt: 1}
		o := extproc.Outcome{Upstream: "up1", Caller: "ci", Reason: "allowed", Decided: true, Attempts: 1, Status: 200, Took: time.Millisecond}
		for pb.Next() {
			w.Decided(&d)
			w.Ended(&o)
		}
	})
}
