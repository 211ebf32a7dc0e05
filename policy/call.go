package policy

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxCalls bounds a batch, maxMembers the members of an object that is read.
	maxCalls   = 64
	maxMembers = 64
	// maxTarget bounds the name or URI that a call is about.
	maxTarget = 2048
)

var (
	errDuplicate = errors.New("a member is there twice, and parsers differ on which one counts")
	errMembers   = fmt.Errorf("an object that decides has more than %d members", maxMembers)
	errCalls     = fmt.Errorf("it has more than %d messages", maxCalls)
	errNoCall    = errors.New("it is no JSON-RPC 2.0 message, nor a list of them")
	errMethod    = errors.New("its method is no text of 1 to 2048 bytes without control characters, and without blanks around it")
	errTarget    = errors.New("its params do not name what it is about, as a text of 1 to 2048 bytes without control characters, without blanks around it, and for a URI without . and .. as segments")
)

// Call is what one JSON-RPC message of a body asks for. Its bytes may alias the body.
type Call struct {
	// Method is empty for a response.
	Method []byte
	// Target is what the method is about: the name of a tool or prompt, the
	// URI of a resource, the id of a task. It is nil where a method has none.
	Target []byte
	// Version is the protocol version in params._meta, nil when there is none.
	Version []byte
	// ID is the id as it is written, a string or a number; nil for a notification.
	ID []byte
}

// ParseCalls reads a body whole and appends what each of its messages asks for.
// An error says why the body proves nothing, in words for an operator's log that
// quote nothing of it.
//
// It accepts only what every parser reads in one way: UTF-8 without a byte order
// mark, one JSON text, in the objects that decide no member twice and none whose
// name differs from a known one by case alone. Go's encoding/json takes the last
// of two, in any case; others take the first.
func ParseCalls(body []byte, into []Call) ([]Call, error) {
	if !utf8.Valid(body) || bytes.HasPrefix(body, []byte("\ufeff")) {
		return into, errEncoding
	}
	s := &scanner{b: body}
	var err error
	if s.peek() == '[' {
		into, err = parseBatch(s, into)
	} else {
		into, err = parseCall(s, into)
	}
	if err == nil {
		err = s.done()
	}
	return into, err
}

func parseBatch(s *scanner, into []Call) ([]Call, error) {
	n := 0
	err := s.list('[', ']', func() (err error) {
		if n++; n > maxCalls {
			return errCalls
		}
		into, err = parseCall(s, into)
		return err
	})
	if err == nil && n == 0 {
		err = errNoCall
	}
	return into, err
}

// members guards an object that decides: it refuses a name that is there twice,
// and one that only a careless parser takes for a known one.
type members struct {
	seen  [maxMembers][]byte
	n     int
	known []string
}

func (m *members) add(key []byte) error {
	if m.n == maxMembers {
		return errMembers
	}
	for _, k := range m.known {
		if string(key) != k && bytes.EqualFold(key, []byte(k)) {
			return errDuplicate
		}
	}
	for _, k := range m.seen[:m.n] {
		if bytes.Equal(k, key) {
			return errDuplicate
		}
	}
	m.seen[m.n] = key
	m.n++
	return nil
}

// message is one JSON-RPC message while it is read.
type message struct {
	call            Call
	version, answer bool
	params          params
}

// params are the members of params that can name what a call is about.
type params struct {
	name, uri, task, refName, refURI, version []byte
}

func parseCall(s *scanner, into []Call) ([]Call, error) {
	if s.peek() != '{' {
		return into, errNoCall
	}
	var m message
	guard := members{known: []string{"jsonrpc", "id", "method", "params", "result", "error"}}
	err := s.object(func(key []byte) error {
		if err := guard.add(key); err != nil {
			return err
		}
		return m.member(s, string(key))
	})
	if err != nil {
		return into, err
	}
	if !m.version || m.answer == (m.call.Method != nil) {
		return into, errNoCall
	}
	if m.call.Method != nil {
		m.call.Version = m.params.version
		if m.call.Target, err = m.params.target(string(m.call.Method)); err != nil {
			return into, err
		}
	}
	return append(into, m.call), nil
}

func (m *message) member(s *scanner, key string) (err error) {
	switch key {
	case "jsonrpc":
		var v []byte
		v, err = s.text()
		m.version = string(v) == "2.0"
	case "method":
		m.call.Method, err = s.text()
		if err == nil && !isTarget(m.call.Method) {
			err = errMethod
		}
	case "id":
		m.call.ID, err = identifier(s)
	case "params":
		err = m.params.read(s)
	case "result", "error":
		m.answer = true
		err = s.skip(maxDepth)
	default:
		err = s.skip(maxDepth)
	}
	return err
}

