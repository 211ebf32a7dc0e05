package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// TestJ10_IssuerDown: with its keys known, an issuer may be away: tokens that
// nobody saw before are verified too. Without any, nothing is known of a token,
// and a 401 would send its holder to log in for nothing.
func TestJ10_IssuerDown(t *testing.T) {
	for _, fault := range []tokenstest.Fault{tokenstest.Status503, tokenstest.Hang, tokenstest.HTML, tokenstest.Redirect307} {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel() // it waits more than it works
			p := newPeople(t, byToken)
			p.partner.FailJWKS(fault)
			p.proc = p.launch(p.policy, p.facts.Admin)
			p.startEnvoy(p.render())
			p.eventually("the keys of the other issuer are there", 5*time.Second, func() bool {
				return p.post("/alpha/mcp", "{}", "Authorization", "Bearer "+p.mint(p.idp, "alice", scopesOfPeople, nil)).status == http.StatusOK
			})
			p.idp.FailJWKS(fault)
			p.idp.FailMetadata(fault)
			p.up("alpha").take()
			carol := p.mint(p.partner, "carol", "", nil)
			p.both(func(proto string, get func(string, ...string) reply) {
				for i := range 5 {
					if got := get("/alpha/mcp", bearer(p.mint(p.idp, fmt.Sprint("user", i), scopesOfPeople, nil))); got.status != http.StatusOK {
						t.Errorf("%s: known keys, a new token: got %v", proto, got)
					}
				}
				got := get("/fixed/mcp", bearer(carol))
				got.refused(t, http.StatusServiceUnavailable, "issuer_unavailable")
				if got.header.Get("Retry-After") == "" || got.header.Get("Www-Authenticate") != "" || got.took > 1900*time.Millisecond {
					t.Errorf("%s: want retry-after, no challenge, and before Envoy's own limit, got %v after %s", proto, got.header, got.took)
				}
				// One issuer that is away is no reason to doubt the other's tokens, nor to wait.
				if got := get("/both/mcp", bearer(p.mint(p.idp, "alice", scopesOfPeople, nil))); got.status != http.StatusOK || got.took > time.Second {
					t.Errorf("%s: the other issuer's token: got %v after %s", proto, got, got.took)
				}
				get("/fixed/mcp").refused(t, http.StatusUnauthorized, "caller_unknown")
			})
			if n := len(p.up("fixed").take()); n != 0 {
				t.Errorf("want nothing at the upstream, got %d requests", n)
			}
			p.partner.FailJWKS("")
			p.eventually("calls go on", 10*time.Second, func() bool {
				return p.post("/fixed/mcp", "{}", "Authorization", "Bearer "+carol).status == http.StatusOK
			})
		})
	}
}

// TestJ10_Rotation: keys come and go while calls run, each with a token that was
// made a moment ago. None fails, and forged key names in between cost no more.
func TestJ10_Rotation(t *testing.T) {
	t.Parallel() // it waits more than it works
	p := startPeople(t, byToken)
	old := p.mint(p.idp, "old", scopesOfPeople, nil)
	if got := p.get1("/alpha/mcp", bearer(old)); got.status != http.StatusOK {
		t.Fatalf("got %v", got)
	}
	time.Sleep(11 * time.Second) // the keys were just read, and are read once in 10 s at most
	before, o, client := p.idp.JWKSRequests(), &outcomes{}, pooled()
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 26*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	// Garbage, after the first rotation. None just before the second: the keys it
	// had read would be the last ones for 10 s, which is as long as a new key waits.
	wg.Go(func() {
		f := &forger{t: t, issuer: p.idp.Issuer()}
		time.Sleep(3 * time.Second)
		for i, end := 0, time.Now().Add(7*time.Second); time.Now().Before(end); i++ {
			token := p.show(f.join(header("ES256", fmt.Sprint("key-", 100+i)), f.claims(), func([]byte) []byte { return make([]byte, 64) }))
			if got, err := p.try(t.Context(), client, p.url+"/alpha/mcp", strings.NewReader("{}"), pairs{"Authorization", "Bearer " + token}); err != nil || got.status != http.StatusUnauthorized {
				t.Errorf("a forged key name: got %v, %v", got, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	wg.Go(func() {
		for range 2 {
			time.Sleep(2 * time.Second)
			if err := p.idp.RotateKeys(); err != nil {
				t.Error(err)
			}
			p.idp.RetireKeys()
			time.Sleep(10 * time.Second)
		}
	})
	n := load(ctx, 60, func() {
		token := p.mint(p.idp, "alice", scopesOfPeople, nil)
		o.add(p.try(context.WithoutCancel(ctx), client, p.url+"/alpha/mcp", strings.NewReader("{}"), pairs{"Authorization", "Bearer " + token}))
	})
	wg.Wait()
	if o.fine != n || len(o.odd) != 0 {
		t.Errorf("want no failure in %d calls, got %d good, %d refused, others %v", n, o.fine, o.refused, o.odd)
	}
	asked := p.idp.JWKSRequests() - before
	if asked < 2 || asked > 4 {
		t.Errorf("want the keys read twice, and at most once in 10 s, got %d times", asked)
	}
	// A key that is gone proves nothing any more.
	if got := p.get1("/alpha/mcp", bearer(old)); got.status != http.StatusUnauthorized {
		t.Errorf("a token of a retired key: got %v", got)
	}
	t.Logf("%d calls with new tokens through two rotations, %d failed; %d requests for keys", n, n-o.fine, asked)
}

// TestJ5_BadKeySets: what an issuer publishes by mistake does not take the good
// keys away, and a set with private keys is not trusted for them.
func TestJ5_BadKeySets(t *testing.T) {
	t.Parallel() // it waits more than it works
	p := newPeople(t, byToken)
	f := newForger(p)
	stranger := newStranger(f)
	p.idp.EditJWKS(func(keys []jose.JSONWebKey) []jose.JSONWebKey {
		return append(keys,
			jose.JSONWebKey{Key: []byte("a symmetric key that the world can read"), KeyID: "oct", Algorithm: "HS256"},
			jose.JSONWebKey{Key: f.rsa, KeyID: "private"},
			jose.JSONWebKey{Key: stranger.rsa.Public(), KeyID: "enc", Use: "enc"},
			jose.JSONWebKey{Key: f.rsa.Public(), KeyID: "rsa"},
		)
	})
	p.proc = p.serve(p.policy, p.facts.Admin)
	p.startEnvoy(p.render())
	for what, row := range map[string]struct {
		token  string
		status int
	}{
		"the issuer's own key": {p.mint(p.idp, "alice", scopesOfPeople, nil), 200},
		"a good key beside":    {f.good(f.claims()), 200},
		"a symmetric key":      {f.join(header("HS256", "oct"), f.claims(), hs256([]byte("a symmetric key that the world can read"))), 401},
		"a private key":        {f.headed(header("RS256", "private")), 401},
		"a key for encryption": {stranger.headed(header("RS256", "enc")), 401},
	} {
		if got := p.get1("/alpha/mcp", bearer(p.show(row.token))); got.status != row.status {
			t.Errorf("%s: want %d, got %v", what, row.status, got)
		}
	}
}
