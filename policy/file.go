package policy

import (
	"strings"
	"time"
)

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
	// SecretStores says how the stores are reached that secrets are read from. Needed for `{vault: …}` and `{aws: …}`.
	SecretStores SecretStoresSpec `yaml:"secret_stores"`
	// SharedCache is where replicas share tokens. Left out, each process fetches its own.
	SharedCache *SharedCacheSpec `yaml:"shared_cache"`
	// Audit is where a record of every decision and outcome goes. Left out, none is kept.
	Audit *AuditSpec `yaml:"audit"`
	// Limits says how much may be called how often. Left out, nothing is limited.
	Limits *LimitsSpec `yaml:"limits"`
	// Tracing says where spans go. Left out, nowhere.
	Tracing *TracingSpec `yaml:"tracing"`
	// Watch says how calls are watched, and who is told. Left out, nobody is.
	Watch *WatchSpec `yaml:"watch"`
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
	// Admin is the address of the page, /status, /metrics, /healthz and /readyz. The page and /status answer to IP addresses, localhost and the host written here.
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
	// Tools is inherited by upstreams without `tools`.
	Tools *ToolsSpec `yaml:"tools"`
	// Sessions is inherited by upstreams without `sessions`.
	Sessions string `yaml:"sessions" default:"bind" enum:"bind,off"`
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
	// Tools says who may use which tool, prompt or resource. Left out, every caller may use all.
	Tools *ToolsSpec `yaml:"tools"`
	// RetryOn401 lets Envoy repeat a call once, with a new token, when the upstream refused the old one.
	RetryOn401 *bool `yaml:"retry_on_401" default:"true"`
	// Sessions says whether an `Mcp-Session-Id` is good for the one principal alone that it was given to: a token's issuer and subject, else the caller. Several people behind one key, or behind a caller of kind `any`, are one principal. Write `off` for a server without sessions that gives everybody the same id.
	Sessions string `yaml:"sessions" enum:"bind,off"`
	// StaleGrace is how long an expired access token goes on being lent while the token endpoint cannot be reached, until the upstream refuses it. Left out, not at all.
	StaleGrace Duration `yaml:"stale_grace"`
	// Discover reads the upstream's protected resource metadata (RFC 9728) in the background and compares its resource and authorization servers with this file. What differs is reported; it decides nothing.
	Discover bool `yaml:"discover"`
	// Watch is what this upstream has otherwise than the `watch` block of the file.
	Watch *UpstreamWatchSpec `yaml:"watch"`
	// Disabled switches the upstream off: every call is refused with 503 `upstream_disabled`, and other upstreams go on.
	Disabled bool `yaml:"disabled"`
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
	// Outcomes says what tells how a call ended: Envoy's access log, or, where none can be sent here, the headers of the answer. Those cost a message more for each call, hold a stream until the answer begins, and say nothing of what comes after.
	Outcomes string `yaml:"outcomes" default:"access_log" enum:"access_log,response_headers"`
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

