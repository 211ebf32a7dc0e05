package tokens

import (
	"bufio"
	"context"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// TestO7_ColdReplicasMakeOneRequest: 200 callers at each of three replicas that
// have no token yet.
func TestO7_ColdReplicasMakeOneRequest(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	as.Fail(tokenstest.Delay)
	var mu sync.Mutex
	got, fetched := map[string]int{}, 0
	var wg sync.WaitGroup
	for range 3 {
		rep := enlist(t, r.URL(), busy, func(c *Config, _ *FleetConfig) {
			c.Observe = func(Fetch) {
				mu.Lock()
				defer mu.Unlock()
				fetched++
			}
		})
		eventually(t, "up", rep.state("up"))
		s := rep.source(t, "a", spec(as.TokenURL()))
		for range 200 {
			wg.Go(func() {
				a := authorization(t, s)
				mu.Lock()
				defer mu.Unlock()
				got[a]++
			})
		}
	}
	wg.Wait()
	if as.Requests() != 1 || fetched != 1 || len(got) != 1 {
		t.Errorf("want 1 request, 1 of them reported, and one token for 600 callers; got %d, %d and %d", as.Requests(), fetched, len(got))
	}
	settled(t, raw(t, r), 1)
}

// TestO7_OneRefreshPerWindow: of two replicas one refreshes, the other takes that.
func TestO7_OneRefreshPerWindow(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{Lifetime: 3 * time.Second})
	var sources []*Source
	for range 2 {
		rep := enlist(t, r.URL(), busy, nil)
		sources = append(sources, rep.source(t, "a", spec(as.TokenURL())))
		authorization(t, sources[len(sources)-1])
		settled(t, raw(t, r), 1)
	}
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, s := range sources {
			if s.Cached() == nil {
				t.Fatal("want a living token all the time")
			}
		}
	}
	log := as.Recorded()
	if len(log) < 4 {
		t.Errorf("want a refresh about every 1.5 s for 6 s, got %d requests", len(log))
	}
	for i := 1; i < len(log); i++ {
		// 3 s less the earliest refresh, 1.65 s ahead.
		if gap := log[i].At.Sub(log[i-1].At); gap < 1200*time.Millisecond {
			t.Errorf("want one request per window, got two within %s", gap)
		}
	}
}

// TestFleetHolder is no test: it is the process that the next test kills. Its
// token request hangs while it holds the lock.
func TestFleetHolder(t *testing.T) {
	address := os.Getenv("FLEET_HOLDER_REDIS")
	if address == "" {
		t.Skip("the other process of TestO7_LockHolderKilled")
	}
	rep := enlist(t, address, busy, func(c *Config, _ *FleetConfig) { c.Dice = func() float64 { return 0.999 } })
	s := rep.source(t, "a", spec(os.Getenv("FLEET_HOLDER_TOKEN_URL")))
	_, _ = os.Stdout.WriteString("\nrunning\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, _ = s.Token(ctx)
	<-ctx.Done()
}

func startHolder(t *testing.T, r *realredis.Redis, as *tokenstest.Server) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestFleetHolder$", "-test.v")
	cmd.Env = append(os.Environ(), "FLEET_HOLDER_REDIS="+r.URL(), "FLEET_HOLDER_TOKEN_URL="+as.TokenURL())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "running" {
			return cmd
		}
	}
	t.Fatal("the other process ended")
	return nil
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// TestO7_LockHolderKilled kills (-9) a process in the midst of its fetch. Calls
// without a token wait a second for it, no longer.
func TestO7_LockHolderKilled(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	as.FailNext(1, tokenstest.Hang)
	holder := startHolder(t, r, as)
	eventually(t, "the other process fetches", func() bool { return as.Requests() == 1 })
	kill(t, holder)
	rep := enlist(t, r.URL(), busy, nil)
	eventually(t, "up", rep.state("up"))
	s := rep.source(t, "a", spec(as.TokenURL()))
	tokens := map[*Token]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	start := time.Now()
	for range 200 {
		wg.Go(func() {
			tok, err := s.Token(t.Context())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			tokens[tok]++
		})
	}
	wg.Wait()
	took := time.Since(start)
	if as.Requests() != 2 || len(tokens) != 1 || took > 2*time.Second {
		t.Errorf("want one more request and one token within 2 s, got %d requests, %d tokens, %s", as.Requests(), len(tokens), took)
	}
	t.Logf("200 callers served %s after the lock's holder died", took.Round(time.Millisecond))
}

