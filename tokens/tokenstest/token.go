package tokenstest

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log" //nolint:depguard // the type of http.Server.ErrorLog
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// signer is one key with its public half.
type signer struct {
	sign    jose.Signer
	public  jose.JSONWebKey
	private jose.SigningKey
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

func (s *Server) rotate() error {
	alg := jose.SignatureAlgorithm(s.cfg.Algorithm)
	if alg == "" {
		alg = jose.ES256
	}
	private, err := newKey(alg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jwks.made++
	id := "key-" + strconv.Itoa(s.jwks.made)
	key := jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: private, KeyID: id}}
	sign, err := jose.NewSigner(key, (&jose.SignerOptions{}).WithType("at+jwt"))
	if err != nil {
		return fmt.Errorf("making a signer: %w", err)
	}
	s.keys = append(s.keys, signer{sign, jose.JSONWebKey{
		Key: private.Public(), KeyID: id, Algorithm: string(alg), Use: "sig",
	}, key})
	return nil
}

func newKey(alg jose.SignatureAlgorithm) (key crypto.Signer, err error) {
	if alg != jose.ES256 && alg != jose.RS256 {
		return nil, fmt.Errorf("algorithm %q: want ES256 or RS256", alg)
	}
	if alg == jose.RS256 {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

// claims are those of RFC 9068 §2.2.
type claims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	ClientID string `json:"client_id"`
	Audience string `json:"aud"`
	Scope    string `json:"scope,omitempty"`
	IssuedAt int64  `json:"iat"`
	Expiry   int64  `json:"exp"`
	ID       string `json:"jti"`
}

// issue signs a token for a checked request.
func (s *Server) issue(subject, clientID, audience, scope string) (token string, life time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.cfg.Now()
	if len(s.issued) > 10*recorded {
		for id, i := range s.issued {
			if i.expiry.Before(now) {
				delete(s.issued, id)
			}
		}
	}
	s.serial++
	c := claims{
		Issuer: s.cfg.Issuer, Subject: subject, ClientID: clientID, Audience: audience, Scope: scope,
		IssuedAt: now.Unix(), Expiry: now.Add(s.cfg.Lifetime).Unix(), ID: strconv.Itoa(s.serial) + "-" + rand.Text(),
	}
	token, err = jwt.Signed(s.keys[len(s.keys)-1].sign).Claims(c).Serialize()
	if err != nil {
		return "", 0, fmt.Errorf("signing: %w", err)
	}
	s.issued[c.ID] = issue{expiry: now.Add(s.cfg.Lifetime)}
	return token, s.cfg.Lifetime, nil
}

// serveToken is the token endpoint: RFC 6749 §3.2 and §4.4, RFC 8707.
func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	form, _ := url.ParseQuery(string(raw))
	id, _ := s.credentials(r, form)
	s.mu.Lock()
	s.byClient[id]++
	s.mu.Unlock()
	request := Request{Form: form, Raw: string(raw), Header: r.Header.Clone(), Query: r.URL.RawQuery, At: s.cfg.Now()}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		request.Certificate = r.TLS.PeerCertificates[0]
	}
	fault, ok := s.record(request)
	if ok && s.misbehave(fault, w, r, string(raw), form) {
		return
	}
	a, bad := s.grant(r, form)
	if bad != nil {
		bad.write(w)
		return
	}
	writeJSON(w, http.StatusOK, s.edited(a))
}

// edited is an answer with what EditAnswer changes.
func (s *Server) edited(a answer) any {
	s.mu.Lock()
	edit := s.answerEdit
	s.mu.Unlock()
	if edit == nil {
		return a
	}
	var members map[string]any
	b, err := json.Marshal(a) //nolint:gosec // the token is what the answer is for
	if err != nil || json.Unmarshal(b, &members) != nil {
		return a
	}
	edit(members)
	return members
}

