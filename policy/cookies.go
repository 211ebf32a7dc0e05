package policy

import "bytes"

// CookieRule is the compiled `cookies` block of one upstream. The zero value
// lets no cookie on. It is immutable.
type CookieRule struct {
	// allow gives each permitted name a number, for the record of names seen.
	allow      map[string]int
	duplicates duplicates
	strict     bool
}

// duplicates is what happens to an allowed name that comes again.
type duplicates uint8

const (
	keepAll duplicates = iota
	keepFirst
	refuseAgain
)

// NewCookieRule compiles a checked block. A word for duplicates that it does not
// know refuses, so that a gap in the check cannot widen what passes.
func NewCookieRule(spec CookiesSpec) CookieRule {
	rule := CookieRule{allow: make(map[string]int, len(spec.Allow)), strict: spec.Strict}
	for _, name := range spec.Allow {
		if _, ok := rule.allow[name]; !ok {
			rule.allow[name] = len(rule.allow)
		}
	}
	switch spec.Duplicates {
	case "", "keep":
		rule.duplicates = keepAll
	case "first":
		rule.duplicates = keepFirst
	default:
		rule.duplicates = refuseAgain
	}
	return rule
}

// Empty reports whether no cookie goes on under this rule.
func (c *CookieRule) Empty() bool { return len(c.allow) == 0 }

// Filter decides about the cookie headers of one request, given all their values
// in order. The lines are read as one (RFC 9113 §8.2.3) and split on `;` alone:
// a quote is an ordinary byte of a value (RFC 10025 §5.6). A pair goes on byte
// for byte if its name is allowed, exactly and in its case; whatever has no
// name, no `=` or a control character does not.
//
// CookieKeep is given only if the one header there was equals what Filter would
// have written, so that what the upstream gets hangs neither on how the pairs
// came (one line, or many) nor on odd separators. Without any permitted cookie
// the edit is CookieRemove, also when no cookie header was seen: Envoy may have
// been told not to show it.
//
// The filtered value is appended to buf. It is in Value for CookieKeep too, so
// that a caller who hands Value[:0] to the next call never allocates again. The
// time is linear in the input, and no number of pairs is too many: Envoy's own
// limit on header bytes is the cap.
func (c *CookieRule) Filter(buf []byte, lines [][]byte) CookieResult {
	start := len(buf)
	f := filtering{rule: c, out: buf, start: start}
	if c.duplicates != keepAll {
		f.again.grow(len(c.allow))
	}
	for _, line := range lines {
		for more := true; more; {
			var piece []byte
			piece, line, more = bytes.Cut(line, []byte{';'})
			if !f.take(trim(piece)) {
				return CookieResult{Edit: CookieRefuse, Value: f.out[start:start]}
			}
		}
	}
	res := CookieResult{Edit: CookieSet, Value: f.out[start:], Kept: f.kept, Dropped: f.dropped}
	switch {
	case f.kept == 0:
		res.Edit = CookieRemove
	case len(lines) == 1 && bytes.Equal(lines[0], res.Value):
		res.Edit = CookieKeep
	}
	return res
}

// filtering is the state of one Filter.
type filtering struct {
	rule          *CookieRule
	out           []byte
	start         int
	again         again
	kept, dropped int
}

// take judges one piece between two semicolons, blanks cut off, and reports
// false when it makes the request one to refuse. An empty piece is no pair.
func (f *filtering) take(pair []byte) bool {
	if len(pair) == 0 {
		return true
	}
	id, ok := f.rule.permits(pair)
	if ok && f.rule.duplicates != keepAll && f.again.mark(id) {
		if f.rule.duplicates == refuseAgain {
			return false
		}
		ok = false
	}
	if !ok {
		f.dropped++
		return true
	}
	f.kept++
	if len(f.out) > f.start {
		f.out = append(f.out, "; "...)
	}
	f.out = append(f.out, pair...)
	return true
}

// again remembers which allowed names came, one bit each. Up to 256 names live on
// the stack; a longer list costs an allocation.
type again struct {
	few  [4]uint64
	many []uint64
}

func (a *again) grow(names int) {
	if names > 64*len(a.few) {
		a.many = make([]uint64, (names+63)/64)
	}
}

// mark notes that the name came and reports whether it had before.
func (a *again) mark(id int) bool {
	words := a.many
	if words == nil {
		words = a.few[:]
	}
	word, bit := &words[id/64], uint64(1)<<(id%64)
	before := *word&bit != 0
	*word |= bit
	return before
}

// permits returns the number of the pair's name if the pair may go on. A pair
// without a name is dropped even though browsers send such: a cookie stored as
// `=a=b` is sent as `a=b` (RFC 10025 §5.8.3), which nobody can tell from the
// cookie a.
func (c *CookieRule) permits(pair []byte) (int, bool) {
	eq := bytes.IndexByte(pair, '=')
	if eq <= 0 {
		return 0, false
	}
	id, ok := c.allow[string(trim(pair[:eq]))]
	if !ok || hasControl(pair) {
		return 0, false
	}
	return id, !c.strict || isCookieValue(pair[eq+1:])
}

// trim cuts off spaces and tabs only: what Unicode calls a blank may be part of
// a name, and a server that trims more would read another name than we did.
func trim(b []byte) []byte {
	for len(b) > 0 && isBlank(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isBlank(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// hasControl finds the bytes that no user agent stores in a cookie (RFC 10025
// §5.6): %x00-08, %x0A-1F and %x7F.
func hasControl(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}

// isCookieValue holds v, all after the first `=`, against cookie-value of RFC
// 10025 §4.1.1: cookie-octets, or the same in one pair of quotes.
func isCookieValue(v []byte) bool {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		v = v[1 : len(v)-1]
	}
	for _, c := range v {
		if c <= ' ' || c >= 0x7f || c == '"' || c == ',' || c == ';' || c == '\\' {
			return false
		}
	}
	return true
}
