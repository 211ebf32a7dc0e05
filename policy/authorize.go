package policy

import (
	"crypto/sha256"
	"crypto/subtle"
	"strings"
)

// Authorize says who calls without a token, and must follow a Screen of the same
// request. Any one of the upstream's callers may match; kinds are tried in the
// order key, mTLS, any, so that a proof counts for what it proves, and within a
// kind the first listed wins.
//
// A request with a token is CallerInvalid here: it is judged by its token alone,
// which TokenOf returns, and never by a weaker proof.
//
// An upstream without callers refuses everybody. The refusal is CallerInvalid
// when the request offered a key, an empty one included, and CallerUnknown when
// it offered none: a certificate of somebody else proves a name, only not one
// that is listed here.
func (u *Upstream) Authorize(r *Request, sc *Screening) (*Caller, Reason) {
	if _, token, why := u.TokenOf(sc); token != nil || why != Allowed {
		return nil, CallerInvalid
	}
	if sc.Key != nil {
		if c := u.byKey(sc.Key); c != nil {
			return c, Allowed
		}
	}
	for _, c := range u.Callers {
		if c.hasSAN(r) {
			return c, Allowed
		}
	}
	for _, c := range u.Callers {
		if c.Any {
			return c, Allowed
		}
	}
	if sc.Key != nil {
		return nil, CallerInvalid
	}
	return nil, CallerUnknown
}

// byKey compares with every key of every caller, whichever matches: the time it
// takes says nothing about which one did, nor how near a guess was.
func (u *Upstream) byKey(key []byte) *Caller {
	sum := sha256.Sum256(key)
	found, done := 0, 0
	for i, c := range u.Callers {
		hit := 0
		for j := range c.Keys {
			hit |= subtle.ConstantTimeCompare(sum[:], c.Keys[j][:])
		}
		found = subtle.ConstantTimeSelect(hit&^done, i, found)
		done |= hit
	}
	if done == 0 {
		return nil
	}
	return u.Callers[found]
}

// hasSAN compares exactly, and a URI only with the URI of the certificate and a
// DNS name only with its DNS name: whoever may name hosts cannot thereby name a
// SPIFFE identity. A colon tells them apart, since a URI has one and a DNS name
// cannot.
func (c *Caller) hasSAN(r *Request) bool {
	for _, san := range c.SANs {
		presented := r.DNSSAN
		if strings.IndexByte(san, ':') >= 0 {
			presented = r.URISAN
		}
		if presented != "" && presented == san {
			return true
		}
	}
	return false
}
