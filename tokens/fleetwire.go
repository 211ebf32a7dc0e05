package tokens

import (
	"errors"
	"net"
	"strings"
	"syscall"
)

const (
	// maxLine bounds what stands on one line of an answer: a status, an error, a number or a length.
	maxLine = 4 << 10
	// maxMembers and maxDepth bound lists. The longest is the answer to HELLO, with the server's modules.
	maxMembers = 1 << 10
	maxDepth   = 8
)

var errWire = errors.New("an answer that is none to what was asked")

// wire is a connection on which no answer is larger than ours can be. The client
// makes room for whatever length an answer announces, so that a few bytes of a
// server, or of whoever is in between, could end the process.
type wire struct {
	net.Conn
	answers answers
}

// newWire keeps what lets the client look whether an idle connection is alive;
// one with TLS has no such thing.
func newWire(c net.Conn) net.Conn {
	w := &wire{Conn: c}
	if raw, ok := c.(syscall.Conn); ok {
		return struct {
			*wire
			syscall.Conn
		}{w, raw}
	}
	return w
}

// Read implements net.Conn. What is not looked at is not handed on.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if !w.answers.take(p[:n]) {
		return 0, errWire
	}
	return n, err
}

// answers follows RESP2, byte by byte.
type answers struct {
	kind   byte // of the line; 0 before it
	length int  // of the line so far
	number int  // on the line
	signed bool
	skip   int   // what is left of a string, its line break included
	open   []int // members that are still to come, of each list around
	broken bool
}

// take reports whether the bytes go on as an answer of ours may.
func (a *answers) take(b []byte) bool {
	for len(b) > 0 && !a.broken {
		if n := min(a.skip, len(b)); n > 0 {
			a.skip -= n
			b = b[n:]
			if a.skip == 0 {
				a.member()
			}
			continue
		}
		a.broken = !a.next(b[0])
		b = b[1:]
	}
	return !a.broken
}

// next takes one byte of a line.
func (a *answers) next(c byte) bool {
	if a.kind == 0 {
		*a = answers{kind: c, open: a.open}
		return strings.IndexByte("+-:$*", c) >= 0
	}
	if a.length++; a.length > maxLine {
		return false
	}
	sized := a.kind == '$' || a.kind == '*'
	switch {
	case c == '\n':
		return a.end(sized)
	case !sized || c == '\r':
	case c == '-' && a.length == 1:
		a.signed = true
	case c >= '0' && c <= '9':
		a.number = 10*a.number + int(c-'0')
		return a.number <= maxSealed+1
	default:
		return false
	}
	return true
}

// end takes the end of a line.
func (a *answers) end(sized bool) bool {
	list := a.kind == '*'
	a.kind = 0
	switch {
	case !sized || a.signed || list && a.number == 0: // -1 is nothing, of both kinds
		a.member()
	case list:
		a.open = append(a.open, a.number)
		return a.number <= maxMembers && len(a.open) <= maxDepth
	default:
		a.skip = a.number + len("\r\n")
	}
	return true
}

// member counts what has ended in the lists around.
func (a *answers) member() {
	for last := len(a.open) - 1; last >= 0; last-- {
		if a.open[last]--; a.open[last] > 0 {
			return
		}
		a.open = a.open[:last]
	}
}
