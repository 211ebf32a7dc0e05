package envoy

import (
	"regexp"
	"slices"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// formatted finds request and response headers in Envoy's format strings, such
// as %REQ(X-A?X-B):10%.
var formatted = regexp.MustCompile(`%(?:REQ|REQUEST_HEADER|RESP|RESPONSE_HEADER)(?:_WITHOUT_QUERY)?\(([^)]*)\)`)

// withQuery finds the path with its query in them.
var withQuery = regexp.MustCompile(`(?i)%(?:REQ|REQUEST_HEADER)\([^)]*(?::PATH|X-ENVOY-ORIGINAL-PATH)|%PATH(?:\((?:WQ[:)]|:|\))|:|%)`)

// secretHeaders are headers that nothing may write down.
func secretHeaders() []string {
	return []string{
		"authorization", "proxy-authorization", "cookie", "set-cookie", "x-mcp-auth", "x-mcp-auth-key",
		"x-api-key", "x-litellm-api-key", "x-litellm-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key",
	}
}

// isSecret also knows the headers in which the policy's callers have tokens.
func (c *checker) isSecret(header string) bool {
	header = strings.ToLower(strings.TrimSpace(header))
	return slices.Contains(secretHeaders(), header) ||
		c.set != nil && slices.ContainsFunc(c.set.Callers, func(k *policy.Caller) bool { return k.JWT != nil && k.JWT.Header == header })
}

// queries checks that no access log has the query of a request, where callers
// have tokens: one that stands there is refused, and logged all the same (RFC 6750
// §5.3). A log without a format of its own has it too.
func (c *checker) queries(t tree) {
	config, kind := t.config()
	if c.set == nil || !slices.ContainsFunc(c.set.Callers, func(k *policy.Caller) bool { return k.JWT != nil }) {
		return
	}
	if kind != "FileAccessLog" && kind != "StdoutAccessLog" && kind != "StderrAccessLog" {
		return
	}
	p := problem{
		"query-logged", "the access log has the query of each request", "A caller that puts its token there is refused, and whoever reads the log can use the token",
		"give it a log_format with %PATH(NQ)% in the place of %REQ(:PATH)%",
	}
	custom := false
	for _, key := range []string{"log_format", "format", "json_format", "typed_json_format"} {
		if !config.get(key).ok() {
			continue
		}
		custom = true
		config.get(key).walk(func(v tree) bool {
			if withQuery.MatchString(v.str()) {
				c.report(v, p)
			}
			return true
		})
	}
	if !custom {
		c.report(t, p)
	}
}

// secretChecks looks for secrets that are written to logs, traces or metadata,
// in the whole file: one Envoy has one access log for many things.
func (c *checker) secretChecks(root tree) {
	root.walk(func(t tree) bool {
		c.formatString(t)
		if t.get("typed_config").ok() {
			c.queries(t)
		}
		for _, key := range []string{"additional_request_headers_to_log", "additional_response_headers_to_log"} {
			for _, item := range t.get(key).items() {
				if c.isSecret(item.str()) {
					c.logged(item, item.str())
				}
			}
		}
		if name := t.get("request_header", "name"); c.isSecret(name.str()) {
			c.report(name, problem{"secret-traced", name.str() + " is put into traces", "Whoever reads traces can use it", "remove this custom tag"})
		}
		if header := t.get("header"); c.isSecret(header.str()) && t.get("on_header_present").ok() {
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
			if !c.isSecret(header) {
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
