package keycloak_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// The secrets of the clients. The first is one that a client which does not
// form-encode what it puts into Basic (RFC 6749 §2.3.1) cannot show.
const (
	basicSecret   = "made up+secret%41:of/basic"
	postSecret    = "made-up&secret=of+post"
	revokedSecret = "made-up-secret-of-revoked"
	lifeSecret    = "made-up-secret-of-life"
	usersSecret   = "made-up-secret-of-users"
)

// life is how long the tokens of the upstream "life" live: longer than Keycloak
// takes to start again, which they have to outlive.
const life = 90 * time.Second

// TestKeycloak is one line for all cases, in this order: Keycloak is slow to start.
func TestKeycloak(t *testing.T) {
	l := newLine(t)
	keys := newClientKeys(t, l)
	l.upstream("basic", object{"secret": basicSecret}, nil)
	l.upstream("post", object{"secret": postSecret}, nil)
	l.upstream("signed", object{
		"clientAuthenticatorType": "client-jwt",
		"attributes":              object{"use.jwks.url": "true", "jwks.url": keys.url},
	}, nil)
	l.upstream("revoked", object{"secret": revokedSecret}, l.introspected)
	l.upstream("life", object{
		"secret": lifeSecret, "attributes": object{"access.token.lifespan": fmt.Sprint(int(life.Seconds()))},
	}, nil)
	l.upstream("users", object{"secret": usersSecret, "attributes": object{"standard.token.exchange.enabled": "true"}}, nil)
	l.callers["users"] = "people"
	for name, secret := range map[string]string{
		"basic": basicSecret, "post": postSecret, "revoked": revokedSecret, "life": lifeSecret, "users": usersSecret,
	} {
		l.write(name+".secret", []byte(secret))
	}
	found := "issuer: " + l.k.issuer() + ", "
	named := "token_url: " + l.k.endpoint("token") + ", "
	// Keycloak's access tokens do not say by their typ that they are some.
	l.start(found+"audience: users-client, profile: generic", map[string]string{
		"basic":   found + "auth_method: client_secret_basic, client_secret: {file: " + l.file("basic.secret") + "}",
		"post":    named + "auth_method: client_secret_post, client_secret: {file: " + l.file("post.secret") + "}",
		"signed":  found + "private_key: {file: " + l.file("signed.key") + "}",
		"revoked": named + "client_secret: {file: " + l.file("revoked.secret") + "}",
		"life":    found + "client_secret: {file: " + l.file("life.secret") + "}",
		"users":   found + "grant: token_exchange, client_secret: {file: " + l.file("users.secret") + "}",
	})
	for _, c := range []struct {
		name string
		f    func(*testing.T, *line)
	}{
		{"U2 O4: each way to authenticate gets its own tokens", authenticates},
		{"U9: each user gets a token of its own", exchanges},
		{"U12: the client's key is rotated", keys.rotated},
		{"T8: the realm's keys are rotated", rotatesRealmKeys},
		{"T8: tokens are revoked", revokes},
		{"O17: the client is disabled and enabled", disables},
		{"T9: Keycloak is restarted", restarts},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.f(t, l) }) {
			return
		}
	}
}

// authenticates: the token is of the right client, for the right upstream (which
// checks its audience), and there was one request for it.
func authenticates(t *testing.T, l *line) {
	t.Helper()
	for _, name := range []string{"basic", "post", "signed"} {
		who := l.whoami(t, name, "")
		if who.ClientID != name+"-client" || !slices.Contains(who.Scopes, "mcp.read") {
			t.Errorf("%s: want its own client and mcp.read, got %+v", name, who)
		}
		if n := l.requests(t, name); n != 1 {
			t.Errorf("%s: want one token request, got %d", name, n)
		}
	}
}

// exchanges: a user's token is exchanged (RFC 8693) once for one that is for the
// upstream, and never goes there itself; who has none gets a challenge.
func exchanges(t *testing.T, l *line) {
	t.Helper()
	l.admin.client("app", "users-client", object{"publicClient": true, "serviceAccountsEnabled": false, "directAccessGrantsEnabled": true})
	ids := map[string]string{}
	for _, user := range []string{"alice", "bob"} {
		ids[user] = l.admin.make("users", object{
			"username": user, "enabled": true, "firstName": user, "lastName": user, "email": user + "@example.com", "emailVerified": true,
			"credentials": []object{{"type": "password", "value": "made-up-password-of-" + user}},
		})
		token := bearer(l.admin.grant("/realms/"+realm+"/protocol/openid-connect/token", url.Values{
			"grant_type": {"password"}, "client_id": {"app"}, "username": {user}, "password": {"made-up-password-of-" + user},
		}))
		if status, _ := post(t.Context(), l.urls["users"], "Bearer "+string(token)); status != http.StatusUnauthorized {
			t.Errorf("%s: want the upstream to refuse the user's own token with 401, got %d", user, status)
		}
		first, second := l.whoami(t, "users", token), l.whoami(t, "users", token)
		if first.Subject != ids[user] || !slices.Contains(first.Scopes, "mcp.read") {
			t.Errorf("%s: want the subject %s and mcp.read, got %+v", user, ids[user], first)
		}
		if first.TokenID != second.TokenID {
			t.Errorf("%s: want one token for both calls, got %s and %s", user, first.TokenID, second.TokenID)
		}
	}
	if n := l.requests(t, "users"); n != len(ids) {
		t.Errorf("want one token request for each of %d users, got %d", len(ids), n)
	}
	if status, reason := l.post(t.Context(), "users"); status != http.StatusUnauthorized || reason != "caller_unknown" {
		t.Errorf("without a token: want 401 caller_unknown, got %d %s", status, reason)
	}
}

