package tokenstest

import (
	"net/http"
	"slices"
	"strings"
)

// FailMetadata makes every further request for metadata end in the fault; the
// empty fault ends that.
func (s *Server) FailMetadata(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metadataFault = f
}

// EditMetadata lets edit change the metadata of every further answer; nil ends that.
func (s *Server) EditMetadata(edit func(map[string]any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metadataEdit = edit
}

// MetadataPaths returns the paths of the requests for metadata, oldest first.
func (s *Server) MetadataPaths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.metadataPaths)
}

// metadataForm returns which form of metadata is at a path, or "" (RFC 8414 §3
// and §5, OpenID Connect Discovery §4).
func (s *Server) metadataForm(path string) string {
	switch below := strings.TrimSuffix(s.cfg.IssuerPath, "/"); path {
	case "/.well-known/oauth-authorization-server" + below:
		return "oauth"
	case "/.well-known/openid-configuration" + below:
		return "openid"
	case below + "/.well-known/openid-configuration":
		return "appended"
	}
	return ""
}

func (s *Server) serveMetadata(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if strings.Contains(r.URL.Path, "/.well-known/") {
		s.metadataPaths = append(s.metadataPaths, r.URL.Path)
	}
	fault, edit := s.metadataFault, s.metadataEdit
	s.mu.Unlock()
	if fault != "" && s.misbehave(fault, w, r, "", nil) {
		return
	}
	form := s.metadataForm(r.URL.Path)
	if form == "" || s.cfg.MetadataForms != nil && !slices.Contains(s.cfg.MetadataForms, form) {
		http.NotFound(w, r)
		return
	}
	meta := map[string]any{
		"issuer": s.cfg.Issuer, "token_endpoint": s.TokenURL(), "jwks_uri": s.JWKSURL(),
		"grant_types_supported":                            []string{"client_credentials", jwtBearer, tokenExchange},
		"authorization_grant_profiles_supported":           []string{"urn:ietf:params:oauth:grant-profile:id-jag"},
		"response_types_supported":                         []string{},
		"token_endpoint_auth_methods_supported":            []string{"client_secret_basic", "client_secret_post", "private_key_jwt"},
		"token_endpoint_auth_signing_alg_values_supported": algorithms(),
	}
	if s.mtlsBase != "" {
		meta["token_endpoint_auth_methods_supported"] = []string{
			"client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth",
		}
		meta["mtls_endpoint_aliases"] = map[string]string{"token_endpoint": s.MTLSTokenURL()}
	}
	if edit != nil {
		edit(meta)
	}
	writeJSON(w, http.StatusOK, meta)
}
