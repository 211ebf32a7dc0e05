package tokens

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

// TestNotes: what one replica notes first, all others read; and the server sees
// neither names nor values.
func TestNotes(t *testing.T) {
	t.Parallel()
	server := startRedis(t, realredis.Config{})
	db := raw(t, server)
	one := enlist(t, server.URL(), busy, nil).fleet
	two := enlist(t, server.URL(), busy, nil).fleet
	stranger := enlist(t, server.URL(), busy, func(_ *Config, f *FleetConfig) {
		f.Secrets = &vault{values: map[string]string{"KEY": strings.Repeat("another key ", 3)}}
	}).fleet
	claim := func(f *Fleet, name, value, also string) (there, beside string) {
		t.Helper()
		a, b, err := f.Claim(t.Context(), name, []byte(value), time.Hour, also)
		if err != nil {
			t.Fatal(err)
		}
		return string(a), string(b)
	}
	for _, c := range []struct {
		f                                 *Fleet
		name, value, also, there, besides string
	}{
		{one, "CANARY-id", "CANARY-alice", "best", "CANARY-alice", ""},
		{two, "CANARY-id", "CANARY-bob", "best", "CANARY-alice", ""},
		{two, "best", "CANARY-bob", "CANARY-id", "CANARY-bob", "CANARY-alice"},
		{one, "CANARY-id", "CANARY-alice", "best", "CANARY-alice", "CANARY-bob"},
		{stranger, "CANARY-id", "CANARY-eve", "best", "CANARY-eve", ""},
	} {
		if there, beside := claim(c.f, c.name, c.value, c.also); there != c.there || beside != c.besides {
			t.Errorf("%s of %s: want %q and %q, got %q and %q", c.name, c.value, c.there, c.besides, there, beside)
		}
	}
	if err := two.Write(t.Context(), "CANARY-id", []byte("CANARY-bob"), time.Hour); err != nil {
		t.Fatal(err)
	}
	names, err := db.Keys(t.Context(), "*:note:*").Result()
	if err != nil || len(names) != 3 {
		t.Fatalf("want three notes, got %q, %v", names, err)
	}
	for _, name := range names {
		value := db.Get(t.Context(), name).Val()
		if strings.Contains(name+value, "CANARY") {
			t.Errorf("the server can read %q: %q", name, value)
		}
		if ttl := db.PTTL(t.Context(), name).Val(); ttl <= 0 || ttl > time.Hour {
			t.Errorf("want an end within the hour, got %s", ttl)
		}
	}
	if there, _ := claim(one, "CANARY-id", "x", "best"); there != "CANARY-bob" {
		t.Errorf("want what was written, got %q", there)
	}
	if err := one.Erase(t.Context(), "CANARY-id", "best"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are erased", func() bool {
		there, beside := claim(two, "CANARY-id", "x", "best")
		return there == "x" && beside == ""
	})
}

// TestForgedNotes: who owns the server can neither write a note nor move one.
func TestForgedNotes(t *testing.T) {
	t.Parallel()
	server := startRedis(t, realredis.Config{})
	db := raw(t, server)
	f := enlist(t, server.URL(), busy, nil).fleet
	if _, _, err := f.Claim(t.Context(), "mine", []byte("bob"), time.Hour, "x"); err != nil {
		t.Fatal(err)
	}
	places, _, err := f.places("mine", "hers")
	if err != nil {
		t.Fatal(err)
	}
	moved := db.Get(t.Context(), places[0]).Val()
	for _, value := range []string{moved, "bob", "\x01bob", "\x01" + strings.Repeat("x", 1000), "\x02" + moved[1:]} {
		db.Set(t.Context(), places[1], value, time.Hour)
		if there, _, err := f.Claim(t.Context(), "hers", []byte("alice"), time.Hour, "x"); there != nil || err != nil {
			t.Errorf("%q: want nothing, got %q, %v", value, there, err)
		}
	}
	db.Del(t.Context(), places[1])
	db.LPush(t.Context(), places[1], "a list")
	if there, _, err := f.Claim(t.Context(), "hers", []byte("alice"), time.Hour, "mine"); there != nil || err != nil {
		t.Errorf("a list: want nothing, got %q, %v", there, err)
	}
	if got := f.Status().State; got != "up" {
		t.Errorf("want the server still in use, got %s", got)
	}
}

// TestNotesWithoutAServer: nobody waits longer than the patience, and after one
// failure not at all.
func TestNotesWithoutAServer(t *testing.T) {
	t.Parallel()
	server := startRedis(t, realredis.Config{})
	r := enlist(t, server.URL(), lookPatience, nil)
	eventually(t, "it is up", r.state("up"))
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		start := time.Now()
		there, _, err := r.fleet.Claim(t.Context(), "name", []byte("v"), time.Hour, "x")
		if err == nil || there != nil {
			t.Errorf("want an error, got %q", there)
		}
		if took := time.Since(start); took > 10*lookPatience { // 20 ms, on a busy machine
			t.Errorf("it took %s", took)
		}
	}
	if err := server.Continue(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is used again", func() bool {
		there, _, err := r.fleet.Claim(context.WithoutCancel(t.Context()), "name", []byte("v"), time.Hour, "x")
		return err == nil && string(there) == "v"
	})
	short := enlist(t, server.URL(), lookPatience, nil)
	short.secrets.put("KEY", "short")
	if err := short.fleet.Write(t.Context(), "name", []byte("v"), time.Hour); err == nil {
		t.Error("want no note without a key")
	}
	if _, _, err := r.fleet.Claim(t.Context(), "name", make([]byte, 257), time.Hour, "x"); err == nil {
		t.Error("want an error for a value that is too long")
	}
}
