package tokenstest_test

import (
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

const (
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	bearerGrant   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	accessType    = "urn:ietf:params:oauth:token-type:access_token"
	idType        = "urn:ietf:params:oauth:token-type:id_token"
	jagType       = "urn:ietf:params:oauth:token-type:id-jag"
)

// shown is what a token endpoint said.
type shown struct {
	Access string `json:"access_token"`
	Type   string `json:"token_type"`
	Issued string `json:"issued_token_type"`
	Error  string `json:"error"`
}

// post sends a form as the client "id", changed by pairs of which an empty
// second one takes the parameter away.
func post(t *testing.T, as *tokenstest.Server, base url.Values, pairs ...string) shown {
	t.Helper()
	form := url.Values{"client_id": {"id"}, "client_secret": {"s"}}
	maps.Copy(form, base)
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
		if pairs[i+1] == "" {
			form.Del(pairs[i])
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, as.TokenURL(), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var a shown
	do(t, r, &a)
	return a
}

func twoServers(t *testing.T) (idp, as *tokenstest.Server) {
	t.Helper()
	clients := map[string]tokenstest.Client{
		"id": {Secret: "s"}, "other": {Secret: "s"}, "narrow": {Secret: "s", Grants: []string{"client_credentials"}},
	}
	idp = tokenstest.Start(t, tokenstest.Config{Clients: clients})
	as = tokenstest.Start(t, tokenstest.Config{Clients: clients, Trust: map[string]jose.JSONWebKeySet{idp.Issuer(): idp.Keys()}})
	return idp, as
}

// TestO6_WhatExchangesAreRefused: the server would not notice a bad client if it
// took any of these.
func TestO6_WhatExchangesAreRefused(t *testing.T) {
	idp, as := twoServers(t)
	stranger, _ := twoServers(t)
	base := url.Values{
		"grant_type": {exchangeGrant}, "subject_token": {idp.AccessToken("alice", time.Minute)}, "subject_token_type": {accessType},
		"requested_token_type": {accessType}, "resource": {"https://mcp"},
	}
	for name, c := range map[string]struct {
		pairs []string
		code  string
	}{
		"good":                    {nil, ""},
		"an ID token":             {[]string{"subject_token", idp.IDToken("alice", "id", time.Minute), "subject_token_type", idType}, ""},
		"no subject_token":        {[]string{"subject_token", ""}, "invalid_request"},
		"no subject_token_type":   {[]string{"subject_token_type", ""}, "invalid_request"},
		"another type":            {[]string{"subject_token_type", idType}, "invalid_request"},
		"an ID token as access":   {[]string{"subject_token", idp.IDToken("alice", "id", time.Minute)}, "invalid_request"},
		"an ID token of another":  {[]string{"subject_token", idp.IDToken("alice", "other", time.Minute), "subject_token_type", idType}, "invalid_request"},
		"expired":                 {[]string{"subject_token", idp.AccessToken("alice", -time.Minute)}, "invalid_request"},
		"of a stranger":           {[]string{"subject_token", stranger.AccessToken("alice", time.Minute)}, "invalid_request"},
		"altered":                 {[]string{"subject_token", base.Get("subject_token")[:40] + "A" + base.Get("subject_token")[41:]}, "invalid_request"},
		"actor type alone":        {[]string{"actor_token_type", accessType}, "invalid_request"},
		"unknown type":            {[]string{"requested_token_type", "urn:x"}, "invalid_request"},
		"ID-JAG without audience": {[]string{"requested_token_type", jagType}, "invalid_request"},
		"ID-JAG without resource": {[]string{"requested_token_type", jagType, "audience", as.Issuer(), "resource", ""}, "invalid_request"},
		"ID-JAG":                  {[]string{"requested_token_type", jagType, "audience", as.Issuer()}, ""},
		"no client":               {[]string{"client_secret", ""}, "invalid_client"},
		"not for this client":     {[]string{"client_id", "narrow"}, "unauthorized_client"},
	} {
		a := post(t, idp, base, c.pairs...)
		if a.Error != c.code || (a.Access == "") != (c.code != "") || (a.Issued == "") != (c.code != "") {
			t.Errorf("%s: want %q, got %q", name, c.code, a.Error)
		}
		if jag := strings.HasPrefix(name, "ID-JAG"); c.code == "" && (a.Type == "N_A") != jag {
			t.Errorf("%s: got token_type %q", name, a.Type)
		}
	}
	idp.Disable("alice")
	if a := post(t, idp, base); a.Error != "invalid_request" {
		t.Errorf("disabled: got %q", a.Error)
	}
}

// TestU10_U11_WhatAssertionsAboutUsersAreRefused: among them an ID-JAG for the
// second time.
func TestU10_U11_WhatAssertionsAboutUsersAreRefused(t *testing.T) {
	idp, as := twoServers(t)
	jag := func(pairs ...string) string {
		base := url.Values{
			"grant_type": {exchangeGrant}, "subject_token": {idp.IDToken("alice", "id", time.Minute)}, "subject_token_type": {idType},
			"requested_token_type": {jagType}, "audience": {as.Issuer()}, "resource": {"https://mcp"}, "scope": {"a b"},
		}
		return post(t, idp, base, pairs...).Access
	}
	base := url.Values{"grant_type": {bearerGrant}, "resource": {"https://mcp"}, "scope": {"a"}}
	used := jag()
	for _, c := range []struct {
		name  string
		pairs []string
		code  string
	}{
		{"good", []string{"assertion", used}, ""},
		{"again", []string{"assertion", used}, "invalid_grant"},
		{"a new one", []string{"assertion", jag()}, ""},
		{"for another server", []string{"assertion", jag("audience", "https://other")}, "invalid_grant"},
		{"for another client", []string{"assertion", jag(), "client_id", "other"}, "invalid_grant"},
		{"for another resource", []string{"assertion", jag("resource", "https://other")}, "invalid_grant"},
		{"another scope", []string{"assertion", jag(), "scope", "c"}, "invalid_grant"},
		{"no client", []string{"assertion", jag(), "client_secret", ""}, "invalid_client"},
		{"an ID token", []string{"assertion", idp.IDToken("alice", "id", time.Minute)}, "invalid_grant"},
		{"an access token for the other server", []string{"assertion", idp.AccessToken("alice", time.Minute)}, "invalid_grant"},
		{"an access token for this one", []string{"assertion", as.AccessToken("alice", time.Minute)}, ""},
		{"junk", []string{"assertion", "junk"}, "invalid_grant"},
		{"nothing", nil, "invalid_grant"},
	} {
		if a := post(t, as, base, c.pairs...); a.Error != c.code || (a.Access == "") != (c.code != "") {
			t.Errorf("%s: want %q, got %q", c.name, c.code, a.Error)
		}
	}
}
