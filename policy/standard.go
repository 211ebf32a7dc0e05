package policy

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Standard is what the headers of a request say about its body: those of HTTP,
// and the standard headers of MCP (SEP-2243). Its bytes alias the request.
type Standard struct {
	// Verb is the HTTP method.
	Verb []byte
	// Length is the content-length, -1 when there is none.
	Length int64
	// Type and Encoding are content-type and content-encoding, nil when absent.
	Type, Encoding []byte
	// Method is Mcp-Method, Name is Mcp-Name decoded, Version is
	// MCP-Protocol-Version; nil when absent.
	Method, Name, Version []byte
	// Session is Mcp-Session-Id, nil when absent.
	Session []byte
}

// ReadStandard reads them. It reports BadRequest when one is there twice, or may
// be two that were joined (rule H7), and HeaderMismatch for an Mcp-Name that
// cannot be decoded (rule H3). A spelling with an underscore, which servers behind
// CGI's names of headers take for this one, counts as a second.
func ReadStandard(r *Request, into *Standard) Reason {
	*into = Standard{Length: -1}
	var name, length []byte
	for i := range r.Headers {
		slot := into.slot(r.Headers[i].Name, &name, &length)
		if slot == nil {
			continue
		}
		if *slot != nil || strings.IndexByte(r.Headers[i].Name, '_') >= 0 {
			return BadRequest
		}
		*slot = present(trim(r.Headers[i].Value))
	}
	for _, v := range [][]byte{into.Method, into.Version, into.Session, into.Encoding, length} {
		if bytes.IndexByte(v, ',') >= 0 {
			return BadRequest
		}
	}
	// A URI may hold a comma, so a resource's name may (rule H7).
	if bytes.IndexByte(name, ',') >= 0 && !bytes.HasPrefix(into.Method, []byte("resources/")) {
		return BadRequest
	}
	if length != nil {
		n, err := strconv.ParseUint(string(length), 10, 63)
		if err != nil {
			return BadRequest
		}
		into.Length = int64(n)
	}
	return into.decode(name)
}

// standardHeaders are those that ReadStandard reads.
func standardHeaders() []string {
	return []string{
		":method", "content-encoding", "content-length", "content-type",
		"mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id",
	}
}

// slot returns where the value of a header goes, however it is spelled, nil for
// one that says nothing here.
func (h *Standard) slot(header string, name, length *[]byte) *[]byte {
	switch {
	case equal(header, ":method", loose):
		return &h.Verb
	case equal(header, "content-length", loose):
		return length
	case equal(header, "content-type", loose):
		return &h.Type
	case equal(header, "content-encoding", loose):
		return &h.Encoding
	case equal(header, "mcp-method", loose):
		return &h.Method
	case equal(header, "mcp-name", loose):
		return name
	case equal(header, "mcp-protocol-version", loose):
		return &h.Version
	case equal(header, "mcp-session-id", loose):
		return &h.Session
	}
	return nil
}

// decode takes =?base64?…?= off a name. Anything that is not exactly so framed
// is the name itself.
func (h *Standard) decode(name []byte) Reason {
	inner, ok := bytes.CutPrefix(name, []byte("=?base64?"))
	if ok {
		inner, ok = bytes.CutSuffix(inner, []byte("?="))
	}
	if !ok {
		h.Name = name
		return Allowed
	}
	// No longer name is a proof, so it is not worth the work (rule H12). Line
	// breaks are what this decoder steps over and others do not.
	if len(inner) > base64.StdEncoding.EncodedLen(maxTarget) || bytes.ContainsAny(inner, "\r\n") {
		return HeaderMismatch
	}
	v, err := base64.StdEncoding.Strict().AppendDecode(nil, inner)
	if err != nil || !utf8.Valid(v) {
		return HeaderMismatch
	}
	h.Name = present(v)
	return Allowed
}

// Bodied reports whether a POST's headers let its body be read: JSON, and not
// packed. Else nobody here can tell what the upstream would run.
func (h *Standard) Bodied() bool {
	if len(h.Encoding) > 0 && !bytes.EqualFold(h.Encoding, []byte("identity")) {
		return false
	}
	media, params, _ := bytes.Cut(h.Type, []byte{';'})
	if !bytes.EqualFold(trim(media), []byte("application/json")) {
		return false
	}
	return inUTF8(params)
}

// inUTF8 reports whether the parameters of a media type leave a body in UTF-8.
// Servers differ on which of two charsets counts, and on blanks and quotes, and
// some decode UTF-7, in which a harmless text is another call. So the word must
// not be there but as a whole parameter of the one value.
func inUTF8(params []byte) bool {
	params = bytes.ToLower(params)
	odd := bytes.Count(params, []byte("charset"))
	for p := range bytes.SplitSeq(params, []byte{';'}) {
		if p = trim(p); string(p) == "charset=utf-8" || string(p) == `charset="utf-8"` {
			odd--
		}
	}
	return odd == 0
}

// Modern reports whether the version is one whose servers compare the standard
// headers with the body (rule H4). The versions are listed: the order of strings
// proves nothing about a version that nobody has seen.
func Modern(version []byte) bool { return string(version) == "2026-07-28" }

// Agree compares the headers with the calls of the body (rules H2, H9 and T12):
// what is there must say the same, and a modern request must have what its
// version demands.
func (h *Standard) Agree(calls []Call) bool {
	if len(calls) != 1 {
		// One header cannot speak for a list of messages, and a modern body is no list.
		return h.Method == nil && h.Name == nil && !Modern(h.Version)
	}
	c := &calls[0]
	return h.sameVersion(c) &&
		(h.Method == nil || bytes.Equal(h.Method, c.Method)) &&
		(h.Name == nil || bytes.Equal(h.Name, c.Target)) &&
		(!Modern(h.Version) || !c.request() || h.complete(c))
}

// sameVersion compares the two versions. A legacy body has none.
func (h *Standard) sameVersion(c *Call) bool {
	switch {
	case c.Version == nil:
		return !Modern(h.Version) || !c.request()
	case h.Version == nil:
		return !Modern(c.Version)
	}
	return bytes.Equal(c.Version, h.Version)
}

// complete reports whether the headers are there that a modern request must have (rule H1).
func (h *Standard) complete(c *Call) bool {
	return h.Method != nil && (h.Name != nil || !named(c))
}

// request reports whether the message wants an answer.
func (c *Call) request() bool { return c.Method != nil && c.ID != nil }

// named reports whether a method is one that Mcp-Name is required for (rule H1).
func named(c *Call) bool {
	switch string(c.Method) {
	case "tools/call", "prompts/get", "resources/read", "tasks/get", "tasks/update", "tasks/cancel":
		return true
	}
	return false
}
