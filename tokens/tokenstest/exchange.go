package tokenstest

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Names of RFC 8693 §3, and of the draft on identity assertion authorization
// grants.
const (
	tokenExchange   = "urn:ietf:params:oauth:grant-type:token-exchange" //nolint:gosec // a name, no secret
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"   //nolint:gosec // as above
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"       //nolint:gosec // as above
	typeIDJAG       = "urn:ietf:params:oauth:token-type:id-jag"         //nolint:gosec // as above
	idJAGTyp        = "oauth-id-jag+jwt"
	// idJAGLife is how long an ID-JAG is good.
	idJAGLife = 5 * time.Minute
)

// Keys returns the public keys, for the Trust of another server.
func (s *Server) Keys() jose.JSONWebKeySet {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := jose.JSONWebKeySet{}
	for _, k := range s.keys {
		set.Keys = append(set.Keys, k.public)
	}
	return set
}

// AccessToken makes an access token of a user (RFC 9068), as this server issues
// them to applications. The audience is this server, so that it can be shown
// here as a subject token or an assertion.
func (s *Server) AccessToken(user string, life time.Duration) string {
	return s.userToken("at+jwt", user, s.cfg.Issuer, life)
}

// IDToken makes an ID token of a user for a client.
func (s *Server) IDToken(user, clientID string, life time.Duration) string {
	return s.userToken("JWT", user, clientID, life)
}

func (s *Server) userToken(typ, user, audience string, life time.Duration) string {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	text, _ := s.signTyped(typ, claims{
		Issuer: s.cfg.Issuer, Subject: user, ClientID: "app", Audience: audience, IssuedAt: now.Unix(), Expiry: now.Add(life).Unix(), ID: rand.Text(),
	})
	return text
}

// Disable makes the server refuse a user, in the words of each grant.
func (s *Server) Disable(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disabled = append(s.disabled, user)
}