type answer struct {
	AccessToken     string `json:"access_token"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	Scope           string `json:"scope,omitempty"`
	IssuedTokenType string `json:"issued_token_type,omitempty"`
}

// oauthError is an error answer of RFC 6749 §5.2.
type oauthError struct {
	status            int
	Code, Description string
	basic             bool
}

func (e *oauthError) write(w http.ResponseWriter) {
	if e.basic {
		w.Header().Set("WWW-Authenticate", `Basic realm="tokenstest"`)
	}
	writeJSON(w, e.status, map[string]string{"error": e.Code, "error_description": e.Description})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// grant checks a token request and issues.
func (s *Server) grant(r *http.Request, form url.Values) (answer, *oauthError) {
	if bad := malformed(r, form); bad != nil {
		return answer{}, bad
	}
	kind := form.Get("grant_type")
	if kind == jwtBearer && s.isWorkload(form.Get("assertion")) {
		return s.workloadGrant(r, form)
	}
	id, c, bad := s.authenticate(r, form)
	switch {
	case kind != "client_credentials" && kind != jwtBearer && kind != tokenExchange:
		return answer{}, &oauthError{400, "unsupported_grant_type", "want client_credentials, " + jwtBearer + " or " + tokenExchange, false}
	case bad != nil:
		return answer{}, bad
	case c.Grants != nil && !slices.Contains(c.Grants, kind):
		return answer{}, &oauthError{400, "unauthorized_client", "the client may not use this grant", false}
	case kind == tokenExchange:
		return s.exchange(id, c, form)
	case kind == jwtBearer:
		return s.bearer(id, c, form)
	}
	scope, target, bad := s.target(c, form)
	if bad != nil {
		return answer{}, bad
	}
	return s.grantTo(id, id, target, scope)
}

// workloadGrant is the grant of RFC 7523 §2.1 for a platform's JWT. It needs no
// client; one that is named must prove itself.
func (s *Server) workloadGrant(r *http.Request, form url.Values) (answer, *oauthError) {
	_, _, basic := r.BasicAuth()
	if basic || form.Has("client_id") || form.Has("client_secret") || form.Has("client_assertion") {
		if _, _, bad := s.authenticate(r, form); bad != nil {
			return answer{}, bad
		}
	}
	id, c, bad := s.workload(form.Get("assertion"))
	if bad != nil {
		return answer{}, bad
	}
	scope, target, bad := s.target(c, form)
	if bad != nil {
		return answer{}, bad
	}
	return s.grantTo(id, id, target, scope)
}

// target checks what the token is to be for.
func (s *Server) target(c Client, form url.Values) (scope, audience string, bad *oauthError) {
	scope = form.Get("scope")
	for one := range strings.FieldsSeq(scope) {
		if !admits(c.Scopes, one) {
			return "", "", &oauthError{400, "invalid_scope", "a scope is not for this client", false}
		}
	}
	resource, aud := form.Get("resource"), form.Get("audience")
	if !admits(c.Resources, resource) || !admits(c.Audiences, aud) || resource == "" && c.NeedsResource {
		return "", "", &oauthError{400, "invalid_target", "the resource or audience is not for this client", false}
	}
	return scope, cmp.Or(resource, aud, s.cfg.Issuer), nil
}

// grantTo issues an access token.
func (s *Server) grantTo(subject, clientID, audience, scope string) (answer, *oauthError) {
	token, life, err := s.issue(subject, clientID, audience, scope)
	if err != nil {
		return answer{}, &oauthError{500, "server_error", "signing failed", false}
	}
	return answer{AccessToken: token, TokenType: "Bearer", ExpiresIn: int64(life / time.Second), Scope: scope}, nil
}

// admits reports whether a list allows what was asked for; nil allows anything.
func admits(list []string, asked string) bool {
	return asked == "" || list == nil || slices.Contains(list, asked)
}

// malformed refuses what RFC 6749 §3.2 forbids.
func malformed(r *http.Request, form url.Values) *oauthError {
	say := func(text string) *oauthError { return &oauthError{400, "invalid_request", text, false} }
	switch {
	case r.Method != http.MethodPost:
		return say("want POST")
	case r.URL.RawQuery != "":
		return say("parameters in the URL")
	case r.Header.Get("Content-Type") != "application/x-www-form-urlencoded":
		return say("want a form")
	}
	for name, values := range form {
		if len(values) > 1 && name != "resource" && name != "audience" {
			return say("a parameter is there twice")
		}
		if slices.Contains(values, "") {
			return say("a parameter is empty")
		}
	}
	return nil
}

// authenticate checks the client's one proof (RFC 6749 §2.3).
func (s *Server) authenticate(r *http.Request, form url.Values) (string, Client, *oauthError) {
	_, _, basic := r.BasicAuth()
	method, proofs := "", 0
	for name, given := range map[string]bool{
		"client_secret_basic": basic, "client_secret_post": form.Has("client_secret"), "private_key_jwt": form.Has("client_assertion"),
	} {
		if given {
			method = name
			proofs++
		}
	}
	if proofs > 1 {
		return "", Client{}, &oauthError{400, "invalid_request", "two authentication methods", false}
	}
	id, secret := s.credentials(r, form)
	s.mu.Lock()
	c, ok := s.cfg.Clients[id]
	s.mu.Unlock()
	if method == "" {
		method = s.certified(r, c)
	}
	wrong := "client authentication failed"
	switch {
	case !ok || method == "" || c.Methods != nil && !slices.Contains(c.Methods, method):
	case strings.Contains(method, "tls_client_auth"):
		wrong = ""
	case method == "private_key_jwt":
		wrong = s.checkAssertion(id, c, form)
	case c.Secret != "" && secret == c.Secret:
		wrong = ""
	}
	if wrong != "" {
		return "", Client{}, &oauthError{401, "invalid_client", wrong, basic}
	}
	return id, c, nil
}

// credentials reads the client's id and secret, form-decoded as RFC 6749 §2.3.1
// and appendix B demand.
func (s *Server) credentials(r *http.Request, form url.Values) (id, secret string) {
	user, pass, ok := r.BasicAuth()
	if !ok {
		return cmp.Or(form.Get("client_id"), subject(form.Get("client_assertion"))), form.Get("client_secret")
	}
	s.mu.Lock()
	raw := s.cfg.Clients[user].RawBasic
	s.mu.Unlock()
	if raw {
		return user, pass
	}
	id, err := url.QueryUnescape(user)
	if err != nil {
		return "", ""
	}
	if secret, err = url.QueryUnescape(pass); err != nil {
		return "", ""
	}
	return id, secret
}

// basicPair returns the Basic credentials as they were sent, decoded once.
func basicPair(r *http.Request) string {
	b, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "Basic "))
	return string(b)
}

func (s *Server) serveRevoked(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, map[string]bool{"revoked": s.Revoked(r.URL.Query().Get("jti"))})
}

func (s *Server) serveElsewhere(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	s.strayed++
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, answer{AccessToken: "token-from-elsewhere", TokenType: "Bearer", ExpiresIn: 3600})
}

func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	switch do := r.PathValue("do"); do {
	case "revoke":
		s.Revoke()
	case "rotate":
		if err := s.RotateKeys(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	case "fail":
		f := Fault(r.URL.Query().Get("fault"))
		if !slices.Contains(Faults(), f) {
			http.Error(w, "no such fault", http.StatusBadRequest)
			return
		}
		s.Fail(f)
	case "heal":
		s.Heal()
	default:
		http.NotFound(w, r)
		return
	}
	writeJSON(w, http.StatusOK, map[string]int{"requests": s.Requests()})
}
