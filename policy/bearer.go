package policy

import "bytes"

// pathHeader is HTTP/2's name for path and query, which Envoy uses throughout.
const pathHeader = ":path"

// bearer is one header in which callers of an upstream have tokens.
type bearer struct {
	header  string // in lower case
	callers []*Caller
}

// bearers groups callers by the header of their tokens, both in the order of the
// policy.
func bearers(callers []*Caller) []bearer {
	var all []bearer
	for _, name := range tokenHeaders(callers) {
		b := bearer{header: name}
		for _, c := range callers {
			if c.JWT != nil && c.JWT.Header == name {
				b.callers = append(b.callers, c)
			}
		}
		all = append(all, b)
	}
	return all
}

// tokenHeaders lists the headers in which any of the callers has a token.
func tokenHeaders(callers []*Caller) []string {
	var names []string
	for _, c := range callers {
		if c.JWT != nil && !listed(names, c.JWT.Header) {
			names = append(names, c.JWT.Header)
		}
	}
	return names
}

// TakesTokens reports whether one of the callers proves itself by an access token.
func (u *Upstream) TakesTokens() bool { return u != nil && len(u.bearers) > 0 }

// TokenOf returns the access token of a screened request and the callers that it
// may prove, in the order of the policy: those who have theirs in this header.
// Without a token both are nil, and Authorize says who calls. With one, it alone
// decides; CallerInvalid means that what stands in its place is none (RFC 6750
// §2.1). The token aliases the request, and is not verified.
func (u *Upstream) TokenOf(sc *Screening) ([]*Caller, []byte, Reason) {
	for i := range min(len(u.bearers), len(sc.Bearers)) {
		if sc.Bearers[i] == nil {
			continue
		}
		b := &u.bearers[i]
		token, ok := parseBearer(sc.Bearers[i], b.header != bearerHeader)
		if !ok {
			return nil, nil, CallerInvalid
		}
		return b.callers, token, Allowed
	}
	return nil, nil, Allowed
}

// Status returns the HTTP status of a refusal at this upstream. Where callers
// have tokens, one who proves nothing is asked for a token (RFC 6750 §3), and
// elsewhere not: a 401 makes an MCP client start a login that nobody answers.
// The upstream may be nil.
func (u *Upstream) Status(r Reason) int {
	if u.TakesTokens() && (r == CallerUnknown || r == CallerInvalid) {
		return 401
	}
	return r.Status()
}

// Body is Reason.Body with the status that this upstream answers. The upstream
// may be nil.
func (u *Upstream) Body(r Reason, id []byte) []byte {
	if status := u.Status(r); status != r.Status() {
		return refusal(id, status, r.String(), r.Text())
	}
	return r.Body(id)
}

// takeBearer notes a token. A second one is refused, in the same header or in
// another: it would be for the order of headers to say who calls (RFC 6750 §2).
// So is a comma, which no token has and which a proxy leaves that joined two.
func (u *Upstream) takeBearer(h *Header, n *tally, sc *Screening) {
	if len(u.bearers) == 0 {
		return
	}
	for i := range u.bearers {
		if equal(h.Name, u.bearers[i].header, strict) {
			n.bearers++
			n.malformed = n.malformed || bytes.IndexByte(h.Value, ',') >= 0
			sc.Bearers[i] = present(h.Value)
		}
	}
	if h.Name == pathHeader && hasQueryToken(h.Value) {
		n.malformed = true
	}
}

// parseBearer takes `Bearer TOKEN`, the scheme in any case, and if bare is
// permitted TOKEN alone (RFC 6750 §2.1, RFC 9110 §11.1).
func parseBearer(v []byte, bare bool) ([]byte, bool) {
	const scheme = "bearer"
	token := v
	if len(v) > len(scheme) && v[len(scheme)] == ' ' && bytes.EqualFold(v[:len(scheme)], []byte(scheme)) {
		token = bytes.TrimLeft(v[len(scheme):], " ")
	} else if !bare {
		return nil, false
	}
	return token, isToken68(token)
}

// isToken68 is b64token of RFC 6750 §2.1.
func isToken68(v []byte) bool {
	body := bytes.TrimRight(v, "=")
	for _, c := range body {
		if !isAlnum(c) && c != '-' && c != '.' && c != '_' && c != '~' && c != '+' && c != '/' {
			return false
		}
	}
	return len(body) > 0
}

// hasQueryToken reports whether a query has an access_token, however its name is
// escaped: RFC 6750 §2.3 lets a token stand there, and URLs end up in logs.
func hasQueryToken(path []byte) bool {
	_, query, _ := bytes.Cut(path, []byte{'?'})
	for len(query) > 0 {
		pair := query
		if end := bytes.IndexAny(query, "&;"); end >= 0 {
			pair, query = query[:end], query[end+1:]
		} else {
			query = nil
		}
		name, _, _ := bytes.Cut(pair, []byte{'='})
		if unescapesTo(name, "access_token") {
			return true
		}
	}
	return false
}

// unescapesTo compares without an allocation, and with %XX read.
func unescapesTo(escaped []byte, want string) bool {
	for i := range len(want) {
		if len(escaped) == 0 {
			return false
		}
		c, width := escaped[0], 1
		if c == '%' && len(escaped) > 2 {
			c, width = unhex(escaped[1])<<4|unhex(escaped[2]), 3
		}
		if c != want[i] {
			return false
		}
		escaped = escaped[width:]
	}
	return len(escaped) == 0
}

// unhex reads a hexadecimal digit; what is none has bits that no ASCII letter has.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
