package policy

import (
	"bytes"
	"slices"
)

// maxAttempt bounds x-envoy-attempt-count. Envoy writes the header itself, and
// nobody configures a thousand retries.
const maxAttempt = 1000

// Screen reads all headers once, overwrites sc with what they hold and reports
// whether they are well formed: Allowed, BadRequest or OriginDenied. It knows no
// caller yet. What is in sc is only good for a decision after Allowed.
//
// A header that decides about access must come once. Envoy joins duplicates as
// `X,Y`, so a comma counts as a second one where a value cannot hold any. Where
// a header decides nothing at this upstream, its duplicates are only dropped.
func (u *Upstream) Screen(r *Request, sc *Screening) Reason {
	sc.reset(len(u.bearers))
	var n tally
	for i := range r.Headers {
		n.take(&r.Headers[i], sc)
		u.takeBearer(&r.Headers[i], &n, sc)
		if u.Headers.drops(r.Headers[i].Name) {
			sc.Remove = append(sc.Remove, r.Headers[i].Name)
		}
	}
	if n.malformed || n.origins > 1 || n.bearers > 1 || u.doubtfulKey(&n, sc) || u.doubtfulAuthorization(&n, sc) {
		return BadRequest
	}
	if n.origins == 1 && !u.admitsOrigin(n.origin) {
		return OriginDenied
	}
	return Allowed
}

// reset empties sc and keeps its space, without keeping the last request alive.
func (sc *Screening) reset(bearers int) {
	clear(sc.Cookies)
	clear(sc.Remove)
	clear(sc.Bearers)
	sc.Bearers = slices.Grow(sc.Bearers[:0], bearers)[:bearers]
	*sc = Screening{Attempt: 1, Cookies: sc.Cookies[:0], Remove: sc.Remove[:0], Bearers: sc.Bearers}
}

// tally counts the headers that may come once.
type tally struct {
	attempts, keys, authorizations, origins, bearers int
	origin                                           []byte
	malformed                                        bool
}

// take notes one header. Of duplicates, the first value is kept.
func (n *tally) take(h *Header, sc *Screening) {
	switch {
	case equal(h.Name, "cookie", strict):
		sc.Cookies = append(sc.Cookies, h.Value)
	case equal(h.Name, "authorization", strict):
		if n.authorizations++; n.authorizations == 1 {
			sc.Authorization = h.Value
		}
	case equal(h.Name, keyHeader, strict):
		if n.keys++; n.keys == 1 {
			sc.Key = present(h.Value)
		}
	case equal(h.Name, "origin", strict):
		if n.origins++; n.origins == 1 {
			n.origin = h.Value
		}
	case equal(h.Name, "x-envoy-attempt-count", strict):
		n.attempts++
		attempt, ok := parseAttempt(h.Value)
		n.malformed = n.malformed || !ok || n.attempts > 1
		sc.Attempt = attempt
	}
}

// present makes an empty value differ from an absent one.
func present(v []byte) []byte {
	if v == nil {
		return []byte{}
	}
	return v
}

func parseAttempt(v []byte) (int, bool) {
	if len(v) == 0 || len(v) > 4 {
		return 0, false
	}
	n := 0
	for _, c := range v {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, n >= 1 && n <= maxAttempt
}

// doubtfulKey reports whether there may be two keys, where a key decides.
func (u *Upstream) doubtfulKey(n *tally, sc *Screening) bool {
	if n.keys < 2 && bytes.IndexByte(sc.Key, ',') < 0 {
		return false
	}
	return slices.ContainsFunc(u.Callers, func(c *Caller) bool { return len(c.Keys) > 0 })
}

// doubtfulAuthorization reports whether there may be two credentials, where the
// caller's go on. Elsewhere the header is overwritten or removed as a whole.
func (u *Upstream) doubtfulAuthorization(n *tally, sc *Screening) bool {
	return listed(u.Headers.pass, "authorization") &&
		(n.authorizations > 1 || manyCredentials(sc.Authorization))
}

func (u *Upstream) admitsOrigin(origin []byte) bool {
	return slices.ContainsFunc(u.Origins, func(o string) bool { return o == string(origin) })
}

// manyCredentials reports whether an authorization value may be two that were
// joined by a comma. One credential holds commas only between the parameters of
// its scheme (RFC 9110 §11.4), as Digest does; so a comma outside quotes must be
// followed by `name =`. Anything else, such as another scheme, is a second one.
func manyCredentials(v []byte) bool {
	quoted := false
	for i := 0; i < len(v); i++ {
		switch c := v[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted && !startsParameter(v[i+1:]):
			return true
		}
	}
	// Where quotes do not end, nobody knows what a comma in them was.
	return quoted && bytes.IndexByte(v, ',') >= 0
}

// startsParameter matches BWS token BWS "=".
func startsParameter(v []byte) bool {
	name, _, ok := bytes.Cut(v, []byte{'='})
	name = trim(name)
	return ok && len(name) > 0 && !bytes.ContainsAny(name, " \t,\"")
}
