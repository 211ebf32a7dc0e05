package policy

// sessionHeader names a session of an MCP server (2025-11-25 and older).
const sessionHeader = "mcp-session-id"

// maxSession bounds an id. MCP names a JWT as an example of one, so that it must
// have the room of a token.
const maxSession = 4096

// SessionID returns the session id of a request, nil when there is none, and
// BadRequest when there may be two or no server can have given it. It must only
// be asked where BindsSessions is set: elsewhere the header decides nothing.
//
// MCP allows every visible ASCII character (0x21 to 0x7E), a comma too. But Envoy
// joins duplicates by one, and servers differ in which of two they take. For the
// same reason no spelling with an underscore is taken, which some servers read
// as this header.
func (u *Upstream) SessionID(r *Request) ([]byte, Reason) {
	var id []byte
	for i := range r.Headers {
		switch h := &r.Headers[i]; {
		case !equal(h.Name, sessionHeader, loose):
		case id != nil, !equal(h.Name, sessionHeader, strict), !IsSessionID(h.Value):
			return nil, BadRequest
		default:
			id = h.Value
		}
	}
	return id, Allowed
}

// IsSessionID reports whether an id is one that SessionID accepts.
func IsSessionID[T string | []byte](id T) bool {
	if len(id) == 0 || len(id) > maxSession {
		return false
	}
	for i := range len(id) {
		if c := id[i]; c <= ' ' || c >= 0x7f || c == ',' {
			return false
		}
	}
	return true
}
