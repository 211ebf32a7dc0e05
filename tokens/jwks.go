package tokens

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

const (
	// maxKeys bounds a key set. Issuers have two to ten.
	maxKeys = 100
	// maxRSA bounds what one verification costs.
	maxRSA = 8192
	// algEd25519 is the new name of EdDSA with this curve (RFC 9864 §2.2).
	algEd25519 = "Ed25519"
)

// publicKey is one key of an issuer.
type publicKey struct {
	id  string // "" for none
	alg string // "" when the set does not say; Ed25519 under its old name
	key crypto.PublicKey
}

// keySet is what an issuer published. It is immutable; as long as the issuer
// publishes the same, it is the same pointer.
type keySet struct {
	keys []*publicKey // sorted
	byID map[string]*publicKey
	// spoiled are the ids that were there and name no key that counts.
	spoiled map[string]string
	// skipped says, for the log, which keys do not count and why.
	skipped []string
	sum     [sha256.Size]byte
}

// parseKeys reads a JWK set (RFC 7517 §5), key by key: a bad one must not take
// the others with it. A set without one usable key is a failure, not the news
// that there are none: that is how broken issuers look, and it would lock everybody out.
func parseKeys(body []byte, issuer string) (*keySet, *Error) {
	fields, bad := members(body)
	if bad != nil {
		bad.Text = "the key set of " + issuer + " is not usable: " + bad.Text
		return nil, bad
	}
	var list []json.RawMessage
	if raw := fields["keys"]; raw == nil || json.Unmarshal(raw, &list) != nil {
		return nil, refused("no_key_set", "what %s has as its key set has no list of keys: check jwks_url", issuer)
	}
	if len(list) > maxKeys {
		return nil, refused("too_many_keys", "the key set of %s has %d keys, want at most %d", issuer, len(list), maxKeys)
	}
	s := &keySet{byID: map[string]*publicKey{}, spoiled: map[string]string{}}
	for i, raw := range list {
		s.add(i, raw)
	}
	s.seal()
	if len(s.keys) == 0 {
		why := "it is empty"
		if len(s.skipped) > 0 {
			why = s.skipped[0]
		}
		return nil, refused("no_keys", "the key set of %s has no key that can verify a signature: %s", issuer, why)
	}
	return s, nil
}

// add takes one key, or notes why it does not count.
func (s *keySet) add(i int, raw json.RawMessage) {
	fields, bad := members(raw)
	if bad != nil {
		s.skip(i, "", "it is not one JSON object without duplicates")
		return
	}
	k := &publicKey{id: text(fields["kid"]), alg: oldName(text(fields["alg"]))}
	if why := unsuited(fields); why != "" {
		s.skip(i, k.id, why)
		return
	}
	var why string
	switch secret := private(fields); {
	case secret != "":
		why = "it is private or symmetric (" + secret + "), so others may have it"
	case len(k.id) > maxKeyID:
		why = "its kid is too long"
	default:
		k.key, why = readKey(fields)
	}
	if why == "" && k.alg != "" && !fits(k.key, k.alg) {
		why = "its alg does not fit its type"
	}
	_, spoiled := s.spoiled[k.id]
	if k.id != "" && why == "" && (s.byID[k.id] != nil || spoiled) {
		why = "another has the same kid, so nobody can tell which is meant"
	}
	if why != "" {
		s.skip(i, k.id, why)
		s.spoil(k.id, why)
		return
	}
	if k.id != "" {
		s.byID[k.id] = k
	}
	s.keys = append(s.keys, k)
}

// skip notes a key that does not count.
func (s *keySet) skip(i int, id, why string) {
	s.skipped = append(s.skipped, fmt.Sprintf("key %d (kid %s): %s", i+1, cited(id), why))
}

// spoil makes a kid name nothing, also the key that had it before.
func (s *keySet) spoil(id, why string) {
	if id == "" {
		return
	}
	s.spoiled[id] = why
	delete(s.byID, id)
	s.keys = slices.DeleteFunc(s.keys, func(k *publicKey) bool { return k.id == id })
}

// seal sorts the keys and sums up the set.
func (s *keySet) seal() {
	slices.SortFunc(s.keys, func(a, b *publicKey) int { return strings.Compare(a.line(), b.line()) })
	h := sha256.New()
	for _, k := range s.keys {
		part(h, k.line())
	}
	part(h, slices.Sorted(maps.Keys(s.spoiled))...)
	s.sum = [sha256.Size]byte(h.Sum(nil))
}

// line is all that tells the key from another.
func (k *publicKey) line() string {
	sum, _ := (&jose.JSONWebKey{Key: k.key}).Thumbprint(crypto.SHA256)
	return fmt.Sprintf("%q %q %x", k.id, k.alg, sum)
}

