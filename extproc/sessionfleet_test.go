package extproc

import (
	"fmt"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// busy is a patience for tests of what replicas agree on: a slow machine is no Redis that
// is away.
const busy = 3 * time.Second

// enlist makes a replica that shares through a Redis, for which its calls wait as long
// as patience, zero for what they wait in production.
func enlist(tb testing.TB, address string, patience time.Duration) *sessionRig {
	tb.Helper()
	r := newSessionRig(tb)
	ref := policy.SecretRef{Kind: policy.SecretEnv, Name: "SECRET"}
	f, err := tokens.NewFleet(tokens.FleetConfig{
		Spec: policy.SharedCache{Redis: address, Key: ref, Prefix: "mcp"}, Secrets: r.store, Now: time.Now, Log: zerolog.Nop(), Patience: patience,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(f.Close)
	r.Share(f)
	for end := time.Now().Add(10 * time.Second); f.Status().State != "up" && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	return r
}

func startRedis(tb testing.TB) *realredis.Redis {
	tb.Helper()
	redis, err := realredis.Start(tb.Context(), realredis.Config{Binary: realredis.Require(tb), Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(redis.Stop)
	return redis
}

// idle waits until nothing is under way to the shared cache.
func (r *sessionRig) idle(t *testing.T) {
	t.Helper()
	eventually(t, "nothing is under way", func() bool { return len(r.sessions.jobs) == 0 })
}

// TestReplicasShareSessions: what one replica knows counts at all.
func TestReplicasShareSessions(t *testing.T) {
	redis := startRedis(t)
	one, two := enlist(t, redis.URL(), busy), enlist(t, redis.URL(), busy)
	t.Run("a first use", func(t *testing.T) {
		one.want(t, "allowed", "a", "alice", "used")
		two.want(t, "session_mismatch", "twin", "bob", "used")
		two.want(t, "allowed", "a", "alice", "used")
		two.want(t, "allowed", "other", "bob", "used")
	})
	t.Run("a gift that only the other heard of", func(t *testing.T) {
		two.open(t, "a", "alice", "given")
		two.idle(t)
		one.want(t, "session_mismatch", "a", "bob", "given")
		one.want(t, "allowed", "a", "alice", "given")
	})
	t.Run("a gift after a theft", func(t *testing.T) {
		one.want(t, "allowed", "a", "bob", "stolen") // before the log arrives, which goes to the other one
		two.open(t, "a", "alice", "stolen")
		two.idle(t)
		one.want(t, "allowed", "a", "bob", "stolen")
		one.pass(time.Second) // then it is asked about again, while a call goes on
		one.want(t, "allowed", "a", "bob", "stolen")
		one.idle(t)
		one.want(t, "session_mismatch", "a", "bob", "stolen")
		one.want(t, "allowed", "a", "alice", "stolen")
	})
	t.Run("an end", func(t *testing.T) {
		_, meta := one.use(t, "a", "alice", "given")
		one.report(t, answered(404, corev3.RequestMethod_POST, meta, "given", ""))
		one.idle(t)
		eventually(t, "it is nobody's", func() bool { got, _ := one.use(t, "a", "carol", "given"); return got == "allowed" })
	})
	t.Run("a restart", func(t *testing.T) {
		three := enlist(t, redis.URL(), busy)
		three.want(t, "session_mismatch", "a", "bob", "used")
		three.want(t, "session_mismatch", "a", "bob", "stolen")
	})
}

// TestSessionsWithoutTheSharedCache: each replica goes on alone, no call waits, and
// what it knows it tells when the cache is there again.
func TestSessionsWithoutTheSharedCache(t *testing.T) {
	redis := startRedis(t)
	one, two := enlist(t, redis.URL(), 0), enlist(t, redis.URL(), 0)
	one.want(t, "allowed", "a", "alice", "before")
	if err := redis.Pause(); err != nil {
		t.Fatal(err)
	}
	one.want(t, "session_mismatch", "a", "bob", "before")
	start := time.Now()
	for i := range 50 {
		one.want(t, "allowed", "a", "alice", fmt.Sprint("during-", i))
		one.want(t, "session_mismatch", "a", "bob", fmt.Sprint("during-", i))
	}
	if took := time.Since(start); took > time.Second { // one 20 ms, and none after it
		t.Errorf("100 calls took %s", took)
	}
	one.open(t, "a", "alice", "opened")
	one.idle(t)
	if err := redis.Continue(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cache is used again", func() bool { return one.sessions.fleet.Load().Status().State == "up" })
	for range 3 { // each time the cache is asked again, should it have been slow
		one.pass(10 * time.Second)
		one.want(t, "allowed", "a", "alice", "during-7")
		one.want(t, "allowed", "a", "alice", "opened")
		one.idle(t)
	}
	for _, session := range []string{"during-7", "opened"} {
		eventually(t, "the other one has heard of "+session, func() bool {
			two.pass(10 * time.Second)
			got, _ := two.use(t, "a", "bob", session)
			two.idle(t)
			return got == "session_mismatch"
		})
	}
}