// PathSpec is a file that holds no secret.
type PathSpec struct {
	// File is its path.
	File string `yaml:"file" required:"true"`
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

// SecretSpec is a secret: a string with ${NAME} in it, or a mapping with exactly one of the keys below. A string without ${…} is a fault. Whatever the source, one trailing newline is cut, and a secret has at most 64 KiB.
type SecretSpec struct {
	// Ref is what the compiled policy keeps.
	Ref SecretRef `yaml:"-"`
	// Env is the name of an environment variable.
	Env string `yaml:"env"`
	// File is the path of a file. A new content is in use within 5 s.
	File string `yaml:"file"`
	// Vault is a key of a secret in HashiCorp Vault or OpenBao (KV version 2).
	Vault *VaultSecretSpec `yaml:"vault"`
	// AWS is a secret in AWS Secrets Manager.
	AWS *AWSSecretSpec `yaml:"aws"`
	// GCP is a secret in Google Secret Manager.
	GCP *GCPSecretSpec `yaml:"gcp"`
}

// VaultSecretSpec names one key of a secret in the KV version 2 engine of `secret_stores.vault`. Always its newest version.
type VaultSecretSpec struct {
	// Mount is where the engine is mounted.
	Mount string `yaml:"mount" default:"secret"`
	// Path is the path below the mount, as `vault kv get` takes it: without `data/`.
	Path string `yaml:"path" required:"true"`
	// Key is the key within the secret. Its value is a string.
	Key string `yaml:"key" required:"true"`
}

// AWSSecretSpec names a secret of AWS Secrets Manager. Always the version with the stage AWSCURRENT.
type AWSSecretSpec struct {
	// Secret is the secret's name or ARN.
	Secret string `yaml:"secret" required:"true"`
	// Key is a member of the JSON object that the secret holds. Left out, the secret is the value as it is.
	Key string `yaml:"key"`
}

// GCPSecretSpec names a secret of Google Secret Manager.
type GCPSecretSpec struct {
	// Secret is the secret's resource name: projects/P/secrets/S, or projects/P/locations/L/secrets/S.
	Secret string `yaml:"secret" required:"true"`
	// Version is a number or an alias. A number stays as it is for good; a new version is only seen with `latest` or an alias.
	Version string `yaml:"version" default:"latest"`
}

// SecretStoresSpec is the `secret_stores` block. The stores are read in the background. While one is down, the last good values stay in use; calls that need a secret that was never read are refused, and after a start /readyz fails, until it is there.
type SecretStoresSpec struct {
	// Every is how often each secret is read again, give or take a tenth.
	Every Duration `yaml:"every" default:"60s"`
	// Vault is the HashiCorp Vault or OpenBao of `{vault: …}`.
	Vault *VaultStoreSpec `yaml:"vault"`
	// AWS is the AWS Secrets Manager of `{aws: …}`.
	AWS *AWSStoreSpec `yaml:"aws"`
	// GCP is the Google Secret Manager of `{gcp: …}`. Only needed for other credentials than the default ones of the environment.
	GCP *GCPStoreSpec `yaml:"gcp"`
}

// VaultStoreSpec is a HashiCorp Vault or OpenBao server. Nothing is taken from VAULT_… variables.
type VaultStoreSpec struct {
	// Address is the server's URL, such as https://vault.company.com:8200.
	Address string `yaml:"address" required:"true"`
	// AllowPlaintext permits an http address that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// Namespace is the namespace of every request.
	Namespace string `yaml:"namespace"`
	// CA is the path of a PEM file with the authorities that sign the server's certificate. Left out, the system's.
	CA string `yaml:"ca"`
	// Auth says how this process logs in.
	Auth VaultAuthSpec `yaml:"auth" required:"true"`
}

// VaultAuthSpec is how this process logs in to Vault: exactly one of the kinds. The token is renewed when two thirds of its life are over; when it cannot be, or is refused, there is a new login.
type VaultAuthSpec struct {
	// Token is a token that somebody else issues, such as Vault Agent into a file.
	Token *SecretSpec `yaml:"token"`
	// AppRole logs in with a role_id and a secret_id.
	AppRole *VaultAppRoleSpec `yaml:"approle"`
	// Kubernetes logs in with the token of this pod's service account.
	Kubernetes *VaultKubernetesSpec `yaml:"kubernetes"`
}

// VaultAppRoleSpec is a login by AppRole.
type VaultAppRoleSpec struct {
	// RoleID is the role_id.
	RoleID string `yaml:"role_id" required:"true"`
	// SecretID is the secret_id, by `${NAME}`, {env: NAME} or {file: PATH}.
	SecretID SecretSpec `yaml:"secret_id" required:"true"`
	// Mount is where the auth method is mounted.
	Mount string `yaml:"mount" default:"approle"`
}

// VaultKubernetesSpec is a login by a Kubernetes service account.
type VaultKubernetesSpec struct {
	// Role is the Vault role.
	Role string `yaml:"role" required:"true"`
	// TokenFile is the path of the service account's token, read at every login.
	TokenFile string `yaml:"token_file" default:"/var/run/secrets/kubernetes.io/serviceaccount/token"`
	// Mount is where the auth method is mounted.
	Mount string `yaml:"mount" default:"kubernetes"`
}

// AWSStoreSpec is the AWS Secrets Manager of a region. Without `access_key_id`, the credentials are those that AWS's own tools would find: variables, a web identity, shared files, the role of the container or instance.
type AWSStoreSpec struct {
	// Region is the AWS region, such as eu-central-1.
	Region string `yaml:"region" required:"true"`
	// Endpoint is the URL of another endpoint, such as that of a VPC.
	Endpoint string `yaml:"endpoint"`
	// AllowPlaintext permits an http endpoint that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// AccessKeyID is the id of a fixed access key. Needs `secret_access_key`.
	AccessKeyID *SecretSpec `yaml:"access_key_id"`
	// SecretAccessKey is the secret of the access key.
	SecretAccessKey *SecretSpec `yaml:"secret_access_key"`
}

// GCPStoreSpec is Google Secret Manager. Without `credentials`, they are Google's application default credentials.
type GCPStoreSpec struct {
	// Endpoint is the URL of another endpoint, such as a regional one.
	Endpoint string `yaml:"endpoint"`
	// AllowPlaintext permits an http endpoint that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// Credentials is the JSON key of a service account.
	Credentials *SecretSpec `yaml:"credentials"`
}

// SharedCacheSpec is the `shared_cache` block: a Redis or Valkey server through which replicas lend one token. What is stored there is encrypted. While it cannot be reached, each replica goes on alone.
type SharedCacheSpec struct {
	// Redis is the server: rediss://HOST:PORT/DB, redis://HOST:PORT/DB or unix:///PATH. Without user and password, which have keys of their own.
	Redis string `yaml:"redis" required:"true"`
	// AllowPlaintext permits a redis:// server that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// Username is the user to log in as. Left out, the server's default one.
	Username string `yaml:"username"`
	// Password is the user's password.
	Password SecretSpec `yaml:"password"`
	// CA is the path of a PEM file with the authorities that sign the certificate of a rediss:// server. Left out, the system's.
	CA string `yaml:"ca"`
	// Key encrypts what is stored: at least 32 characters, the same for every replica, and nobody else's.
	Key SecretSpec `yaml:"key" required:"true"`
	// Prefix starts the names of what is stored. Replicas share tokens when it is the same.
	Prefix string `yaml:"prefix" default:"envoy-mcp-auth"`
}

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

// DurationText writes a duration as a policy file would: 5m, not 5m0s.
func DurationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes: 64KiB, 1MiB.
type Size int64
