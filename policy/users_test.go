package policy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestCompileUsers holds what the blocks about users and replicas become.
func TestCompileUsers(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "testdata/good/users.yaml")
	cache := &SharedCache{
		Redis: "rediss://redis.company.com:6379/1", Username: "mcp", Password: SecretRef{SecretEnv, "REDIS_PASSWORD"},
		CA: "testdata/good/redis-ca.pem", Key: SecretRef{SecretFile, "testdata/good/secrets/cache-key"}, Prefix: "mcp-prod",
	}
	if diff := cmp.Diff(cache, set.SharedCache); diff != "" {
		t.Errorf("shared cache (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]SecretRef{cache.Password, cache.Key}, set.SharedCache.Secrets()); diff != "" {
		t.Errorf("secrets of the shared cache (-want +got):\n%s", diff)
	}
	callers := map[string]*Caller{}
	for _, c := range set.Callers {
		callers[c.Name] = c
	}
	for name, want := range map[string]*Caller{
		"people": {Name: "people", JWT: &JWT{
			Issuer: "https://idp.company.com", Audiences: []string{"https://mcp.company.com"}, Header: "authorization",
			Algorithms: []string{"RS256", "PS256", "ES256", "EdDSA"}, Profile: ProfileRFC9068, ScopeClaim: "scope", Skew: 30 * time.Second,
		}},
		"agents": {Name: "agents", JWT: &JWT{
			Issuer: "http://idp.internal:8080/realms/mcp", JWKSURL: "http://idp.internal:8080/realms/mcp/certs?v=2",
			CA: "testdata/good/idp-ca.pem", AllowPlaintext: true, AllowPrivate: true,
			Audiences: []string{"https://mcp.company.com", "mcp"}, Header: "x-user-token",
			Algorithms: []string{"ES256", "ES512", "EdDSA"}, Profile: ProfileGeneric, ScopeClaim: "scp",
			RequireScopes: []string{"mcp.call"}, Skew: time.Minute,
		}},
	} {
		if diff := cmp.Diff(want, callers[name]); diff != "" {
			t.Errorf("caller %s (-want +got):\n%s", name, diff)
		}
	}
	if diff := cmp.Diff([]string{"customer:read", "ticket:create"}, callers["ci"].Scopes); diff != "" {
		t.Errorf("scopes (-want +got):\n%s", diff)
	}
}

func TestCompileUserBoundGrants(t *testing.T) {
	t.Parallel()
	set := mustParse(t, "testdata/good/users.yaml")
	lent := map[string]*OAuth2{}
	for _, u := range set.Upstreams {
		lent[u.Name] = u.Credential.OAuth2
		if want := u.Name == "exchanged"; u.Discover != want {
			t.Errorf("%s: want discover %v, got %v", u.Name, want, u.Discover)
		}
	}
	for _, name := range []string{"exchanged", "managed", "addressed", "certified", "shown"} {
		if !lent[name].UserBound() {
			t.Errorf("%s: want a token for each caller", name)
		}
	}
	if m := lent["shown"].AuthMethod; m != NoClientAuth {
		t.Errorf("want jwt_bearer without a client to need none, got %q", m)
	}
	// U9: the assertion is for the authorization server that takes it, and the
	// identity provider is always told the resource.
	want := &OAuth2{
		Issuer: "http://login.internal", AllowPlaintext: true, AllowPrivate: true, Grant: TokenExchange, SubjectCaller: true,
		CA: "testdata/good/login-ca.pem", ClientID: "proxy-at-idp", PrivateKey: SecretRef{SecretFile, "testdata/good/secrets/idp.pem"},
		KeyID: "1", SigningAlgorithm: "ES256", AssertionAudience: "https://login.company.com", NoAssertionTyp: true, AuthMethod: PrivateKeyJWT,
		Scopes: []string{"read"}, Resource: "https://managed.company.com/mcp", Audience: "https://auth.saas.example",
		Params: []Param{{"tenant", "acme"}}, DefaultLifetime: 5 * time.Minute, MaxLifetime: time.Hour,
	}
	if diff := cmp.Diff(want, lent["managed"].IDP); diff != "" {
		t.Errorf("identity provider (-want +got):\n%s", diff)
	}
	addressed := lent["addressed"].IDP
	if addressed.Audience != "https://auth.other.example" || addressed.Resource != "https://addressed.company.com/" || !addressed.RawBasic {
		t.Errorf("want the audience, resource and encoding of the file, got %+v", addressed)
	}
	secrets := []SecretRef{{SecretFile, "testdata/good/secrets/idp.pem"}, {SecretText, "${SECRET}"}}
	if diff := cmp.Diff(secrets, lent["managed"].Secrets()); diff != "" {
		t.Errorf("secrets (-want +got):\n%s", diff)
	}
}
