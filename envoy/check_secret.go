package envoy

import (
	"regexp"
	"slices"
	"strings"
)

// formatted finds request and response headers in Envoy's format strings, such
// as %REQ(X-A?X-B):10%.
var formatted = regexp.MustCompile(`%(?:REQ|REQUEST_HEADER|RESP|RESPONSE_HEADER)(?:_WITHOUT_QUERY)?\(([^)]*)\)`)

// secretHeaders are headers that nothing may write down.
func secretHeaders() []string {
	return []string{
		"authorization", "proxy-authorization", "cookie", "set-cookie", "x-mcp-auth", "x-mcp-auth-key",
		"x-api-key", "x-litellm-api-key", "x-litellm-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key",
	}
}

func isSecret(header string) bool {
	return slices.Contains(secretHeaders(), strings.ToLower(strings.TrimSpace(header)))
}

// secretChecks looks for secrets that are written to logs, traces or metadata,
// in the whole file: one Envoy has one access log for many things.
func (c *checker) secretChecks(root tree) {
	root.walk(func(t tree) bool {
		c.formatString(t)
		for _, key := range []string{"additional_request_headers_to_log", "additional_response_headers_to_log"} {
			for _, item := range t.get(key).items() {
				if isSecret(item.str()) {
					c.logged(item, item.str())
				}
			}
		}
		if name := t.get("request_header", "name"); isSecret(name.str()) {
			c.report(name, problem{"secret-traced", name.str() + " is put into traces", "Whoever reads traces can use it", "remove this custom tag"})
		}
		if header := t.get("header"); isSecret(header.str()) && t.get("on_header_present").ok() {
			c.report(header, problem{"secret-in-metadata", header.str() + " is copied into metadata", "Metadata goes to access logs", "remove this rule"})
		}
		return true
	})
}

func (c *checker) formatString(t tree) {
	if !strings.Contains(t.str(), "%RE") {
		return
	}
	for _, m := range formatted.FindAllStringSubmatch(t.str(), -1) {
		for header := range strings.SplitSeq(m[1], "?") {
			if !isSecret(header) {
				continue
			}
			if strings.Contains(t.path, "request_headers_to_add") || strings.Contains(t.path, "response_headers_to_add") {
				c.report(t, problem{"secret-copied", strings.ToLower(header) + " is copied into another header", "The policy takes the header off, and the copy goes on", "remove it"})
				continue
			}
			c.logged(t, header)
		}
	}
}

func (c *checker) logged(at tree, header string) {
	c.report(at, problem{"secret-logged", strings.ToLower(header) + " is written to the access log", "Whoever reads the log can use it", "take it out of the format"})
}
