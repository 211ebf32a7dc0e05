package tokens

import (
	"context"
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	fleetKey = "f1eet+key/canary:%& of more than 32 characters"
	// busy replaces lookPatience where not time is tested but what happens.
	busy = 3 * time.Second
)

// vault is a SecretSource by name.
type vault struct {
	mu     sync.Mutex
	values map[string]string
}

func (v *vault) Secret(ref policy.SecretRef) (policy.Secret, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s, ok := v.values[ref.Name]; ok {
		return policy.NewSecret(s), nil
	}
	return policy.Secret{}, errors.New("no such secret")
}

func (v *vault) put(name, value string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.values[name] = value
}

func named(name string) policy.SecretRef { return policy.SecretRef{Kind: policy.SecretEnv, Name: name} }

func startRedis(tb testing.TB, cfg realredis.Config) *realredis.Redis {
	tb.Helper()
	cfg.Binary, cfg.Dir = realredis.Require(tb), tb.TempDir()
	r, err := realredis.Start(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Stop)
	return r
}

// raw is a client of the server for the test's own looks and tricks.
func raw(tb testing.TB, r *realredis.Redis) *redis.Client {
	tb.Helper()
	db := r.Client()
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

// replica is one of several processes that share a Redis.
type replica struct {
	cache   *Cache
	fleet   *Fleet
	secrets *vault
	log     *buffer

	mu      sync.Mutex
	results map[string]int
}

// enlist makes a replica. patience replaces the 20 ms; change may be nil.
func enlist(tb testing.TB, address string, patience time.Duration, change func(*Config, *FleetConfig)) *replica {
	tb.Helper()
	r := &replica{secrets: &vault{values: map[string]string{"CLIENT_SECRET": canary, "KEY": fleetKey}}, log: &buffer{}, results: map[string]int{}}
	log := zerolog.New(r.log)
	cfg := Config{Secrets: r.secrets, Now: time.Now, Log: log}
	fcfg := FleetConfig{
		Spec:    policy.SharedCache{Redis: address, Key: named("KEY"), Prefix: "mcp"},
		Secrets: r.secrets, Now: time.Now, Log: log, Patience: patience,
		Observe: func(result string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.results[result]++
		},
	}
	if change != nil {
		change(&cfg, &fcfg)
	}
	f, err := NewFleet(fcfg)
	if err != nil {
		tb.Fatal(err)
	}
	r.cache, r.fleet = New(cfg), f
	r.cache.Share(f)
	tb.Cleanup(func() { r.cache.Close(); f.Close() })
	return r
}

func (r *replica) counted() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.results)
}

func (r *replica) source(tb testing.TB, name string, o *policy.OAuth2) *Source {
	tb.Helper()
	s, err := r.cache.Source(name, o)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func authorization(tb testing.TB, s *Source) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	tok, err := s.Token(ctx)
	if err != nil {
		tb.Fatal(err)
	}
	return string(tok.Authorization())
}

// eventually waits for what must come without saying when.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not within 20 s: %s", what)
		}
	}
}

func (r *replica) state(want string) func() bool {
	return func() bool { return r.fleet.Status().State == want }
}

// places returns the names of all tokens that are stored.
func places(tb testing.TB, db *redis.Client) []string {
	tb.Helper()
	names, err := db.Keys(tb.Context(), "mcp:token:*").Result()
	if err != nil {
		tb.Fatal(err)
	}
	return names
}

// settled waits until a token is stored and no lock is held.
func settled(tb testing.TB, db *redis.Client, tokens int) {
	tb.Helper()
	eventually(tb, "a stored token and no lock", func() bool {
		locks, err := db.Keys(tb.Context(), "mcp:lock:*").Result()
		return err == nil && len(locks) == 0 && len(places(tb, db)) == tokens
	})
}
