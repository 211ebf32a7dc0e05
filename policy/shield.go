package policy

import (
	"bytes"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Stand-ins for the braces of ${NAME}: private-use characters, which YAML takes
// as ordinary letters.
const openBrace, closeBrace = "\uE000", "\uE001"

// shield hides the braces of every ${NAME} from the YAML parser. Without it,
// {x-api-key: ${KEY}} is a syntax error, since a brace inside of braces starts a
// mapping; people write that, and the parser's message would not tell them why.
// Inside quotes and comments it changes nothing, for unshield undoes it.
func shield(b []byte) []byte {
	if !bytes.Contains(b, []byte("${")) {
		return b
	}
	out := make([]byte, 0, len(b)+len(b)/8)
	for {
		before, after, found := bytes.Cut(b, []byte("${"))
		out = append(out, before...)
		if !found {
			return out
		}
		n := 0
		for n < len(after) && (isAlnum(after[n]) || after[n] == '_') {
			n++
		}
		if n == len(after) || after[n] != '}' || n == 0 {
			out, b = append(out, "${"...), after
			continue
		}
		out = append(out, "$"+openBrace+string(after[:n])+closeBrace...)
		b = after[n+1:]
	}
}

// unshield puts the braces back in everything that was read.
func unshield(n *yaml.Node) {
	if strings.Contains(n.Value, openBrace) {
		n.Value = strings.ReplaceAll(strings.ReplaceAll(n.Value, openBrace, "{"), closeBrace, "}")
	}
	for _, child := range n.Content {
		unshield(child)
	}
}
