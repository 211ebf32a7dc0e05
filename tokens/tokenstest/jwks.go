package tokenstest

import (
	"fmt"
	"maps"
	"net/http"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// jwks is how the key set is served.
type jwks struct {
	made     int // keys, ever
	requests int
	fault    Fault
	edit     func([]jose.JSONWebKey) []jose.JSONWebKey
}

// FailJWKS makes every further request for the keys end in the fault; the empty
// fault ends that.
func (s *Server) FailJWKS(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwks.fault = f
}

// EditJWKS lets edit change the keys of every further answer; nil ends that.
func (s *Server) EditJWKS(edit func([]jose.JSONWebKey) []jose.JSONWebKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwks.edit = edit
}

// JWKSRequests returns how often the keys were asked for.
func (s *Server) JWKSRequests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jwks.requests
}

// RetireKeys takes every key from the set but the one that signs.
func (s *Server) RetireKeys() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = s.keys[len(s.keys)-1:]
}

// Mint returns a signed access token (RFC 9068) for the subject and audience, as
// a login of that subject would. extra replaces or adds claims; nil takes one out.
func (s *Server) Mint(subject, audience string, extra map[string]any) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	s.serial++
	c := map[string]any{
		"iss": s.cfg.Issuer, "sub": subject, "aud": audience, "client_id": "app",
		"iat": now.Unix(), "exp": now.Add(s.cfg.Lifetime).Unix(), "jti": fmt.Sprintf("mint-%d", s.serial),
	}
	maps.Copy(c, extra)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	token, err := jwt.Signed(s.keys[len(s.keys)-1].sign).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return token, nil
}

func (s *Server) serveJWKS(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.jwks.requests++
	fault, edit := s.jwks.fault, s.jwks.edit
	s.mu.Unlock()
	if fault != "" && s.misbehave(fault, w, r, "", nil) {
		return
	}
	set := s.Keys()
	if edit != nil {
		set.Keys = edit(set.Keys)
	}
	writeJSON(w, http.StatusOK, set)
}