// clientKeys publishes the public keys of the client "signed".
type clientKeys struct {
	url string

	mu    sync.Mutex // guards what follows
	keys  jose.JSONWebKeySet
	asked int
}

func newClientKeys(t *testing.T, l *line) *clientKeys {
	t.Helper()
	k := &clientKeys{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.asked++
		_ = json.NewEncoder(w).Encode(k.keys)
	}))
	t.Cleanup(s.Close)
	k.url = s.URL
	l.write("signed.key", k.next(t, "key-1"))
	return k
}

// next publishes a new key in place of the old one, and returns its private half.
func (k *clientKeys) next(t *testing.T, kid string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private := jose.JSONWebKey{Key: key, KeyID: kid, Algorithm: "ES256", Use: "sig"}
	b, err := json.Marshal(private)
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys.Keys = []jose.JSONWebKey{private.Public()}
	return b
}

// rotated: the next token is asked for with the new key, and the old
// one is gone.
func (k *clientKeys) rotated(t *testing.T, l *line) {
	t.Helper()
	before := l.whoami(t, "signed", "")
	l.write("signed.key", k.next(t, "key-2"))
	time.Sleep(1500 * time.Millisecond) // Keycloak asks for keys at most once a second
	l.admin.rotateRealmKeys()
	l.forget(t)
	after := l.whoami(t, "signed", "")
	if after.TokenID == before.TokenID || after.ClientID != "signed-client" {
		t.Errorf("want another token of the same client, got %+v after %+v", after, before)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.asked < 2 {
		t.Errorf("want Keycloak to have read the new key, got %d reads", k.asked)
	}
}

// forget makes the upstreams drop the realm's old keys: they read the keys again
// when a token names one that they do not know.
func (l *line) forget(t *testing.T) {
	t.Helper()
	token := l.admin.grant("/realms/"+realm+"/protocol/openid-connect/token", url.Values{
		"grant_type": {"client_credentials"}, "client_id": {"post-client"}, "client_secret": {postSecret}, "scope": {"mcp.read"},
	})
	for _, endpoint := range l.urls {
		post(t.Context(), endpoint, "Bearer "+token)
	}
}

// rotatesRealmKeys: no call fails when the upstream refuses all tokens of the
// old key at once, and one new token heals it.
func rotatesRealmKeys(t *testing.T, l *line) {
	t.Helper()
	l.post(t.Context(), "basic")
	before := l.requests(t, "basic")
	stop := l.load(t, "basic")
	time.Sleep(2 * time.Second) // upstreams read the keys at most once a second
	l.admin.rotateRealmKeys()
	l.forget(t)
	eventually(t, "a token of the new key", 10*time.Second, func() bool { return l.requests(t, "basic") > before })
	time.Sleep(time.Second)
	if n := stop(); n < 20 {
		t.Errorf("want some calls, got %d", n)
	}
	if n := l.requests(t, "basic") - before; n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
}

// revokes: not-before makes Keycloak refuse all older tokens of a client.
func revokes(t *testing.T, l *line) {
	t.Helper()
	if status, reason := l.post(t.Context(), "revoked"); status != http.StatusOK {
		t.Fatalf("want 200, got %d %s", status, reason)
	}
	before := l.requests(t, "revoked")
	stop := l.load(t, "revoked")
	time.Sleep(2 * time.Second) // the claims count in seconds
	l.admin.change(l.admin.path("clients", l.ids["revoked"]), object{"notBefore": time.Now().Unix()})
	eventually(t, "a newer token", 10*time.Second, func() bool { return l.requests(t, "revoked") > before })
	time.Sleep(time.Second)
	if n := stop(); n < 20 {
		t.Errorf("want some calls, got %d", n)
	}
	if n := l.requests(t, "revoked") - before; n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
}

// disables: a disabled client's token is refused by the upstream and a new one
// by Keycloak, which is a 502; enabled with another secret, it heals.
func disables(t *testing.T, l *line) {
	t.Helper()
	where := l.admin.path("clients", l.ids["revoked"])
	l.admin.change(where, object{"enabled": false})
	if status, reason := l.post(t.Context(), "revoked"); status != http.StatusBadGateway || reason != "token_refused" {
		t.Errorf("want 502 token_refused, got %d %s", status, reason)
	}
	const next = "made-up-secret-of-revoked-2"
	l.admin.change(where, object{"enabled": true, "secret": next})
	l.write("revoked.secret", []byte(next))
	eventually(t, "a call passes again", 7*time.Second, func() bool {
		status, _ := l.post(t.Context(), "revoked")
		return status == http.StatusOK
	})
}

// restarts: while tokens live, nobody notices that Keycloak is away, and its
// return is noticed.
func restarts(t *testing.T, l *line) {
	t.Helper()
	// The case begins with a new token: an old one may have to be replaced while Keycloak is away.
	l.admin.rotateRealmKeys()
	time.Sleep(1500 * time.Millisecond)
	l.forget(t)
	l.post(t.Context(), "life")
	begin := time.Now()
	stop := l.load(t, "life")
	l.k.stop()
	l.k.start(t)
	away := time.Since(begin)
	before := l.requests(t, "life")
	eventually(t, "a token after the restart", life, func() bool { return l.requests(t, "life") > before })
	n := stop()
	t.Logf("%d calls, Keycloak away for %s, a new token %s after the first call", n, away.Round(time.Second), time.Since(begin).Round(time.Second))
	if away > life {
		t.Errorf("Keycloak was away for %s, longer than the life of a token: the case shows nothing", away)
	}
}
