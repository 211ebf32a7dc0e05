package tokens

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// closely counts the requests whose start is nearer to another than the pause.
func closely(starts []time.Time, pause time.Duration) int {
	n := 0
	for i := 1; i < len(starts); i++ {
		if starts[i].Sub(starts[i-1]) < pause {
			n++
		}
	}
	return n
}

// TestJ6_UnknownKidFlood: 10,000 forged tokens, each with a kid of its own, over
// a minute cost one fetch in 10 s, and a rotation in the midst of it is picked
// up within 10 s by real tokens that come once a second.
func TestJ6_UnknownKidFlood(t *testing.T) {
	before, after := newMinter(t, "ES256", "old"), newMinter(t, "ES256", "new")
	synctest.Test(t, func(t *testing.T) {
		idp := newIssuer(publish(before)...)
		v := newTestVerifier(t, idp, nil)
		defer v.Close() // the bubble must end
		r := rule(t, v, jwtSpec(nil))
		begin := time.Now()
		header := `{"alg":"ES256","typ":"at+jwt","kid":"forged-%d"}`
		claims := fmt.Sprintf(`{"iss":%q,"sub":"x","aud":%q,"client_id":"a","jti":"1","iat":%d,"exp":%d}`,
			issuerURL, ourAudience, begin.Unix(), begin.Unix()+600)
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range 10_000 {
				token := b64(fmt.Appendf(nil, header, i)) + "." + b64([]byte(claims)) + "." + b64(make([]byte, 64))
				if _, err := r.Verify(t.Context(), []byte(token)); faultOf(t, err) != codeUnknownKey {
					t.Errorf("forged: got %v", err)
				}
				time.Sleep(6 * time.Millisecond)
			}
		})
		time.Sleep(11500 * time.Millisecond) // between two fetches of the flood, the first just over
		rotated := time.Now()
		idp.set(func(i *issuer) { i.keys = publish(before, after) })
		token := after.token(t, rotated, nil, nil)
		for err := error(&InvalidTokenError{}); err != nil; time.Sleep(100 * time.Millisecond) {
			if took := time.Since(rotated); took > 10*time.Second {
				t.Fatalf("J5: after %s the new key still counts for nothing: %v", took, err)
			}
			if _, err = r.Verify(t.Context(), token); err != nil && faultOf(t, err) != codeUnknownKey {
				t.Fatal(err)
			}
		}
		wg.Wait()
		if n := idp.fetches(); n > 7 || closely(idp.starts, 10*time.Second) > 0 {
			t.Errorf("want one fetch in 10 s, got %d in %s", n, time.Since(begin))
		}
	})
}

