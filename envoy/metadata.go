package envoy

import (
	"encoding/json"
	"net/url"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// metadataPath is where clients look for protected resource metadata (RFC 9728 §3).
const metadataPath = "/.well-known/oauth-protected-resource"

// metadataRoutes answer what protects an upstream: towards callers, that is us.
// The upstream's own document is about the credential it is lent, and its
// resource cannot be the URL that callers use, so it is never passed on. An
// upstream that is lent nothing keeps its own, unless callers show us their tokens
// in its place.
func metadataRoutes(set *policy.Set, t target, prefix string) []*routev3.Route {
	var all []*routev3.Route
	if issuers, scopes := t.issuers(); len(issuers) > 0 {
		all = metadata(set, t, issuers, scopes)
	}
	if !t.keepsChallenge() && (t.path == "" || t.Listen != "") {
		hidden := noPolicy()
		hidden.Match = pathMatch(prefix + metadataPath)
		all = append(all, hidden)
	}
	return all
}

// metadata is the document of RFC 9728 §2. Envoy serves it itself: the policy
// says all that is in it.
func metadata(set *policy.Set, t target, issuers, scopes []string) []*routev3.Route {
	// A refresh token is between caller and issuer; no resource asks for one.
	scopes = slices.DeleteFunc(scopes, func(s string) bool { return s == "offline_access" })
	body, err := json.Marshal(struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported,omitempty"`
		Methods  []string `json:"bearer_methods_supported"`
	}{set.CallerURL(t.Upstream), issuers, scopes, []string{"header"}})
	at, perr := url.Parse(set.MetadataURL(t.Upstream))
	if err != nil || perr != nil {
		return nil // a checked policy holds no such name or url
	}
	paths := []string{at.EscapedPath()}
	if t.path == "" {
		// Clients differ about the slash of a root, and both mean this document.
		paths = append(paths, at.EscapedPath()+"/")
	}
	all := make([]*routev3.Route, len(paths))
	for i, path := range paths {
		all[i] = &routev3.Route{
			Name:  "resource_metadata_" + t.Name,
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: path}},
			Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
				Status: 200, Body: inlineString(string(body)),
			}},
			ResponseHeadersToAdd: []*corev3.HeaderValueOption{{
				Header:       &corev3.HeaderValue{Key: "content-type", Value: "application/json"},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}},
		}
	}
	return all
}