// TestO7_LockHolderKilledAtRefresh: the other one still has a living token. It
// fetches at that one's end at the latest, and no call fails.
func TestO7_LockHolderKilledAtRefresh(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{Lifetime: 4 * time.Second})
	rep := enlist(t, r.URL(), busy, func(c *Config, _ *FleetConfig) { c.Dice = func() float64 { return 0 } })
	s := rep.source(t, "a", spec(as.TokenURL()))
	authorization(t, s)
	settled(t, raw(t, r), 1)
	as.FailNext(1, tokenstest.Hang)
	holder := startHolder(t, r, as)
	eventually(t, "the other process refreshes", func() bool { return as.Requests() == 2 })
	kill(t, holder)
	_, failures, slowest, _ := load(s, 10*time.Millisecond, 5*time.Second)
	if failures != 0 || slowest > time.Second || as.Requests() < 3 || as.Requests() > 4 {
		t.Errorf("want no failure, no call over 1s, and 1 or 2 more requests; got %d, %s, %d", failures, slowest, as.Requests()-2)
	}
	t.Logf("slowest call %s", slowest.Round(time.Millisecond))
}

// TestO7_AFailedFetchGivesTheLockBack: the other replica need not wait for it to run out.
func TestO7_AFailedFetchGivesTheLockBack(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	as.FailNext(1, tokenstest.Status503)
	a, b := enlist(t, r.URL(), busy, nil), enlist(t, r.URL(), busy, nil)
	if _, err := a.source(t, "a", spec(as.TokenURL())).Token(t.Context()); err == nil {
		t.Fatal("want the 503")
	}
	settled(t, raw(t, r), 0)
	authorization(t, b.source(t, "a", spec(as.TokenURL())))
	eventually(t, "the first replica takes the token of the second", a.source(t, "a", spec(as.TokenURL())).Ready)
	if as.Requests() != 2 || a.counted()["hit"] != 1 {
		t.Errorf("want 2 requests and a hit, got %d and %v", as.Requests(), a.counted())
	}
}

// TestO20_RejectedTokenLeavesTheFleet: what an upstream refused is adopted by
// nobody, and one request replaces it for all.
func TestO20_RejectedTokenLeavesTheFleet(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	o := spec(as.TokenURL())
	a, b := enlist(t, r.URL(), busy, nil).source(t, "a", o), enlist(t, r.URL(), busy, nil).source(t, "a", o)
	first := authorization(t, a)
	settled(t, raw(t, r), 1)
	if got := authorization(t, b); got != first {
		t.Fatal("want the token of the first replica")
	}
	second, err := a.Replace(t.Context(), []byte(first))
	if err != nil || string(second.Authorization()) == first {
		t.Fatalf("want another token, got %v, %v", second, err)
	}
	settled(t, raw(t, r), 1)
	third, err := b.Replace(t.Context(), []byte(first))
	if err != nil || string(third.Authorization()) != string(second.Authorization()) {
		t.Fatalf("want the second token from the shared cache, got %v, %v", third, err)
	}
	if got := authorization(t, enlist(t, r.URL(), busy, nil).source(t, "a", o)); got != string(second.Authorization()) || as.Requests() != 2 {
		t.Errorf("want the second token for a new replica and 2 requests in all, got %d", as.Requests())
	}
}

// TestO20_RejectedTokenIsEvictedInAnOutage: the fetch that would replace it fails.
func TestO20_RejectedTokenIsEvictedInAnOutage(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	o := spec(as.TokenURL())
	a := enlist(t, r.URL(), busy, nil)
	s := a.source(t, "a", o)
	first := authorization(t, s)
	settled(t, raw(t, r), 1)
	as.Fail(tokenstest.Status503)
	if _, err := s.Replace(t.Context(), []byte(first)); err == nil {
		t.Fatal("want the 503")
	}
	if a.counted()["rejected"] != 1 {
		t.Errorf("want one eviction, got %v", a.counted())
	}
	settled(t, raw(t, r), 0)
}

