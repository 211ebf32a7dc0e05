package tokens

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	"pgregory.net/rapid"
)

const (
	modelUsers   = 4
	modelSources = 3 // of two credentials
)

// userStep is one move: what happens, to whom, at which upstream, and a number.
type userStep struct {
	do         string
	who, up, n int
	wait       time.Duration
}

// TestO15_T8_T9_UserModel drives users of several credentials with random moves
// in fake time and holds the cache to its invariants:
//
//	no crossing   what a user gets was made for its very token and credential
//	no outliving  nothing is handed out past the end of the subject token
//	no revenant   what was rejected and replaced does not come back
//	no crowding   never more than the limit of users, nor of requests at once
//	no leftover   after Close nobody is kept
//	no stuck one  every call ends by its deadline
func TestO15_T8_T9_UserModel(t *testing.T) {
	steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) userStep {
		return userStep{
			do: rapid.SampledFrom([]string{
				"token", "token", "token", "cached", "herd", "everyone", "reject", "reject late", "evict", "evict late", "sleep", "sleep", "sleep long",
				"up", "up", "down", "hang", "deny", "sick", "well", "latency", "life", "secret", "reload", "renew",
			}).Draw(rt, "do"),
			who: rapid.IntRange(0, modelUsers-1).Draw(rt, "who"), up: rapid.IntRange(0, modelSources-1).Draw(rt, "up"),
			n:    rapid.IntRange(0, 20).Draw(rt, "n"),
			wait: time.Duration(rapid.IntRange(0, 4000).Draw(rt, "ms")) * time.Millisecond,
		}
	}), 1, 60)
	rapid.Check(t, func(rt *rapid.T) {
		list, limit := steps.Draw(rt, "steps"), rapid.IntRange(2, 20).Draw(rt, "limit")
		var bad string
		synctest.Test(t, func(t *testing.T) {
			m := newUserModel(t, limit)
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

type userModel struct {
	*userWorld
	t       *testing.T
	sources [modelSources]*Source
	people  [modelUsers]*Principal
	serial  int
	wg      sync.WaitGroup
	last    map[string]*Token // by who and up

	mu       sync.Mutex
	rejected map[string]int
	faults   []string
}

func newUserModel(t *testing.T, limit int) *userModel {
	t.Helper()
	m := &userModel{userWorld: newUserWorld(t, nil), t: t, rejected: map[string]int{}, last: map[string]*Token{}}
	m.cache.users.limit = int64(limit)
	m.as.life, m.as.latency = 10*time.Second, 50*time.Millisecond
	for i := range m.sources {
		m.open(i)
	}
	for i := range m.people {
		m.renew(i, time.Hour)
	}
	return m
}

func (m *userModel) open(up int) {
	m.sources[up] = source(m.t, m.cache, fmt.Sprint("up", up), userSpec(fmt.Sprintf("https://as%d.test/token", up%2)))
}

// renew gives a user its next JWT.
func (m *userModel) renew(who int, life time.Duration) {
	m.serial++
	m.people[who] = callerWith(fmt.Sprint("user", who), fmt.Sprint(m.serial), life)
}

func (m *userModel) blame(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

func (m *userModel) broken() string {
	if n := m.cache.users.count.Load(); n != 0 {
		m.blame("no leftover: %d users after Close", n)
	}
	if n := m.cache.known(); n != 0 {
		m.blame("no leftover: %d users are known by a token after Close", n)
	}
	// Two credentials at two endpoints, and dropped ones that end by themselves.
	if got := m.as.mostAtOnce(); got > 4*atOnce {
		m.blame("no crowding: %d at once", got)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.faults, "; ")
}

func (m *userModel) play(st userStep) {
	s, p := m.sources[st.up], m.people[st.who]
	at := fmt.Sprint(st.who, st.up)
	switch st.do {
	case "token":
		m.last[at] = m.call(s, p, 6*time.Second)
	case "cached":
		m.judge(p, s.CachedFor(p), nil, m.rejections())
	case "herd":
		for range st.n {
			m.wg.Go(func() { m.call(s, p, time.Duration(st.n)*100*time.Millisecond) })
		}
	case "everyone":
		for _, p := range m.people {
			m.wg.Go(func() { m.call(s, p, 6*time.Second) })
		}
	case "reject":
		m.reject(s, p, s.CachedFor(p))
	case "reject late":
		m.reject(s, p, m.last[at])
	case "evict":
		m.evict(s, s.CachedFor(p))
	case "evict late":
		m.evict(s, m.last[at])
	case "sleep":
		time.Sleep(st.wait)
	case "sleep long":
		time.Sleep(st.wait * 300)
	case "renew":
		m.renew(st.who, time.Duration(1+st.n)*20*time.Second)
	case "secret":
		m.store.set(fmt.Sprint("secret", st.n), nil)
	case "reload":
		keep := make([]*Source, 0, modelSources)
		for i := range m.sources {
			if i != st.up {
				keep = append(keep, m.sources[i])
			}
		}
		m.cache.Retain(keep)
		m.open(st.up)
	default:
		m.as.set(func(f *userAS) { m.weather(f, st) })
	}
	m.count()
}

// count holds the table to its limit. A call that puts its user in is over it for
// the moment until it took another out.
func (m *userModel) count() {
	limit := m.cache.users.limit
	if m.cache.users.count.Load() > limit || int64(m.cache.known()) > limit {
		synctest.Wait()
	}
	if n := m.cache.users.count.Load(); n > limit {
		m.blame("no crowding: %d users", n)
	}
	if n := m.cache.known(); int64(n) > limit {
		m.blame("no crowding: %d users known by their tokens", n)
	}
}

func (m *userModel) weather(f *userAS, st userStep) {
	switch st.do {
	case "up":
		f.status, f.hang = 0, false
		clear(f.sick)
	case "down":
		f.status, f.body, f.hang = 503, "", false
	case "hang":
		f.hang = true
	case "deny":
		f.status, f.body, f.hang = 401, `{"error":"invalid_client"}`, false
	case "sick":
		f.sick[fmt.Sprint("user", st.who)] = `400{"error":"invalid_grant"}`
	case "well":
		clear(f.sick)
	case "latency":
		f.latency = time.Duration(st.n) * 100 * time.Millisecond
	case "life":
		f.life = time.Duration(st.n*st.n) * time.Second
	}
}

func (m *userModel) call(s *Source, p *Principal, d time.Duration) *Token {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	before, start := m.rejections(), time.Now()
	tok, err := s.TokenFor(ctx, p)
	if time.Since(start) > d {
		m.blame("no stuck one: a call with %s took %s", d, time.Since(start))
	}
	m.judge(p, tok, err, before)
	return tok
}

func (m *userModel) rejections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.rejected)
}

func (m *userModel) judge(p *Principal, tok *Token, err error, before int) {
	if tok == nil {
		return
	}
	value := string(tok.Authorization())
	if err != nil || !strings.HasPrefix(value, "Bearer "+p.token()+".") {
		m.blame("no crossing: %s has a token of another", p)
	}
	if tok.Expiry().After(p.Expiry) || !time.Now().Before(tok.Expiry()) {
		m.blame("no outliving: %s has a token until %s, at %s", p, tok.Expiry(), time.Now())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if nth := m.rejected[value]; nth > 0 && nth <= before {
		m.faults = append(m.faults, "no revenant: handed out after it was replaced")
	}
}

func (m *userModel) reject(s *Source, p *Principal, tok *Token) {
	if tok == nil || !strings.HasPrefix(string(tok.Authorization()), "Bearer "+p.token()+".") {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	before := m.rejections()
	fresh, err := s.ReplaceFor(ctx, s.Mark(p), tok.Authorization())
	m.judge(p, fresh, err, before)
	if fresh != nil && string(fresh.Authorization()) == string(tok.Authorization()) {
		m.blame("no revenant: the rejected token came back for itself")
	}
	if err == nil {
		m.replaced(tok)
	}
}

// evict tells of a rejection when the call is over. With the token dropped,
// nobody gets it any more.
func (m *userModel) evict(s *Source, tok *Token) {
	if tok != nil && s.Evict(tok.Fingerprint()) {
		m.replaced(tok)
	}
}

func (m *userModel) replaced(tok *Token) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rejected[string(tok.Authorization())] == 0 {
		m.rejected[string(tok.Authorization())] = len(m.rejected) + 1
	}
}

// TestT8_O15_ManyUsersAtOnce is the same question on the real clock, for the
// race detector: many goroutines, few users, a small table.
func TestT8_O15_ManyUsersAtOnce(t *testing.T) {
	w := newUserWorld(t, nil)
	w.cache.users.limit = 50
	w.as.set(func(f *userAS) { f.life = 2 * time.Second })
	all := callers(100)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 300 {
				p := all[(i*(g+1))%len(all)]
				tok, err := w.s.TokenFor(t.Context(), p)
				if err != nil || !strings.HasPrefix(string(tok.Authorization()), "Bearer "+p.token()+".") {
					t.Errorf("%s: got %v %v", p, tok, err)
					return
				}
				if i%10 == 0 {
					fresh, err := w.s.ReplaceFor(t.Context(), w.s.Mark(p), tok.Authorization())
					if err == nil && !strings.HasPrefix(string(fresh.Authorization()), "Bearer "+p.token()+".") {
						t.Errorf("%s: got another's", p)
					}
				}
				if tok := w.s.CachedFor(p); tok != nil && !strings.HasPrefix(string(tok.Authorization()), "Bearer "+p.token()+".") {
					t.Errorf("%s: got another's", p)
				}
			}
		})
	}
	wg.Wait()
}

// TestCachedForDoesNotAllocate is the promise of the request path.
func TestCachedForDoesNotAllocate(t *testing.T) {
	w := newUserWorld(t, nil)
	w.as.set(func(f *userAS) { f.life = time.Hour })
	p := caller("alice")
	heldFor(t, w.s, p)
	var size int
	if n := testing.AllocsPerRun(1000, func() { size += len(w.s.CachedFor(p).Authorization()) }); n != 0 {
		t.Errorf("want no allocation, got %v", n)
	}
}

func BenchmarkCachedFor(b *testing.B) {
	s, all := manyUsers(b, 1000)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if s.CachedFor(all[i%len(all)]) == nil {
				b.Error("want a token")
			}
		}
	})
}

