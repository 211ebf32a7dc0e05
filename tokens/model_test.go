package tokens

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// step is one move of the model: what happens, to which upstream, and a number.
type step struct {
	do   string
	up   int
	n    int
	wait time.Duration
}

// TestModel drives the cache with random moves in fake time and holds it to its
// invariants:
//
//	one flight    never two token requests for one key at once
//	no crossing   a token is only handed to those whose credential it is
//	no revenant   a token that was rejected and replaced is never handed out again
//	no dead one   what is handed out lives
//	no needless   no call fails while a token lives that was not rejected
//	no hammering  after a failure no request before the shortest pause
//	no stuck one  every call ends by its deadline, and nothing is left after Close
func TestModel(t *testing.T) {
	steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
		return step{
			do: rapid.SampledFrom([]string{
				"token", "token", "herd", "leave", "reject", "reject", "reject late", "sleep", "sleep", "sleep long",
				"up", "up", "down", "hang", "deny", "junk", "latency", "life", "secret", "lose secret", "reload", "warm",
			}).Draw(rt, "do"),
			up:   rapid.IntRange(0, modelUps-1).Draw(rt, "up"),
			n:    rapid.IntRange(0, 20).Draw(rt, "n"),
			wait: time.Duration(rapid.IntRange(0, 4000).Draw(rt, "ms")) * time.Millisecond,
		}
	}), 1, 60)
	rapid.Check(t, func(rt *rapid.T) {
		list := steps.Draw(rt, "steps")
		var bad string
		synctest.Test(t, func(t *testing.T) {
			m := newModel(t)
			for _, st := range list {
				m.play(st)
			}
			m.wg.Wait()
			m.cache.Close()
			synctest.Wait()
			bad = m.broken()
		})
		if bad != "" {
			rt.Fatal(bad)
		}
	})
}

// modelUps upstreams share modelKeys credentials.
const (
	modelUps  = 5
	modelKeys = 3
)

type model struct {
	*world
	t       *testing.T
	sources [modelUps]*Source
	wg      sync.WaitGroup
	last    [modelUps]*Token

	mu       sync.Mutex     // guards what follows
	rejected map[string]int // tokens that were rejected and replaced, in order
	faults   []string
}

func newModel(t *testing.T) *model {
	t.Helper()
	m := &model{world: newWorld(t), t: t, rejected: map[string]int{}}
	m.as.life, m.as.latency = 10*time.Second, 50*time.Millisecond
	for i := range m.sources {
		m.sources[i] = source(t, m.cache, fmt.Sprint("up", i), res(credential(i)))
	}
	return m
}

func credential(up int) string { return fmt.Sprintf("key%d", up%modelKeys) }

func (m *model) blame(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

func (m *model) broken() string {
	m.as.mu.Lock()
	if m.as.doubled != "" {
		m.blame("one flight: two requests at once for %s", m.as.doubled)
	}
	if m.as.hammered != "" {
		m.blame("no hammering: %s", m.as.hammered)
	}
	m.as.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.faults, "; ")
}

// play makes one move.
func (m *model) play(st step) {
	s := m.sources[st.up]
	switch st.do {
	case "token":
		m.call(s, st.up, 6*time.Second)
		m.last[st.up] = m.sources[st.up].Cached()
	case "herd":
		for range st.n {
			m.wg.Go(func() { m.call(s, st.up, 6*time.Second) })
		}
	case "leave":
		m.wg.Go(func() { m.call(s, st.up, time.Duration(st.n)*10*time.Millisecond) })
	case "reject":
		m.reject(st.up, s.Cached())
	case "reject late":
		m.reject(st.up, m.last[st.up])
	case "sleep":
		time.Sleep(st.wait)
	case "sleep long":
		time.Sleep(st.wait * 30)
	case "reload":
		keep := make([]*Source, 0, modelUps)
		for i := range m.sources {
			if i != st.up {
				m.sources[i] = source(m.t, m.cache, fmt.Sprint("up", i), res(credential(i)))
				keep = append(keep, m.sources[i])
			}
		}
		m.cache.Retain(keep)
		// What is dropped ends its fetches by itself, and what comes
		// anew has no past.
		time.Sleep(6 * time.Second)
		m.as.set(func(f *fake) { clear(f.failed) })
		m.sources[st.up] = source(m.t, m.cache, fmt.Sprint("up", st.up), res(credential(st.up)))
	case "warm":
		m.cache.Warm(m.t.Context())
	case "secret":
		m.as.set(func(f *fake) {
			clear(f.failed)
			f.excused = time.Now()
		})
		m.store.set(fmt.Sprint("secret", st.n), nil)
	case "lose secret":
		m.store.set("", nil)
	default:
		m.as.set(func(f *fake) { m.weather(f, st) })
	}
}

