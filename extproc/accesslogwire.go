package extproc

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of the access log's messages.
const (
	fieldHTTPLogs = 2 // StreamAccessLogsMessage; its identifier, 1, is skipped
	fieldLogEntry = 1 // HTTPAccessLogEntries

	fieldCommonProperties   = 1 // HTTPAccessLogEntry
	fieldRequestProperties  = 3
	fieldResponseProperties = 4

	fieldCommonMetadata = 17 // AccessLogCommon
	fieldAttemptCount   = 24

	fieldRequestMethod  = 1 // HTTPRequestProperties
	fieldRequestID      = 9
	fieldRequestHeaders = 13

	fieldResponseCode    = 1 // HTTPResponseProperties, a UInt32Value
	fieldResponseHeaders = 4
	fieldWrapped         = 1 // UInt32Value
)

// methodDelete is RequestMethod.DELETE.
const methodDelete = 5

// logged is an entry: an outcome, and what is for us alone. The session ids are
// gone once it is dealt with.
type logged struct {
	Outcome

	issuer, subject string
	method          int
	session         string // what our metadata says of the request's session
	used, given     string // the session ids of request and answer
}

// keptEntries bounds what a stream keeps from one message to the next. Envoy sends
// 16 KiB at once, unless a single entry is larger.
const keptEntries = 256

// logMessage is a StreamAccessLogsMessage, read as far as outcomes need it. The
// first message of a stream names every extension of that Envoy, hundreds of
// kilobytes: they are stepped over, and nothing refers to the wire bytes after.
type logMessage struct {
	entries   []logged
	malformed int
	known     map[string]string
}

func (m *logMessage) reset(known map[string]string) {
	clear(m.entries)
	if cap(m.entries) > keptEntries { // 1 MB of empty entries made 60 MB of these
		m.entries = nil
	}
	*m = logMessage{entries: m.entries[:0], known: known}
}

func (m *logMessage) str(b []byte) string {
	if s, ok := m.known[string(b)]; ok {
		return s
	}
	return string(b)
}

// decode reads wire bytes. What cannot be read is counted and left out: one
// strange entry must not cost those of other calls.
func (m *logMessage) decode(b []byte) {
	err := each(b, func(num protowire.Number, v []byte) error {
		if num != fieldHTTPLogs {
			return nil
		}
		return each(v, func(num protowire.Number, v []byte) error {
			if num != fieldLogEntry {
				return nil
			}
			var o logged
			if err := m.entry(&o, v); err != nil {
				m.malformed++
				return nil //nolint:nilerr // see decode
			}
			m.entries = append(m.entries, o)
			return nil
		})
	})
	if err != nil {
		m.malformed++
	}
}

func (m *logMessage) entry(o *logged, b []byte) error {
	return each(b, func(num protowire.Number, v []byte) error {
		switch int32(num) {
		case fieldCommonProperties:
			o.Attempts = number(v, fieldAttemptCount)
			return each(v, func(num protowire.Number, v []byte) error {
				if num != fieldCommonMetadata {
					return nil
				}
				return each(v, func(num protowire.Number, v []byte) error { return m.metadata(o, num, v) })
			})
		case fieldRequestProperties:
			o.method = number(v, fieldRequestMethod)
			return each(v, func(num protowire.Number, v []byte) error { return m.request(o, num, v) })
		case fieldResponseProperties:
			return each(v, func(num protowire.Number, v []byte) error { return m.response(o, num, v) })
		}
		return nil
	})
}

func (m *logMessage) request(o *logged, num protowire.Number, v []byte) error {
	switch int32(num) {
	case fieldRequestID:
		o.RequestID = printable(v, 64)
	case fieldRequestHeaders:
		name, value, err := entry(v)
		if err == nil && string(name) == sessionHeader {
			o.used = string(value)
		}
		return err
	}
	return nil
}

func (m *logMessage) response(o *logged, num protowire.Number, v []byte) error {
	switch int32(num) {
	case fieldResponseCode:
		o.Status = number(v, fieldWrapped)
	case fieldResponseHeaders:
		name, value, err := entry(v)
		if err == nil && string(name) == reasonHeader {
			o.Refusal = m.str(value)
		}
		if err == nil && string(name) == sessionHeader {
			o.given = string(value)
		}
		return err
	}
	return nil
}

// metadata reads one namespace, which must be ours.
func (m *logMessage) metadata(o *logged, num protowire.Number, v []byte) error {
	if num != fieldFilterMetadata {
		return nil
	}
	key, value, err := entry(v)
	if err != nil || string(key) != namespace {
		return err
	}
	return eachString(value, func(name, value []byte) {
		switch string(name) {
		case "upstream":
			o.Upstream = m.str(value)
		case "caller":
			o.Caller = m.str(value)
		case "reason":
			o.Reason = m.str(value)
		case "token":
			o.Token = string(value)
		case "issuer":
			o.issuer = m.str(value)
		case "subject":
			o.subject = m.str(value)
		case "session":
			o.session = m.str(value)
		}
	})
}

// number returns the varint field of that number, or 0.
func number(b []byte, field protowire.Number) int {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0
		}
		b = b[n:]
		if num == field && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 || v > 1<<31 {
				return 0
			}
			return int(v)
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return 0
		}
		b = b[n:]
	}
	return 0
}