// unsuited says why a key is none of ours (RFC 7517 §4.2 and §4.3, rule J3): it
// is for something else, or of a kind that is not known here.
func unsuited(fields map[string]json.RawMessage) string {
	if use, ok := fields["use"]; ok && text(use) != "sig" {
		return "its use is not sig"
	}
	if raw, ok := fields["key_ops"]; ok {
		var ops []string
		if json.Unmarshal(raw, &ops) != nil || !slices.Contains(ops, "verify") {
			return "its key_ops are without verify"
		}
	}
	if alg, ok := fields["alg"]; ok && !slices.Contains(signatures(), oldName(text(alg))) {
		return "its alg is no signature algorithm that is known here"
	}
	switch kty := text(fields["kty"]); kty {
	case "RSA", "EC", "OKP", "oct":
		return ""
	}
	return "its kty is not known here"
}

// private returns the first member that no public key has (RFC 7518 §6).
func private(fields map[string]json.RawMessage) string {
	for _, name := range []string{"k", "d", "p", "q", "dp", "dq", "qi", "oth"} {
		if _, ok := fields[name]; ok {
			return name
		}
	}
	if text(fields["kty"]) == "oct" {
		return "oct"
	}
	return ""
}

// readKey reads the key itself, and leaves out what else there is: certificates
// count for nothing here, so a bad one must not spoil the key.
func readKey(fields map[string]json.RawMessage) (key crypto.PublicKey, why string) {
	bare := map[string]json.RawMessage{}
	for _, name := range []string{"kty", "crv", "x", "y", "n", "e"} {
		if raw, ok := fields[name]; ok {
			bare[name] = raw
		}
	}
	var jwk jose.JSONWebKey
	raw, err := json.Marshal(bare)
	if err != nil || json.Unmarshal(raw, &jwk) != nil || !jwk.Valid() {
		return nil, "it cannot be read"
	}
	switch key := jwk.Key.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Sprintf("it has %d bits, want %d to %d", n, minRSA, maxRSA)
		}
		if key.E < 3 || key.E%2 == 0 || key.N.Bit(0) == 0 {
			return nil, "its modulus and exponent cannot be those of an RSA key"
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, "its type is not known here"
	}
	return jwk.Key, ""
}

// signatures lists the algorithms that are known here. HS256 and its like are
// not: what is published cannot be a secret (RFC 8725 §3.1).
func signatures() []string {
	return []string{
		string(jose.RS256), string(jose.RS384), string(jose.RS512), string(jose.PS256), string(jose.PS384), string(jose.PS512),
		string(jose.ES256), string(jose.ES384), string(jose.ES512), string(jose.EdDSA),
	}
}

// oldName makes one name of the two that EdDSA with Ed25519 has.
func oldName(alg string) string {
	if alg == algEd25519 {
		return string(jose.EdDSA)
	}
	return alg
}

// fits reports whether the algorithm is one for keys of this type and curve.
func fits(key crypto.PublicKey, alg string) bool {
	switch key := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return alg == string(jose.ES256)
		case elliptic.P384():
			return alg == string(jose.ES384)
		case elliptic.P521():
			return alg == string(jose.ES512)
		}
	case ed25519.PublicKey:
		return oldName(alg) == string(jose.EdDSA)
	}
	return false
}

// algorithm returns the one algorithm that the key is used with (RFC 8725 §3.1):
// what the set says, else the first of those accepted that fits.
func (k *publicKey) algorithm(accepted []string) string {
	if k.alg != "" {
		return k.alg
	}
	for _, alg := range accepted {
		if fits(k.key, alg) {
			return oldName(alg)
		}
	}
	return ""
}

// find returns the key for a token: that of its kid, or for a token without one
// the only key there is for its algorithm (rule J4).
func (s *keySet) find(j *jws, accepted []string) (*publicKey, *InvalidTokenError) {
	if j.named {
		k := s.byID[j.kid]
		if k == nil {
			if why, ok := s.spoiled[j.kid]; ok {
				return nil, invalid("key_refused", "the key %s of its issuer does not count: %s", cited(j.kid), why)
			}
			return nil, invalid(codeUnknownKey, "its kid %s is none of its issuer's keys", cited(j.kid))
		}
		if want := k.algorithm(accepted); want != oldName(j.alg) {
			return nil, invalid("algorithm", "it is signed with %s, and its key %s is for %s; the first that fits of algorithms counts for a key without alg", cited(j.alg), cited(j.kid), cited(want))
		}
		return k, nil
	}
	var only *publicKey
	for _, k := range s.keys {
		if k.algorithm(accepted) != oldName(j.alg) {
			continue
		}
		if only != nil {
			return nil, invalid("no_kid", "it has no kid, and its issuer has several keys for %s: have its tokens name their key", cited(j.alg))
		}
		only = k
	}
	if only == nil {
		return nil, invalid(codeUnknownKey, "it has no kid, and its issuer has no key for %s", cited(j.alg))
	}
	return only, nil
}
