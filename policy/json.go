package policy

import (
	"errors"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth bounds how deep a body may nest. The arguments of a tool rarely go
// beyond ten; a parser that recurses on a hundred thousand can be made to die.
const maxDepth = 128

var (
	errSyntax    = errors.New("it is no JSON text (RFC 8259)")
	errDepth     = errors.New("it nests too deep")
	errEncoding  = errors.New("it is not UTF-8 without a byte order mark")
	errSurrogate = errors.New("a name in it holds half a surrogate pair, which parsers read in different ways")
)

// scanner reads strict JSON (RFC 8259), and nothing that only some parsers take.
// It keeps no values but those it is asked for.
type scanner struct {
	b []byte
	i int
}

// space skips insignificant whitespace.
func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return
		}
	}
}

// peek returns the next byte that is no whitespace, 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.i == len(s.b) {
		return 0
	}
	return s.b[s.i]
}

// take consumes c, which must come next.
func (s *scanner) take(c byte) error {
	if s.peek() != c {
		return errSyntax
	}
	s.i++
	return nil
}

// done demands that nothing but whitespace is left: a second document would be
// read by some parsers and ignored by others.
func (s *scanner) done() error {
	if s.peek() != 0 || s.i < len(s.b) {
		return errSyntax
	}
	return nil
}

// object calls member for each member of the object that comes next. member
// must consume the value.
func (s *scanner) object(member func(key []byte) error) error {
	return s.list('{', '}', func() error {
		if s.peek() != '"' {
			return errSyntax
		}
		key, err := s.text()
		if err != nil {
			return err
		}
		if err := s.take(':'); err != nil {
			return err
		}
		return member(key)
	})
}

// list walks over what stands between two brackets, separated by commas.
func (s *scanner) list(opening, closing byte, element func() error) error {
	if err := s.take(opening); err != nil {
		return err
	}
	if s.peek() == closing {
		s.i++
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.i++
		case closing:
			s.i++
			return nil
		default:
			return errSyntax
		}
	}
}

// skip consumes one value, nested up to depth levels.
func (s *scanner) skip(depth int) error {
	if depth == 0 {
		return errDepth
	}
	switch c := s.peek(); c {
	case '{':
		return s.list('{', '}', func() error {
			if _, _, err := s.raw(); err != nil {
				return err
			}
			if err := s.take(':'); err != nil {
				return err
			}
			return s.skip(depth - 1)
		})
	case '[':
		return s.list('[', ']', func() error { return s.skip(depth - 1) })
	case '"':
		_, _, err := s.raw()
		return err
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	default:
		return s.number()
	}
}

func (s *scanner) word(w string) error {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		return errSyntax
	}
	s.i += len(w)
	return nil
}

// number consumes -? int frac? exp?
func (s *scanner) number() error {
	if s.at('-') {
		s.i++
	}
	if s.at('0') {
		s.i++
	} else if !s.digits() {
		return errSyntax
	}
	if s.at('.') {
		s.i++
		if !s.digits() {
			return errSyntax
		}
	}
	if s.at('e') || s.at('E') {
		s.i++
		if s.at('+') || s.at('-') {
			s.i++
		}
		if !s.digits() {
			return errSyntax
		}
	}
	return nil
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

// digits consumes at least one.
func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

// raw consumes a string and returns what stands between its quotes, and whether
// there is an escape in it.
func (s *scanner) raw() (v []byte, escaped bool, err error) {
	if err := s.take('"'); err != nil {
		return nil, false, err
	}
	start := s.i
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			v = s.b[start:s.i]
			s.i++
			return v, escaped, nil
		case c < ' ':
			return nil, false, errSyntax
		case c == '\\':
			escaped = true
			if err := s.escape(); err != nil {
				return nil, false, err
			}
		default:
			s.i++
		}
	}
	return nil, false, errSyntax
}

// escape consumes one escape sequence.
func (s *scanner) escape() error {
	s.i++
	if s.i == len(s.b) {
		return errSyntax
	}
	c := s.b[s.i]
	s.i++
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return nil
	case 'u':
		if _, ok := hex4(s.b[s.i:]); !ok {
			return errSyntax
		}
		s.i += 4
		return nil
	}
	return errSyntax
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// text consumes a string and returns what it means. The result aliases the body
// when nothing was escaped. Half a surrogate pair is an error: one parser
// replaces it, another keeps it, and the two then compare different names.
func (s *scanner) text() ([]byte, error) {
	v, escaped, err := s.raw()
	if err != nil || !escaped {
		return v, err
	}
	out := make([]byte, 0, len(v))
	for i := 0; i < len(v); {
		if v[i] != '\\' {
			out = append(out, v[i])
			i++
			continue
		}
		c := v[i+1]
		i += 2
		if c != 'u' {
			out = append(out, unescaped(c))
			continue
		}
		r, _ := hex4(v[i:])
		i += 4
		if utf16.IsSurrogate(r) {
			var low rune
			if i+6 <= len(v) && v[i] == '\\' && v[i+1] == 'u' {
				low, _ = hex4(v[i+2:])
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				return nil, errSurrogate
			}
			i += 6
		}
		out = utf8.AppendRune(out, r)
	}
	return out, nil
}

// unescaped returns what the letter of a short escape stands for.
func unescaped(c byte) byte {
	switch c {
	case 'b':
		return '\b'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	}
	return c
}
