package tokens

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

const herd = 1000

// stampede calls Token from a herd at once and returns the tokens and errors.
func stampede(ctx context.Context, s *Source) (tokens map[*Token]int, errs map[string]int) {
	tokens, errs = map[*Token]int{}, map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for range herd {
		wg.Go(func() {
			<-gate
			tok, err := s.Token(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs[err.Error()]++
			} else {
				tokens[tok]++
			}
		})
	}
	close(gate)
	wg.Wait()
	return tokens, errs
}

func one[K comparable](m map[K]int) bool {
	for _, n := range m {
		return len(m) == 1 && n == herd
	}
	return false
}

// TestT8_Herd: a thousand callers, one request, one answer.
func TestT8_Herd(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*fake)
		fails   bool
		within  time.Duration
	}{
		"cold":   {func(f *fake) { f.latency = 20 * time.Millisecond }, false, 20 * time.Millisecond},
		"503":    {func(f *fake) { f.latency, f.status = 20*time.Millisecond, 503 }, true, 20 * time.Millisecond},
		"denied": {func(f *fake) { f.latency, f.status, f.body = 20*time.Millisecond, 401, `{"error":"invalid_client"}` }, true, 20 * time.Millisecond},
		"html":   {func(f *fake) { f.latency, f.status, f.body = 20*time.Millisecond, 200, "<html>" }, true, 20 * time.Millisecond},
		"hang":   {func(f *fake) { f.hang = true }, true, fetchDeadline},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				c.prepare(w.as)
				s := source(t, w.cache, "a", res("a"))
				start := time.Now()
				tokens, errs := stampede(t.Context(), s)
				if took := time.Since(start); took != c.within {
					t.Errorf("want all answered after %s, got %s", c.within, took)
				}
				if n := w.as.requests(); n != 1 || one(errs) != c.fails || one(tokens) == c.fails {
					t.Errorf("want 1 request and one answer, got %d, %d kinds of tokens, errors %v", n, len(tokens), errs)
				}
			})
		})
	}
}

func TestT8_HerdAtExpiryAndAfterEviction(t *testing.T) {
	for _, fail := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.as.life = time.Second // never refreshed ahead
			s := source(t, w.cache, "a", res("a"))
			old, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			w.as.set(func(f *fake) {
				f.latency, f.life = 20*time.Millisecond, time.Hour
				if fail {
					f.status = 503
				}
			})
			tokens, errs := stampede(t.Context(), s)
			if n := w.as.requests(); n != 2 || one(errs) != fail || tokens[old] != 0 {
				t.Errorf("at expiry: want 1 request, got %d; errors %v", n-1, errs)
			}
		})
	}
}

// TestT8_TheFirstCallerLeaves: the fetch is the cache's, not the caller's.
func TestT8_TheFirstCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.as.latency = time.Second
		s := source(t, w.cache, "a", res("a"))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Token(ctx)
			if e := failed(t, err); e.Code != "wait_ended" {
				t.Errorf("got %v", e)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			time.Sleep(100 * time.Millisecond)
			cancel()
		})
		tokens, errs := stampede(t.Context(), s)
		wg.Wait()
		if !one(tokens) || len(errs) != 0 || w.as.requests() != 1 {
			t.Errorf("want one token for all and 1 request, got %d, %v", w.as.requests(), errs)
		}
	})
}

// TestT8_HerdOnRealConnections is the same without fakes.
func TestT8_HerdOnRealConnections(t *testing.T) {
	for _, f := range []tokenstest.Fault{tokenstest.Delay, tokenstest.Status503} {
		as := startAS(t, tokenstest.Config{})
		as.Fail(f)
		s := source(t, newCache(t, nil), "a", spec(as.TokenURL()))
		tokens, errs := stampede(t.Context(), s)
		answered := 0
		for _, n := range tokens {
			answered += n
		}
		for _, n := range errs {
			answered += n
		}
		if as.Requests() != 1 || answered != herd || len(tokens)+len(errs) != 1 {
			t.Errorf("%s: want 1 request and %d equal answers, got %d and %d (%v)", f, herd, as.Requests(), answered, errs)
		}
	}
}
