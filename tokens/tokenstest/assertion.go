package tokenstest

import (
	"crypto/rand"
	"encoding/json"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionTyp  = "client-authentication+jwt"
	jwtBearer     = "urn:ietf:params:oauth:grant-type:jwt-bearer" //nolint:gosec // a name of RFC 7523, no secret
	platform      = "https://platform.test"
	// assertionLife is the most an assertion may have left to live.
	assertionLife = time.Minute
)

// algorithms are those accepted for assertions.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA}
}

// assertionClaims are those of RFC 7523 §3. An aud that is a list does not
// decode: RFC 7523bis wants one.
type assertionClaims struct {
	Issuer   string `json:"iss"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	Expiry   int64  `json:"exp"`
	IssuedAt int64  `json:"iat"`
	ID       string `json:"jti"`
}

// subject reads the sub of an assertion that nobody has verified yet.
func subject(assertion string) string {
	jws, err := jose.ParseSignedCompact(assertion, algorithms())
	if err != nil {
		return ""
	}
	var c assertionClaims
	_ = json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &c)
	return c.Subject
}

// checkAssertion verifies a client assertion (RFC 7523 §3, RFC 7523bis) and
// returns what is wrong with it, in words, or "".
func (s *Server) checkAssertion(id string, c Client, form url.Values) string {
	if form.Get("client_assertion_type") != assertionType {
		return "the client_assertion_type is not " + assertionType
	}
	if given := form.Get("client_id"); given != "" && given != id {
		return "the client_id is not the sub"
	}
	jws, err := jose.ParseSignedCompact(form.Get("client_assertion"), algorithms())
	if err != nil || len(jws.Signatures) != 1 {
		return "the assertion is no compact JWS"
	}
	header := jws.Signatures[0].Protected
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); s.cfg.NoAssertionTyp && typ != "" || !s.cfg.NoAssertionTyp && typ != assertionTyp {
		return "the typ is not what this server wants"
	}
	payload, ok := verify(jws, c.Keys)
	if !ok {
		return "no key of this client verifies the assertion"
	}
	var claims assertionClaims
	if json.Unmarshal(payload, &claims) != nil {
		return "the claims are of the wrong kind"
	}
	return s.checkClaims(id, claims)
}

// verify checks a signature with the one key that its kid names.
func verify(jws *jose.JSONWebSignature, keys []jose.JSONWebKey) ([]byte, bool) {
	header := jws.Signatures[0].Protected
	for _, key := range keys {
		if key.KeyID == header.KeyID && (key.Algorithm == "" || key.Algorithm == header.Algorithm) {
			if payload, err := jws.Verify(key); err == nil {
				return payload, true
			}
		}
	}
	return nil, false
}

func (s *Server) checkClaims(id string, c assertionClaims) string {
	now := s.cfg.Now()
	left := time.Unix(c.Expiry, 0).Sub(now)
	switch {
	case c.Issuer != id || c.Subject != id:
		return "iss and sub are not both the client"
	case c.Audience != s.cfg.Issuer:
		return "the aud is not this issuer"
	case left <= 0 || left > assertionLife:
		return "the exp is not within a minute from now"
	case c.IssuedAt == 0 || time.Unix(c.IssuedAt, 0).After(now):
		return "the iat is missing or to come"
	case c.ID == "":
		return "the jti is missing"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for used, expiry := range s.used {
		if expiry.Before(now) {
			delete(s.used, used)
		}
	}
	if _, again := s.used[id+" "+c.ID]; again {
		return "the jti was used before"
	}
	s.used[id+" "+c.ID] = time.Unix(c.Expiry, 0)
	return ""
}

// Workload makes a JWT of the platform whose workloads Config.Workloads names.
func (s *Server) Workload(subject string, life time.Duration) string {
	now := s.cfg.Now()
	payload, err := json.Marshal(assertionClaims{
		Issuer: platform, Subject: subject, Audience: s.cfg.Issuer,
		IssuedAt: now.Unix(), Expiry: now.Add(life).Unix(), ID: rand.Text(),
	})
	if err != nil {
		return ""
	}
	jws, err := s.platform.sign.Sign(payload)
	if err != nil {
		return ""
	}
	text, err := jws.CompactSerialize()
	if err != nil {
		return ""
	}
	return text
}

// isWorkload reports whether an assertion says it is the platform's, or nothing
// that could be read.
func (s *Server) isWorkload(text string) bool {
	jws, err := jose.ParseSignedCompact(text, algorithms())
	if err != nil {
		return true
	}
	var c assertionClaims
	_ = json.Unmarshal(jws.UnsafePayloadWithoutVerification(), &c)
	return c.Issuer == platform
}

// workload checks a platform's JWT (RFC 7523 §3). It may be shown again until it ends.
func (s *Server) workload(text string) (string, Client, *oauthError) {
	invalid := func(why string) (string, Client, *oauthError) {
		return "", Client{}, &oauthError{400, "invalid_grant", why, false}
	}
	jws, err := jose.ParseSignedCompact(text, algorithms())
	if err != nil {
		return invalid("the assertion is no compact JWS")
	}
	payload, err := jws.Verify(s.platform.public)
	var c assertionClaims
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return invalid("the platform's key does not verify the assertion")
	}
	if c.Audience != s.cfg.Issuer || !time.Unix(c.Expiry, 0).After(s.cfg.Now()) {
		return invalid("the assertion is for another server, or has expired")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.cfg.Workloads[c.Subject]
	if !ok {
		return invalid("the subject is not known")
	}
	return c.Subject, w, nil
}
