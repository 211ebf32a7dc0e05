package policy

import "time"

// The types in this file are the policy file as it is written. Their comments
// are the reference: the JSON Schema and docs/policy.md are generated from them.

// File is the whole policy file.
type File struct {
	// Version is the version of this format. Always 1.
	Version int `yaml:"version" required:"true"`
	// Server says where this process listens.
	Server ServerSpec `yaml:"server"`
	// Envoy says what `render` lays out.
	Envoy EnvoySpec `yaml:"envoy"`
	// Defaults holds the blocks that an upstream inherits when it does not set them itself.
	Defaults DefaultsSpec `yaml:"defaults"`
	// Callers names who may call, and how each one proves it.
	Callers map[string]CallerSpec `yaml:"callers"`
	// Upstreams names the servers behind Envoy. A name is lower-case letters, digits, `_`, `-` and `.`, at most 63 characters.
	Upstreams map[string]UpstreamSpec `yaml:"upstreams" required:"true"`
}

// ServerSpec is the `server` block.
type ServerSpec struct {
	// Listen is the address of the gRPC services that Envoy calls: unix:///PATH or HOST:PORT. An address that is not loopback needs `tls`.
	Listen string `yaml:"listen" default:"unix:///run/envoy-mcp-auth/grpc.sock"`
	// Admin is the address of /healthz, /readyz, /metrics and /status.
	Admin string `yaml:"admin" default:"127.0.0.1:9441"`
	// TLS turns on mutual TLS on `listen`: only clients with a certificate of `client_ca` are served.
	TLS *TLSSpec `yaml:"tls"`
	// Deadline is how long a call waits for a token at most. Keep it below Envoy's message_timeout.
	Deadline Duration `yaml:"deadline" default:"1.5s"`
	// Ready says when /readyz turns 200: when every credential was `tried` once, or when all `tokens` are there.
	Ready string `yaml:"ready" default:"tried" enum:"tried,tokens"`
	// DrainDelay is how long the server goes on after SIGTERM with its health at NOT_SERVING, so that Envoy's health check moves traffic away first.
	DrainDelay Duration `yaml:"drain_delay" default:"3s"`
	// DrainTimeout is how long calls in flight may take to end after that, before they are cut off.
	DrainTimeout Duration `yaml:"drain_timeout" default:"10s"`
}

// TLSSpec is a server's side of mutual TLS. All are paths of PEM files, read again when they change.
type TLSSpec struct {
	// Certificate is the server's certificate chain.
	Certificate string `yaml:"certificate" required:"true"`
	// PrivateKey is the key of the certificate.
	PrivateKey string `yaml:"private_key" required:"true"`
	// ClientCA holds the authorities whose client certificates are accepted. `server.tls` needs it; without it, `envoy.tls` asks for no certificate.
	ClientCA string `yaml:"client_ca"`
}

// EnvoySpec is the `envoy` block.
type EnvoySpec struct {
	// Listen is the address of the rendered listener.
	Listen string `yaml:"listen" default:"127.0.0.1:10000"`
	// Route says how a request names its upstream: by the first path segment (`prefix`: /NAME/…) or by `host` (NAME.HOST).
	Route string `yaml:"route" default:"prefix" enum:"prefix,host"`
	// Host is the parent domain for `route: host`: upstream NAME answers to NAME.HOST.
	Host string `yaml:"host"`
	// PublicURL is the base URL under which callers reach the listener. Left out, it is http://LISTEN, or https://LISTEN with `tls`.
	PublicURL string `yaml:"public_url"`
	// TLS makes the rendered listener speak TLS, and ask for client certificates when `client_ca` is set. Callers of kind `mtls` need it.
	TLS *TLSSpec `yaml:"tls"`
}

// DefaultsSpec is the `defaults` block.
type DefaultsSpec struct {
	// Callers is inherited by upstreams without `callers`.
	Callers []string `yaml:"callers"`
	// Credential is inherited by upstreams without `credential`.
	Credential *CredentialSpec `yaml:"credential"`
	// Cookies is inherited by upstreams without `cookies`.
	Cookies *CookiesSpec `yaml:"cookies"`
	// Headers is inherited by upstreams without `headers`.
	Headers *HeadersSpec `yaml:"headers"`
	// Origins is inherited by upstreams without `origins`.
	Origins *OriginsSpec `yaml:"origins"`
}

// CallerSpec says how one caller proves who it is: exactly one of the kinds.
type CallerSpec struct {
	// Any admits everybody. It must be said in words: `any: true`.
	Any bool `yaml:"any"`
	// Key admits requests with the right x-mcp-auth-key header.
	Key *KeySpec `yaml:"key"`
	// MTLS admits requests that came over TLS with a client certificate that Envoy verified.
	MTLS *MTLSSpec `yaml:"mtls"`
}

// KeySpec is a caller that sends a key.
type KeySpec struct {
	// SHA256 is the lower-case hex SHA-256 of the header's value: one, or a list while a key is being rotated.
	SHA256 StringList `yaml:"sha256" required:"true"`
}

// MTLSSpec is a caller with a client certificate.
type MTLSSpec struct {
	// SAN lists the accepted subject alternative names: URIs such as spiffe://company/litellm, or DNS names. They are compared exactly.
	SAN StringList `yaml:"san" required:"true"`
}

