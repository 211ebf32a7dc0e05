package tokens

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// minRSA is the least size of an RSA key, in bits (RFC 7518 §3.3).
const minRSA = 2048

// privateKey is a client's key. The kid and alg are those of a JWK.
type privateKey struct {
	signer  crypto.Signer
	id, alg string
}

// parsePrivateKey reads PEM (PKCS #8, PKCS #1, SEC 1) or a JWK. No error quotes
// any of it, and none wraps one of a library that might.
func parsePrivateKey(text string) (privateKey, error) {
	var k privateKey
	var err error
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		k, err = parseJWK(text)
	} else {
		k.signer, err = parsePEM(text)
	}
	if err != nil {
		return privateKey{}, err
	}
	if r, ok := k.signer.(*rsa.PrivateKey); ok && r.N.BitLen() < minRSA {
		return privateKey{}, fmt.Errorf("it is an RSA key of %d bits, want at least %d", r.N.BitLen(), minRSA)
	}
	return k, nil
}

func parseJWK(text string) (privateKey, error) {
	var jwk jose.JSONWebKey
	if json.Unmarshal([]byte(text), &jwk) != nil || !jwk.Valid() {
		return privateKey{}, errors.New("it is no valid JWK")
	}
	signer, ok := jwk.Key.(crypto.Signer)
	if !ok {
		return privateKey{}, errors.New("it is a JWK without a private key")
	}
	if jwk.Use == "enc" {
		return privateKey{}, errors.New("it is a JWK for encryption, want one for signatures")
	}
	return privateKey{signer, jwk.KeyID, jwk.Algorithm}, nil
}

func parsePEM(text string) (crypto.Signer, error) {
	// Variables often hold a PEM on one line, its breaks spelled out.
	if !strings.Contains(strings.TrimSpace(text), "\n") {
		text = strings.ReplaceAll(text, `\n`, "\n")
	}
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, errors.New("want PEM or a JWK with a private key, got neither")
		}
		var key any
		var err error
		switch b.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(b.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("it is encrypted: store it without a passphrase")
		default:
			continue
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, errors.New("its PEM holds no key that can be read; is it encrypted or cut off?")
		}
		return signer, nil
	}
}

// algorithms lists what the key can sign with (RFC 7518 §3.1, RFC 8037 §3.1),
// the usual one first. One key type has one curve here.
func (k privateKey) algorithms() []string {
	switch key := k.signer.(type) {
	case *rsa.PrivateKey:
		return []string{string(jose.RS256), string(jose.PS256)}
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P256() {
			return []string{string(jose.ES256)}
		}
	case ed25519.PrivateKey:
		return []string{string(jose.EdDSA)}
	}
	return nil
}

// algorithm chooses what to sign with: what was asked for, else what the JWK
// says, else the first that the server takes; offered is nil when it does not say.
func (k privateKey) algorithm(asked string, offered []string) (jose.SignatureAlgorithm, error) {
	can := k.algorithms()
	if len(can) == 0 {
		return "", errors.New("want an RSA, P-256 or Ed25519 key")
	}
	if asked == "" {
		asked = k.alg
	}
	if asked != "" {
		if !slices.Contains(can, asked) {
			return "", fmt.Errorf("it signs with %s, and the signing algorithm is to be %s", strings.Join(can, " or "), oneLine(asked, 20))
		}
		can = []string{asked}
	}
	if offered == nil {
		return jose.SignatureAlgorithm(can[0]), nil
	}
	for _, alg := range can {
		if slices.Contains(offered, alg) {
			return jose.SignatureAlgorithm(alg), nil
		}
	}
	return "", fmt.Errorf("it signs with %s, and the server takes %s", strings.Join(can, " or "), oneLine(strings.Join(offered, ", "), 100))
}
