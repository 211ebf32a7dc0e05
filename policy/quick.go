package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// QuickText returns the policy file that `serve --upstream NAME=URL` stands
// for: every upstream is lent a token from one OAuth 2 client, and everybody
// who reaches the listener may call. The upstreams map names to URLs; listen is
// server.listen, or empty for the default. Names and URLs are quoted as they
// are: Parse judges them.
func QuickText(upstreams map[string]string, listen string) string {
	var b strings.Builder
	b.WriteString("# The policy of serve --upstream. To go on from here, save it to a file,\n" +
		"# change it, and start: envoy-mcp-auth serve -c FILE\n" +
		"version: 1\n\n")
	if listen != "" {
		fmt.Fprintf(&b, "server:\n  listen: %s\n\n", literal(listen))
	}
	b.WriteString(`defaults:
  # Everybody who reaches Envoy is lent the credential. Name key or mtls callers
  # here before others can reach it.
  callers: [anyone]
  credential:
    oauth2:
      token_url: ${MCP_OAUTH2_TOKEN_URL}
      client_id: ${MCP_OAUTH2_CLIENT_ID}
      client_secret: ${MCP_OAUTH2_CLIENT_SECRET}

callers:
  anyone: {any: true}

upstreams:
`)
	for _, name := range slices.Sorted(maps.Keys(upstreams)) {
		fmt.Fprintf(&b, "  %s:\n    url: %s\n", key(name), literal(upstreams[name]))
	}
	return b.String()
}

// literal quotes a value for YAML so that nothing in it is expanded.
func literal(s string) string { return strconv.QuoteToASCII(strings.ReplaceAll(s, "$", "$$")) }

// key quotes a name unless every YAML reader takes it as it is.
func key(name string) string {
	plain := name != "" && 'a' <= name[0] && name[0] <= 'z' // YAML reads 1 and 0x1 as numbers
	for _, b := range []byte(name) {
		plain = plain && (isNameStart(b) || b == '_' || b == '-')
	}
	if plain {
		return name
	}
	return strconv.QuoteToASCII(name)
}
