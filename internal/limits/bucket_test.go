package limits

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// use is what passed: when it was taken, and how much.
type use struct {
	at time.Time
	n  float64
}

// left replays what passed with a bucket of its own, and returns the least that
// was ever in it, and what is at the end.
func left(limit, burst float64, began, now time.Time, passed []use) (least, end float64) {
	slices.SortStableFunc(passed, func(a, b use) int { return a.at.Compare(b.at) })
	level, last := burst, began
	least = burst
	for _, u := range append(slices.Clone(passed), use{at: now}) {
		level = min(burst, level+limit*u.at.Sub(last).Seconds()) - u.n
		last, least = u.at, min(least, level)
	}
	return least, level
}

// TestHeldIsNeitherLostNorGained: whatever is taken, put back and let pass, in any
// order, what passed is within the limit. When nobody waits for long but those who
// are refused, the bucket is as if they had never come.
func TestHeldIsNeitherLostNorGained(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		began := time.Unix(1_800_000_000, 0)
		limit, burst := rapid.Float64Range(0.1, 50).Draw(t, "limit"), float64(rapid.IntRange(1, 20).Draw(t, "burst"))
		s, now, late := &shard{}, began, false
		b := &bucket{limit: limit, burst: burst, level: burst, last: began, share: 1}
		type holder struct {
			taken
			use
		}
		var held []holder
		var passed []use
		take := func() (holder, bool) {
			n := float64(rapid.IntRange(1, 4).Draw(t, "n"))
			if _, ok := b.take(n, now); !ok {
				return holder{}, false
			}
			return holder{taken{s, b, n, b.share, b.round}, use{now, n}}, true
		}
		settle := func(refused bool) {
			if len(held) == 0 {
				return
			}
			i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
			held[i].settle(refused)
			if !refused {
				passed = append(passed, held[i].use)
			}
			held = slices.Delete(held, i, i+1)
		}
		t.Repeat(map[string]func(*rapid.T){
			"time": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.Int64Range(1, int64(time.Second)).Draw(t, "pass")))
			},
			"pass": func(*rapid.T) {
				if h, ok := take(); ok {
					h.settle(false)
					passed = append(passed, h.use)
				}
			},
			"hold": func(*rapid.T) {
				if h, ok := take(); ok {
					held = append(held, h)
				}
			},
			"refuse": func(*rapid.T) { settle(true) },
			"pass late": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "rarely") == 0 && len(held) > 0 {
					settle(false)
					late = true
				}
			},
			"": func(t *rapid.T) {
				b.advance(now)
				least, end := left(limit, burst, began, now, passed)
				if least < -1e-3 {
					t.Fatalf("%g more passed than the limit", -least)
				}
				if all := b.level + b.held; !late && math.Abs(all-end) > 1e-3 || all > end+1e-3 {
					t.Fatalf("want %g with what is held, got %g", end, all)
				}
			},
		})
	})
}