// EditAnswer lets edit change every further good answer of the token endpoint;
// nil ends that.
func (s *Server) EditAnswer(edit func(map[string]any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answerEdit = edit
}

// EditIDJAG lets edit change typ and claims of every further ID-JAG before it is
// signed; nil ends that.
func (s *Server) EditIDJAG(edit func(typ *string, claims map[string]any)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idJAGEdit = edit
}

// signTyped signs with the key in force. mu is held.
func (s *Server) signTyped(typ string, claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signer, err := jose.NewSigner(s.keys[len(s.keys)-1].private, (&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

// shown is a JWT that verified.
type shown struct {
	typ string
	claims
	Resource string `json:"resource"`
}

// verifyUser verifies a JWT of this server or one that it trusts, and returns
// what is wrong with it, in words, or "".
func (s *Server) verifyUser(text string) (shown, string) {
	jws, err := jose.ParseSignedCompact(text, algorithms())
	if err != nil || len(jws.Signatures) != 1 {
		return shown{}, "it is no compact JWS"
	}
	var c shown
	if json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &c) != nil {
		return shown{}, "its claims are of the wrong kind"
	}
	keys := s.cfg.Trust[c.Issuer]
	if c.Issuer == s.cfg.Issuer {
		keys = s.Keys()
	}
	if _, ok := verify(jws, keys.Keys); !ok {
		return shown{}, "no key of a trusted issuer verifies it"
	}
	c.typ, _ = jws.Signatures[0].Protected.ExtraHeaders[jose.HeaderType].(string)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !time.Unix(c.Expiry, 0).After(s.cfg.Now()):
		return shown{}, "it has expired"
	case slices.Contains(s.disabled, c.Subject):
		return shown{}, "its user is disabled"
	}
	return c, ""
}

// exchange is the grant of RFC 8693.
func (s *Server) exchange(id string, c Client, form url.Values) (answer, *oauthError) {
	say := func(text string) (answer, *oauthError) {
		return answer{}, &oauthError{400, "invalid_request", text, false}
	}
	wants := cmp.Or(form.Get("requested_token_type"), typeAccessToken)
	switch {
	case wants != typeAccessToken && wants != typeIDJAG:
		return say("the requested_token_type is not supported")
	case form.Has("actor_token") != form.Has("actor_token_type"):
		return say("actor_token and actor_token_type go together")
	}
	user, bad := s.verifyUser(form.Get("subject_token"))
	if bad == "" {
		bad = s.fits(user, id, form.Get("subject_token_type"))
	}
	if bad != "" {
		return say("the subject_token: " + bad)
	}
	scope, target, denied := s.target(c, form)
	if denied != nil {
		return answer{}, denied
	}
	if wants == typeIDJAG {
		return s.issueIDJAG(id, user, scope, form)
	}
	a, denied := s.grantTo(user.Subject, id, target, scope)
	a.IssuedTokenType = typeAccessToken
	return a, denied
}

// fits says whether a token is of the type it is shown as, and for this server.
func (s *Server) fits(user shown, clientID, kind string) string {
	switch {
	case kind == typeAccessToken && user.typ == "at+jwt" && user.Audience == s.cfg.Issuer:
	case kind == typeIDToken && user.typ == "JWT" && user.Audience == clientID:
	case kind == "":
		return "the subject_token_type is missing"
	default:
		return "it is not of its subject_token_type, or for somebody else"
	}
	return ""
}

// issueIDJAG issues an identity assertion for another server.
func (s *Server) issueIDJAG(id string, user shown, scope string, form url.Values) (answer, *oauthError) {
	if len(form["audience"]) != 1 || len(form["resource"]) != 1 {
		return answer{}, &oauthError{400, "invalid_request", "an ID-JAG needs one audience and one resource", false}
	}
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	typ, c := idJAGTyp, map[string]any{
		"iss": s.cfg.Issuer, "sub": user.Subject, "aud": form.Get("audience"), "client_id": id, "resource": form.Get("resource"),
		"iat": now.Unix(), "exp": now.Add(idJAGLife).Unix(), "jti": rand.Text(),
	}
	if scope != "" {
		c["scope"] = scope
	}
	if s.idJAGEdit != nil {
		s.idJAGEdit(&typ, c)
	}
	text, err := s.signTyped(typ, c)
	if err != nil {
		return answer{}, &oauthError{500, "server_error", "signing failed", false}
	}
	return answer{AccessToken: text, TokenType: "N_A", ExpiresIn: int64(idJAGLife / time.Second), Scope: scope, IssuedTokenType: typeIDJAG}, nil
}

// bearer is the grant of RFC 7523 §2.1 with an assertion about a user: an ID-JAG
// of an identity provider, which is good for once, or the user's access token.
func (s *Server) bearer(id string, c Client, form url.Values) (answer, *oauthError) {
	user, bad := s.verifyUser(form.Get("assertion"))
	if bad == "" {
		bad = s.about(user, id, form)
	}
	if bad != "" {
		return answer{}, &oauthError{400, "invalid_grant", "the assertion: " + bad, false}
	}
	scope, target, denied := s.target(c, form)
	if denied != nil {
		return answer{}, denied
	}
	return s.grantTo(user.Subject, id, target, scope)
}

// about checks an assertion against the request it came in.
func (s *Server) about(user shown, id string, form url.Values) string {
	switch {
	case user.Audience != s.cfg.Issuer && user.Audience != s.TokenURL():
		return "it is for somebody else"
	case user.typ == "at+jwt":
		return ""
	case user.typ != idJAGTyp:
		return "it is neither an access token nor an ID-JAG"
	case user.ClientID != id:
		return "it is for another client"
	case user.Resource != form.Get("resource"):
		return "it is for another resource"
	}
	for one := range strings.FieldsSeq(form.Get("scope")) {
		if !slices.Contains(strings.Fields(user.Scope), one) {
			return "it does not hold the scope"
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, again := s.used["id-jag "+user.ID]; again || user.ID == "" {
		return "it was used before"
	}
	s.used["id-jag "+user.ID] = time.Unix(user.Expiry, 0)
	return ""
}
