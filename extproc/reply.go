package extproc

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Field numbers of the messages written here.
const (
	fieldRequestHeadersReply = 1 // ProcessingResponse
	fieldRequestBodyReply    = 3
	fieldImmediate           = 7
	fieldDynamicMetadata     = 8
	fieldModeOverride        = 9

	fieldCommon         = 1 // HeadersResponse, BodyResponse
	fieldHeaderMutation = 2 // CommonResponse
	fieldTrailerChange  = 1 // TrailersResponse

	fieldSetHeaders    = 1 // HeaderMutation
	fieldRemoveHeaders = 2

	fieldOptionHeader = 1 // HeaderValueOption
	fieldOptionAppend = 2
	fieldOptionAction = 3

	fieldStatus           = 1 // ImmediateResponse
	fieldImmediateHeaders = 2
	fieldBody             = 3
	fieldDetails          = 5

	overwriteOrAdd = 2 // HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
)

// reply is a ProcessingResponse as wire bytes. A reply belongs to one exchange,
// which uses its memory again.
type reply struct {
	wire []byte
	// mutation and meta are scratch for the nested messages, whose lengths
	// stand before them.
	mutation []byte
	meta     []byte
}

// appendHead appends the tag and the length of a length-delimited field.
func appendHead(b []byte, num protowire.Number, n int) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(n)) //nolint:gosec // lengths are not negative
}

// appendBytes appends a length-delimited field.
func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

// appendText is appendBytes for a string.
func appendText(b []byte, num protowire.Number, v string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, v)
}

// sizeBytes is the length of a length-delimited field with a number below 16.
func sizeBytes(n int) int { return 1 + protowire.SizeBytes(n) }

// appendSet appends a HeaderMutation.set_headers entry.
//
// The value goes into raw_value, because Envoy sends an empty header for value.
// append=false and OVERWRITE_IF_EXISTS_OR_ADD are both said, because Envoy
// reads the first and other data planes read the second.
func appendSet[T string | []byte](b []byte, name string, value T) []byte {
	header := sizeBytes(len(name)) + sizeBytes(len(value))
	b = appendHead(b, fieldSetHeaders, sizeBytes(header)+4)
	b = appendHead(b, fieldOptionHeader, header)
	b = appendText(b, fieldHeaderKey, name)
	b = appendHead(b, fieldHeaderRaw, len(value))
	b = append(b, value...)
	b = appendBytes(b, fieldOptionAppend, nil)
	b = protowire.AppendTag(b, fieldOptionAction, protowire.VarintType)
	return protowire.AppendVarint(b, overwriteOrAdd)
}

// appendRemove appends a HeaderMutation.remove_headers entry.
func appendRemove(b []byte, name string) []byte { return appendText(b, fieldRemoveHeaders, name) }

// appendMember appends a string member to a Struct.
func appendMember[T string | []byte](b []byte, name string, value T) []byte {
	val := sizeBytes(len(value))
	b = appendHead(b, fieldStructFields, sizeBytes(len(name))+sizeBytes(val))
	b = appendText(b, fieldMapKey, name)
	b = appendHead(b, fieldMapValue, val)
	b = appendHead(b, fieldStringValue, len(value))
	return append(b, value...)
}

// appendMicros appends a duration as a string member, in whole microseconds.
func appendMicros(b []byte, name string, d time.Duration) []byte {
	var room [20]byte
	return appendMember(b, name, strconv.AppendInt(room[:0], d.Microseconds(), 10))
}

// appendMetadata appends dynamic_metadata: our namespace with the members in meta.
func appendMetadata(b, meta []byte) []byte {
	value := sizeBytes(len(meta)) // Value.struct_value
	item := sizeBytes(len(namespace)) + sizeBytes(value)
	b = appendHead(b, fieldDynamicMetadata, sizeBytes(item))
	b = appendHead(b, fieldStructFields, item)
	b = appendText(b, fieldMapKey, namespace)
	b = appendHead(b, fieldMapValue, value)
	return appendBytes(b, 5, meta) // Value.struct_value
}

// bodyMode is a ProcessingMode: the request's body BUFFERED, and nothing else but,
// where they tell the outcome, the headers of the answer. render envoy writes it as
// the one mode that this server may ask for.
func bodyMode(answers bool) [8]byte {
	headers := byte(2) // SKIP
	if answers {
		headers = 1 // SEND
	}
	return [...]byte{
		2 << 3, headers, // response_header_mode
		3 << 3, 2, // request_body_mode: BUFFERED
		5 << 3, 2, // request_trailer_mode: SKIP
		6 << 3, 2, // response_trailer_mode: SKIP
	}
}

// askForBody answers the headers with the wish to see the body. It changes no
// header, and bears no mark, so that a stream that ends after it passes nothing.
func (r *reply) askForBody(answers bool) {
	mode := bodyMode(answers)
	r.wire = appendBytes(r.wire[:0], fieldRequestHeadersReply, nil)
	r.wire = appendBytes(r.wire, fieldModeOverride, mode[:])
}

// continueWith writes "go on, with this HeaderMutation", as the answer to a part
// of the request.
func (r *reply) continueWith(p phase) {
	kind := protowire.Number(fieldRequestHeadersReply)
	if p == phaseRequestBody {
		kind = fieldRequestBodyReply
	}
	common := sizeBytes(len(r.mutation))
	r.wire = appendHead(r.wire[:0], kind, sizeBytes(common))
	r.wire = appendHead(r.wire, fieldCommon, common)
	r.wire = appendBytes(r.wire, fieldHeaderMutation, r.mutation)
	r.wire = appendMetadata(r.wire, r.meta)
}

// immediate writes "answer the caller yourself": status, the headers of
// r.mutation, and a body.
func (r *reply) immediate(status int, body []byte, details string) {
	code := protowire.AppendTag(nil, 1, protowire.VarintType) // HttpStatus.code
	code = protowire.AppendVarint(code, uint64(status))       //nolint:gosec // HTTP statuses are small and positive
	var im []byte
	im = appendBytes(im, fieldStatus, code)
	im = appendBytes(im, fieldImmediateHeaders, r.mutation)
	im = appendBytes(im, fieldBody, body)
	im = appendText(im, fieldDetails, details)
	r.wire = appendBytes(r.wire[:0], fieldImmediate, im)
	r.wire = appendMetadata(r.wire, r.meta)
}

// acknowledge writes an empty reply of the kind a phase other than the request
// headers wants. The numbers of the two oneofs are one apart.
func (r *reply) acknowledge(p phase) {
	r.wire = appendBytes(r.wire[:0], protowire.Number(p)-1, nil)
}
