package policy

import "time"

// Set is a checked policy, ready to decide. It is immutable.
type Set struct {
	// Server is where this process listens, defaults filled in.
	Server Server
	// Envoy is what rendering lays out, defaults filled in.
	Envoy Envoy
	// Stores are where secrets behind the network are read from.
	Stores SecretStores
	// SharedCache is where replicas share tokens; nil when they do not.
	SharedCache *SharedCache
	// Audit is where a record of every decision goes; nil for none.
	Audit *Audit
	// Limits says how much may be called how often; nil when nothing is limited.
	Limits *Limits
	// Tracing is where spans go; nil when nowhere.
	Tracing *Tracing
	// Watch says what is watched of all upstreams together, and who is told; nil
	// when nobody is.
	Watch *Watch
	// Upstreams are all upstreams, sorted by name.
	Upstreams []*Upstream
	// Callers are all callers, sorted by name.
	Callers []*Caller
	// Warnings are things that are allowed and that an operator should know, such as a caller of kind any.
	Warnings []Fault

	byName    map[string]*Upstream
	byCluster map[string]*Upstream
	routes    []routeKey // exact names first, then patterns, longest first
}

type routeKey struct {
	name   string // without the trailing *
	prefix bool
	up     *Upstream
}

// Server is the compiled `server` block. Empty TLS paths mean no TLS.
type Server struct {
	Listen, Admin                      string
	TLS                                *TLSSpec
	Deadline, DrainDelay, DrainTimeout time.Duration
	ReadyNeedsTokens                   bool
}

// Envoy is the compiled `envoy` block.
type Envoy struct {
	Listen, Host, PublicURL string
	ByHost                  bool
	TLS                     *TLSSpec
}

// Upstream is one compiled upstream.
type Upstream struct {
	// Name is its key in the policy file.
	Name string
	// URL is the url as written; Resource is its canonical form (RFC 8707 §2:
	// lower-case scheme and host, no default port, no trailing slash of an empty path).
	URL, Resource string
	// CA is the path of the PEM file Envoy verifies the upstream with, or empty.
	CA string
	// Cluster is the Envoy cluster's name, Route the route name or pattern (may be empty),
	// Listen the listener of its own (may be empty).
	Cluster, Route, Listen string
	// RetryOn401 is whether rendered configuration repeats a call on 401. Never
	// without an access token to renew.
	RetryOn401 bool
	// Callers are those who may call; any one may match.
	Callers []*Caller
	// Credential is what it is lent.
	Credential Credential
	// Cookies decides about cookies.
	Cookies CookieRule
	// Headers decides about all other headers.
	Headers HeaderRule
	// Origins are the accepted Origin values.
	Origins []string
	// Tools says who may use which tool; nil when no rule governs them.
	Tools *Tools
	// BindsSessions is whether an Mcp-Session-Id is good for one principal alone.
	BindsSessions bool
	// OutcomesFromHeaders is whether the headers of an answer tell how a call ended,
	// and not Envoy's access log.
	OutcomesFromHeaders bool
	// Discover compares the upstream's protected resource metadata (RFC 9728)
	// with this policy. It changes nothing that is decided.
	Discover bool
	// Watch are the rules about how its calls fare.
	Watch WatchRules
	// Disabled is whether an operator has switched it off.
	Disabled bool

	bearers []bearer // the headers in which its callers have tokens
}

// Credential is what an upstream is lent: OAuth2, or Headers, or nothing.
type Credential struct {
	// OAuth2 is set for an access token.
	OAuth2 *OAuth2
	// Headers are fixed headers, sorted by name; names are lower case.
	Headers []SecretHeader
}

// None reports whether nothing is lent.
func (c Credential) None() bool { return c.OAuth2 == nil && len(c.Headers) == 0 }

// SecretHeader is one fixed header.
type SecretHeader struct {
	Name  string
	Value SecretRef
}

// AuthMethod is a client authentication method of the OAuth registry (RFC 8414 §2).
type AuthMethod string

// The methods.
const (
	ClientSecretBasic       AuthMethod = "client_secret_basic"
	ClientSecretPost        AuthMethod = "client_secret_post"
	PrivateKeyJWT           AuthMethod = "private_key_jwt"             // RFC 7523 §2.2
	TLSClientAuth           AuthMethod = "tls_client_auth"             // RFC 8705 §2.1
	SelfSignedTLSClientAuth AuthMethod = "self_signed_tls_client_auth" // RFC 8705 §2.2
	// NoClientAuth is for grants that need no client (RFC 7523 §3.1).
	NoClientAuth AuthMethod = "none"
)

// Grant is what a token is asked for with.
type Grant string

// The grants.
const (
	ClientCredentials Grant = "client_credentials"
	JWTBearer         Grant = "jwt_bearer"     // RFC 7523 §2.1
	TokenExchange     Grant = "token_exchange" // RFC 8693
	// IDJAG asks an identity provider for an identity assertion about the
	// caller, and gets the access token for that.
	IDJAG Grant = "id_jag"
)

