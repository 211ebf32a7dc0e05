package policy

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// urlRules says what one URL key permits.
type urlRules struct {
	// plaintext permits http to any host, not only to this one.
	plaintext bool
	// query permits a query: RFC 6749 §3.2 allows it for token endpoints.
	query bool
	// hint names the way out when http is refused.
	hint string
}

// url checks an absolute http or https URL. Faults do not repeat one with
// userinfo or a query, where passwords and keys are.
func (c *checker) url(path, raw string, rules urlRules) {
	if !c.good(path) {
		return
	}
	got := c.gotURL(path)
	u, ok := parseURL(raw)
	if !ok {
		c.fault(path, "want an absolute URL such as https://host.example/mcp, got %s; check spelling, port and encoding", got)
		return
	}
	plain := strings.EqualFold(u.Scheme, "http")
	switch {
	case !plain && !strings.EqualFold(u.Scheme, "https") || u.Hostname() == "":
		c.fault(path, "want an absolute http or https URL with a host, got %s; start it with https://", got)
	case u.User != nil:
		c.fault(path, "want a URL without user and password, got %s; lend them by credential: {header: …}", got)
	case strings.Contains(raw, "#"):
		c.fault(path, "want a URL without a fragment, got %s; take the # and the rest off", got)
	case !rules.query && strings.Contains(raw, "?"):
		c.fault(path, "want a URL without a query, got %s; take the ? and the rest off", got)
	case hasDots(u.Path):
		c.fault(path, "want a URL without . and .. segments, got %s; write the path they lead to", got)
	case plain && !rules.plaintext && !isLoopback(u.Hostname()):
		c.fault(path, "want https for a host that is not loopback, got %s; use https, or %s", got, rules.hint)
	}
}

// gotURL is got for URLs: without a query, and nothing of one with userinfo.
func (c *checker) gotURL(path string) string {
	if strings.Contains(c.at[path].node.Value, "@") {
		return "one with an @ (not shown)"
	}
	return c.gotUpTo(path, "?#")
}

// parseURL is url.Parse, stricter about ports and characters.
func parseURL(raw string) (*url.URL, bool) {
	u, err := url.Parse(raw)
	return u, err == nil && isVisible(raw) && u.Opaque == "" && validPort(u)
}

func validPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	_, ok := portOf(u.Port())
	return ok
}

func hasDots(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

// canonical is the RFC 8707 resource of an upstream (MCP authorization,
// canonical server URI): scheme and host in lower case, no default port, and no
// slash for an empty path. A longer path stays as written: there a trailing
// slash can matter.
func canonical(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	scheme, host, path := strings.ToLower(u.Scheme), strings.ToLower(u.Host), u.EscapedPath()
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	if path == "/" {
		path = ""
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return scheme + "://" + host + path
}

// hostPort splits HOST:PORT; an IPv6 host stands in brackets.
func hostPort(address string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(address, ':')
	if i <= 0 || !isVisible(address) {
		return "", 0, false
	}
	host = address[:i]
	port, ok = portOf(address[i+1:])
	if inner, bracket := strings.CutPrefix(host, "["); bracket {
		inner, closed := strings.CutSuffix(inner, "]")
		ip, err := netip.ParseAddr(inner)
		return inner, port, ok && closed && err == nil && ip.Is6()
	}
	return host, port, ok && !strings.ContainsAny(host, ":[]/@")
}

// portOf reads a port; 0 asks the system for a free one.
func portOf(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && text == strconv.FormatUint(n, 10)
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// isVisible reports whether s is visible ASCII alone, without blanks.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
