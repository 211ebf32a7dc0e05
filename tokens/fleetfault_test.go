package tokens

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// cold returns how long the first tokens of n credentials take, one after the
// other, and the slowest of them.
func cold(t *testing.T, rep *replica, tag string, n int) (slowest, all time.Duration) {
	t.Helper()
	begin := time.Now()
	for i := range n {
		name := fmt.Sprint(tag, i)
		s := rep.source(t, name, res(name))
		start := time.Now()
		authorization(t, s)
		slowest = max(slowest, time.Since(start))
	}
	return slowest, time.Since(begin)
}

// TestO6_TheServerFails: whatever becomes of Redis, calls get their tokens, and
// in little more time than without one. The library's own deadlines would
// cost each call between 1 and 5 s here.
func TestO6_TheServerFails(t *testing.T) {
	const calls, bound = 50, 500 * time.Millisecond
	for name, c := range map[string]struct {
		fail, heal func(t *testing.T, r *realredis.Redis)
		code       string // of /status
	}{
		"SIGSTOP": {
			func(t *testing.T, r *realredis.Redis) { t.Helper(); noErr(t, r.Pause()) },
			func(t *testing.T, r *realredis.Redis) { t.Helper(); noErr(t, r.Continue()) }, "timeout",
		},
		"CLIENT PAUSE 5 s": {
			func(t *testing.T, r *realredis.Redis) {
				t.Helper()
				noErr(t, raw(t, r).Do(t.Context(), "CLIENT", "PAUSE", "5000", "ALL").Err())
			}, nil, "timeout",
		},
		"stopped": {
			func(_ *testing.T, r *realredis.Redis) { r.Stop() },
			func(t *testing.T, r *realredis.Redis) { t.Helper(); noErr(t, r.Restart(context.Background())) }, "connection_refused",
		},
		"out of memory": {
			func(t *testing.T, r *realredis.Redis) {
				t.Helper()
				noErr(t, r.Set(context.Background(), "maxmemory", 1))
			},
			func(t *testing.T, r *realredis.Redis) {
				t.Helper()
				noErr(t, r.Set(context.Background(), "maxmemory", 0))
			}, "out_of_memory",
		},
		"failed over": {
			func(t *testing.T, r *realredis.Redis) {
				t.Helper()
				noErr(t, raw(t, r).Do(t.Context(), "REPLICAOF", "127.0.0.1", "1").Err())
			},
			func(t *testing.T, r *realredis.Redis) {
				t.Helper()
				noErr(t, raw(t, r).Do(t.Context(), "REPLICAOF", "NO", "ONE").Err())
			}, "read_only",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := startRedis(t, realredis.Config{})
			as := newFake()
			as.life = time.Hour
			without := enlist(t, r.URL(), lookPatience, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
			without.cache.Share(nil)
			plain, plainAll := cold(t, without, "plain", calls)
			rep := enlist(t, r.URL(), lookPatience, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
			eventually(t, "up", rep.state("up"))
			c.fail(t, r)
			slowest, all := cold(t, rep, "cold", calls)
			t.Logf("%d calls without Redis: slowest %s, all %s; with it failing: %s, %s; %v", calls, plain, plainAll, slowest, all, rep.counted())
			if slowest > plain+bound {
				t.Errorf("want each call within %s of what it takes without Redis (%s), got %s", bound, plain, slowest)
			}
			if n := rep.counted()["skipped"]; n < calls/2 {
				t.Errorf("want most calls not even to ask, got %d of %d", n, calls)
			}
			time.Sleep(time.Second) // the prober has looked again
			st := rep.fleet.Status()
			if st.State != "down" || st.Code != c.code && st.Code != "timeout" || st.Reason == "" {
				t.Errorf("want down and %s, got %+v", c.code, st)
			}
			if c.heal != nil {
				c.heal(t, r)
			}
			eventually(t, "up again", rep.state("up"))
			eventually(t, "used again", func() bool {
				cold(t, rep, fmt.Sprint("again", time.Now().UnixNano()), 1)
				return rep.counted()["stored"] > 0
			})
			if log := rep.log.String(); strings.Count(log, `"is used again"`) > 3 || strings.Count(log, "is not used") > 6 {
				t.Errorf("want a line per change of state, got\n%s", log)
			}
		})
	}
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestO6_AServerThatIsNone: it answers, but not as a Redis of ours does.
func TestO6_AServerThatIsNone(t *testing.T) {
	for reply, code := range map[string]string{
		"-MOVED 3999 127.0.0.1:1\r\n": "cluster", "-CLUSTERDOWN The cluster is down\r\n": "cluster",
		"-LOADING Redis is loading the dataset in memory\r\n": "not_ready", "-BUSY a script\r\n": "not_ready",
		"-NOPERM this user has no permissions\r\n": "not_permitted", "-ERR unknown command\r\n": "refused",
		"-NOAUTH Authentication required.\r\n": "login_refused",
		"HTTP/1.1 400 Bad Request\r\n\r\n":     "unreachable", "": "unreachable", "$999999999\r\n": "unreachable", "*2147483647\r\n": "unreachable",
	} {
		t.Run(strings.TrimSpace(reply), func(t *testing.T) {
			as := newFake()
			rep := enlist(t, "redis://"+impostor(t, reply), lookPatience, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
			eventually(t, "down", rep.state("down"))
			slowest, _ := cold(t, rep, "cold", 5)
			st := rep.fleet.Status()
			if st.Code != code && st.Code != "timeout" || slowest > 500*time.Millisecond {
				t.Errorf("want %s and a quick token, got %s after %s", code, st.Code, slowest)
			}
		})
	}
}

// impostor answers each command with the same reply; none closes the connection.
func impostor(t *testing.T, reply string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	noErr(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				for lines := bufio.NewScanner(conn); lines.Scan() && reply != ""; {
					if strings.HasPrefix(lines.Text(), "*") {
						_, _ = io.WriteString(conn, reply)
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestO6_Password: a wrong one costs nothing but the sharing, and a new one is
// used by itself.
func TestO6_Password(t *testing.T) {
	r := startRedis(t, realredis.Config{Password: "0ld-p4ssword"})
	as := newFake()
	rep := enlist(t, r.URL(), lookPatience, func(cfg *Config, f *FleetConfig) {
		cfg.Transport = as
		withPassword("wr0ng-p4ssword")(cfg, f)
	})
	eventually(t, "refused", func() bool { return rep.fleet.Status().Code == "login_refused" })
	if slowest, _ := cold(t, rep, "a", 5); slowest > 500*time.Millisecond {
		t.Errorf("want a quick token, got one after %s", slowest)
	}
	rep.secrets.put("PASSWORD", "0ld-p4ssword")
	eventually(t, "up", rep.state("up"))
	db := raw(t, r)
	noErr(t, db.ConfigSet(t.Context(), "requirepass", "n3w-p4ssword").Err())
	rep.secrets.put("PASSWORD", "n3w-p4ssword")
	noErr(t, db.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err())
	eventually(t, "used with the new password", func() bool {
		cold(t, rep, fmt.Sprint("b", time.Now().UnixNano()), 1)
		return rep.counted()["stored"] > 0
	})
	if out := rep.log.String(); strings.Contains(out, "p4ssword") {
		t.Errorf("a password is in the log: %s", out)
	}
}

// TestO6_Secrets: a key that is missing, too short or new makes no failure.
func TestO6_Secrets(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := newFake()
	a := enlist(t, r.URL(), busy, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
	b := enlist(t, r.URL(), busy, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
	authorization(t, a.source(t, "a", res("a")))
	settled(t, raw(t, r), 1)
	b.secrets.put("KEY", strings.Repeat("k", 32)) // rotated here, not yet there
	authorization(t, b.source(t, "a", res("a")))
	settled(t, raw(t, r), 2)
	for name, key := range map[string]string{"none": "", "short": "too short"} {
		b.secrets.put("KEY", key)
		authorization(t, b.source(t, name, res(name)))
		if st := b.fleet.Status(); st.Code != "key_unusable" {
			t.Errorf("key %q: want key_unusable, got %+v", key, st)
		}
	}
	settled(t, raw(t, r), 2)
	b.secrets.put("KEY", fleetKey)
	eventually(t, "up", b.state("up"))
	if _, err := NewFleet(FleetConfig{
		Spec: policy.SharedCache{Redis: r.URL(), Key: named("KEY")}, Secrets: &vault{values: map[string]string{"KEY": "too short"}}, Now: time.Now,
	}); err == nil {
		t.Error("want an error for a short key")
	}
}

// TestO6_ForeignValues: whatever stands at a place, nothing but a token that was
// sealed for it, and lives, is handed out.
func TestO6_ForeignValues(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	db := raw(t, r)
	as := startAS(t, tokenstest.Config{})
	ctx := t.Context()
	credential := func(name string) *policy.OAuth2 {
		o := spec(as.TokenURL())
		o.Resource = "https://" + name + ".company.com"
		return o
	}
	// Two tokens of ours, and what is stored of them.
	ours := map[string]string{}
	stored := map[string]string{}
	for i, name := range []string{"a", "b"} {
		rep := enlist(t, r.URL(), busy, nil)
		ours[name] = authorization(t, rep.source(t, name, credential(name)))
		settled(t, db, i+1)
		rep.cache.Close() // no refresh
		for _, place := range places(t, db) {
			if _, known := stored[place]; !known {
				value, err := db.Get(ctx, place).Result()
				noErr(t, err)
				stored[place] = value
			}
		}
	}
	all := places(t, db)
	for name, poison := range map[string]func(place, other string){
		"random bytes": func(place, _ string) { db.Set(ctx, place, "\x01"+strings.Repeat("\x9f\x00z", 200), time.Hour) },
		"empty":        func(place, _ string) { db.Set(ctx, place, "", time.Hour) },
		"swapped":      func(place, other string) { db.Set(ctx, place, stored[other], time.Hour) },
		"cut":          func(place, _ string) { db.Set(ctx, place, stored[place][:40], time.Hour) },
		"another type": func(place, _ string) { db.Del(ctx, place); db.LPush(ctx, place, "x") },
		"no end":       func(place, _ string) { db.Set(ctx, place, stored[place], 0) },
		"64 MB":        func(place, _ string) { db.Set(ctx, place, strings.Repeat("x", 64<<20), time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			poison(all[0], all[1])
			poison(all[1], all[0])
			rep := enlist(t, r.URL(), busy, nil)
			defer rep.cache.Close()
			before := as.Requests()
			for _, up := range []string{"a", "b"} {
				got := authorization(t, rep.source(t, up, credential(up)))
				if got == ours["a"] || got == ours["b"] {
					t.Errorf("%s: the poisoned value was handed out", up)
				}
				if aud := audience(t, got); aud != "https://"+up+".company.com" {
					t.Errorf("%s: got a token for %q", up, aud)
				}
			}
			if n := as.Requests() - before; n != 2 || rep.counted()["hit"] != 0 {
				t.Errorf("want 2 requests and no hit, got %d, %v", n, rep.counted())
			}
			eventually(t, "the poison is replaced", func() bool { return rep.counted()["stored"] == 2 })
		})
	}
}

// TestO6_ReplayedAfterItsEnd: who owns the server stores an old value again.
func TestO6_ReplayedAfterItsEnd(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	db := raw(t, r)
	as := startAS(t, tokenstest.Config{Lifetime: 3 * time.Second})
	a := enlist(t, r.URL(), busy, nil)
	first := authorization(t, a.source(t, "a", spec(as.TokenURL())))
	settled(t, db, 1)
	a.cache.Close() // no refresh
	place := places(t, db)[0]
	value, err := db.Get(t.Context(), place).Result()
	noErr(t, err)
	time.Sleep(3 * time.Second)
	noErr(t, db.Set(t.Context(), place, value, time.Hour).Err())
	b := enlist(t, r.URL(), busy, nil)
	if second := authorization(t, b.source(t, "a", spec(as.TokenURL()))); second == first || b.counted()["expired"] != 1 {
		t.Errorf("want another token and the old one found expired, got %v", b.counted())
	}
}

// TestO20_RejectedTokensInTurns: who owns the server keeps every value, and puts
// back what was refused before the last one.
func TestO20_RejectedTokensInTurns(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	db := raw(t, r)
	as := startAS(t, tokenstest.Config{})
	s := enlist(t, r.URL(), busy, nil).source(t, "a", spec(as.TokenURL()))
	current := authorization(t, s)
	seen, values := map[string]bool{current: true}, []string(nil)
	for range bucketSize {
		settled(t, db, 1)
		place := places(t, db)[0]
		value, err := db.Get(t.Context(), place).Result()
		noErr(t, err)
		if values = append(values, value); len(values) > 1 {
			noErr(t, db.Set(t.Context(), place, values[0], time.Hour).Err())
		}
		tok, err := s.Replace(t.Context(), []byte(current))
		noErr(t, err)
		if current = string(tok.Authorization()); seen[current] {
			t.Fatal("a token that the upstream refused is lent again")
		}
		seen[current] = true
	}
}

func audience(t *testing.T, authorization string) string {
	t.Helper()
	var claims struct{ Aud any }
	parts := strings.Split(authorization, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	noErr(t, err)
	noErr(t, json.Unmarshal(body, &claims))
	return strings.Trim(fmt.Sprint(claims.Aud), "[]")
}

// TestO6_ForeignLock: one that never ends is none of ours, and nobody waits for it.
func TestO6_ForeignLock(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	db := raw(t, r)
	as := newFake()
	rep := enlist(t, r.URL(), busy, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
	eventually(t, "up", rep.state("up"))
	for name, end := range map[string]time.Duration{"endless": 0, "day": 24 * time.Hour} {
		s := rep.source(t, name, res(name))
		place, err := placeOf(fleetKey, s.entry.id, "")
		noErr(t, err)
		noErr(t, db.Set(t.Context(), "mcp:lock:"+place, "x", end).Err())
		start := time.Now()
		authorization(t, s)
		if took := time.Since(start); took > coldPatience/2 {
			t.Errorf("%s: want no wait for it, got %s", name, took)
		}
	}
}

// TestO6_Clocks: a replica whose clock is wrong fetches more often, or takes what
// the server says, but nobody gets a token beyond its end.
func TestO6_Clocks(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	as := newFake()
	as.life = 30 * time.Second
	for writer, hits := range map[time.Duration]int{-time.Hour: 0, -3 * time.Second: 1, 0: 1, time.Hour: 1} {
		name := fmt.Sprint("up", writer)
		a := enlist(t, r.URL(), busy, func(cfg *Config, f *FleetConfig) {
			cfg.Transport = as
			cfg.Now = func() time.Time { return time.Now().Add(writer) }
			f.Now = cfg.Now
		})
		b := enlist(t, r.URL(), busy, func(cfg *Config, _ *FleetConfig) { cfg.Transport = as })
		born := time.Now()
		first := authorization(t, a.source(t, name, res(name)))
		eventually(t, "stored", func() bool { return a.counted()["stored"] == 1 })
		time.Sleep(1200 * time.Millisecond)
		s := b.source(t, name, res(name))
		second := authorization(t, s)
		if b.counted()["hit"] != hits {
			t.Errorf("writer's clock off by %s: want %d hits, got %v", writer, hits, b.counted())
		}
		end := born.Add(as.life)
		if expiry := s.Cached().Expiry(); second == first && expiry.After(end.Add(500*time.Millisecond)) {
			t.Errorf("writer's clock off by %s: handed out %s beyond its end", writer, expiry.Sub(end))
		}
	}
}

// TestCanary_NothingReadableInRedis scans every name and value, and what is logged
// and shown, for all secrets in all their spellings.
func TestCanary_NothingReadableInRedis(t *testing.T) {
	const password = "p4ssword/of+redis%&: canary"
	r := startRedis(t, realredis.Config{Password: password})
	as := startAS(t, tokenstest.Config{})
	rep := enlist(t, r.URL(), busy, withPassword(password))
	secrets := []string{canary, fleetKey, password}
	for i := range 5 {
		o := spec(as.TokenURL())
		o.Resource = fmt.Sprintf("https://up%d.company.com", i)
		tok := strings.TrimPrefix(authorization(t, rep.source(t, fmt.Sprint(i), o)), "Bearer ")
		parts := strings.Split(tok, ".")
		secrets = append(secrets, tok, parts[1], parts[2])
	}
	db := raw(t, r)
	settled(t, db, 5)
	shown, err := json.Marshal(rep.fleet.Status())
	noErr(t, err)
	dump := rep.log.String() + string(shown)
	names, err := db.Keys(t.Context(), "*").Result()
	noErr(t, err)
	for _, name := range names {
		value, err := db.Get(t.Context(), name).Result()
		noErr(t, err)
		dump += name + "\n" + value + "\n"
	}
	if len(names) < 6 || len(dump) < 5*300 {
		t.Fatalf("want 5 tokens and the probe, got %q", names)
	}
	low := strings.ToLower(dump)
	for _, secret := range secrets {
		for _, form := range spellings(secret) {
			if strings.Contains(low, strings.ToLower(form)) {
				t.Errorf("%.8s… is readable as %.8s…", secret, form)
			}
		}
	}
	for _, name := range []string{"company.com", clientID, "mcp.read"} {
		if strings.Contains(strings.Join(names, " ")+dump, name) {
			t.Errorf("%q tells whose token it is", name)
		}
	}
}

func spellings(s string) []string {
	b := []byte(s)
	forms := []string{s, url.QueryEscape(s), url.PathEscape(s), hex.EncodeToString(b)}
	for shift := range 3 { // base64 of s within something longer
		padded := append(make([]byte, shift), b...)
		std := base64.RawStdEncoding.EncodeToString(padded)
		forms = append(forms, std[4:len(std)-4], base64.RawURLEncoding.EncodeToString(padded)[4:len(std)-4])
	}
	return forms
}
