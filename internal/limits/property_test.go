package limits_test

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// model is what a limit may have let pass: a reference with exact times.
type model struct {
	admitted []struct {
		at time.Time
		n  int
	}
}

// within demands that no stretch of time saw more than burst + rate × its length.
func (m *model) within(burst int, perSecond float64) error {
	for i := range m.admitted {
		sum := 0
		for j := i; j < len(m.admitted); j++ {
			sum += m.admitted[j].n
			length := m.admitted[j].at.Sub(m.admitted[i].at).Seconds()
			if most := float64(burst) + perSecond*length + 1e-6; float64(sum) > most {
				return fmt.Errorf("%d admitted in %.3f s, want at most %.3f", sum, length, most)
			}
		}
	}
	return nil
}

// TestNeverMore: whatever the order of calls, keys, batches and reloads, with
// fewer buckets than it takes, no key gets more than burst + rate × time, and a
// call that is refused passes after the time it was told, when nobody else takes it.
func TestNeverMore(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		clock := newClock()
		const perSecond, least = 7, 3
		block := func(rate, burst int) string {
			return rules(fmt.Sprintf("{name: one, rate: %d/s, burst: %d, per: [subject]}", rate, burst), "{name: all, rate: 20/s, burst: 9}")
		}
		l := limits.New(limits.Config{Now: clock.now, Log: zerolog.Nop(), Buckets: 64})
		sets := []*policy.Set{parse(t, block(perSecond, least)), parse(t, block(perSecond-2, least-1)), parse(t, block(perSecond, least))}
		load := func(set *policy.Set) {
			p, err := l.Build(set)
			if err != nil {
				t.Fatal(err)
			}
			l.Use(p)
		}
		load(sets[0])
		keys, total := map[string]*model{}, &model{}
		admit := func(d *extproc.Decision) (bool, time.Duration) {
			reason, wait := l.Admit(t.Context(), d)
			if reason != policy.Allowed {
				return false, wait
			}
			one := keys[d.Subject]
			if one == nil {
				one = &model{}
				keys[d.Subject] = one
			}
			for _, m := range []*model{one, total} {
				m.admitted = append(m.admitted, struct {
					at time.Time
					n  int
				}{clock.at, max(1, len(d.Calls))})
			}
			return true, 0
		}
		t.Repeat(map[string]func(*rapid.T){
			"call": func(t *rapid.T) {
				d := who(rapid.SampledFrom([]string{"ann", "bob", "cat"}).Draw(t, "who"))
				d.Calls = tool(make([]string, rapid.IntRange(0, 4).Draw(t, "batch"))...)
				admit(&d)
			},
			"time": func(t *rapid.T) {
				clock.pass(time.Duration(rapid.Int64Range(1, int64(time.Second)).Draw(t, "pass")))
			},
			"reload": func(t *rapid.T) { load(rapid.SampledFrom(sets).Draw(t, "set")) },
			"true wait": func(t *rapid.T) {
				d := who("ann")
				if ok, wait := admit(&d); !ok {
					clock.pass(wait + time.Nanosecond)
					if again, _ := admit(&d); !again {
						t.Fatalf("want a call to pass after the %s that it was told", wait)
					}
				}
			},
			"": func(t *rapid.T) {
				for name, m := range keys {
					if err := m.within(least, perSecond); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
				}
				if err := total.within(9, 20); err != nil {
					t.Fatalf("all: %v", err)
				}
			},
		})
	})
}

// TestNeverMoreAtOnce: the same with many goroutines, by count alone.
func TestNeverMoreAtOnce(t *testing.T) {
	t.Parallel()
	l := gate(t, limits.Config{Now: newClock().now, Log: zerolog.Nop()},
		rules("{name: tight, rate: 1/h, burst: 100}", "{name: wide, rate: 1/h, burst: 40, per: [caller, tool]}"))
	var admitted, perTool [2]atomic.Int64
	var wg sync.WaitGroup
	var loading sync.Mutex // as the reloader has it
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				d := by("a", "ci", fmt.Sprint(i%2))
				d.Upstream = []string{"a", "b"}[g%2]
				if reason, _ := l.Admit(t.Context(), &d); reason == policy.Allowed {
					admitted[0].Add(1)
					perTool[i%2].Add(1)
				}
			}
			loading.Lock()
			defer loading.Unlock()
			use(t, l, rules("{name: tight, rate: 1/h, burst: 100}", "{name: wide, rate: 1/h, burst: 40, per: [caller, tool]}"))
		})
	}
	wg.Wait()
	if a, b := perTool[0].Load(), perTool[1].Load(); a != 40 || b != 40 || admitted[0].Load() != 80 {
		t.Errorf("want 40 and 40, got %d and %d", a, b)
	}
}

