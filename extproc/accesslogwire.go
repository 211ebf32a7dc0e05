package extproc

import (
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of the access log's messages.
const (
	fieldHTTPLogs = 2 // StreamAccessLogsMessage; its identifier, 1, is skipped
	fieldLogEntry = 1 // HTTPAccessLogEntries

	fieldCommonProperties   = 1 // HTTPAccessLogEntry
	fieldRequestProperties  = 3
	fieldResponseProperties = 4

	fieldStartTime       = 5 // AccessLogCommon
	fieldLastByteSent    = 12
	fieldUpstreamCluster = 15
	fieldResponseFlags   = 16
	fieldCommonMetadata  = 17
	fieldDuration        = 23
	fieldAttemptCount    = 24
	fieldIntermediate    = 27
	fieldLogType         = 33

	fieldRequestMethod    = 1 // HTTPRequestProperties
	fieldRequestID        = 9
	fieldRequestBodyBytes = 12
	fieldRequestHeaders   = 13

	fieldResponseCode      = 1 // HTTPResponseProperties, a UInt32Value
	fieldResponseBodyBytes = 3
	fieldResponseHeaders   = 4
	fieldWrapped           = 1 // UInt32Value

	fieldSeconds = 1 // Timestamp, Duration
	fieldNanos   = 2
)

// typeDownstreamEnd is AccessLogType.DownstreamEnd: the entry about the end of a
// call. Older versions of Envoy, and other proxies, leave the type unset.
const typeDownstreamEnd = 6

// resetFlags are the ResponseFlags, by number, that say that a call ended without a
// whole answer of the upstream: somebody reset it, a connection that was there was
// lost, or time ran out. A call that found no connection at all is not among them:
// Envoy answers that one with a 503 of its own, whole.
const resetFlags = 1<<3 | // upstream_request_timeout
	1<<4 | // local_reset
	1<<5 | // upstream_remote_reset
	1<<7 | // upstream_connection_termination
	1<<15 | // downstream_connection_termination
	1<<17 | // stream_idle_timeout
	1<<19 | // downstream_protocol_error
	1<<20 | // upstream_max_stream_duration_reached
	1<<23 | // duration_timeout
	1<<24 | // upstream_protocol_error
	1<<26 | // overload_manager
	1<<28 // downstream_remote_reset

// leftFlags are those of them that are the caller's doing.
const leftFlags = 1<<15 | 1<<19 | 1<<28

// keptEntries bounds what a stream keeps from one message to the next. Envoy sends
// 16 KiB at once, unless a single entry is larger.
const keptEntries = 256

// methodDelete is RequestMethod.DELETE.
const methodDelete = 5

// logged is an entry: an outcome, and what is for us alone. The session ids are
// gone once it is dealt with.
type logged struct {
	Outcome

	cluster     string // Envoy's
	method      int
	session     string // what our metadata says of the request's session
	used, given string // the session ids of request and answer
	under       bool   // the call is still under way
}

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
			kind := number(v, fieldLogType)
			o.under = kind != 0 && kind != typeDownstreamEnd || flagged(v, fieldIntermediate)
			return each(v, func(num protowire.Number, v []byte) error { return m.common(o, num, v) })
		case fieldRequestProperties:
			o.method = number(v, fieldRequestMethod)
			o.Received = size(v, fieldRequestBodyBytes)
			return each(v, func(num protowire.Number, v []byte) error { return m.request(o, num, v) })
		case fieldResponseProperties:
			o.Sent = size(v, fieldResponseBodyBytes)
			return each(v, func(num protowire.Number, v []byte) error { return m.response(o, num, v) })
		}
		return nil
	})
}

func (m *logMessage) common(o *logged, num protowire.Number, v []byte) error {
	switch int32(num) {
	case fieldStartTime:
		o.Began = moment(v)
	case fieldLastByteSent:
		o.Took = span(v)
	case fieldDuration: // of a call that sent no last byte
		if o.Took == 0 {
			o.Took = span(v)
		}
	case fieldUpstreamCluster:
		o.cluster = m.str(v)
	case fieldResponseFlags:
		set := flags(v)
		o.Reset, o.Left = set&resetFlags != 0, set&leftFlags != 0
	case fieldCommonMetadata:
		return each(v, func(num protowire.Number, v []byte) error { return m.metadata(o, num, v) })
	}
	return nil
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
	o.Decided = true
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
			o.Issuer = m.str(value)
		case "subject":
			o.Subject = m.str(value)
		case "tool":
			o.Tool = m.str(value)
		case "own":
			o.Own = micros(value)
		case "session":
			o.session = m.str(value)
		}
	})
}

// varint returns the varint field of that number, by what comes last, or 0. What is
// malformed is 0, and found out by each.
func varint(b []byte, field protowire.Number) (last uint64) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0
		}
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if size < 0 {
			return 0
		}
		if num == field && typ == protowire.VarintType {
			last, _ = protowire.ConsumeVarint(b[n:])
		}
		b = b[n+size:]
	}
	return last
}

// number is a varint that is small, or 0.
func number(b []byte, field protowire.Number) int {
	if v := varint(b, field); v <= 1<<31 {
		return int(v)
	}
	return 0
}

// size is a varint that counts bytes.
func size(b []byte, field protowire.Number) int64 {
	return int64(min(varint(b, field), math.MaxInt64))
}

// flags are the fields of a message that are true, as bits by their numbers.
func flags(b []byte) (set uint64) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0
		}
		size := protowire.ConsumeFieldValue(num, typ, b[n:])
		if size < 0 {
			return 0
		}
		if v, _ := protowire.ConsumeVarint(b[n:]); typ == protowire.VarintType && v != 0 && num < 64 {
			set |= 1 << num
		}
		b = b[n+size:]
	}
	return set
}

// moment reads a Timestamp since 1970, or returns the zero time.
func moment(b []byte) time.Time {
	seconds, nanos := varint(b, fieldSeconds), varint(b, fieldNanos)
	if seconds > math.MaxUint32 || nanos >= uint64(time.Second) {
		return time.Time{}
	}
	return time.Unix(int64(seconds), int64(nanos)).UTC()
}

// span reads a Duration, or returns 0 for one that is negative or longer than a call can be.
func span(b []byte) time.Duration {
	seconds, nanos := varint(b, fieldSeconds), varint(b, fieldNanos)
	if seconds > math.MaxUint32 || nanos >= uint64(time.Second) {
		return 0
	}
	return time.Duration(seconds)*time.Second + time.Duration(nanos)
}
