package tokens

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strconv"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// key names one credential. Two handles share a token only when all that could
// change the token, or the right to it, is equal.
type key [sha256.Size]byte

// keyOf hashes length-prefixed parts, so that no two lists of parts collide by
// the place of a border ("ab","c" and "a","bc"). Scopes are a set (RFC 6749
// §3.3), so their order does not count.
func keyOf(o *policy.OAuth2) key {
	scopes := slices.Compact(slices.Sorted(slices.Values(o.Scopes)))
	h := sha256.New()
	part(h, o.TokenURL, o.Issuer, o.CA, o.ClientID, string(o.AuthMethod))
	for _, ref := range []policy.SecretRef{o.ClientSecret, o.PrivateKey} {
		part(h, string(rune(ref.Kind)), ref.Name, ref.String())
	}
	part(h, o.KeyID, o.SigningAlgorithm, o.AssertionAudience, o.Certificate)
	part(h, strconv.FormatBool(o.NoAssertionTyp), strconv.FormatBool(o.RawBasic), strconv.FormatBool(o.AllowPlaintext), strconv.FormatBool(o.AllowPrivate))
	part(h, string(o.Grant), o.Assertion, o.Resource, o.Audience)
	part(h, scopes...)
	names := make([]string, 0, 2*len(o.Params))
	for _, p := range o.Params {
		names = append(names, p.Name, p.Value)
	}
	part(h, names...)
	part(h, o.DefaultLifetime.String(), o.MaxLifetime.String(), strconv.FormatBool(o.SubjectCaller))
	if o.IDP != nil {
		idp := keyOf(o.IDP)
		part(h, string(idp[:]))
	}
	return key(h.Sum(nil))
}

// of is the key of one user's token: also the hash of the subject token counts,
// since the next one of the same user may carry other rights. It is worked out
// for every call, so the parts of the credential are hashed beforehand, and
// nothing is allocated for names of an ordinary length.
func (k key) of(p *Principal) key {
	var room [512]byte
	b := append(room[:0], k[:]...)
	for _, s := range []string{p.Issuer, p.Subject} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, p.sum[:]...)
	if p.IDToken {
		b = append(b, 1) // it is shown as another type
	}
	return sha256.Sum256(b)
}

// part writes a list: its length, then each member with its length.
func part(h hash.Hash, list ...string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(list)))
	_, _ = h.Write(n[:])
	for _, s := range list {
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		_, _ = h.Write(n[:])
		_, _ = h.Write([]byte(s))
	}
}