// TestJ6_SharedFetch: all who wait for an unknown key wait for one fetch, and
// not for long.
func TestJ6_SharedFetch(t *testing.T) {
	before, after := newMinter(t, "ES256", "old"), newMinter(t, "ES256", "new")
	synctest.Test(t, func(t *testing.T) {
		idp := newIssuer(publish(before)...)
		v := newTestVerifier(t, idp, nil)
		defer v.Close()
		r := rule(t, v, jwtSpec(nil))
		if _, err := r.Verify(t.Context(), before.token(t, time.Now(), nil, nil)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		idp.set(func(i *issuer) { i.keys, i.latency = publish(after), 300*time.Millisecond })
		token := after.token(t, time.Now(), nil, nil)
		flock := func(want string, most time.Duration) {
			t.Helper()
			var wg sync.WaitGroup
			for range 1000 {
				wg.Go(func() {
					start := time.Now()
					_, err := r.Verify(t.Context(), token)
					if got := faultOf(t, err); got != want || time.Since(start) > most {
						t.Errorf("want %q within %s, got %q after %s: %v", want, most, got, time.Since(start), err)
					}
				})
			}
			wg.Wait()
		}
		flock("", 300*time.Millisecond)
		if n := idp.fetches(); n != 2 {
			t.Errorf("want 2 fetches, got %d", n)
		}
		// The endpoint hangs: nobody can tell whether the key is a new one.
		time.Sleep(time.Minute)
		idp.set(func(i *issuer) { i.hang = true })
		token = before.token(t, time.Now(), nil, nil)
		flock("unavailable", renewWait)
		flock("unavailable", renewWait)
		if n := idp.fetches(); n != 3 {
			t.Errorf("want 3 fetches, got %d", n)
		}
	})
}

// TestJ6_BadSignatureFlood: a bad signature under a known kid may be a key that
// was replaced, so it may cause a fetch, in the same budget.
func TestJ6_J5_BadSignatures(t *testing.T) {
	before, after := newMinter(t, "ES256", "k"), newMinter(t, "ES256", "k")
	synctest.Test(t, func(t *testing.T) {
		idp := newIssuer(publish(before)...)
		v := newTestVerifier(t, idp, nil)
		defer v.Close()
		r := rule(t, v, jwtSpec(nil))
		begin := time.Now()
		bad := newMinter(t, "ES256", "k").token(t, begin, nil, nil)
		for range 300 {
			if _, err := r.Verify(t.Context(), bad); faultOf(t, err) != "signature" {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if n := idp.fetches(); n > 4 || closely(idp.starts, 10*time.Second) > 0 {
			t.Errorf("want one fetch in 10 s, got %d in %s", n, time.Since(begin))
		}
		idp.set(func(i *issuer) { i.keys = publish(after) })
		time.Sleep(renewPause)
		if _, err := r.Verify(t.Context(), after.token(t, time.Now(), nil, nil)); err != nil {
			t.Errorf("same kid, new key: %v", err)
		}
		if _, err := r.Verify(t.Context(), before.token(t, time.Now(), nil, nil)); faultOf(t, err) != "signature" {
			t.Errorf("the key it replaced: %v", err)
		}
	})
}

// TestJ5_RemovedKey: a key that the issuer took out counts until the next
// refresh and not longer, also for a token that was verified before.
func TestJ5_J11_RemovedKey(t *testing.T) {
	a, b := newMinter(t, "ES256", "a"), newMinter(t, "ES256", "b")
	synctest.Test(t, func(t *testing.T) {
		idp := newIssuer(publish(a, b)...)
		idp.header.Set("Cache-Control", "public, max-age=120")
		v := newTestVerifier(t, idp, nil)
		defer v.Close()
		r := rule(t, v, jwtSpec(nil))
		stolen, good := a.token(t, time.Now(), nil, nil), b.token(t, time.Now(), nil, nil)
		verify := func(token []byte, want string) *Principal {
			t.Helper()
			p, err := r.Verify(t.Context(), token)
			if got := faultOf(t, err); got != want {
				t.Errorf("want %q, got %q: %v", want, got, err)
			}
			return p
		}
		verify(stolen, "")
		time.Sleep(90 * time.Second)
		first := verify(stolen, "") // and known for a minute, to 150 s
		idp.set(func(i *issuer) { i.keys = publish(b) })
		if verify(stolen, "") != first {
			t.Error("J11: want the same principal again")
		}
		time.Sleep(31 * time.Second) // to 121 s
		verify(stolen, codeUnknownKey)
		first = verify(good, "")
		if verify(good, "") != first {
			t.Error("J11: want the same principal again")
		}
		idp.set(func(i *issuer) {
			i.keys = []any{b.published(t, map[string]any{"x5t": "no hash", "x5c": []string{"no certificate"}})}
		})
		time.Sleep(2 * time.Minute)
		if n := idp.fetches(); n != 3 {
			t.Errorf("want a fetch every 120 s, got %v", idp.starts)
		}
	})
}

// TestJ11_KnownTokens: at most a minute, never beyond exp, and for this rule alone.
func TestJ11_KnownTokens(t *testing.T) {
	key := newMinter(t, "ES256", "k")
	synctest.Test(t, func(t *testing.T) {
		v := newTestVerifier(t, newIssuer(publish(key)...), nil)
		defer v.Close()
		r := rule(t, v, jwtSpec(func(j *policy.JWT) { j.Skew = 0 }))
		verify := func(r *Rule, token []byte) *Principal {
			t.Helper()
			p, err := r.Verify(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		token := key.token(t, time.Now(), nil, nil)
		p := verify(r, token)
		if q := verify(rule(t, v, jwtSpec(generic)), token); q == p {
			t.Error("another rule took the verdict of the first")
		}
		time.Sleep(59 * time.Second)
		if verify(r, token) != p {
			t.Error("after 59 s: want the same principal")
		}
		time.Sleep(2 * time.Second)
		if verify(r, token) == p {
			t.Error("after 61 s: want another look")
		}
		short := key.token(t, time.Now(), nil, map[string]any{"exp": time.Now().Unix() + 20})
		verify(r, short)
		time.Sleep(21 * time.Second)
		if _, err := r.Verify(t.Context(), short); faultOf(t, err) != "expired" {
			t.Errorf("after exp: got %v", err)
		}
		other := rule(t, v, jwtSpec(generic))
		verify(r, token)
		verify(other, token)
		v.Retain([]*Rule{other})
		n := 0
		for i := range v.seen.shards {
			for k := range v.seen.shards[i].m {
				n++
				if k.rule != other {
					t.Error("Retain: a verdict of a rule that is gone stays")
				}
			}
		}
		if n != 1 {
			t.Errorf("want 1 verdict, got %d", n)
		}
	})
}

func TestJ11_Bounds(t *testing.T) {
	var s seen
	now := time.Now()
	r := &Rule{}
	for i := range 3 * 10_000 {
		var k seenKey
		k.rule, k.sum[0], k.sum[1], k.sum[2] = r, byte(i), byte(i>>8), byte(i>>16)
		size := 100
		if i > 20_000 {
			size = 16 << 10
		}
		s.put(k, proven{p: newPrincipal(Principal{}, strings.Repeat("x", size)), until: now.Add(time.Minute)}, now)
		if s.get(k, nil, now) == nil {
			t.Fatal("what was just put is not there")
		}
	}
	total, bytes := 0, 0
	for i := range s.shards {
		total += len(s.shards[i].m)
		sum := 0
		for _, v := range s.shards[i].m {
			sum += v.size()
		}
		if sum != s.shards[i].bytes {
			t.Fatalf("shard %d: counted %d bytes, it has %d", i, s.shards[i].bytes, sum)
		}
		bytes += sum
	}
	if total > 10_000 || bytes > 32<<20 {
		t.Errorf("want at most 10,000 tokens and 32 MiB, got %d and %d", total, bytes)
	}
}

// TestJ5_BrokenSets: none of it takes the keys away that were there, for a day;
// and without keys it is the issuer that is unavailable, not the token invalid.
func TestJ5_J10_BrokenSets(t *testing.T) {
	key := newMinter(t, "ES256", "k")
	big := `{"keys":[],"x":"` + strings.Repeat("x", 1<<20) + `"}`
	for name, c := range map[string]struct {
		change func(*issuer)
		code   string
	}{
		"500":           {func(i *issuer) { i.status = 500 }, "http_500"},
		"404":           {func(i *issuer) { i.status = 404 }, "http_404"},
		"redirect":      {func(i *issuer) { i.status = 302; i.header.Set("Location", "https://evil.test/") }, "redirect_refused"},
		"HTML":          {func(i *issuer) { i.body = "<html>" }, "not_json"},
		"1 MB":          {func(i *issuer) { i.body = big }, "too_big"},
		"empty":         {func(i *issuer) { i.keys = []any{} }, "no_keys"},
		"no list":       {func(i *issuer) { i.body = `{"keys":{}}` }, "no_key_set"},
		"keys twice":    {func(i *issuer) { i.body = `{"keys":[],"keys":[]}` }, "duplicate_member"},
		"only private":  {func(i *issuer) { i.keys = []any{key.published(t, map[string]any{"d": "AA"})} }, "no_keys"},
		"101 keys":      {func(i *issuer) { i.body = `{"keys":[{}` + strings.Repeat(",{}", maxKeys) + `]}` }, "too_many_keys"},
		"packed":        {func(i *issuer) { i.header.Set("Content-Encoding", "gzip") }, "encoded"},
		"hang":          {func(i *issuer) { i.hang = true }, "timeout"},
		"other issuer":  {func(i *issuer) { i.url = "https://evil.test" }, "issuer_mismatch"},
		"no keys there": {func(i *issuer) { i.url = "" }, "issuer_mismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &buffer{}
				idp := newIssuer(publish(key)...)
				idp.set(c.change)
				v := newTestVerifier(t, idp, func(c *VerifierConfig) { c.Log = zerolog.New(log) })
				defer v.Close()
				r := rule(t, v, jwtSpec(nil))
				token := func() []byte { return key.token(t, time.Now(), nil, nil) }
				ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
				defer cancel()
				if _, err := r.Verify(ctx, token()); faultOf(t, err) != "unavailable" || failed(t, err).Kind != Unavailable {
					t.Errorf("without keys: want unavailable, got %v", err)
				}
				time.Sleep(6 * time.Second)
				if st := v.Status()[0]; st.Ready || st.Code != c.code || st.Failures == 0 {
					t.Errorf("status: want %s, got %+v", c.code, st)
				}
				if n := strings.Count(log.String(), "no keys: "); n != 1 {
					t.Errorf("want one line, got %d: %s", n, log)
				}
				idp.set(func(i *issuer) {
					i.url, i.keys, i.status, i.body, i.header, i.hang = issuerURL, publish(key), 0, "", http.Header{}, false
				})
				time.Sleep(31 * time.Second)
				if _, err := r.Verify(t.Context(), token()); err != nil {
					t.Errorf("after the issuer is well: %v", err)
				}
				if !strings.Contains(log.String(), "can be read again") {
					t.Error("no line says that the issuer is well")
				}
				idp.set(c.change)
				time.Sleep(23 * time.Hour)
				if _, err := r.Verify(t.Context(), token()); err != nil {
					t.Errorf("the last good keys do not count: %v", err)
				}
				if name == "other issuer" || name == "no keys there" {
					return // what the metadata last said of the keys stays in force, and is good
				}
				time.Sleep(2 * time.Hour)
				ctx, cancel = context.WithTimeout(t.Context(), 1500*time.Millisecond)
				defer cancel()
				if _, err := r.Verify(ctx, token()); faultOf(t, err) != "unavailable" {
					t.Errorf("the last good keys count for ever: %v", err)
				}
				if n := idp.fetches(); n > 3400 { // 30 s, less a tenth
					t.Errorf("want a fetch in 30 s, got %d", n)
				}
			})
		})
	}
}

func TestJ10_KeysLife(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": keyLife, "max-age=300": 5 * time.Minute, `public, MAX-AGE="600"`: 10 * time.Minute, "max-age=5": time.Minute,
		"max-age=-5": time.Minute, "max-age=99999999": time.Hour, "max-age=99999999999999999999999": keyLife,
		"no-store": time.Minute, "max-age=600, no-cache": time.Minute, "s-maxage=5": keyLife,
	} {
		if got := keysLife(http.Header{"Cache-Control": {value}}); got != want {
			t.Errorf("%q: want %s, got %s", value, want, got)
		}
	}
}

// TestJ10_Background: nobody asks, and the keys stay fresh; a rule that is
// dropped ends that, and one that comes again takes it up.
func TestJ10_Background(t *testing.T) {
	key := newMinter(t, "ES256", "k")
	synctest.Test(t, func(t *testing.T) {
		idp := newIssuer(publish(key)...)
		v := newTestVerifier(t, idp, nil)
		defer v.Close()
		r := rule(t, v, jwtSpec(nil))
		time.Sleep(time.Hour)
		if n := idp.fetches(); n != 0 {
			t.Errorf("before Warm: want no fetch, got %d", n)
		}
		v.Retain([]*Rule{r})
		time.Sleep(time.Hour)
		if n := idp.fetches(); n != 0 {
			t.Errorf("Retain: want no fetch, got %d", n)
		}
		v.Warm()
		time.Sleep(time.Hour + time.Second)
		if n := idp.fetches(); n != 7 {
			t.Errorf("want a fetch every 10 min, got %d in 1 h", n)
		}
		v.Retain(nil)
		time.Sleep(time.Hour)
		if n := idp.fetches(); n != 7 || len(v.Status()) != 0 {
			t.Errorf("want no more fetches, got %d", n)
		}
		if _, err := r.Verify(t.Context(), key.token(t, time.Now(), nil, nil)); err != nil {
			t.Errorf("a call under the old policy: %v", err)
		}
		v.Retain([]*Rule{r})
		time.Sleep(time.Hour + time.Second)
		if n := idp.fetches(); n != 14 && n != 13 {
			t.Errorf("want it taken up again, got %d", n)
		}
		v.Close()
		if _, err := rule(t, v, jwtSpec(func(j *policy.JWT) { j.Issuer += "/x" })).Verify(t.Context(), key.token(t, time.Now(), nil, map[string]any{"iss": issuerURL + "/x"})); faultOf(t, err) != "unavailable" {
			t.Errorf("after Close: got %v", err)
		}
	})
}

// TestC10_S1_KeysInAPrivatePlace: the metadata of a public issuer leads to no
// private address; the issuer's own host may be one.
func TestC10_S1_KeysInAPrivatePlace(t *testing.T) {
	as, inner := startAS(t, tokenstest.Config{}), startAS(t, tokenstest.Config{})
	as.EditMetadata(func(m map[string]any) { m["jwks_uri"] = strings.Replace(inner.JWKSURL(), "127.0.0.1", "localhost", 1) })
	text, err := as.Mint("alice", ourAudience, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, allow := range []bool{false, true} { // in this order: the second one asks the private place
		want := map[bool]string{false: "unavailable", true: "signature"}[allow]
		v := newTestVerifier(t, nil, nil)
		_, err = rule(t, v, jwtSpec(func(j *policy.JWT) { j.Issuer, j.AllowPrivate = as.Issuer(), allow })).Verify(t.Context(), []byte(text))
		if got := faultOf(t, err); got != want {
			t.Errorf("allow_private %v: want %q, got %v", allow, want, err)
		}
		if !allow && (inner.JWKSRequests() > 0 || v.Status()[0].Code != "private_address") {
			t.Errorf("the private address was asked: %+v", v.Status())
		}
	}
	as.EditMetadata(func(m map[string]any) { m["jwks_uri"] = "http://keys.test/jwks" })
	_, err = rule(t, newTestVerifier(t, nil, nil), jwtSpec(func(j *policy.JWT) { j.Issuer = as.Issuer() })).Verify(t.Context(), []byte(text))
	if e := failed(t, err); e.Code != "jwks_uri" {
		t.Errorf("plain http: got %v", err)
	}
}

// TestJ5_RealRotation is rotation at a real issuer: a new key is taken up, and
// faults on the way do no harm.
func TestJ5_RealRotation(t *testing.T) {
	as := startAS(t, tokenstest.Config{})
	var offset time.Duration
	var mu sync.Mutex
	v := newTestVerifier(t, nil, func(c *VerifierConfig) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(offset) }
	})
	r := rule(t, v, jwtSpec(func(j *policy.JWT) { j.Issuer, j.JWKSURL = as.Issuer(), as.JWKSURL() }))
	mint := func() []byte {
		t.Helper()
		text, err := as.Mint("alice", ourAudience, nil)
		if err != nil {
			t.Fatal(err)
		}
		return []byte(text)
	}
	pass := func() { mu.Lock(); offset += renewPause; mu.Unlock() }
	old := mint()
	if _, err := r.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := as.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	pass()
	as.FailJWKS(tokenstest.HTML)
	if _, err := r.Verify(t.Context(), mint()); faultOf(t, err) != "unavailable" {
		t.Errorf("HTML for keys: got %v", err)
	}
	as.FailJWKS("")
	pass()
	if _, err := r.Verify(t.Context(), mint()); err != nil {
		t.Error(err)
	}
	as.RetireKeys()
	as.EditJWKS(func(keys []jose.JSONWebKey) []jose.JSONWebKey { return slices.Concat(keys, keys) })
	if err := as.RotateKeys(); err != nil {
		t.Fatal(err)
	}
	pass()
	if _, err := r.Verify(t.Context(), mint()); faultOf(t, err) != "unavailable" || as.JWKSRequests() != 4 {
		t.Errorf("each key twice, which leaves none: got %v after %d requests", err, as.JWKSRequests())
	}
	as.EditJWKS(nil)
	pass()
	if _, err := r.Verify(t.Context(), mint()); err != nil {
		t.Error(err)
	}
	if _, err := r.Verify(t.Context(), old); faultOf(t, err) != codeUnknownKey {
		t.Errorf("a token of a key that was retired: got %v", err)
	}
}
