package policy

import (
	"net"
	"net/url"
	"strings"
)

// metadataPath is where protected resource metadata is (RFC 9728 §3.1).
const metadataPath = "/.well-known/oauth-protected-resource"

// CallerURL is where callers reach an upstream through the rendered Envoy: the
// identifier of the protected resource that we are to them (RFC 9728 §1.2).
func (s *Set) CallerURL(u *Upstream) string {
	base, path := s.callerBase(u)
	if path == "" {
		path = "/"
	}
	return base + path
}

// MetadataURL is where the metadata of that resource is served: RFC 9728 §3.1
// puts the well-known part between host and path.
func (s *Set) MetadataURL(u *Upstream) string {
	at, err := url.Parse(s.CallerURL(u))
	if err != nil {
		return ""
	}
	return at.Scheme + "://" + at.Host + metadataPath + strings.TrimSuffix(at.EscapedPath(), "/")
}

// callerBase splits CallerURL before the path of the upstream's own url.
func (s *Set) callerBase(u *Upstream) (base, path string) {
	if own, err := url.Parse(u.URL); err == nil && own.EscapedPath() != "/" {
		path = own.EscapedPath()
	}
	if u.Listen != "" {
		scheme := "http"
		if s.Envoy.TLS != nil {
			scheme = "https"
		}
		return scheme + "://" + u.Listen, path
	}
	public, err := url.Parse(s.Envoy.PublicURL)
	if err == nil && s.Envoy.ByHost {
		host := HostName(u.Name, s.Envoy.Host)
		if port := public.Port(); port != "" {
			host = net.JoinHostPort(host, port)
		}
		return public.Scheme + "://" + host, path
	}
	return strings.TrimSuffix(s.Envoy.PublicURL, "/") + "/" + u.Name, path
}

// HostName is the host of an upstream for `route: host`.
func HostName(upstream, parent string) string {
	return strings.ToLower(upstream + "." + strings.Trim(parent, "."))
}
