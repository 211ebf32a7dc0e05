package tokens

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"time"
)

// Token is an access token, ready to be put on a request. It is immutable and
// may be shared. No formatting verb, marshaller or logger shows its value.
type Token struct {
	// A closure, because nothing looks into one. fmt skips the methods below
	// when the Token is in an unexported field of some other struct, and
	// with %s it prints what a pointer to a struct or slice there points to.
	value       func() []byte
	fingerprint string
	expiry      time.Time // with the monotonic reading, so that a stepped clock neither kills nor revives it
	lifetime    time.Duration
	scope       string
}

// newToken wraps a checked access token that was received at the time given.
func newToken(key []byte, access string, at time.Time, life time.Duration, scope string) *Token {
	authorization := []byte("Bearer " + access)
	return &Token{
		value:       func() []byte { return authorization },
		fingerprint: fingerprint(key, access),
		expiry:      at.Add(life),
		lifetime:    life,
		scope:       scope,
	}
}

// fingerprint is a keyed hash: two lines of a log can be told to speak of one
// token, and nobody can test a guess without the key, which dies with the process.
func fingerprint(key []byte, access string) string {
	m := hmac.New(sha256.New, key)
	_, _ = io.WriteString(m, access)
	return hex.EncodeToString(m.Sum(nil)[:4])
}

// Authorization returns the value of the Authorization header: the one exit of
// the secret. The bytes are shared; do not modify them.
func (t *Token) Authorization() []byte { return t.value() }

// Fingerprint returns 8 hex digits that name the token within this process.
func (t *Token) Fingerprint() string { return t.fingerprint }

// Expiry returns when the token stops being handed out.
func (t *Token) Expiry() time.Time { return t.expiry }

// Lifetime returns how long the token lived when it came, after all caps.
func (t *Token) Lifetime() time.Duration { return t.lifetime }

// Scope returns the scope of the answer; empty when it named none, which means
// the one requested (RFC 6749 §5.1).
func (t *Token) Scope() string { return t.scope }

// Type returns the token type. It is always Bearer: any other is refused.
func (t *Token) Type() string { return "Bearer" }

// String names the token without showing it.
func (t *Token) String() string { return "token " + t.fingerprint }

// GoString implements fmt.GoStringer.
func (t *Token) GoString() string { return t.String() }

// Format implements fmt.Formatter for every verb.
func (t *Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// MarshalText implements encoding.TextMarshaler, and with it JSON and XML.
func (t *Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalYAML implements yaml.Marshaler.
func (t *Token) MarshalYAML() (any, error) { return t.String(), nil }
