// Package traceparent reads the traceparent header of W3C Trace Context.
package traceparent

import "encoding/hex"

// size is the length of a header of version 00: version, trace id, span id and
// flags in hexadecimal, with a - between (W3C Trace Context §3.2.2).
const size = 2 + 1 + 32 + 1 + 16 + 1 + 2

// Context is what a traceparent says. The caller chose it: it may group, and must
// not decide.
type Context struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// Sampled reports whether the sender records the trace.
func (c *Context) Sampled() bool { return c.Flags&1 != 0 }

// TraceHex returns the trace id as the header has it.
func (c *Context) TraceHex() string { return hex.EncodeToString(c.TraceID[:]) }

// Parse reads a header. What is not valid to the letter is no context at all, as
// §3.2 demands, rather than half of one. It does not allocate.
func Parse(header []byte) (Context, bool) {
	var c Context
	if len(header) < size || header[2] != '-' || header[35] != '-' || header[52] != '-' {
		return c, false
	}
	var version, flags [1]byte
	ok := decode(version[:], header[:2]) && decode(c.TraceID[:], header[3:35]) &&
		decode(c.SpanID[:], header[36:52]) && decode(flags[:], header[53:55])
	c.Flags = flags[0]
	// A later version may go on after another -; version 00 may not.
	longer := len(header) > size && (version[0] == 0 || header[size] != '-')
	if !ok || longer || version[0] == 0xff || c.TraceID == [16]byte{} || c.SpanID == [8]byte{} {
		return Context{}, false
	}
	return c, true
}

// decode is hex.Decode for lower case alone.
func decode(into, text []byte) bool {
	for _, b := range text {
		if b >= 'A' && b <= 'F' {
			return false
		}
	}
	_, err := hex.Decode(into, text)
	return err == nil
}