// manyUsers is a credential with tokens for n users, whose JWTs and tokens are
// of a usual size.
func manyUsers(tb testing.TB, n int) (*Source, []*Principal) {
	tb.Helper()
	as := newUserAS()
	as.life = time.Hour
	c := New(Config{Secrets: &store{secret: canary}, Now: time.Now, Transport: as, Log: zerolog.Nop()})
	tb.Cleanup(c.Close)
	s, err := c.Source("a", userSpec("https://as.test/token"))
	if err != nil {
		tb.Fatal(err)
	}
	all := make([]*Principal, n)
	for i := range all {
		all[i] = callerWith(fmt.Sprint("user", i), strings.Repeat("c", 1000), 24*time.Hour)
	}
	feed := make(chan *Principal)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for p := range feed {
				if _, err := s.TokenFor(context.Background(), p); err != nil {
					tb.Error(err)
				}
				as.set(func(f *userAS) { f.starts = f.starts[:0]; clear(f.by); clear(f.running) })
			}
		})
	}
	for _, p := range all {
		feed <- p
	}
	close(feed)
	wg.Wait()
	return s, all
}

// BenchmarkUsers is what a hundred thousand users cost to keep, beyond their
// own JWTs: most of it is the tokens.
func BenchmarkUsers(b *testing.B) {
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s, all := manyUsers(b, maxUsers)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if n := s.Status().Users; n != maxUsers {
			b.Fatalf("want %d users, got %d", maxUsers, n)
		}
		jwt := len(all[0].token())
		total := float64(after.HeapAlloc-before.HeapAlloc) / maxUsers
		b.ReportMetric(total, "B/user")
		b.ReportMetric(total-float64(2*jwt), "B/user-beyond-JWT-and-token")
		runtime.KeepAlive(all)
	}
}
