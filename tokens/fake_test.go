package tokens

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// fake is a token endpoint without a network, for tests in fake time
// (testing/synctest). Its tokens name the resource they were asked for.
type fake struct {
	mu      sync.Mutex
	latency time.Duration
	life    time.Duration
	status  int    // 0 is 200 with a token
	body    string // of a status that is not 0
	header  http.Header
	hang    bool
	stuck   func(time.Time) bool // requests that begin while true hang
	down    func(time.Time) bool // overrides status with a 503 while true
	starts  []time.Time
	ends    []time.Time
	serial  int
	running map[string]int
	most    int            // requests at once, over all resources
	doubled string         // a resource that had two at once
	by      map[string]int // requests per resource

	failed   map[string]time.Time // the end of a resource's last failure
	excused  time.Time            // failures of requests up to here do not count: the secret changed
	hammered string               // a request that came too soon after
}

func newFake() *fake {
	return &fake{life: time.Minute, running: map[string]int{}, by: map[string]int{}, failed: map[string]time.Time{}}
}

func (f *fake) set(change func(*fake)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fake) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.starts)
}

// gap returns the time from the first request to the second.
func (f *fake) gap() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[1].Sub(f.starts[0])
}

// of returns how many requests named a resource.
func (f *fake) of(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.by["https://"+name]
}

// pass waits for d, and no longer than ctx lives. It sets no timer that is due at
// once: several of a bubble's goroutines that read one at the same time crash the
// race detector (golang/go#78156).
func pass(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	raw, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(raw))
	resource := form.Get("resource")
	f.mu.Lock()
	start := time.Now()
	f.starts = append(f.starts, start)
	f.by[resource]++
	if last, ok := f.failed[resource]; ok && time.Since(last) < lastDelay {
		f.hammered = fmt.Sprintf("%s was asked %s after a failure", resource, time.Since(last))
	}
	delete(f.failed, resource)
	f.running[resource]++
	total := 0
	for _, n := range f.running {
		total += n
	}
	f.most = max(f.most, total)
	if f.running[resource] > 1 {
		f.doubled = resource
	}
	latency, hang := f.latency, f.hang || f.stuck != nil && f.stuck(start)
	f.mu.Unlock()
	if hang {
		latency = time.Hour
	}
	err := pass(r.Context(), latency)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running[resource]--
	f.ends = append(f.ends, time.Now())
	if (err != nil || f.status != 0) && start.After(f.excused) {
		f.failed[resource] = time.Now()
	}
	if err != nil {
		return nil, err
	}
	return f.answer(r, resource), nil
}

// answer is called with mu held.
func (f *fake) answer(r *http.Request, resource string) *http.Response {
	status, body := f.status, f.body
	if f.down != nil && f.down(time.Now()) {
		status, body = 503, ""
	}
	if status == 0 {
		f.serial++
		status = 200
		body = fmt.Sprintf(`{"access_token":"%s.%d","token_type":"Bearer","expires_in":%v}`, strings.TrimPrefix(resource, "https://"), f.serial, f.life.Seconds())
	}
	h := f.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	return &http.Response{
		StatusCode: status, Header: h, Request: r, ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader([]byte(body))),
	}
}

// res is a credential for the fake that differs from others in its resource.
func res(name string) *policy.OAuth2 {
	o := spec("https://as.test/token")
	o.Resource = "https://" + name
	return o
}

// world is a cache on a fake endpoint.
type world struct {
	as    *fake
	cache *Cache
	store *store
	log   *buffer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{as: newFake(), store: &store{secret: canary}, log: &buffer{}}
	dice := rand.New(rand.NewPCG(1, 2)) // the same each time, so that a failure repeats
	var mu sync.Mutex
	w.cache = newCache(t, func(c *Config) {
		c.Transport, c.Secrets = w.as, w.store
		c.Dice = func() float64 {
			mu.Lock()
			defer mu.Unlock()
			return dice.Float64()
		}
	})
	return w
}

// load calls Token every pace until the end of d, and returns how many calls
// failed, the slowest of the good ones, and when the last failure was.
func load(s *Source, pace, d time.Duration) (calls, failures int, slowest time.Duration, last time.Time) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(pace) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := s.Token(ctx)
			mu.Lock()
			defer mu.Unlock()
			calls++
			if err != nil {
				failures++
				last = time.Now()
				return
			}
			slowest = max(slowest, time.Since(start))
		})
	}
	wg.Wait()
	return calls, failures, slowest, last
}
