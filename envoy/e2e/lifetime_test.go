package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// TestO18_RevocationUnderLoad: token after token is revoked while 200 calls a
// second go on. No call fails, and each revoked token costs one token request.
func TestO18_RevocationUnderLoad(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := start(t, standard)
	var refused atomic.Int64
	guarded := r.guarded(fine)
	r.up("alpha").answerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.issuer.Revoked(claim(strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer "), "jti")) {
			refused.Add(1)
		}
		guarded.ServeHTTP(w, req)
	})
	r.post("/alpha/mcp", "{}")
	before := r.issuer.RequestsBy("alpha-client")
	const revocations = 5
	o := r.under(100, func(*outcomes) {
		for i := range revocations {
			time.Sleep(3 * time.Second)
			r.issuer.Revoke()
			r.eventually("the new token is there", 10*time.Second, func() bool { return r.issuer.RequestsBy("alpha-client") == before+i+1 })
		}
	})
	if o.refused != 0 || o.fine < 500 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
	if n := r.issuer.RequestsBy("alpha-client") - before; n != revocations {
		t.Errorf("want one token request for each of %d revoked tokens, got %d", revocations, n)
	}
	t.Logf("%d calls, %d of them healed; %d tokens revoked, %d token requests", o.fine, refused.Load(), revocations, r.issuer.RequestsBy("alpha-client")-before)
}

// TestO2_Lifetimes: tokens of 10 s, and in each 10 s the authorization server is
// away for 4 s. No call fails.
func TestO2_Lifetimes(t *testing.T) {
	t.Parallel() // it waits more than it works
	lifetimes(t, 3)
}

// TestO2_Soak is TestO2_Lifetimes as long as it is promised.
func TestO2_Soak(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("30 lifetimes take 5 minutes; run make soak")
	}
	lifetimes(t, 30)
}

func lifetimes(t *testing.T, n int) {
	t.Helper()
	const life, outage = 10 * time.Second, 4 * time.Second
	r := newRig(t, standard)
	r.issuer.SetLifetime(life)
	var expired atomic.Int64
	r.up("alpha").answerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !alive(strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")) {
			expired.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fine(w, req)
	})
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	faults := []tokenstest.Fault{tokenstest.Status503, tokenstest.Hang, tokenstest.Reset, tokenstest.Status500, tokenstest.HTML}
	o := r.under(100, func(*outcomes) {
		for i := range n {
			// Each outage begins at another place of the life, to and fro: two
			// that touch would be one of 8 s, which no token of 10 s survives.
			lead := time.Duration(min(i%12, 12-i%12)) * (life - outage) / 6
			time.Sleep(lead)
			r.issuer.Fail(faults[i%len(faults)])
			time.Sleep(outage)
			r.issuer.Heal()
			time.Sleep(life - outage - lead)
		}
	})
	if o.refused != 0 || o.fine < n*300 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
	if n := expired.Load(); n != 0 {
		t.Errorf("want no expired token lent, got %d", n)
	}
	t.Logf("%d lifetimes: %d calls, %d token requests", n, o.fine, r.issuer.RequestsBy("alpha-client"))
}

// alive reports whether a JWT of the authorization server has not expired. Its exp
// is a whole second, up to one before what expires_in said.
func alive(token string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return false
	}
	var claims struct {
		Expiry int64 `json:"exp"`
	}
	return json.Unmarshal(b, &claims) == nil && time.Now().Before(time.Unix(claims.Expiry+1, 0))
}
