package policy

import (
	"strconv"
	"strings"
)

// Body returns the answer a refused caller reads: a JSON-RPC 2.0 error (§5.1)
// with a null id, since a refusal is decided before the request's id is known.
// The code is the HTTP status, which lies outside the range JSON-RPC reserves
// (−32768 to −32000), so no client takes it for an error of the protocol.
// Nothing of the request is in it.
func (r Reason) Body() []byte {
	return RefusalBody(r.Status(), r.String(), r.Text())
}

// RefusalBody is Body for a refusal that has no Reason, such as the ones that
// Envoy's own configuration makes. The word and the text must be fixed ones.
func RefusalBody(status int, word, text string) []byte {
	var b strings.Builder
	b.WriteString(`{"jsonrpc":"2.0","id":null,"error":{"code":`)
	b.WriteString(strconv.Itoa(status))
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