// weather changes the endpoint.
func (m *model) weather(f *fake, st step) {
	switch st.do {
	case "up":
		f.status, f.hang = 0, false
	case "down":
		f.status, f.hang = 503, false
	case "hang":
		f.hang = true
	case "deny":
		f.status, f.body, f.hang = 401, `{"error":"invalid_client"}`, false
	case "junk":
		f.status, f.body, f.hang = 200, "<html>", false
	case "latency":
		f.latency = time.Duration(st.n) * 100 * time.Millisecond
	case "life":
		f.life = time.Duration(st.n*st.n) * time.Second
	}
}

// call is a call that gives up after d.
func (m *model) call(s *Source, up int, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	had, before := s.Cached(), m.rejections()
	start := time.Now()
	tok, err := s.Token(ctx)
	if time.Since(start) > d {
		m.blame("no stuck one: a call with %s took %s", d, time.Since(start))
	}
	m.judge(up, tok, err, before)
	if err != nil && had != nil && time.Now().Before(had.Expiry()) && !m.wasRejected(had) {
		m.blame("no needless: %v with a living token", err)
	}
}

func (m *model) wasRejected(t *Token) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rejected[string(t.Authorization())] > 0
}

func (m *model) rejections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rejected)
}

// judge looks at what a call got that began after so many rejections.
func (m *model) judge(up int, tok *Token, err error, before int) {
	if err != nil {
		return
	}
	value := string(tok.Authorization())
	if !strings.HasPrefix(value, "Bearer "+credential(up)+".") {
		m.blame("no crossing: %s has a token of another", credential(up))
	}
	if !time.Now().Before(tok.Expiry()) {
		m.blame("no dead one: handed out %s after its end", time.Since(tok.Expiry()))
	}
	m.mu.Lock()
	nth := m.rejected[value]
	m.mu.Unlock()
	if nth > 0 && nth <= before {
		m.blame("no revenant: handed out after it was replaced")
	}
}

// reject is a 401 from an upstream. From its answer on the token is gone for all,
// unless the answer was that the upstream rejects too often.
func (m *model) reject(up int, tok *Token) {
	if tok == nil || !strings.HasPrefix(string(tok.Authorization()), "Bearer "+credential(up)+".") {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	before := m.rejections()
	fresh, err := m.sources[up].Replace(ctx, tok.Authorization())
	m.judge(up, fresh, err, before)
	if fresh != nil && string(fresh.Authorization()) == string(tok.Authorization()) {
		m.blame("no revenant: the rejected token came back for itself")
	}
	if (err == nil || failed(m.t, err).Kind != Rejected) && !m.wasRejected(tok) {
		m.mu.Lock()
		m.rejected[string(tok.Authorization())] = len(m.rejected) + 1
		m.mu.Unlock()
	}
}

// TestO16_O17_PlanKeepsItsBounds holds every pause to the settled bounds.
func TestO16_O17_PlanKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		span := func(name string, most time.Duration) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(most)).Draw(rt, name))
		}
		err := &Error{permanent: rapid.Bool().Draw(rt, "permanent"), after: span("after", time.Minute)}
		n, age, left := rapid.IntRange(1, 10000).Draw(rt, "n"), span("age", time.Hour), span("left", time.Hour)
		next, wake := plan(err, n, age, left, rapid.Float64Range(0, 0.999).Draw(rt, "dice"))
		if err.permanent {
			if next < 5*time.Minute || wake < 5*time.Minute || next > 6*time.Minute {
				rt.Fatalf("permanent: %s and %s", next, wake)
			}
			return
		}
		limit := 5 * time.Second
		if age < 10*time.Second {
			limit = 2 * time.Second
		}
		if next < 900*time.Millisecond || next > max(limit, err.after*11/10) || next > time.Minute || next < err.after {
			rt.Fatalf("callers may try after %s", next)
		}
		if wake < lastDelay || wake > max(30*time.Second, err.after*11/10) || wake < err.after {
			rt.Fatalf("the background tries after %s", wake)
		}
		if err.after == 0 && left > 2*lastDelay && wake > left/2 {
			rt.Fatalf("the background waits %s with a token that lives %s", wake, left)
		}
	})
}
