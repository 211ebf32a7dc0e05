package tokens

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// defaultLifetime and maxLifetime stand in for a policy that names none.
	defaultLifetime = 5 * time.Minute
	maxLifetime     = 24 * time.Hour
)

// client makes the token requests of one credential (RFC 6749 §4.4).
type client struct {
	o      policy.OAuth2
	host   string
	params url.Values
	net    *network
	// directory knows what the issuer says; last is what came of it last.
	directory *directory
	last      atomic.Pointer[target]
	// wants is the token type of a token exchange (RFC 8693 §3), and idp the
	// client that gets the assertion of an id_jag.
	wants string
	idp   *client
}

// granted is a checked answer.
type granted struct {
	access string
	life   time.Duration
	noLife bool // the answer had no expires_in
	// refresh is the refresh_in of the answer, 0 for none.
	refresh time.Duration
	scope   string
	at      time.Time // when the answer came
	skew    time.Duration
}

// newClient checks what a request can be built of. The policy has checked most
// of it for people; here it is checked for whoever builds an OAuth2 in code.
func newClient(o *policy.OAuth2, d *directory) (*client, error) {
	u, err := addressOf(o)
	if err != nil {
		return nil, err
	}
	cl := &client{o: *o, host: u.Host, net: d.net, directory: d, params: url.Values{}}
	cl.o.Scopes, cl.o.Params = slices.Clone(o.Scopes), slices.Clone(o.Params)
	if cl.o.Grant == "" {
		cl.o.Grant = policy.ClientCredentials
	}
	if cl.o.DefaultLifetime <= 0 {
		cl.o.DefaultLifetime = defaultLifetime
	}
	if cl.o.MaxLifetime <= 0 {
		cl.o.MaxLifetime = maxLifetime
	}
	if err := methodFits(o); err != nil {
		return nil, err
	}
	if err := grantFits(o); err != nil {
		return nil, err
	}
	if err := cl.fill(); err != nil {
		return nil, err
	}
	if cl.o.Grant == policy.TokenExchange {
		cl.wants = typeAccessToken
	}
	if cl.idp, err = identityProvider(&cl.o, d); err != nil {
		return nil, err
	}
	if err := d.net.check(trust{ca: o.CA, cert: o.Certificate}); err != nil {
		return nil, err
	}
	return cl, nil
}

// addressOf returns the token endpoint, or the issuer that is asked for it.
func addressOf(o *policy.OAuth2) (*url.URL, error) {
	name, address := "token_url", o.TokenURL
	if o.Issuer != "" {
		name, address = "issuer", o.Issuer
	}
	if o.Issuer != "" && o.TokenURL != "" {
		return nil, errors.New("want token_url or issuer, got both")
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("%s %q: want an absolute https URL", name, address)
	}
	if u.User != nil || u.Fragment != "" || o.Issuer != "" && u.RawQuery != "" {
		return nil, fmt.Errorf("%s: want no user, password or fragment in it, and no query in an issuer", name)
	}
	if o.AuthMethod.MutualTLS() && o.Issuer == "" && u.Scheme != "https" {
		return nil, fmt.Errorf("auth_method %s: want an https token_url, since the certificate is shown in TLS only", o.AuthMethod)
	}
	return u, nil
}

// identityProvider returns the client that asks for the assertions of an id_jag,
// nil for other grants. It names the resource that the token is for (rule U9),
// and with no scopes of its own also the scopes.
func identityProvider(o *policy.OAuth2, d *directory) (*client, error) {
	if o.Grant != policy.IDJAG {
		return nil, nil //nolint:nilnil // other grants have none
	}
	idp := *o.IDP
	idp.Grant, idp.SubjectCaller, idp.IDP = policy.TokenExchange, true, nil
	if idp.Resource == "" {
		idp.Resource = o.Resource
	}
	if idp.Scopes == nil {
		idp.Scopes = o.Scopes
	}
	if idp.Resource == "" || idp.Audience == "" {
		return nil, errors.New("idp: want an audience, which is the issuer of the authorization server, and a resource")
	}
	cl, err := newClient(&idp, d)
	if err != nil {
		return nil, fmt.Errorf("idp: %w", err)
	}
	cl.wants = typeIDJAG
	return cl, nil
}

// grantFits checks that something proves who asks.
func grantFits(o *policy.OAuth2) error {
	switch o.Grant {
	case "", policy.ClientCredentials:
		if o.SubjectCaller {
			return errors.New("subject: the grant client_credentials has none")
		}
	case policy.JWTBearer:
		if (o.Assertion == "") != o.SubjectCaller {
			return errors.New("assertion: want either the file of a JWT or the caller as subject for the grant jwt_bearer")
		}
	case policy.TokenExchange, policy.IDJAG:
		if !o.SubjectCaller {
			return fmt.Errorf("subject: want the caller for the grant %s", o.Grant)
		}
	default:
		return fmt.Errorf("grant %q: want client_credentials, jwt_bearer, token_exchange or id_jag", o.Grant)
	}
	switch {
	case (o.Grant == policy.IDJAG) != (o.IDP != nil):
		return errors.New("idp: want one for the grant id_jag, and for no other")
	case o.AuthMethod == policy.NoClientAuth && o.Grant != policy.JWTBearer:
		return errors.New("auth_method none: want the grant jwt_bearer, or a proof of the client")
	case o.ClientID == "" && o.AuthMethod != policy.NoClientAuth:
		return errors.New("client_id: want a client identifier, got none")
	}
	return nil
}