// UpstreamSpec is one upstream.
type UpstreamSpec struct {
	// URL is what Envoy connects to. Its canonical form is the RFC 8707 resource of the token request.
	URL string `yaml:"url" required:"true"`
	// AllowPlaintext permits an http URL that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// CA is the path of a PEM file with the authorities that sign the upstream's certificate. Left out, Envoy uses the system's.
	CA string `yaml:"ca"`
	// Callers lists the names of `callers` who may call; any one may match.
	Callers []string `yaml:"callers"`
	// Credential is what the upstream is lent: `none`, or a mapping with `oauth2` or `header`.
	Credential *CredentialSpec `yaml:"credential"`
	// Cookies says which cookies go on. Left out, none.
	Cookies *CookiesSpec `yaml:"cookies"`
	// Headers says which other headers go on.
	Headers *HeadersSpec `yaml:"headers"`
	// Origins says which Origin values are accepted. Left out, a request with an Origin is refused.
	Origins *OriginsSpec `yaml:"origins"`
	// RetryOn401 lets Envoy repeat a call once, with a new token, when the upstream refused the old one.
	RetryOn401 *bool `yaml:"retry_on_401" default:"true"`
	// Envoy says how an Envoy that you already run names this upstream, or gives it a listener of its own.
	Envoy *UpstreamEnvoySpec `yaml:"envoy"`
}

// UpstreamEnvoySpec is the `envoy` block of an upstream.
type UpstreamEnvoySpec struct {
	// Cluster is the name of the Envoy cluster, when it is not the upstream's name.
	Cluster string `yaml:"cluster"`
	// Route is the name of the Envoy route; a trailing `*` matches any rest.
	Route string `yaml:"route"`
	// Listen gives the upstream a rendered listener of its own, with its url's paths unchanged. Legacy SSE servers need that.
	Listen string `yaml:"listen"`
}

// CredentialSpec is what an upstream is lent: the word `none`, or exactly one of the kinds.
type CredentialSpec struct {
	// None lends nothing. Written `credential: none`.
	None bool `yaml:"-"`
	// OAuth2 lends an access token.
	OAuth2 *OAuth2Spec `yaml:"oauth2"`
	// Header lends fixed headers: name to secret, such as `authorization: "Bearer ${KEY}"`.
	Header map[string]SecretSpec `yaml:"header"`
}

// OAuth2Spec is an OAuth 2 client (RFC 6749 §4.4, client credentials).
type OAuth2Spec struct {
	// TokenURL is the token endpoint.
	TokenURL string `yaml:"token_url" required:"true"`
	// AllowPlaintext permits an http token_url that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// ClientID is the client's identifier.
	ClientID string `yaml:"client_id" required:"true"`
	// ClientSecret is the client's secret: `${NAME}`, {env: NAME} or {file: PATH}. Never the secret itself.
	ClientSecret SecretSpec `yaml:"client_secret" required:"true"`
	// AuthMethod says how the client authenticates.
	AuthMethod string `yaml:"auth_method" default:"client_secret_basic" enum:"client_secret_basic,client_secret_post"`
	// CA is the path of a PEM file with the authorities that sign the token endpoint's certificate. Left out, the system's.
	CA string `yaml:"ca"`
	// Scopes are requested in this order.
	Scopes []string `yaml:"scopes"`
	// Resource is the RFC 8707 resource. Left out, the upstream's canonical url; `false` sends none, for servers that refuse it.
	Resource StringOrFalse `yaml:"resource"`
	// Audience is sent as the `audience` parameter some servers want.
	Audience string `yaml:"audience"`
	// Params are further parameters of the token request. They may not repeat a parameter that has a key of its own here.
	Params map[string]string `yaml:"params"`
	// DefaultLifetime is the life of a token whose answer has no expires_in.
	DefaultLifetime Duration `yaml:"default_lifetime" default:"5m"`
	// MaxLifetime caps the life of every token.
	MaxLifetime Duration `yaml:"max_lifetime" default:"24h"`
}

// CookiesSpec is the `cookies` block.
type CookiesSpec struct {
	// Allow lists the names of the cookies that go on. Names are exact: case matters and there are no patterns.
	Allow []string `yaml:"allow"`
	// Duplicates says what happens when an allowed name comes more than once: `keep` all in order, only the `first`, or `refuse` the request.
	Duplicates string `yaml:"duplicates" default:"keep" enum:"keep,first,refuse"`
	// Strict also drops a cookie whose value is outside the RFC 10025 grammar, for servers that split on commas or honour quotes.
	Strict bool `yaml:"strict"`
}

// HeadersSpec is the `headers` block. The caller's own secrets never go on, whatever it says, but for `pass`.
type HeadersSpec struct {
	// Remove lists further headers that do not go on. A trailing `*` matches any rest.
	Remove []string `yaml:"remove"`
	// Allow lists the only headers that go on besides those HTTP and MCP need. A trailing `*` matches any rest.
	Allow []string `yaml:"allow"`
	// Pass lets the caller's own secret headers go on. Only with `credential: none`, and only `authorization`, `proxy-authorization`, `x-api-key`, `api-key`, `x-goog-api-key` and `ocp-apim-subscription-key`.
	Pass []string `yaml:"pass"`
}

// OriginsSpec is the `origins` block.
type OriginsSpec struct {
	// Allow lists accepted Origin values, such as https://app.company.com. They are compared exactly.
	Allow []string `yaml:"allow"`
}

// SecretSpec is a secret as written: a string with ${NAME}, {env: NAME} or {file: PATH}. A string without ${…} is a fault.
type SecretSpec struct{ Ref SecretRef }

// StringList is a string or a list of strings.
type StringList []string

// StringOrFalse is a string, or the word false.
type StringOrFalse struct {
	// Value is the string; empty when left out or false.
	Value string
	// Off is set by `false`.
	Off bool
}

// Duration is a time as Go writes it: 1.5s, 5m, 24h.
type Duration time.Duration
