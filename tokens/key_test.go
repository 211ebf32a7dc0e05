package tokens

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestO15_T9_EveryPartIsInTheKey changes each field of the policy's type in
// turn, so that a field somebody adds later must be looked at here.
func TestO15_T9_EveryPartIsInTheKey(t *testing.T) {
	base := *spec("https://as.company.com/token")
	base.Audience, base.CA = "aud", "ca.pem"
	base.Params = []policy.Param{{Name: "a", Value: "b"}}
	want := keyOf(&base)
	changes := map[string]func(*policy.OAuth2){
		"TokenURL":          func(o *policy.OAuth2) { o.TokenURL += "x" },
		"Issuer":            func(o *policy.OAuth2) { o.Issuer = "https://as.company.com" },
		"AllowPlaintext":    func(o *policy.OAuth2) { o.AllowPlaintext = true },
		"AllowPrivate":      func(o *policy.OAuth2) { o.AllowPrivate = true },
		"Grant":             func(o *policy.OAuth2) { o.Grant = policy.JWTBearer },
		"Assertion":         func(o *policy.OAuth2) { o.Assertion = "jwt" },
		"CA":                func(o *policy.OAuth2) { o.CA = "" },
		"ClientID":          func(o *policy.OAuth2) { o.ClientID += "x" },
		"ClientSecret":      func(o *policy.OAuth2) { o.ClientSecret.Kind = policy.SecretFile },
		"PrivateKey":        func(o *policy.OAuth2) { o.PrivateKey = o.ClientSecret },
		"KeyID":             func(o *policy.OAuth2) { o.KeyID = "k" },
		"SigningAlgorithm":  func(o *policy.OAuth2) { o.SigningAlgorithm = "PS256" },
		"AssertionAudience": func(o *policy.OAuth2) { o.AssertionAudience = "https://as.company.com" },
		"NoAssertionTyp":    func(o *policy.OAuth2) { o.NoAssertionTyp = true },
		"Certificate":       func(o *policy.OAuth2) { o.Certificate = "cert.pem" },
		"RawBasic":          func(o *policy.OAuth2) { o.RawBasic = true },
		"AuthMethod":        func(o *policy.OAuth2) { o.AuthMethod = policy.ClientSecretPost },
		"Scopes":            func(o *policy.OAuth2) { o.Scopes = []string{"mcp.read"} },
		"Resource":          func(o *policy.OAuth2) { o.Resource = "" },
		"Audience":          func(o *policy.OAuth2) { o.Audience = "" },
		"SubjectCaller":     func(o *policy.OAuth2) { o.SubjectCaller = true },
		"IDP":               func(o *policy.OAuth2) { o.IDP = new(policy.OAuth2) },
		"Params":            func(o *policy.OAuth2) { o.Params = nil },
		"DefaultLifetime":   func(o *policy.OAuth2) { o.DefaultLifetime++ },
		"MaxLifetime":       func(o *policy.OAuth2) { o.MaxLifetime++ },
	}
	for f := range reflect.TypeFor[policy.OAuth2]().Fields() {
		if f.Name == "StaleGrace" {
			continue // of the handle, not of the token
		}
		change := changes[f.Name]
		if change == nil {
			t.Errorf("OAuth2.%s: is it in the key? Add it here", f.Name)
			continue
		}
		o := base
		change(&o)
		if keyOf(&o) == want {
			t.Errorf("OAuth2.%s is not in the key", f.Name)
		}
	}
}

// TestO15_T9_ThePrincipalIsInTheKey: issuer, subject, the hash of the token and
// its type, each on its own, and no two of them by the place of a border.
func TestO15_T9_ThePrincipalIsInTheKey(t *testing.T) {
	base := keyOf(spec("https://as/token"))
	person := func(issuer, subject, token string, id bool) *Principal {
		return newPrincipal(Principal{Issuer: issuer, Subject: subject, IDToken: id}, token)
	}
	seen := map[key]string{base: "the credential"}
	for name, p := range map[string]*Principal{
		"alice": person("https://idp", "alice", "t", false), "border": person("https://idpa", "lice", "t", false),
		"empty subject": person("https://idpalice", "", "t", false), "empty issuer": person("", "https://idpalice", "t", false),
		"other token": person("https://idp", "alice", "u", false), "ID token": person("https://idp", "alice", "t", true),
		"bob": person("https://idp", "bob", "t", false), "long": person("https://idp", strings.Repeat("a", 1000), "t", false),
	} {
		k := base.of(p)
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s share a key", name, other)
		}
		seen[k] = name
		if k != base.of(p) || k == keyOf(spec("https://other/token")).of(p) {
			t.Errorf("%s: want a key that stays, and another for another credential", name)
		}
	}
}

