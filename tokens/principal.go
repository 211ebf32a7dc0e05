package tokens

import (
	"crypto/sha256"
	"fmt"
	"io"
	"time"
)

// Principal is whom a verified token speaks of. It is immutable and may be
// shared. No formatting verb shows the token.
type Principal struct {
	// Issuer and Subject together name the principal (RFC 9068 §2.2: a subject
	// is unique within its issuer only).
	Issuer, Subject string
	// ClientID is the client the token was issued to, or empty.
	ClientID string
	// Scopes are those of the token.
	Scopes []string
	// Expiry is the end of the token.
	Expiry time.Time
	// IDToken is whether the token is an ID token, not an access token.
	IDToken bool

	// A closure, for the reason that Token has one.
	token func() string
	sum   [sha256.Size]byte
}

// newPrincipal adds the token to what was read of it.
func newPrincipal(p Principal, token string) *Principal {
	p.token, p.sum = func() string { return token }, sha256.Sum256([]byte(token))
	return &p
}

// String names the principal without showing its token.
func (p *Principal) String() string { return fmt.Sprintf("principal %q of %q", p.Subject, p.Issuer) }

// GoString implements fmt.GoStringer.
func (p *Principal) GoString() string { return p.String() }

// Format implements fmt.Formatter for every verb.
func (p *Principal) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }
