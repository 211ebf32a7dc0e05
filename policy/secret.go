package policy

import (
	"fmt"
	"io"
	"net/url"
)

// hidden is what a Secret shows of itself, whoever asks.
const hidden = "***"

// Secret holds a value that must not be printed. No formatting verb, marshaller
// or logger shows it; the only way to the value is Reveal. The pointer matters:
// fmt does not call the methods of a value in an unexported field, and then
// prints an address instead of the secret.
type Secret struct{ p *string }

// NewSecret wraps a value.
func NewSecret(v string) Secret { return Secret{&v} }

// Reveal returns the value: the one exit. It is empty for the zero Secret.
func (s Secret) Reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// IsZero reports whether the Secret was never set.
func (s Secret) IsZero() bool { return s.p == nil }

// Format implements fmt.Formatter for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// String implements fmt.Stringer.
func (s Secret) String() string { return hidden }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return hidden }

// MarshalText implements encoding.TextMarshaler, and with it JSON and XML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// MarshalYAML implements yaml.Marshaler.
func (s Secret) MarshalYAML() (any, error) { return hidden, nil }

// SecretKind says where a SecretRef is read from.
type SecretKind uint8

// The kinds of secret sources.
const (
	// SecretText is a string of the policy file with ${NAME} in it, expanded when the file was read.
	SecretText SecretKind = iota + 1
	// SecretEnv is {env: NAME}.
	SecretEnv
	// SecretFile is {file: PATH}, read again when the file changes.
	SecretFile
	// SecretVault is {vault: {mount: M, path: P, key: K}}.
	SecretVault
	// SecretAWS is {aws: {secret: S, key: K}}.
	SecretAWS
	// SecretGCP is {gcp: {secret: S, version: V}}.
	SecretGCP
)

// SecretRef is a secret as the policy file names it: where it is, not what it
// is. It is comparable, and two equal refs name the same secret of a policy.
type SecretRef struct {
	// Kind says which source.
	Kind SecretKind
	// Name is the text before expansion (such as "Bearer ${KEY}"), the
	// variable's name, or the file's path. For a secret in a store it holds all
	// parts of the place, as a URL query: Part returns each. It is not secret.
	Name string
}

// VaultRef names a key of a secret in Vault.
func VaultRef(mount, path, key string) SecretRef {
	return SecretRef{SecretVault, url.Values{"mount": {mount}, "path": {path}, "key": {key}}.Encode()}
}

// AWSRef names a secret in AWS Secrets Manager, or with a key one member of it.
func AWSRef(secret, key string) SecretRef {
	parts := url.Values{"secret": {secret}}
	if key != "" {
		parts.Set("key", key)
	}
	return SecretRef{SecretAWS, parts.Encode()}
}

// GCPRef names a version of a secret in Google Secret Manager.
func GCPRef(secret, version string) SecretRef {
	return SecretRef{SecretGCP, url.Values{"secret": {secret}, "version": {version}}.Encode()}
}

// IsZero reports whether the ref was never set.
func (r SecretRef) IsZero() bool { return r.Kind == 0 }

// Remote reports whether the secret is in a store behind the network.
func (r SecretRef) Remote() bool {
	return r.Kind == SecretVault || r.Kind == SecretAWS || r.Kind == SecretGCP
}

// Part returns one part of a secret's place in a store, by the key that the
// policy file has for it. It is empty when left out.
func (r SecretRef) Part(key string) string {
	parts, err := url.ParseQuery(r.Name)
	if err != nil || !r.Remote() {
		return ""
	}
	return parts.Get(key)
}

// String returns the ref as a policy file would write it.
func (r SecretRef) String() string {
	switch r.Kind {
	case SecretText:
		return r.Name
	case SecretEnv:
		return "{env: " + r.Name + "}"
	case SecretFile:
		return "{file: " + r.Name + "}"
	case SecretVault:
		return "{vault: {mount: " + r.Part("mount") + ", path: " + r.Part("path") + ", key: " + r.Part("key") + "}}"
	case SecretAWS:
		if key := r.Part("key"); key != "" {
			return "{aws: {secret: " + r.Part("secret") + ", key: " + key + "}}"
		}
		return "{aws: {secret: " + r.Part("secret") + "}}"
	case SecretGCP:
		return "{gcp: {secret: " + r.Part("secret") + ", version: " + r.Part("version") + "}}"
	}
	return ""
}