func TestO15_ScopesAreASet(t *testing.T) {
	a, b := *spec("https://as/token"), *spec("https://as/token")
	b.Scopes = []string{"mcp.write", "mcp.read", "mcp.read"}
	if keyOf(&a) != keyOf(&b) {
		t.Error("the order of scopes must not matter")
	}
}

// TestT9_NeighboursDoNotCollide moves the border between each two parts that
// stand side by side.
func TestT9_NeighboursDoNotCollide(t *testing.T) {
	fields := []func(*policy.OAuth2) *string{
		func(o *policy.OAuth2) *string { return &o.TokenURL },
		func(o *policy.OAuth2) *string { return &o.Issuer },
		func(o *policy.OAuth2) *string { return &o.CA },
		func(o *policy.OAuth2) *string { return &o.ClientID },
		func(o *policy.OAuth2) *string { return (*string)(&o.AuthMethod) },
		func(o *policy.OAuth2) *string { return &o.ClientSecret.Name },
		func(o *policy.OAuth2) *string { return &o.PrivateKey.Name },
		func(o *policy.OAuth2) *string { return &o.KeyID },
		func(o *policy.OAuth2) *string { return &o.SigningAlgorithm },
		func(o *policy.OAuth2) *string { return &o.AssertionAudience },
		func(o *policy.OAuth2) *string { return &o.Certificate },
		func(o *policy.OAuth2) *string { return &o.Resource },
		func(o *policy.OAuth2) *string { return &o.Audience },
	}
	for i := range fields {
		for j := range i {
			a, b := policy.OAuth2{}, policy.OAuth2{}
			*fields[j](&a), *fields[i](&a) = "ab", ""
			*fields[j](&b), *fields[i](&b) = "a", "b"
			if keyOf(&a) == keyOf(&b) {
				t.Errorf("parts %d and %d collide", j, i)
			}
		}
	}
	a := policy.OAuth2{Scopes: []string{"x", "y"}}
	b := policy.OAuth2{Scopes: []string{"x"}, Params: []policy.Param{{Name: "y"}}}
	if keyOf(&a) == keyOf(&b) {
		t.Error("scopes and params collide")
	}
}

// TestT9_PartsDoNotCollide moves bytes between neighbouring parts: two
// different lists of parts never share a key.
func TestT9_PartsDoNotCollide(t *testing.T) {
	word := rapid.StringOfN(rapid.RuneFrom([]rune("ab\x00,: ")), 0, 3, -1)
	draw := func(rt *rapid.T) *policy.OAuth2 {
		o := &policy.OAuth2{
			TokenURL: word.Draw(rt, "url"), CA: word.Draw(rt, "ca"), ClientID: word.Draw(rt, "id"),
			ClientSecret: policy.SecretRef{Kind: policy.SecretEnv, Name: word.Draw(rt, "ref")},
			Resource:     word.Draw(rt, "resource"), Audience: word.Draw(rt, "audience"),
			Scopes:      rapid.SliceOfN(word, 0, 3).Draw(rt, "scopes"),
			MaxLifetime: time.Duration(rapid.IntRange(0, 2).Draw(rt, "max")),
		}
		for range rapid.IntRange(0, 2).Draw(rt, "params") {
			o.Params = append(o.Params, policy.Param{Name: word.Draw(rt, "name"), Value: word.Draw(rt, "value")})
		}
		return o
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := draw(rt), draw(rt)
		pa, pb := word.Draw(rt, "subject"), word.Draw(rt, "subject")
		same := keyOf(a).of(newPrincipal(Principal{Subject: pa}, "t")) == keyOf(b).of(newPrincipal(Principal{Subject: pb}, "t"))
		for _, o := range []*policy.OAuth2{a, b} {
			o.Scopes = slices.Compact(slices.Sorted(slices.Values(o.Scopes)))
		}
		if equal := reflect.DeepEqual(a, b) && pa == pb; same != equal {
			rt.Fatalf("keys equal: %v, credentials equal: %v", same, equal)
		}
	})
}
