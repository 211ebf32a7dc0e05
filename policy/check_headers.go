package policy

import "strings"

func (c *checker) cookies(path string, spec *CookiesSpec) {
	if spec == nil {
		return
	}
	c.each(path+".allow", spec.Allow, func(path, name string) {
		if !isToken(name) || strings.Contains(name, "*") {
			c.fault(path, "want the exact name of a cookie (RFC 9110 token, no patterns), got %s; write the name alone", c.gotUpTo(path, "=; "))
		}
	})
}

func (c *checker) headers(path string, spec *HeadersSpec) {
	if spec == nil {
		return
	}
	lower(spec.Remove)
	lower(spec.Allow)
	lower(spec.Pass)
	c.each(path+".remove", spec.Remove, c.headerPattern)
	if p := path + ".allow"; c.good(p) && len(spec.Allow) == 0 {
		c.fault(p, "an empty list could be read as all or as nothing; name a header that may go on, or leave the key out")
	}
	c.each(path+".allow", spec.Allow, func(path, name string) {
		c.headerPattern(path, name)
		if c.good(path) && denied(name) {
			c.fault(path, "a header that may hold the caller's own secret never goes on by allow; use headers.pass with credential: none")
		}
	})
	c.each(path+".pass", spec.Pass, func(path, name string) {
		switch name {
		case "authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key":
		default:
			c.fault(path, "want authorization, proxy-authorization, x-api-key, api-key, x-goog-api-key or ocp-apim-subscription-key, got %s; other headers go on without pass", c.gotUpTo(path, ":= "))
		}
	})
}

// headerPattern checks a name, or the beginning of one with a trailing *.
func (c *checker) headerPattern(path, pattern string) {
	name := strings.TrimSuffix(pattern, "*")
	switch {
	case strings.HasPrefix(name, ":") || isToken(name) && (isFraming(name) || strings.HasPrefix(name, "x-envoy-")):
		c.fault(path, "HTTP and Envoy need %s as it is; remove this entry", c.got(path))
	case name == "cookie":
		c.fault(path, "cookies have a block of their own; use cookies.allow")
	case !isToken(name) || strings.Contains(name, "*"):
		c.fault(path, "want a header name, got %s; a * may only end it, after at least one character", c.gotUpTo(path, ":= "))
	}
}

// lower writes names as HTTP/2 does; header names ignore case (RFC 9110 §5.1).
func lower(names []string) {
	for i := range names {
		names[i] = strings.ToLower(names[i])
	}
}

// isFraming lists the headers that say where a message ends and where it goes.
func isFraming(name string) bool {
	switch name {
	case "host", "content-length", "transfer-encoding", "connection", "te", "upgrade", "trailer", "keep-alive", "proxy-connection":
		return true
	}
	return strings.HasPrefix(name, ":")
}

// isOurs lists the headers with which Envoy and this program talk.
func isOurs(name string) bool {
	return strings.HasPrefix(name, "x-envoy-") || strings.HasPrefix(name, "x-mcp-auth")
}

// isToken is token of RFC 9110 §5.6.2.
func isToken(s string) bool {
	for _, b := range []byte(s) {
		if !isAlnum(b) && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(b)) {
			return false
		}
	}
	return s != ""
}