// methodFits checks that the client has what its method takes. The method is
// fixed: left to itself, x/oauth2 tries the header first and then sends the
// secret in the body, on any error (RFC 6749 §2.3 allows one method per request).
func methodFits(o *policy.OAuth2) error {
	lacks := func(words string) error { return fmt.Errorf("auth_method %s: want %s", o.AuthMethod, words) }
	certified := hasCertificate(o)
	switch o.AuthMethod {
	case "":
		if can := able(o); o.Issuer != "" && len(can) > 0 && (certified || !can[0].MutualTLS()) {
			return nil
		}
		return errors.New("want an auth_method, or an issuer and a client_secret, a private_key, or a certificate with its private_key")
	case policy.NoClientAuth: // grantFits looks at it
	case policy.ClientSecretBasic, policy.ClientSecretPost:
		if o.ClientSecret.IsZero() {
			return lacks("a client_secret")
		}
	case policy.PrivateKeyJWT:
		if o.PrivateKey.IsZero() || o.AssertionAudience+o.Issuer == "" {
			return lacks("a private_key, and an issuer or an assertion_audience")
		}
	case policy.TLSClientAuth, policy.SelfSignedTLSClientAuth:
		if !certified {
			return lacks("a certificate and its private_key")
		}
	default:
		return fmt.Errorf("auth_method %q: want client_secret_basic, client_secret_post, private_key_jwt, tls_client_auth or self_signed_tls_client_auth", o.AuthMethod)
	}
	return nil
}

func hasCertificate(o *policy.OAuth2) bool { return o.Certificate != "" && !o.PrivateKey.IsZero() }

// fill lays out the form. No parameter is empty or there twice (RFC 6749 §3.2).
func (cl *client) fill() error {
	set := func(name, value string) {
		if value != "" {
			cl.params.Set(name, value)
		}
	}
	for _, p := range cl.o.Params {
		switch p.Name {
		case "", "grant_type", "assertion", "client_id", "client_secret", "scope", "resource", "audience",
			"client_assertion", "client_assertion_type", "requested_token_type",
			"subject_token", "subject_token_type", "actor_token", "actor_token_type":
			return fmt.Errorf("params: %q is not for params: it has a key of its own, or none", p.Name)
		}
		if cl.params.Has(p.Name) {
			return fmt.Errorf("params: %q is there twice", p.Name)
		}
		set(p.Name, p.Value)
	}
	set("resource", cl.o.Resource)
	set("audience", cl.o.Audience)
	return nil
}

// trust names the connections that this client may use.
func (cl *client) trust(at target) trust {
	t := trust{ca: cl.o.CA, guarded: at.guarded}
	if at.method.MutualTLS() {
		t.cert, t.key = cl.o.Certificate, cl.o.PrivateKey
	}
	return t
}

func (cl *client) transport(at target, p proof) (http.RoundTripper, *Error) {
	base, err := cl.net.transport(cl.trust(at), p.key)
	switch {
	case errors.Is(err, errCertificate):
		return nil, unavailable("certificate_unusable", "the client certificate for %s cannot be used: %s", at.host, oneLine(err.Error(), maxQuote))
	case err != nil:
		return nil, unavailable("ca_unreadable", "the authorities of the token endpoint %s cannot be read from its ca file", at.host)
	}
	return base, nil
}

// fetch makes one token request and checks the answer. x/oauth2 lays out the
// request; the exchange below it closes what x/oauth2 leaves open, on both sides.
func (cl *client) fetch(ctx context.Context, p proof, now func() time.Time) (granted, *Error) {
	at, bad := cl.target(ctx)
	if bad != nil {
		return granted{}, bad
	}
	base, bad := cl.transport(at, p)
	if bad != nil {
		return granted{}, bad
	}
	who, bad := cl.identify(at, p, now())
	if bad != nil {
		return granted{}, bad
	}
	got, bad := cl.request(ctx, at, who, base, now)
	if bad != nil && at.found != nil && (bad.Kind == Unavailable || bad.Status == http.StatusNotFound || bad.Code == "redirect_refused") {
		cl.directory.doubt(cl.server())
	}
	return got, bad
}

// request sends the one request.
func (cl *client) request(ctx context.Context, at target, who identity, base http.RoundTripper, now func() time.Time) (granted, *Error) {
	x := &exchange{client: cl, host: at.host, base: base, now: now, header: who.header, hidden: who.hidden}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{
		Transport: x,
		// Never reached: the exchange refuses each redirect itself. It
		// stays, so that no change there can let a secret travel.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
	form := maps.Clone(cl.params)
	maps.Copy(form, who.params)
	cc := clientcredentials.Config{
		ClientID: who.id, ClientSecret: who.secret, TokenURL: at.url,
		Scopes: cl.o.Scopes, EndpointParams: form, AuthStyle: who.style,
	}
	t, err := cc.Token(ctx)
	if err != nil {
		if clean, ok := errors.AsType[*Error](err); ok {
			return granted{}, clean
		}
		// What x/oauth2 says itself may quote bodies: it stays here.
		return granted{}, refused("bad_request", "no token request could be made for %s: check token_url, scopes and params", at.host)
	}
	x.got.access = t.AccessToken
	return x.got, nil
}
