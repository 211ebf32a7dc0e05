package keycloak_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"
)

// realm is the realm of the tests.
const realm = "mcp"

// object is a representation of the Admin REST API.
type object = map[string]any

// admin is the Admin REST API of the realm.
type admin struct {
	t *testing.T
	k *keycloak
}

// issuer is the realm's issuer identifier.
func (k *keycloak) issuer() string { return k.url + "/realms/" + realm }

// endpoint is one of the realm's OpenID Connect endpoints.
func (k *keycloak) endpoint(name string) string {
	return k.issuer() + "/protocol/openid-connect/" + name
}

// newRealm makes the realm, with the scope that the MCP servers ask for.
func newRealm(t *testing.T, k *keycloak) *admin {
	t.Helper()
	a := &admin{t: t, k: k}
	a.call(http.MethodPost, "/admin/realms", object{"realm": realm, "enabled": true}, nil)
	id := a.make("client-scopes", object{
		"name": "mcp.read", "protocol": "openid-connect", "attributes": object{"include.in.token.scope": "true"},
	})
	a.call(http.MethodPut, a.path("default-optional-client-scopes", id), object{}, nil)
	return a
}

func (a *admin) path(parts ...string) string {
	return path.Join(append([]string{"/admin/realms", realm}, parts...)...)
}

// make creates an object and returns its id.
func (a *admin) make(kind string, body object) string {
	a.t.Helper()
	return path.Base(a.call(http.MethodPost, a.path(kind), body, nil).Get("Location"))
}

// client creates a confidential client with a service account, whose tokens are
// for that audience. more overrides what it is made of.
func (a *admin) client(id, audience string, more object) string {
	a.t.Helper()
	body := object{
		"clientId": id, "publicClient": false, "serviceAccountsEnabled": true, "standardFlowEnabled": false,
		"protocolMappers": []object{{
			"name": "audience", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
			"config": object{"included.custom.audience": audience, "access.token.claim": "true"},
		}},
	}
	maps.Copy(body, more)
	return a.make("clients", body)
}

// change sets members of an object.
func (a *admin) change(where string, more object) {
	a.t.Helper()
	var body object
	a.call(http.MethodGet, where, nil, &body)
	maps.Copy(body, more)
	a.call(http.MethodPut, where, body, nil)
}

// call sends one request as the administrator. Any answer but 2xx fails the test.
func (a *admin) call(method, where string, body, out any) http.Header {
	a.t.Helper()
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			a.t.Fatal(err)
		}
		sent = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.k.url+where, sent)
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+a.token())
	req.Header.Set("Content-Type", "application/json")
	return a.do(req, out)
}

// token is a new token of the administrator: they live a minute.
func (a *admin) token() string {
	a.t.Helper()
	return a.grant("/realms/master/protocol/openid-connect/token", url.Values{
		"grant_type": {"password"}, "client_id": {"admin-cli"}, "username": {adminName}, "password": {adminPassword},
	})
}

// grant asks a token endpoint for an access token.
func (a *admin) grant(where string, form url.Values) string {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, a.k.url+where, strings.NewReader(form.Encode()))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	a.do(req, &answer)
	return answer.AccessToken
}

func (a *admin) do(req *http.Request, out any) http.Header {
	a.t.Helper()
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		a.t.Fatalf("%s %s: want 2xx, got %d: %s", req.Method, req.URL.Path, resp.StatusCode, b)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			a.t.Fatalf("%s: %v in %s", req.URL.Path, err, b)
		}
	}
	return resp.Header
}

// rotateRealmKeys gives the realm a new signing key, and takes the old one away.
func (a *admin) rotateRealmKeys() {
	a.t.Helper()
	const kind = "org.keycloak.keys.KeyProvider"
	var before []object
	a.call(http.MethodGet, a.path("components")+"?type="+kind, nil, &before)
	var self struct{ ID string }
	a.call(http.MethodGet, a.path(), nil, &self)
	a.make("components", object{
		"name": "new", "providerId": "rsa-generated", "providerType": kind, "parentId": self.ID,
		"config": object{"priority": []string{"200"}, "keySize": []string{"2048"}},
	})
	for _, old := range before {
		if old["providerId"] == "rsa-generated" {
			a.call(http.MethodDelete, a.path("components", fmt.Sprint(old["id"])), nil, nil)
		}
	}
}
