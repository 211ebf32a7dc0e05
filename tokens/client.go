package tokens

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
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
}

// granted is a checked answer.
type granted struct {
	access string
	life   time.Duration
	noLife bool // the answer had no expires_in
	scope  string
	at     time.Time // when the answer came
	skew   time.Duration
}

// newClient checks what a request can be built of. The policy has checked most
// of it for people; here it is checked for whoever builds an OAuth2 in code.
func newClient(o *policy.OAuth2, n *network) (*client, error) {
	u, err := url.Parse(o.TokenURL)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("token_url %q: want an absolute https URL", o.TokenURL)
	}
	if u.User != nil || u.Fragment != "" {
		return nil, errors.New("token_url: want no user, password or fragment in it")
	}
	cl := &client{o: *o, host: u.Host, net: n, params: url.Values{}}
	cl.o.Scopes, cl.o.Params = slices.Clone(o.Scopes), slices.Clone(o.Params)
	if cl.o.DefaultLifetime <= 0 {
		cl.o.DefaultLifetime = defaultLifetime
	}
	if cl.o.MaxLifetime <= 0 {
		cl.o.MaxLifetime = maxLifetime
	}
	if err := methodFits(o); err != nil {
		return nil, err
	}
	if o.ClientID == "" {
		return nil, errors.New("client_id: want a client identifier, got none")
	}
	if err := cl.fill(); err != nil {
		return nil, err
	}
	if err := n.check(cl.trust()); err != nil {
		return nil, err
	}
	return cl, nil
}

// methodFits checks that the client has what its method takes. The method is
// fixed: left to itself, x/oauth2 tries the header first and then sends the
// secret in the body, on any error (RFC 6749 §2.3 allows one method per request).
func methodFits(o *policy.OAuth2) error {
	switch o.AuthMethod {
	case policy.ClientSecretBasic, policy.ClientSecretPost:
		if o.ClientSecret.IsZero() {
			return fmt.Errorf("auth_method %s: want a client_secret", o.AuthMethod)
		}
		return nil
	case policy.PrivateKeyJWT:
		if o.PrivateKey.IsZero() || o.AssertionAudience == "" {
			return errors.New("auth_method private_key_jwt: want a private_key and an assertion_audience")
		}
		return nil
	case policy.TLSClientAuth, policy.SelfSignedTLSClientAuth:
		if o.Certificate == "" || o.PrivateKey.IsZero() {
			return fmt.Errorf("auth_method %s: want a certificate and its private_key", o.AuthMethod)
		}
		if !strings.HasPrefix(o.TokenURL, "https:") {
			return fmt.Errorf("auth_method %s: want an https token_url, since the certificate is shown in TLS only", o.AuthMethod)
		}
		return nil
	}
	return fmt.Errorf("auth_method %q: want client_secret_basic, client_secret_post, private_key_jwt, tls_client_auth or self_signed_tls_client_auth", o.AuthMethod)
}

// fill lays out the form. No parameter is empty or there twice (RFC 6749 §3.2).
func (cl *client) fill() error {
	set := func(name, value string) {
		if value != "" {
			cl.params.Set(name, value)
		}
	}
	for _, p := range cl.o.Params {
		switch p.Name {
		case "", "grant_type", "client_id", "client_secret", "scope", "resource", "audience",
			"client_assertion", "client_assertion_type":
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
func (cl *client) trust() trust {
	t := trust{ca: cl.o.CA}
	if cl.o.AuthMethod.MutualTLS() {
		t.cert, t.key = cl.o.Certificate, cl.o.PrivateKey
	}
	return t
}

func (cl *client) transport(p proof) (http.RoundTripper, *Error) {
	t := cl.trust()
	base, err := cl.net.transport(t, p.key)
	switch {
	case errors.Is(err, errCertificate):
		return nil, unavailable("certificate_unusable", "the client certificate for %s cannot be used: %s", cl.host, oneLine(err.Error(), maxQuote))
	case err != nil:
		return nil, unavailable("ca_unreadable", "the authorities of the token endpoint %s cannot be read from its ca file", cl.host)
	}
	return base, nil
}

// fetch makes one token request and checks the answer. x/oauth2 lays out the
// request; the exchange below it closes what x/oauth2 leaves open, on both sides.
func (cl *client) fetch(ctx context.Context, p proof, now func() time.Time) (granted, *Error) {
	base, bad := cl.transport(p)
	if bad != nil {
		return granted{}, bad
	}
	who, bad := cl.identify(p, now())
	if bad != nil {
		return granted{}, bad
	}
	x := &exchange{client: cl, base: base, now: now, header: who.header, hidden: who.hidden}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{
		Transport: x,
		// Never reached: the exchange refuses each redirect itself. It
		// stays, so that no change there can let a secret travel.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	})
	form := maps.Clone(cl.params)
	maps.Copy(form, who.params)
	cc := clientcredentials.Config{
		ClientID: who.id, ClientSecret: who.secret, TokenURL: cl.o.TokenURL,
		Scopes: cl.o.Scopes, EndpointParams: form, AuthStyle: who.style,
	}
	t, err := cc.Token(ctx)
	if err != nil {
		if clean, ok := errors.AsType[*Error](err); ok {
			return granted{}, clean
		}
		// What x/oauth2 says itself may quote bodies: it stays here.
		return granted{}, refused("bad_request", "no token request could be made for %s: check token_url, scopes and params", cl.host)
	}
	x.got.access = t.AccessToken
	return x.got, nil
}
