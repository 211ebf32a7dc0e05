package policy

import (
	"strconv"
	"strings"
)

// maxID bounds what of an id is sent back.
const maxID = 128

// codeHeaderMismatch is MCP's own code for standard headers and a body that
// disagree (SEP-2243): clients know it. No other reserved code is ours to use.
const codeHeaderMismatch = -32020

// Body returns the answer a refused caller reads: a JSON-RPC 2.0 error (§5.1).
// Its code is the HTTP status, which lies outside the range JSON-RPC reserves
// (−32768 to −32000), so no client takes it for an error of the protocol; but for
// HeaderMismatch, which MCP has a code for. The id is that of the request as its
// body writes it, a string or a number, or nil where the refusal was decided
// before a body was read. Nothing else of the request is in it.
func (r Reason) Body(id []byte) []byte {
	code := r.Status()
	if r == HeaderMismatch {
		code = codeHeaderMismatch
	}
	return refusal(id, code, r.String(), r.Text())
}

// RefusalBody is Body for a refusal that has no Reason, such as the ones that
// Envoy's own configuration makes. The word and the text must be fixed ones.
func RefusalBody(status int, word, text string) []byte {
	return refusal(nil, status, word, text)
}

func refusal(id []byte, code int, word, text string) []byte {
	var b strings.Builder
	b.WriteString(`{"jsonrpc":"2.0","id":`)
	if len(id) == 0 || len(id) > maxID {
		b.WriteString("null")
	} else {
		b.Write(id)
	}
	b.WriteString(`,"error":{"code":`)
	b.WriteString(strconv.Itoa(code))
	b.WriteString(`,"message":`)
	b.WriteString(jsonString(text))
	b.WriteString(`,"data":{"reason":`)
	b.WriteString(jsonString(word))
	b.WriteString(`}}}`)
	return []byte(b.String())
}

// jsonString quotes printable text. encoding/json would also do, but returns an
// error that no caller of Body could act on.
func jsonString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`).Replace(s) + `"`
}
