package policy

import (
	"fmt"
	"io"
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
)

// SecretRef is a secret as the policy file names it: where it is, not what it
// is. It is comparable, and two equal refs name the same secret.
type SecretRef struct {
	// Kind says which source.
	Kind SecretKind
	// Name is the text before expansion (such as "Bearer ${KEY}"), the
	// variable's name, or the file's path. It is not secret.
	Name string
}

// IsZero reports whether the ref was never set.
func (r SecretRef) IsZero() bool { return r.Kind == 0 }

// String returns the ref as a policy file would write it.
func (r SecretRef) String() string {
	switch r.Kind {
	case SecretText:
		return r.Name
	case SecretEnv:
		return "{env: " + r.Name + "}"
	case SecretFile:
		return "{file: " + r.Name + "}"
	}
	return ""
}
