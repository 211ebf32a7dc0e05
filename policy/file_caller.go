package policy

// CallerSpec says how one caller proves who it is: exactly one of the kinds.
type CallerSpec struct {
	// Any admits everybody. It must be said in words: `any: true`.
	Any bool `yaml:"any"`
	// Key admits requests with the right x-mcp-auth-key header.
	Key *KeySpec `yaml:"key"`
	// MTLS admits requests that came over TLS with a client certificate that Envoy verified.
	MTLS *MTLSSpec `yaml:"mtls"`
	// JWT admits requests with an access token of an issuer. A request with a token is judged by it alone, whatever else it proves.
	JWT *JWTSpec `yaml:"jwt"`
	// Scopes are what a caller without a token may do. The scopes of a `jwt` caller are those of its token.
	Scopes []string `yaml:"scopes"`
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

// JWTSpec is a caller with an access token, a signed JWT (RFC 9068). The token never goes on to an upstream.
type JWTSpec struct {
	// Issuer is the token's `iss`, exactly as the issuer writes it.
	Issuer string `yaml:"issuer" required:"true"`
	// Audience is what the token's `aud` must hold: one, or a list of which any one will do. It names this proxy, not an upstream.
	Audience StringList `yaml:"audience" required:"true"`
	// JWKSURL is where the issuer's keys are. Left out, the issuer's metadata (RFC 8414 or OpenID Connect Discovery) says so.
	JWKSURL string `yaml:"jwks_url"`
	// Algorithms are the accepted signatures, of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512 and EdDSA. Left out: RS256, PS256, ES256 and EdDSA.
	Algorithms []string `yaml:"algorithms"`
	// Header is the request header with the token, as `Bearer TOKEN`. In another one than `authorization`, the bare TOKEN will do. It never goes on, at any upstream.
	Header string `yaml:"header" default:"authorization"`
	// Profile says which tokens are taken: access tokens that say they are one by `typ: at+jwt` (`rfc9068`), those of issuers that do not (`generic`), or ID tokens, for upstreams with the grant `id_jag` or `token_exchange` alone (`id_token`).
	Profile string `yaml:"profile" default:"rfc9068" enum:"rfc9068,generic,id_token"`
	// ScopeClaim is the claim with the token's scopes: a string with blanks between them, or a list. Some issuers call it `scp`.
	ScopeClaim string `yaml:"scope_claim" default:"scope"`
	// RequireScopes are the scopes without which a token is not enough to call.
	RequireScopes []string `yaml:"require_scopes"`
	// Skew is how far the issuer's clock may be off, at most 60s.
	Skew Duration `yaml:"skew" default:"30s"`
	// CA is the path of a PEM file with the authorities that sign the certificate of the issuer and of `jwks_url`. Left out, the system's.
	CA string `yaml:"ca"`
	// AllowPlaintext permits an http issuer or jwks_url that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// AllowPrivate permits keys that the issuer's metadata puts on another host than the issuer's, at a private or loopback address. A proxy at such an address needs it too.
	AllowPrivate bool `yaml:"allow_private"`
}