// TestBounded: a million subjects (fewer under the race detector) do not take more room than there is, and are no
// way past a limit: those that find none share what their caller has.
func TestBounded(t *testing.T) {
	clock := newClock()
	l := gate(t, limits.Config{Now: clock.now, Log: zerolog.Nop()}, rules("{rate: 1/day, per: [subject]}"))
	before := heap()
	admitted := 0
	for i := range subjects {
		d := who(fmt.Sprint(i))
		if reason, _ := l.Admit(t.Context(), &d); reason == policy.Allowed {
			admitted++
		}
	}
	if n := l.Status().Buckets; n > 100_064 || n < 99_000 {
		t.Errorf("want about 100,000 buckets, got %d", n)
	}
	// Each bucket lets one pass; the rest shares one in each of 64 shards.
	if admitted > 100_064 {
		t.Errorf("want at most one call for each bucket, got %d", admitted)
	}
	if used := heap() - before; used > 40<<20 {
		t.Errorf("want at most 40 MiB, got %d", used>>20)
	} else {
		t.Logf("%d subjects: %.1f MiB, %d admitted", subjects, float64(used)/(1<<20), admitted)
	}
	// Somebody who has a bucket keeps it, used up as it is.
	d := who("0")
	if reason, _ := l.Admit(t.Context(), &d); reason != policy.RateLimited {
		t.Errorf("want a subject at its limit to stay there, got %v", reason)
	}
	d = by("a", "ci")
	if reason, _ := l.Admit(t.Context(), &d); reason != policy.Allowed {
		t.Errorf("want a caller without a subject unharmed, got %v", reason)
	}
	// Once the buckets are full again, they make room.
	clock.pass(24 * time.Hour)
	for i := range 1000 {
		d := who(fmt.Sprint("new", i))
		if reason, _ := l.Admit(t.Context(), &d); reason != policy.Allowed {
			t.Fatalf("want room for newcomer %d a day later, got %v", i, reason)
		}
	}
	if n := l.Status().Buckets; n > 100_064 {
		t.Errorf("want no more buckets than before, got %d", n)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func typicalRules() string {
	return rules("{name: caller, rate: 1000000000/s, per: [caller, upstream]}", "{rate: 1000000000/s, per: [subject]}",
		"{rate: 1000000000/s, per: [tool, caller]}")
}

// TestNoAllocation: a call that is counted costs no garbage, let through or refused.
func TestNoAllocation(t *testing.T) {
	for name, block := range map[string]string{"allowed": typicalRules(), "refused": rules("{rate: 5/s, per: [caller]}", "{rate: 1/day, per: [subject]}")} {
		l := gate(t, limits.Config{Now: newClock().now, Log: zerolog.Nop(), Limited: func(string, string) {}}, block)
		d := who("ann")
		d.Calls = tool("x")
		l.Admit(t.Context(), &d)
		if n := testing.AllocsPerRun(100, func() { l.Admit(t.Context(), &d) }); n > 0 {
			t.Errorf("%s: want no allocation, got %v", name, n)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	for _, c := range []struct {
		name, block string
	}{
		{"none", rules("{rate: 1000000000/s, upstreams: [b]}")},
		{"one", rules("{rate: 1000000000/s, per: [caller, upstream]}")},
		{"three", typicalRules()},
		{"refused", rules("{rate: 1/day, per: [caller]}")},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := gate(b, limits.Config{Now: time.Now, Log: zerolog.Nop()}, c.block)
			d := who("ann")
			d.Calls = tool("x")
			b.ReportAllocs()
			for b.Loop() {
				l.Admit(b.Context(), &d)
			}
		})
	}
	b.Run("three/parallel", func(b *testing.B) {
		l := gate(b, limits.Config{Now: time.Now, Log: zerolog.Nop()}, typicalRules())
		var n atomic.Int64
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			d := who(fmt.Sprint(n.Add(1)))
			d.Calls = tool("x")
			for pb.Next() {
				l.Admit(b.Context(), &d)
			}
		})
	})
}
