package mcpserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
)

// Config says which access tokens a protected server accepts.
type Config struct {
	// Issuer is the exact `iss` claim. Required.
	Issuer string
	// JWKSURL is where the issuer's keys are. Required.
	JWKSURL string
	// Audience must be in the `aud` claim (RFC 9068 §4); it is also the
	// `resource` of the server's metadata. Required, a URL.
	Audience string
	// Scope must be among the token's scopes. Required.
	Scope string
	// RevocationURL, if set, is asked about every token, so that a revoked one
	// is refused at once: GET with the token's id as jti, {"revoked": false} lets it pass.
	RevocationURL string
	// Client talks to the issuer. Nil means one with a time limit of 5 s.
	Client *http.Client
	// Now is the clock. Required.
	Now func() time.Time
}

func (c *Config) check() error {
	for _, f := range []struct {
		name, value string
	}{{"Issuer", c.Issuer}, {"JWKSURL", c.JWKSURL}, {"Audience", c.Audience}, {"Scope", c.Scope}} {
		if f.value == "" {
			return fmt.Errorf("protected server: %s is not set", f.name)
		}
	}
	if c.Now == nil {
		return errors.New("protected server: Now is not set")
	}
	if u, err := url.Parse(c.Audience); err != nil || u.Host == "" {
		return fmt.Errorf("protected server: Audience %q is not a URL", c.Audience)
	}
	return nil
}

// NewProtected returns an MCP server that serves only requests with an access
// token of cfg's issuer, and answers all others 401 with a WWW-Authenticate
// header, or 403 when the scope is missing. Its tools are whoami, add and slow.
func NewProtected(cfg Config) (http.Handler, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Client == nil {
		cfg.Client = &http.Client{Timeout: 5 * time.Second}
	}
	server := mcp.NewServer(&mcp.Implementation{Name: "protected-demo", Version: "1.0.0"}, nil)
	addTools(server)

	v := &verifier{cfg: cfg, keys: &keySet{url: cfg.JWKSURL, client: cfg.Client, now: cfg.Now}}
	metadata := wellKnown(cfg.Audience)
	guard := auth.RequireBearerToken(v.verify, &auth.RequireBearerTokenOptions{
		ResourceMetadataURL: metadata,
		Scopes:              []string{cfg.Scope},
	})
	mux := http.NewServeMux()
	mux.Handle("/", guard(serve(server)))
	mux.Handle("GET "+pathOf(metadata), auth.ProtectedResourceMetadataHandler(&oauthex.ProtectedResourceMetadata{
		Resource:             cfg.Audience,
		AuthorizationServers: []string{cfg.Issuer},
		ScopesSupported:      []string{cfg.Scope},
	}))
	return mux, nil
}

// wellKnown is where the metadata of a resource is (RFC 9728 §3.1): the
// well-known path goes between host and path.
func wellKnown(resource string) string {
	u, err := url.Parse(resource)
	if err != nil {
		return ""
	}
	u.Path = "/.well-known/oauth-protected-resource" + strings.TrimSuffix(u.Path, "/")
	return u.String()
}

func pathOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "/"
	}
	return u.Path
}

type verifier struct {
	cfg  Config
	keys *keySet
}

// claims are those of RFC 9068.
type claims struct {
	jwt.Claims

	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
}

// verify is an auth.TokenVerifier. Its errors reach the caller, so they say what
// is wrong and nothing of the token.
func (v *verifier) verify(ctx context.Context, raw string, _ *http.Request) (*auth.TokenInfo, error) {
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.EdDSA})
	if err != nil {
		return nil, fmt.Errorf("%w: not a signed JWT", auth.ErrInvalidToken)
	}
	key, err := v.keys.get(ctx, token.Headers[0].KeyID)
	if err != nil {
		return nil, err
	}
	var c claims
	if err := token.Claims(key, &c); err != nil {
		return nil, fmt.Errorf("%w: signature or claims do not hold", auth.ErrInvalidToken)
	}
	want := jwt.Expected{Issuer: v.cfg.Issuer, AnyAudience: jwt.Audience{v.cfg.Audience}, Time: v.cfg.Now()}
	if err := c.ValidateWithLeeway(want, 0); err != nil {
		return nil, fmt.Errorf("%w: %s", auth.ErrInvalidToken, reason(err))
	}
	if c.Expiry == nil {
		return nil, fmt.Errorf("%w: no exp", auth.ErrInvalidToken)
	}
	if err := v.standing(ctx, c.ID); err != nil {
		return nil, err
	}
	return &auth.TokenInfo{
		UserID:     c.Subject,
		Scopes:     strings.Fields(c.Scope),
		Expiration: c.Expiry.Time(),
		Extra:      map[string]any{"client_id": c.ClientID, "jti": c.ID},
	}, nil
}

// reason names the claim that failed.
func reason(err error) string {
	switch {
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return "issuer"
	case errors.Is(err, jwt.ErrInvalidAudience):
		return "audience"
	case errors.Is(err, jwt.ErrExpired):
		return "expired"
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return "not yet valid"
	default:
		return "claims"
	}
}
