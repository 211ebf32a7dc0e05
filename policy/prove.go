package policy

import (
	"bytes"
	"slices"
)

// Filtered is what Envoy's mcp filter read of a body: its word for what a request
// asks for. Its bytes alias the message they came in.
type Filtered struct {
	// Method is nil when the filter said nothing, and FilteredResponse for a response.
	Method []byte
	// Name, URI and Task are members of params; nil when there is none, or it is no text.
	Name, URI, Task []byte
}

// FilteredResponse is the method that the filter gives to a response.
const FilteredResponse = "__jsonrpc_response"

// Start looks at a request before its body is there. Allowed means that it asks
// for nothing that rules govern: a stream of the server's messages, the end of a
// session. Undecided means that its calls have to be proved. Anything else refuses.
func (t *Tools) Start(h *Standard, bodiless bool) Reason {
	if bodiless {
		switch string(h.Verb) {
		case "GET", "DELETE", "HEAD", "OPTIONS":
			return Allowed
		}
		return ToolUnproved
	}
	if string(h.Verb) != "POST" || !h.Bodied() {
		return ToolUnproved
	}
	if t.Proof != ProofHeaders && h.Length > t.MaxBody {
		return BodyTooLarge
	}
	return Undecided
}

// ByBody appends the calls of a body that was read whole. After Allowed they are
// proved and agree with the headers. The error is for an operator's log.
func (t *Tools) ByBody(h *Standard, body []byte, into []Call) ([]Call, Reason, error) {
	if int64(len(body)) > t.MaxBody {
		return into, BodyTooLarge, nil
	}
	before := len(into)
	into, err := ParseCalls(body, into)
	switch {
	case err != nil:
		// What was read of it proves nothing, and must not keep the body in memory.
		clear(into[before:])
		return into[:before], ToolUnproved, err
	case !h.Agree(into):
		return into, HeaderMismatch, nil
	}
	return into, Allowed, nil
}

// ByHeaders appends the call that the standard headers speak of. Only a version
// whose servers compare them with the body makes them a proof (rule H4), and only
// of what such a server compares: a method with another parameter is not proved
// where a rule is about it.
func (t *Tools) ByHeaders(h *Standard, into []Call) ([]Call, Reason) {
	c := Call{Method: h.Method, Version: h.Version}
	if !Modern(h.Version) || !isTarget(h.Method) {
		return into, ToolUnproved
	}
	switch {
	case named(&c):
		if !isTargetOf(string(c.Method), h.Name) {
			return into, ToolUnproved
		}
		c.Target = h.Name
	case hasTarget(string(c.Method)) && t.speaksOf(string(c.Method)):
		return into, ToolUnproved
	}
	return append(into, c), Allowed
}

// ByFilter appends the call that Envoy's mcp filter read. The filter compares the
// headers with it for modern requests only, so that they are compared here for all.
func (t *Tools) ByFilter(h *Standard, f *Filtered, into []Call) ([]Call, Reason) {
	if !isTarget(f.Method) {
		return into, ToolUnproved
	}
	c := Call{Method: f.Method}
	if string(f.Method) == FilteredResponse {
		c.Method = nil
	} else {
		p := params{name: f.Name, uri: f.URI, task: f.Task}
		var err error
		if c.Target, err = p.target(string(f.Method)); err != nil {
			// It says nothing about a ref, and rules seldom do.
			if string(f.Method) != "completion/complete" || t.speaksOf(string(f.Method)) {
				return into, ToolUnproved
			}
		}
	}
	if h.Method != nil && !bytes.Equal(h.Method, c.Method) || h.Name != nil && !bytes.Equal(h.Name, c.Target) {
		return into, HeaderMismatch
	}
	return append(into, c), Allowed
}

// speaksOf reports whether a rule is about a method.
func (t *Tools) speaksOf(method string) bool {
	for i := range t.Rules {
		if slices.Contains(t.Rules[i].Methods, method) {
			return true
		}
	}
	return false
}

// hasTarget reports whether a method is about something that its parameters name.
func hasTarget(method string) bool {
	v, err := (&params{}).target(method)
	return v != nil || err != nil
}
