package extproc

import (
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// phase is what a ProcessingRequest is about: its field number in the oneof.
type phase protowire.Number

// The phases, as external_processor.proto numbers them.
const (
	phaseNone             phase = 0
	phaseRequestHeaders   phase = 2
	phaseResponseHeaders  phase = 3
	phaseRequestBody      phase = 4
	phaseResponseBody     phase = 5
	phaseRequestTrailers  phase = 6
	phaseResponseTrailers phase = 7
)

// Field numbers of the messages read here.
const (
	fieldMetadataContext = 8 // ProcessingRequest
	fieldAttributes      = 9 // ProcessingRequest

	fieldHeaderMap   = 1 // HttpHeaders.headers, HeaderMap.headers
	fieldEndOfStream = 3 // HttpHeaders

	fieldBodyBytes = 1 // HttpBody

	fieldHeaderKey   = 1 // HeaderValue
	fieldHeaderValue = 2
	fieldHeaderRaw   = 3

	fieldFilterMetadata = 1 // Metadata
	fieldStructFields   = 1 // Struct
	fieldMapKey         = 1 // any map entry
	fieldMapValue       = 2
	fieldStringValue    = 3 // Value
	fieldStructValue    = 5 // Value
)

// namespace is the metadata namespace that carries a decision from one attempt
// to the next and to the access log.
const namespace = "mcp_auth"

// filterNamespace is the namespace of Envoy's mcp filter.
const filterNamespace = "envoy.filters.http.mcp"

// message is a ProcessingRequest, read as far as a decision needs it. The
// generated type costs 75 more allocations a call than this reader.
type message struct {
	// buf holds the wire bytes, those of a body behind those of the headers;
	// header values alias it.
	buf []byte
	// room is the largest message that may come next.
	room  int
	phase phase
	req   policy.Request
	// bodiless is whether the headers are the whole request.
	bodiless bool
	// body is that of the last message, when it brought one.
	body  []byte
	prior prior
	// filtered is what Envoy's mcp filter says of the body.
	filtered policy.Filtered
	// requestID is the x-request-id header, for the log.
	requestID []byte
	// trace is the traceparent header.
	trace []byte
	// known turns bytes into the strings we already hold, so that a name costs no allocation.
	known map[string]string
}

// prior is what our own metadata of an earlier attempt says.
type prior struct {
	upstream, caller, reason, issuer, subject, mark, tool string

	own time.Duration // how long the decisions took
}

var errWire = errors.New("malformed ProcessingRequest")

// reset forgets the last message and keeps the memory.
func (m *message) reset(known map[string]string) {
	*m = message{buf: m.buf[:0], room: maxHeaders, known: known, req: policy.Request{Headers: m.req.Headers[:0]}}
}

// kept is the largest buffer that a message keeps for the next request.
const kept = 64 << 10

// shrink lets go of the memory of a large request.
func (m *message) shrink() {
	m.body, m.requestID, m.trace, m.filtered = nil, nil, nil, policy.Filtered{}
	if cap(m.buf) > kept {
		m.buf = nil
		clear(m.req.Headers)
	}
}

// str returns b as a string, allocating only for bytes never seen in the policy.
func (m *message) str(b []byte) string {
	if s, ok := m.known[string(b)]; ok {
		return s
	}
	return string(b)
}

// decode reads one message. What an earlier one of the stream said stays.
func (m *message) decode(b []byte) error {
	m.phase, m.body = phaseNone, nil
	return each(b, func(num protowire.Number, v []byte) error {
		switch int32(num) {
		case fieldMetadataContext:
			return each(v, m.metadata)
		case fieldAttributes:
			return each(v, m.attributes)
		}
		if p := phase(num); p >= phaseRequestHeaders && p <= phaseResponseTrailers {
			m.phase = p
			switch p { //nolint:exhaustive // nothing of the others is read
			case phaseRequestHeaders, phaseResponseHeaders:
				m.bodiless = flagged(v, fieldEndOfStream)
				return each(v, m.headerMap)
			case phaseRequestBody:
				return each(v, m.content)
			}
		}
		return nil
	})
}

func (m *message) content(num protowire.Number, v []byte) error {
	if num == fieldBodyBytes {
		m.body = v
	}
	return nil
}

func (m *message) headerMap(num protowire.Number, v []byte) error {
	if num != fieldHeaderMap {
		return nil
	}
	return each(v, m.header)
}

func (m *message) header(num protowire.Number, v []byte) error {
	if num != fieldHeaderMap {
		return nil
	}
	var h policy.Header
	err := each(v, func(num protowire.Number, v []byte) error {
		switch int32(num) {
		case fieldHeaderKey:
			h.Name = m.str(v)
		case fieldHeaderValue, fieldHeaderRaw:
			// Envoy fills one of the two; an empty one must not hide the other.
			if len(v) > 0 {
				h.Value = v
			}
		}
		return nil
	})
	switch h.Name {
	case "x-request-id":
		m.requestID = h.Value
	case "traceparent":
		m.trace = h.Value
	}
	m.req.Headers = append(m.req.Headers, h)
	return err
}

// attributes reads one entry of map<string, Struct>.
func (m *message) attributes(num protowire.Number, v []byte) error {
	if num != fieldMapValue {
		return nil
	}
	return eachString(v, func(name, value []byte) {
		switch string(name) {
		case "xds.cluster_name":
			m.req.Cluster = m.str(value)
		case "xds.route_name":
			m.req.Route = m.str(value)
		case "connection.uri_san_peer_certificate":
			m.req.URISAN = m.str(value)
		case "connection.dns_san_peer_certificate":
			m.req.DNSSAN = m.str(value)
		}
	})
}

// metadata reads one field of Metadata: our own namespace, and that of the mcp filter.
func (m *message) metadata(num protowire.Number, v []byte) error {
	if num != fieldFilterMetadata {
		return nil
	}
	key, value, err := entry(v)
	if err == nil && string(key) == filterNamespace {
		return m.filter(value)
	}
	if err != nil || string(key) != namespace {
		return err
	}
	return eachString(value, func(name, value []byte) {
		switch string(name) {
		case "upstream":
			m.prior.upstream = m.str(value)
		case "caller":
			m.prior.caller = m.str(value)
		case "reason":
			m.prior.reason = m.str(value)
		case "issuer":
			m.prior.issuer = m.str(value)
		case "subject":
			m.prior.subject = m.str(value)
		case "mark":
			m.prior.mark = m.str(value)
		case "tool":
			m.prior.tool = m.str(value)
		case "own":
			m.prior.own = micros(value)
		}
	})
}

// micros reads a whole number of microseconds as appendMicros writes it, or returns 0.
func micros(b []byte) (d time.Duration) {
	if len(b) > 12 { // eleven days
		return 0
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		d = d*10 + time.Duration(c-'0')
	}
	return d * time.Microsecond
}

// filter reads what the mcp filter says of a body that it read to its end.
func (m *message) filter(b []byte) error {
	var f policy.Filtered
	whole := false
	err := eachMember(b, func(name []byte, kind protowire.Number, value []byte) error {
		switch {
		case string(name) == "status" && kind == fieldStringValue:
			whole = string(value) == "mcp_ok"
		case string(name) == "method" && kind == fieldStringValue:
			f.Method = value
		case string(name) == "params" && kind == fieldStructValue:
			return eachString(value, func(name, value []byte) {
				switch string(name) {
				case "name":
					f.Name = value
				case "uri":
					f.URI = value
				case "taskId":
					f.Task = value
				}
			})
		}
		return nil
	})
	if whole {
		m.filtered = f
	}
	return err
}

// eachString visits the string members of a Struct.
func eachString(b []byte, visit func(name, value []byte)) error {
	return eachMember(b, func(name []byte, kind protowire.Number, value []byte) error {
		if kind == fieldStringValue {
			visit(name, value)
		}
		return nil
	})
}

// eachMember visits the members of a Struct that are strings, structs or lists:
// kind is the number of the field in Value.
func eachMember(b []byte, visit func(name []byte, kind protowire.Number, value []byte) error) error {
	return each(b, func(num protowire.Number, v []byte) error {
		if num != fieldStructFields {
			return nil
		}
		name, value, err := entry(v)
		if err != nil {
			return err
		}
		return each(value, func(num protowire.Number, v []byte) error { return visit(name, num, v) })
	})
}

// flagged reports whether a field of a message is true.
func flagged(b []byte, field protowire.Number) bool { return varint(b, field) != 0 }

// entry splits a map entry.
func entry(b []byte) (key, value []byte, err error) {
	err = each(b, func(num protowire.Number, v []byte) error {
		switch int32(num) {
		case fieldMapKey:
			key = v
		case fieldMapValue:
			value = v
		}
		return nil
	})
	return key, value, err
}

// each visits the length-delimited fields of a message and skips all others.
func each(b []byte, visit func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errWire
		}
		b = b[n:]
		if typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return errWire
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errWire
		}
		if err := visit(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