// identifier reads a string or a number. A null id is none: MCP forbids it.
func identifier(s *scanner) ([]byte, error) {
	c := s.peek()
	start := s.i
	switch {
	case c == 'n':
		return nil, s.word("null")
	case c != '"' && c != '-' && (c < '0' || c > '9'):
		return nil, errNoCall
	}
	err := s.skip(1)
	return s.b[start:s.i], err
}

// read reads params: an object, or null, which some clients write for none. MCP
// has no parameters by position.
func (p *params) read(s *scanner) error {
	switch s.peek() {
	case 'n':
		return s.word("null")
	case '{':
	default:
		return errNoCall
	}
	guard := members{known: []string{"name", "uri", "taskId", "ref", "arguments", "_meta", "task"}}
	return s.object(func(key []byte) error {
		if err := guard.add(key); err != nil {
			return err
		}
		switch string(key) {
		case "name":
			return textInto(s, &p.name)
		case "uri":
			return textInto(s, &p.uri)
		case "taskId":
			return textInto(s, &p.task)
		case "ref":
			return inner(s, map[string]*[]byte{"name": &p.refName, "uri": &p.refURI})
		case "_meta":
			return inner(s, map[string]*[]byte{metaVersion: &p.version})
		}
		return s.skip(maxDepth - 1)
	})
}

// metaVersion is where a modern body names its protocol version (rule T12).
const metaVersion = "io.modelcontextprotocol/protocolVersion"

// inner reads texts from an object that is a member of params. What is no object
// names nothing.
func inner(s *scanner, want map[string]*[]byte) error {
	if s.peek() != '{' {
		return s.skip(maxDepth - 1)
	}
	guard := members{}
	for k := range want {
		guard.known = append(guard.known, k)
	}
	return s.object(func(key []byte) error {
		if err := guard.add(key); err != nil {
			return err
		}
		if into := want[string(key)]; into != nil {
			return textInto(s, into)
		}
		return s.skip(maxDepth - 2)
	})
}

// textInto reads a text. What is no text names nothing: a method that needs the
// name is refused for having none.
func textInto(s *scanner, into *[]byte) (err error) {
	if s.peek() != '"' {
		return s.skip(maxDepth - 2)
	}
	*into, err = s.text()
	return err
}

// target returns what a method is about, by MCP's own parameters.
func (p *params) target(method string) ([]byte, error) {
	var v []byte
	switch method {
	case "tools/call", "prompts/get":
		v = p.name
	case "resources/read", "resources/subscribe", "resources/unsubscribe":
		v = p.uri
	case "tasks/get", "tasks/result", "tasks/cancel", "tasks/update":
		v = p.task
	case "completion/complete":
		// The type of the ref says which one the server looks at.
		if v = p.refName; v == nil {
			v = p.refURI
		} else if p.refURI != nil {
			return nil, errTarget
		}
	default:
		return nil, nil
	}
	if !isTargetOf(method, v) {
		return nil, errTarget
	}
	return v, nil
}

// isTargetOf is isTarget, and for what names a resource refuses a URI that a
// server makes another one of.
func isTargetOf(method string, v []byte) bool {
	uri := strings.HasPrefix(method, "resources/") || method == "completion/complete"
	return isTarget(v) && (!uri || !isShortened(v))
}

// isShortened finds the segments . and .. in a URI, however they are escaped. Most
// parsers of URLs take them off, and then crm://public/../x is none of
// crm://public/*.
func isShortened(uri []byte) bool {
	segment, dots := true, 0 // whether only dots were seen since a separator
	for i := 0; i < len(uri); i++ {
		c := uri[i]
		if c == '%' && i+2 < len(uri) {
			if v := unhex(uri[i+1])<<4 | unhex(uri[i+2]); v < utf8.RuneSelf { // it is no hex otherwise, or no separator
				c = v
				i += 2
			}
		}
		switch c {
		case '.':
			dots++
		case '/', '\\', '?', '#':
			if segment && isDots(dots) {
				return true
			}
			segment, dots = true, 0
		default:
			segment = false
		}
	}
	return segment && isDots(dots)
}

func isDots(n int) bool { return n == 1 || n == 2 }

// isTarget refuses what a server may trim or cut off, and then run another tool.
func isTarget(v []byte) bool {
	return len(v) > 0 && len(v) <= maxTarget && len(bytes.TrimFunc(v, isTrimmed)) == len(v) &&
		!bytes.ContainsFunc(v, unicode.IsControl)
}

// isTrimmed reports whether some language's trim takes r off: JavaScript's takes
// U+FEFF for a blank.
func isTrimmed(r rune) bool { return unicode.IsSpace(r) || r == '\ufeff' }