// MutualTLS reports whether the method shows a client certificate.
func (m AuthMethod) MutualTLS() bool { return m == TLSClientAuth || m == SelfSignedTLSClientAuth }

// OAuth2 is a compiled OAuth 2 client, every default filled in. Two upstreams
// with equal OAuth2 values share one token.
type OAuth2 struct {
	// TokenURL or Issuer is set.
	TokenURL, Issuer string
	// AllowPlaintext and AllowPrivate are about endpoints in the issuer's metadata.
	AllowPlaintext, AllowPrivate bool

	Grant Grant
	// Assertion is the path of the JWT of the JWTBearer grant.
	Assertion string
	// SubjectCaller makes the caller's verified JWT the subject of the grant:
	// always for TokenExchange and IDJAG, by choice for JWTBearer.
	SubjectCaller bool
	// IDP is the client at the identity provider that IDJAG asks first. Its
	// Audience is the issuer of the authorization server that takes the assertion.
	IDP          *OAuth2
	CA           string
	ClientID     string
	ClientSecret SecretRef
	// PrivateKey signs client assertions, or is the key of Certificate.
	PrivateKey SecretRef
	// KeyID and SigningAlgorithm are of the assertions; when empty, they
	// follow from the key.
	KeyID, SigningAlgorithm string
	// AssertionAudience is the aud of the assertions.
	AssertionAudience string
	// NoAssertionTyp leaves the typ header of the assertions out.
	NoAssertionTyp bool
	// Certificate is the path of the client certificate.
	Certificate string
	// AuthMethod is empty when the issuer's metadata decides.
	AuthMethod AuthMethod
	// RawBasic sends client_secret_basic without form-encoding.
	RawBasic bool
	// Scopes in the order requested.
	Scopes []string
	// Resource is empty when none is sent.
	Resource string
	Audience string
	// Params are sorted by name.
	Params                       []Param
	DefaultLifetime, MaxLifetime time.Duration
	// StaleGrace is how long this upstream is lent an expired token while the
	// token endpoint is unavailable. It is the upstream's own: it does not
	// keep two upstreams from sharing a token.
	StaleGrace time.Duration
}

// UserBound reports whether each caller gets a token of its own.
func (o *OAuth2) UserBound() bool { return o.SubjectCaller }

// Secrets lists the secrets that the client reads.
func (o *OAuth2) Secrets() []SecretRef {
	var refs []SecretRef
	if o.IDP != nil {
		refs = o.IDP.Secrets()
	}
	for _, ref := range []SecretRef{o.ClientSecret, o.PrivateKey} {
		if !ref.IsZero() {
			refs = append(refs, ref)
		}
	}
	return refs
}

// Param is one extra parameter of a token request.
type Param struct{ Name, Value string }

// Caller is one compiled caller: exactly one of the kinds is set.
type Caller struct {
	Name string
	// Any admits everybody.
	Any bool
	// Keys are the SHA-256 sums of the accepted x-mcp-auth-key values.
	Keys [][32]byte
	// SANs are the accepted subject alternative names.
	SANs []string
	// JWT admits the bearer of an access token.
	JWT *JWT
	// Scopes are what a caller without a token of its own may do.
	Scopes []string
}

// Profile says which tokens of an issuer are taken.
type Profile string

// The profiles.
const (
	// ProfileRFC9068 takes access tokens that say they are one (typ at+jwt).
	ProfileRFC9068 Profile = "rfc9068"
	// ProfileGeneric also takes tokens of typ JWT or none, but no ID token.
	ProfileGeneric Profile = "generic"
	// ProfileIDToken takes ID tokens, and nothing else. It is for upstreams of the grant IDJAG alone.
	ProfileIDToken Profile = "id_token"
)

// JWT says which access tokens prove a caller.
type JWT struct {
	// Issuer is compared with iss to the letter.
	Issuer string
	// JWKSURL is where its keys are; when empty, its metadata says.
	JWKSURL string
	// CA, AllowPlaintext and AllowPrivate are about reaching both.
	CA                           string
	AllowPlaintext, AllowPrivate bool
	// Audiences are those of which aud must hold one.
	Audiences []string
	// Algorithms are the accepted signature algorithms.
	Algorithms []string
	// Header is the request header with the token, in lower case.
	Header string
	// Profile is never empty.
	Profile Profile
	// ScopeClaim names the claim with the scopes: scope, scp, or another.
	ScopeClaim string
	// RequireScopes are scopes without which the caller is not let in.
	RequireScopes []string
	// Skew is how far the issuer's clock may be off.
	Skew time.Duration
}

// SharedCache is where replicas share tokens.
type SharedCache struct {
	// Redis is the server: redis://HOST:PORT/DB, rediss://HOST:PORT/DB or
	// unix:///PATH. It holds no credentials.
	Redis string
	// Username and Password log in; both may be empty.
	Username string
	Password SecretRef
	// CA is the path of the authorities of a rediss server, or empty.
	CA string
	// Key seals what is stored: at least 32 characters, the same in all replicas.
	Key SecretRef
	// Prefix starts the names of what is stored.
	Prefix string
}
