package tokens

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"golang.org/x/oauth2"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// assertionLife is how long a client assertion is good: one attempt.
	assertionLife = time.Minute
	// assertionType is the one of RFC 7523 §2.2, assertionTyp the header that
	// tells a client assertion from every other JWT (RFC 7523bis).
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	assertionTyp  = "client-authentication+jwt"
	// jwtBearer is the grant of RFC 7523 §2.1.
	jwtBearer = "urn:ietf:params:oauth:grant-type:jwt-bearer" //nolint:gosec // a name of RFC 7523, no secret
	// maxAssertion bounds the file of a platform's JWT.
	maxAssertion = 32 << 10
)

// proof is what a client proves itself with, as read for one token request.
type proof struct {
	secret string // the client secret
	key    string // the private key
	// assertion is the JWT of the jwt_bearer grant.
	assertion string
	// subject is the user of a grant that has one.
	subject *Principal
}

// identity is how one token request names and proves its client: exactly one
// method (RFC 6749 §2.3).
type identity struct {
	style      oauth2.AuthStyle
	id, secret string
	params     url.Values
	// header replaces the Authorization that x/oauth2 wrote; nil leaves it.
	header func(http.Header)
	hidden redactor
}

// identify makes the identity of one attempt. Nothing of it is used twice.
func (cl *client) identify(at target, p proof, now time.Time) (identity, *Error) {
	id := identity{style: oauth2.AuthStyleInParams, id: cl.o.ClientID, params: url.Values{}}
	shown := cl.ground(p, id.params)
	switch at.method {
	case policy.ClientSecretBasic:
		id.style, id.secret = oauth2.AuthStyleInHeader, p.secret
		if cl.o.RawBasic {
			id.header = func(h http.Header) {
				r := http.Request{Header: h}
				r.SetBasicAuth(cl.o.ClientID, p.secret)
			}
		}
	case policy.ClientSecretPost:
		id.secret = p.secret
	case policy.PrivateKeyJWT:
		jwt, err := cl.assert(p.key, at.algs, now)
		if err != nil {
			return identity{}, unavailable("key_unusable", "the private key %s cannot be used: %s", oneLine(cl.o.PrivateKey.String(), 100), err)
		}
		id.params.Set("client_assertion_type", assertionType)
		id.params.Set("client_assertion", jwt)
	case policy.TLSClientAuth, policy.SelfSignedTLSClientAuth, policy.NoClientAuth:
	}
	id.hidden = newRedactor(id.id, id.secret, append(shown, id.params.Get("client_assertion"))...)
	return id, nil
}

// ground sets the grant and what it rests on, and returns what of it no error
// may quote.
func (cl *client) ground(p proof, params url.Values) (hidden []string) {
	set := func(grant, name, jwt string) {
		// x/oauth2 lets this one parameter of its own be replaced.
		params.Set("grant_type", grant)
		params.Set(name, jwt)
		hidden = append(hidden, jwt)
		if p.subject != nil {
			// What a JWT says of a person is not for a log either.
			hidden = append(hidden, strings.Split(jwt, ".")...)
		}
	}
	switch cl.o.Grant {
	case policy.ClientCredentials:
	case policy.JWTBearer, policy.IDJAG:
		if cl.o.Grant == policy.JWTBearer && p.subject != nil {
			p.assertion = p.subject.token()
		}
		set(jwtBearer, "assertion", p.assertion)
	case policy.TokenExchange:
		set(tokenExchange, "subject_token", p.subject.token())
		kind := typeAccessToken
		if p.subject.IDToken {
			kind = typeIDToken
		}
		params.Set("subject_token_type", kind)
		params.Set("requested_token_type", cl.wants)
	}
	return hidden
}

// assert signs a client assertion (RFC 7523 §3 and RFC 7523bis): the issuer is
// its only audience, since one that names a token endpoint can be played back
// to another server that claims the same endpoint.
func (cl *client) assert(text string, algs []string, now time.Time) (string, error) {
	key, err := parsePrivateKey(text)
	if err != nil {
		return "", err
	}
	alg, err := key.algorithm(cl.o.SigningAlgorithm, algs)
	if err != nil {
		return "", err
	}
	opts := &jose.SignerOptions{}
	if !cl.o.NoAssertionTyp {
		opts = opts.WithType(assertionTyp)
	}
	kid := cl.o.KeyID
	if kid == "" {
		kid = key.id
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key.signer, KeyID: kid}}, opts)
	if err != nil {
		return "", fmt.Errorf("%s does not sign with it", alg)
	}
	claims, err := json.Marshal(map[string]any{
		"iss": cl.o.ClientID, "sub": cl.o.ClientID, "aud": cmp.Or(cl.o.AssertionAudience, cl.o.Issuer),
		"iat": now.Unix(), "exp": now.Add(assertionLife).Unix(), "jti": rand.Text(),
	})
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(claims)
	if err != nil {
		return "", fmt.Errorf("%s does not sign with it", alg)
	}
	return jws.CompactSerialize()
}

// workload reads the platform's JWT, anew for each request: platforms write a
// new one long before the old one ends (rule U12).
func (cl *client) workload() (string, *Error) {
	if cl.o.Grant != policy.JWTBearer || cl.o.SubjectCaller {
		return "", nil
	}
	unusable := func(why string) *Error {
		return unavailable("assertion_unreadable", "the assertion %s cannot be used: %s", oneLine(cl.o.Assertion, 100), why)
	}
	info, err := os.Stat(cl.o.Assertion)
	switch {
	case err != nil:
		return "", unusable("the file cannot be read")
	case !info.Mode().IsRegular() || info.Size() > maxAssertion:
		return "", unusable(fmt.Sprintf("want a regular file of at most %d bytes", maxAssertion))
	}
	b, err := os.ReadFile(cl.o.Assertion)
	if err != nil {
		return "", unusable("the file cannot be read")
	}
	jwt := strings.TrimSpace(string(b))
	if parts := strings.Split(jwt, "."); len(parts) != 3 || !isB64Token(jwt) || parts[2] == "" {
		return "", unusable("it is no signed JWT")
	}
	return jwt, nil
}
