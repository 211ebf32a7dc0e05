package compare

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/auth"
	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// The contenders, as the tables name them.
const (
	ours     = "envoy-mcp-auth"
	plain    = "x/oauth2, as it comes"
	fixed    = "x/oauth2, auth style fixed"
	google   = "Google `go/auth`"
	amazon   = "AWS `CredentialsCache`"
	injector = "Envoy `credential_injector`"
)

// wire is what a contender makes its requests with.
type wire struct {
	url       string
	transport http.RoundTripper
	// timeout bounds one token request. Ours brings its own of 5 s.
	timeout time.Duration
}

func (w wire) client() *http.Client { return &http.Client{Transport: w.transport, Timeout: w.timeout} }

// cache is a contender at work.
type cache struct {
	token func(context.Context) (string, error)
	// rejected is what it offers to a call whose token the upstream refused;
	// nil is nothing.
	rejected func(ctx context.Context, token string) (string, error)
}

// contender opens a cache.
type contender struct {
	name string
	open func(testing.TB, wire) cache
	// native, where there is one, makes the requests itself; what open
	// returns has a provider that x/oauth2 makes them for.
	native func(testing.TB, wire) cache
	// free lets each caller go at its own deadline, whatever the others do.
	free bool
	// foreign marks a cache that has no request of its own to look at.
	foreign bool
}

func contenders() []contender {
	return []contender{
		{name: ours, open: openOurs, free: true},
		{name: plain, open: openOAuth2(oauth2.AuthStyleAutoDetect)},
		{name: fixed, open: openOAuth2(oauth2.AuthStyleInParams)},
		{name: google, open: openGoogle, native: openGoogle2LO},
		{name: amazon, open: openAmazon, free: true, foreign: true},
	}
}

type secrets struct{}

func (secrets) Secret(policy.SecretRef) (policy.Secret, error) { return policy.NewSecret(secret), nil }

// dice rolls the same each time, so that a count can be in a table.
func dice() func() float64 {
	var mu sync.Mutex
	r := mathrand.New(mathrand.NewPCG(1, 2))
	return func() float64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Float64()
	}
}

func openOurs(tb testing.TB, w wire) cache {
	tb.Helper()
	c := tokens.New(tokens.Config{Secrets: secrets{}, Now: time.Now, Transport: w.transport, Dice: dice()})
	tb.Cleanup(c.Close)
	s, err := c.Source("upstream", &policy.OAuth2{
		TokenURL: w.url, ClientID: clientID, AuthMethod: policy.ClientSecretPost,
		ClientSecret: policy.SecretRef{Kind: policy.SecretEnv, Name: "SECRET"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	value := func(t *tokens.Token, err error) (string, error) {
		if err != nil {
			return "", err
		}
		return string(t.Authorization()[len("Bearer "):]), nil
	}
	return cache{
		token: func(ctx context.Context) (string, error) { return value(s.Token(ctx)) },
		rejected: func(ctx context.Context, token string) (string, error) {
			return value(s.Replace(ctx, []byte("Bearer "+token)))
		},
	}
}

func grant(w wire, style oauth2.AuthStyle) clientcredentials.Config {
	return clientcredentials.Config{ClientID: clientID, ClientSecret: secret, TokenURL: w.url, AuthStyle: style}
}

func openOAuth2(style oauth2.AuthStyle) func(testing.TB, wire) cache {
	return func(_ testing.TB, w wire) cache {
		c := grant(w, style)
		source := c.TokenSource(context.WithValue(context.Background(), oauth2.HTTPClient, w.client()))
		// Token takes no context: the caller's own does not count.
		return cache{token: func(context.Context) (string, error) {
			t, err := source.Token()
			if err != nil {
				return "", err
			}
			return t.AccessToken, nil
		}}
	}
}

// request is the provider below the caches that have none for this grant.
func request(ctx context.Context, w wire) (*oauth2.Token, error) {
	c := grant(w, oauth2.AuthStyleInParams)
	return c.Token(context.WithValue(ctx, oauth2.HTTPClient, w.client()))
}

// provider is Google's interface, as a function.
type provider func(context.Context) (*auth.Token, error)

func (p provider) Token(ctx context.Context) (*auth.Token, error) { return p(ctx) }

func openGoogle(_ testing.TB, w wire) cache {
	return googleCache(provider(func(ctx context.Context) (*auth.Token, error) {
		t, err := request(ctx, w)
		if err != nil {
			return nil, err
		}
		return &auth.Token{Value: t.AccessToken, Type: t.TokenType, Expiry: t.Expiry}, nil
	}))
}

func googleCache(p auth.TokenProvider) cache {
	c := auth.NewCachedTokenProvider(p, nil)
	return cache{token: func(ctx context.Context) (string, error) {
		t, err := c.Token(ctx)
		if err != nil {
			return "", err
		}
		return t.Value, nil
	}}
}

// openGoogle2LO is Google's own two-legged grant, which proves the client by a
// signed assertion.
func openGoogle2LO(tb testing.TB, w wire) cache {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	p, err := auth.New2LOTokenProvider(&auth.Options2LO{
		Email: clientID, TokenURL: w.url, Client: w.client(),
		PrivateKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return googleCache(p)
}

func openAmazon(_ testing.TB, w wire) cache {
	c := aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		t, err := request(ctx, w)
		if err != nil {
			return aws.Credentials{}, err
		}
		return aws.Credentials{AccessKeyID: "bearer", SecretAccessKey: t.AccessToken, CanExpire: !t.Expiry.IsZero(), Expires: t.Expiry}, nil
	}))
	token := func(ctx context.Context) (string, error) {
		v, err := c.Retrieve(ctx)
		return v.SecretAccessKey, err
	}
	return cache{token: token, rejected: func(ctx context.Context, _ string) (string, error) {
		c.Invalidate()
		return token(ctx)
	}}
}