// TestO20_AfterARestart: the new process knows no token, is told that one was
// refused, and must not take just that one from Redis.
func TestO20_AfterARestart(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	o := spec(as.TokenURL())
	first := authorization(t, enlist(t, r.URL(), busy, nil).source(t, "a", o))
	settled(t, raw(t, r), 1)
	tok, err := enlist(t, r.URL(), busy, nil).source(t, "a", o).Replace(t.Context(), []byte(first))
	if err != nil || string(tok.Authorization()) == first {
		t.Errorf("want another token, got %v, %v", tok, err)
	}
}

// TestO7_O15_UserTokens: a user's token is shared as well, with nobody but the
// same user, for the same token of it, and no longer than that lives.
func TestO7_O15_UserTokens(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := newUserAS()
	as.life = time.Hour
	transport := func(c *Config, _ *FleetConfig) { c.Transport = as }
	a := enlist(t, r.URL(), busy, transport).source(t, "a", userSpec("https://as.test/token"))
	ann := callerWith("ann", "1", time.Minute)
	first := heldFor(t, a, ann)
	settled(t, raw(t, r), 1)
	rep := enlist(t, r.URL(), busy, transport)
	b := rep.source(t, "a", userSpec("https://as.test/token"))
	second := heldFor(t, b, ann)
	if string(first.Authorization()) != string(second.Authorization()) || as.requests() != 1 || second.Expiry().After(ann.Expiry) {
		t.Errorf("want the token of the other replica, without a request and not beyond the user's own; got %d requests, %s", as.requests(), second.Expiry().Sub(ann.Expiry))
	}
	for _, other := range []*Principal{callerWith("bob", "1", time.Minute), callerWith("ann", "2", time.Minute)} {
		if string(heldFor(t, b, other).Authorization()) == string(first.Authorization()) {
			t.Error("a token was handed to another user, or for another token of its own")
		}
	}
	if as.requests() != 3 {
		t.Errorf("want 3 requests, got %d", as.requests())
	}
	early := callerWith("ann", "1", 5*time.Second) // the same token, by a clock that is behind
	if got := heldFor(t, enlist(t, r.URL(), busy, transport).source(t, "a", userSpec("https://as.test/token")), early); got.Expiry().After(early.Expiry) {
		t.Error("want no token beyond the user's own")
	}
}

// TestFleetReload: Share takes effect from the next fetch on, and nil goes on locally.
func TestFleetReload(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := startAS(t, tokenstest.Config{})
	rep := enlist(t, r.URL(), busy, nil)
	authorization(t, rep.source(t, "a", spec(as.TokenURL())))
	settled(t, raw(t, r), 1)
	eventually(t, "stored", func() bool { return rep.counted()["stored"] == 1 }) // Redis has it before its answer is here
	rep.cache.Share(nil)
	rep.fleet.Close()
	before := rep.counted()
	o := spec(as.TokenURL())
	o.Resource = "https://other.company.com"
	authorization(t, rep.source(t, "b", o))
	settled(t, raw(t, r), 1)
	if diff := cmp.Diff(before, rep.counted()); diff != "" {
		t.Errorf("the old one was used: %s", diff)
	}
}

func BenchmarkTokenSharedCache(b *testing.B) {
	r := startRedis(b, realredis.Config{})
	as := newFake()
	as.life = time.Hour
	for name, share := range map[string]bool{"without": false, "with": true} {
		b.Run(name, func(b *testing.B) {
			rep := enlist(b, r.URL(), busy, func(c *Config, _ *FleetConfig) { c.Transport, c.Log = http.RoundTripper(as), zerolog.Nop() })
			if !share {
				rep.cache.Share(nil)
			}
			s := rep.source(b, "a", res("a"))
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Token(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func withPassword(password string) func(*Config, *FleetConfig) {
	return func(_ *Config, f *FleetConfig) {
		v, _ := f.Secrets.(*vault)
		v.put("PASSWORD", password)
		f.Spec.Password = policy.SecretRef{Kind: policy.SecretEnv, Name: "PASSWORD"}
	}
}
