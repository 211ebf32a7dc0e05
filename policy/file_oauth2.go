package policy

// OAuth2Spec is an OAuth 2 client (RFC 6749 §4.4, RFC 7523 §2.1, RFC 8693).
type OAuth2Spec struct {
	// TokenURL is the token endpoint. Write it, or `issuer`.
	TokenURL string `yaml:"token_url"`
	// Issuer is the authorization server's issuer identifier, exactly as the server writes it. Its metadata (RFC 8414 or OpenID Connect Discovery) then names the token endpoint; the credential goes to no other issuer.
	Issuer string `yaml:"issuer"`
	// AllowPlaintext permits an http token_url or issuer that is not loopback, and an http endpoint in the issuer's metadata.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// AllowPrivate permits a token endpoint that the metadata puts on another host than the issuer's, at a private or loopback address. A proxy at such an address needs it too.
	AllowPrivate bool `yaml:"allow_private"`
	// Grant is what tokens are asked for with: the client's own credentials (`client_credentials`); the JWT of `assertion` (`jwt_bearer`, RFC 7523 §2.1), such as the workload identity of a platform; or the caller's own token, so that each caller gets a token of its own: exchanged here (`token_exchange`, RFC 8693), or first at `idp` for an identity assertion that is shown here (`id_jag`, enterprise-managed authorization). Callers then must be of kind `jwt`.
	Grant string `yaml:"grant" default:"client_credentials" enum:"client_credentials,jwt_bearer,token_exchange,id_jag"`
	// Assertion is the file of the JWT that `jwt_bearer` shows. It is read at every token request.
	Assertion *PathSpec `yaml:"assertion"`
	// Subject is whom the token is about: the `caller`. With `token_exchange` and `id_jag` that goes without saying; with `jwt_bearer`, it shows the caller's token in place of an `assertion`.
	Subject string `yaml:"subject" enum:"caller"`
	// IDP is the identity provider that `id_jag` asks for the identity assertion.
	IDP *IDPSpec `yaml:"idp"`
	// ClientID is the client's identifier. Only `jwt_bearer` can do without, and without a secret or key of the client.
	ClientID string `yaml:"client_id"`
	// ClientSecret is the client's secret, for the client_secret methods: `${NAME}`, {env: NAME} or {file: PATH}. Never the secret itself.
	ClientSecret SecretSpec `yaml:"client_secret"`
	// PrivateKey is the key that signs the assertions of `private_key_jwt`, or the key of `certificate`: PEM (PKCS #8, PKCS #1 or SEC 1) or a JWK, named as a client_secret is, and read again at every token request. In a variable, the line breaks of PEM may be written \n.
	PrivateKey SecretSpec `yaml:"private_key"`
	// KeyID is the `kid` of the assertions. Left out, the one of a JWK, else none.
	KeyID string `yaml:"key_id"`
	// SigningAlgorithm signs the assertions. Left out, it follows from the key: RS256, ES256 or EdDSA.
	SigningAlgorithm string `yaml:"signing_algorithm" enum:"RS256,PS256,ES256,EdDSA"`
	// AssertionAudience is the sole `aud` of the assertions: the authorization server's issuer. Left out, `issuer`; with `token_url` it must be given.
	AssertionAudience string `yaml:"assertion_audience"`
	// AssertionTyp puts `typ: client-authentication+jwt` on the assertions. Set it to false for servers that refuse it.
	AssertionTyp *bool `yaml:"assertion_typ" default:"true"`
	// Certificate is the client certificate of the TLS methods, a PEM chain read again when it changes.
	Certificate *PathSpec `yaml:"certificate"`
	// AuthMethod says how the client authenticates. Left out, it follows from what the client has: a `certificate` means tls_client_auth, a `private_key` private_key_jwt, a `client_secret` client_secret_basic. With `issuer`, the server's metadata chooses among what the client has: private_key_jwt, client_secret_basic, client_secret_post, in this order.
	AuthMethod string `yaml:"auth_method" enum:"client_secret_basic,client_secret_post,private_key_jwt,tls_client_auth,self_signed_tls_client_auth"`
	// BasicEncoding says how client_secret_basic writes id and secret: form-encoded as RFC 6749 §2.3.1 demands (`form`), or as they are (`raw`), for servers that do not decode.
	BasicEncoding string `yaml:"basic_encoding" default:"form" enum:"form,raw"`
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

// IDPSpec is the client at the identity provider of `id_jag`. Its keys mean what they mean in `oauth2`; scopes and resource are those of `oauth2`.
type IDPSpec struct {
	// TokenURL is the identity provider's token endpoint. Write it, or `issuer`.
	TokenURL string `yaml:"token_url"`
	// Issuer is the identity provider's issuer identifier, whose metadata names the token endpoint.
	Issuer string `yaml:"issuer"`
	// AllowPlaintext permits http that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// AllowPrivate permits a token endpoint on another host than the issuer's, at a private or loopback address.
	AllowPrivate bool `yaml:"allow_private"`
	// ClientID is the client's identifier at the identity provider.
	ClientID string `yaml:"client_id"`
	// ClientSecret is the client's secret.
	ClientSecret SecretSpec `yaml:"client_secret"`
	// PrivateKey signs the assertions of `private_key_jwt`, or is the key of `certificate`.
	PrivateKey SecretSpec `yaml:"private_key"`
	// KeyID is the `kid` of the client's assertions.
	KeyID string `yaml:"key_id"`
	// SigningAlgorithm signs the client's assertions.
	SigningAlgorithm string `yaml:"signing_algorithm" enum:"RS256,PS256,ES256,EdDSA"`
	// AssertionAudience is the sole `aud` of the client's assertions. Left out, `issuer`.
	AssertionAudience string `yaml:"assertion_audience"`
	// AssertionTyp puts `typ: client-authentication+jwt` on the client's assertions.
	AssertionTyp *bool `yaml:"assertion_typ" default:"true"`
	// Certificate is the client certificate of the TLS methods.
	Certificate *PathSpec `yaml:"certificate"`
	// AuthMethod says how the client authenticates. Left out, it follows as in `oauth2`.
	AuthMethod string `yaml:"auth_method" enum:"client_secret_basic,client_secret_post,private_key_jwt,tls_client_auth,self_signed_tls_client_auth"`
	// BasicEncoding says how client_secret_basic writes id and secret.
	BasicEncoding string `yaml:"basic_encoding" default:"form" enum:"form,raw"`
	// CA is the path of a PEM file with the authorities that sign the identity provider's certificate. Left out, the system's.
	CA string `yaml:"ca"`
	// Audience is the issuer of the authorization server that takes the identity assertion. Left out, the `issuer` of `oauth2`.
	Audience string `yaml:"audience"`
	// Params are further parameters of the request to the identity provider.
	Params map[string]string `yaml:"params"`
}
