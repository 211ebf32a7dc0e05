package tokens

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeyID bounds the kid of a token. It is looked up and nothing else: never a
	// path, never part of a query.
	maxKeyID = 256
	// maxClaims bounds the claims, and the header parameters. Issuers have a few
	// dozen. Each costs more than a byte of a long one, and whoever forges a token
	// has them read before anybody knows that it is forged.
	maxClaims = 256
)

// InvalidTokenError is why a token proves no caller. It is for the log of the
// operator: callers get the fixed text of a policy.Reason. It holds no part of
// the token, and what it quotes of its claims is cut and filtered.
type InvalidTokenError struct {
	// Code is one word from a closed list, such as expired or audience.
	Code string
	// Text is a sentence that says what to do where something can be done.
	Text string
}

// Error implements error.
func (e *InvalidTokenError) Error() string { return "token invalid: " + e.Text + " (" + e.Code + ")" }

func invalid(code, format string, args ...any) *InvalidTokenError {
	return &InvalidTokenError{code, fmt.Sprintf(format, args...)}
}

// cited shows a word of a token that nobody has vouched for.
func cited(s string) string { return `"` + oneLine(s, 100) + `"` }

// jws is a compact JWS (RFC 7515 §7.1), taken apart and not verified.
type jws struct {
	text              string
	alg, kid, typ     string
	named             bool // there is a kid
	payload           []byte
	signed, signature []byte
	claims            map[string]json.RawMessage
}

// parseJWS takes a token apart. It is stricter than any library: what two
// readers could read in two ways is refused, and sizes and alphabets are looked
// at before anything is decoded (RFC 8725 §3.11, rule J1).
func parseJWS(token []byte) (*jws, *InvalidTokenError) {
	parts, bad := split(token)
	if bad != nil {
		return nil, bad
	}
	var raw [3][]byte
	for i, p := range parts {
		if raw[i], bad = decodePart(p); bad != nil {
			return nil, bad
		}
	}
	j := &jws{text: string(token), payload: raw[1], signature: raw[2]}
	j.signed = []byte(j.text[:len(parts[0])+1+len(parts[1])])
	if bad = j.readHeader(raw[0]); bad != nil {
		return nil, bad
	}
	if j.claims, bad = tokenObject(raw[1], "claims"); bad != nil {
		return nil, bad
	}
	return j, nil
}

func split(token []byte) (parts [3][]byte, bad *InvalidTokenError) {
	if len(token) > maxToken {
		return parts, invalid("too_big", "it is over %d bytes", maxToken)
	}
	switch bytes.Count(token, []byte{'.'}) {
	case 2:
	case 4:
		return parts, invalid("encrypted", "it is encrypted (JWE): want a signed token")
	default:
		return parts, invalid("malformed", "it is no JWT: want three parts")
	}
	head, rest, _ := bytes.Cut(token, []byte{'.'})
	body, sign, _ := bytes.Cut(rest, []byte{'.'})
	return [3][]byte{head, body, sign}, nil
}

// decodePart decodes base64url. The library passes over line breaks, so the
// alphabet is looked at first.
func decodePart(part []byte) ([]byte, *InvalidTokenError) {
	malformed := invalid("malformed", "a part of it is not base64url as RFC 7515 §2 has it")
	if len(part) == 0 {
		return nil, malformed
	}
	for _, c := range part {
		if !isAlnum(c) && c != '-' && c != '_' {
			return nil, malformed
		}
	}
	out := make([]byte, base64.RawURLEncoding.DecodedLen(len(part)))
	if _, err := base64.RawURLEncoding.Strict().Decode(out, part); err != nil {
		return nil, malformed
	}
	return out, nil
}

// tokenObject reads a JSON object without duplicates, in valid UTF-8.
func tokenObject(b []byte, what string) (map[string]json.RawMessage, *InvalidTokenError) {
	if !utf8.Valid(b) {
		return nil, invalid("malformed", "its %s are not UTF-8", what)
	}
	fields, bad := object(b, maxClaims)
	switch {
	case bad == nil:
		return fields, nil
	case bad.Code == "too_many_members":
		return nil, invalid("too_big", "it has more than %d %s", maxClaims, what)
	case bad.Code == "duplicate_member":
		return nil, invalid("duplicate_member", "one of its %s is there twice", what)
	}
	return nil, invalid("malformed", "its %s are not one JSON object", what)
}

// readHeader reads the header and refuses what changes the meaning of the rest.
// jku and x5u are passed over: no address of a token is ever asked.
func (j *jws) readHeader(b []byte) *InvalidTokenError {
	header, bad := tokenObject(b, "header parameters")
	if bad != nil {
		return bad
	}
	for _, name := range []string{"crit", "b64"} {
		if _, ok := header[name]; ok {
			return invalid("critical", "its header has %s, and no such extension is known here", name)
		}
	}
	for _, name := range []string{"jwk", "x5c"} {
		if _, ok := header[name]; ok {
			return invalid("own_key", "it brings its own key (%s): only keys that the issuer publishes count", name)
		}
	}
	for name, into := range map[string]*string{"alg": &j.alg, "kid": &j.kid, "typ": &j.typ} {
		raw, ok := header[name]
		if !ok {
			continue
		}
		if *into = text(raw); *into == "" {
			return invalid("malformed", "its %s is not a string", name)
		}
	}
	j.named = j.kid != ""
	switch {
	case j.alg == "":
		return invalid("malformed", "its header has no alg")
	case len(j.kid) > maxKeyID:
		return invalid("malformed", "its kid is over %d bytes", maxKeyID)
	}
	return nil
}

// verify reports whether the key made the signature with the algorithm of the
// header. That they fit was settled before.
func (j *jws) verify(k *publicKey) bool {
	if j.alg == algEd25519 { // go-jose knows it by its old name alone
		key, ok := k.key.(ed25519.PublicKey)
		return ok && ed25519.Verify(key, j.signed, j.signature)
	}
	parsed, err := jose.ParseSignedCompact(j.text, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(j.alg)})
	if err != nil {
		return false
	}
	payload, err := parsed.Verify(k.key)
	// What was verified must be what was read.
	return err == nil && bytes.Equal(payload, j.payload)
}

// is reports whether the media type of the token is one of those given, which
// are in lower case (RFC 7515 §4.1.9: application/ may be left out).
func (j *jws) is(types ...string) bool {
	typ := strings.TrimPrefix(strings.ToLower(j.typ), "application/")
	return slices.Contains(types, typ)
}
