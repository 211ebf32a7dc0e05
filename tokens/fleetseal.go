package tokens

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"time"
)

const (
	sealVersion = 1
	// maxSealed bounds what is read back: whoever can write to the server must
	// not be able to fill our memory.
	maxSealed = 32 << 10
)

var errSealed = errors.New("not sealed by this fleet for this place")

// kept is a token as it is stored.
type kept struct {
	Access  string        `json:"access"`
	Life    time.Duration `json:"life"`
	Refresh time.Duration `json:"refresh,omitempty"`
	Scope   string        `json:"scope,omitempty"`
	// At is when it was received, by the clock of the replica that did.
	At time.Time `json:"at"`
}

// placeOf names a credential in the shared cache. It is a keyed hash: the name
// tells a reader of the server nothing, and replicas with different keys do not
// meet. workload is the platform's JWT of the grant jwt_bearer: two workloads
// with one policy are two clients, so who it speaks of belongs in the name.
func placeOf(secret string, id key, workload string) (string, error) {
	mac, err := hkdf.Key(sha256.New, []byte(secret), nil, "envoy-mcp-auth shared cache: places", sha256.Size)
	if err != nil {
		return "", err
	}
	h := hmac.New(sha256.New, mac)
	part(h, string(id[:]), whose(workload))
	return hex.EncodeToString(h.Sum(nil)), nil
}

// whose returns whom a JWT speaks of, or for want of that all of it.
func whose(jwt string) string {
	var claims struct{ Iss, Sub string }
	if parts := strings.Split(jwt, "."); len(parts) == 3 {
		body, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err == nil && json.Unmarshal(body, &claims) == nil && claims.Sub != "" {
			h := sha256.New()
			part(h, claims.Iss, claims.Sub)
			return string(h.Sum(nil))
		}
	}
	return jwt
}

// box returns the cipher of a place. Each place has a key of its own, so that
// the limit on random nonces (2^32 for one key) is never near.
func box(secret, place string) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, []byte(secret), nil, "envoy-mcp-auth shared cache: token at "+place, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// seal lays a token out for its place: a version, a nonce, and the rest sealed
// with AES-256-GCM, the place being part of what is authenticated.
func seal(secret, place string, k kept) ([]byte, error) {
	aead, err := box(secret, place)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(nil, nil, plain, []byte(place)) //nolint:gosec // G407: this AEAD makes its nonces itself
	return append([]byte{sealVersion}, sealed...), nil
}

// unseal is the way back. It takes nothing that seal did not make for this place.
func unseal(secret, place string, b []byte) (kept, error) {
	aead, err := box(secret, place)
	if err != nil {
		return kept{}, err
	}
	if len(b) == 0 || b[0] != sealVersion {
		return kept{}, errSealed
	}
	plain, err := aead.Open(nil, nil, b[1:], []byte(place))
	if err != nil {
		return kept{}, errSealed
	}
	var k kept
	if json.Unmarshal(plain, &k) != nil || !isB64Token(k.Access) || !isScope(k.Scope) || k.Life <= 0 || k.Refresh < 0 {
		return kept{}, errSealed
	}
	return k, nil
}
