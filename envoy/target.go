package envoy

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// target is an upstream with its url taken apart.
type target struct {
	*policy.Upstream

	tls       bool
	host      string // without brackets
	port      uint32
	authority string // what the upstream's Host header says
	path      string // escaped, "" for the root
	// served is whether Envoy is told of it by this program, and not by a file.
	served bool
	// asks is the cluster of this program, where it is not ours to name.
	asks string
}

func targets(set *policy.Set) ([]target, error) {
	all := make([]target, 0, len(set.Upstreams))
	for _, u := range set.Upstreams {
		t, err := newTarget(u)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", u.Name, err)
		}
		all = append(all, t)
	}
	return all, nil
}

func newTarget(u *policy.Upstream) (target, error) {
	parsed, err := url.Parse(u.URL)
	if err != nil {
		return target{}, fmt.Errorf("url: %w", err)
	}
	host := strings.ToLower(parsed.Hostname())
	t := target{Upstream: u, tls: parsed.Scheme == "https", host: host, path: parsed.EscapedPath()}
	if !t.tls && parsed.Scheme != "http" || t.host == "" {
		return target{}, fmt.Errorf("want an http or https url with a host, got %q", u.URL)
	}
	// A route can move a path but not add a query, and leaving it out silently
	// would reach another resource than the policy names.
	if parsed.RawQuery != "" || parsed.User != nil {
		return target{}, fmt.Errorf("url %q: want no query and no user; let the caller send the query", u.URL)
	}
	if t.path == "/" {
		t.path = ""
	}
	if t.port, err = port(parsed, t.tls); err != nil {
		return target{}, err
	}
	t.authority = authority(t)
	if strings.Contains(t.path, "//") || strings.Contains(t.path, "/.") {
		return target{}, fmt.Errorf("url %q: want a path without empty or dot segments: Envoy normalises the caller's path and would never match it", u.URL)
	}
	return t, nil
}

func port(u *url.URL, tls bool) (uint32, error) {
	switch p := u.Port(); {
	case p != "":
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("url %q: want a port from 1 to 65535", u.Redacted())
		}
		return uint32(n), nil
	case tls:
		return 443, nil
	}
	return 80, nil
}

// authority leaves the scheme's own port out, as clients do (RFC 9110 §4.2.3).
func authority(t target) string {
	host := t.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if t.tls && t.port == 443 || !t.tls && t.port == 80 {
		return host
	}
	return fmt.Sprintf("%s:%d", host, t.port)
}

// mtls reports whether a caller of this upstream proves itself by certificate.
func (t target) mtls() bool {
	for _, c := range t.Callers {
		if len(c.SANs) > 0 {
			return true
		}
	}
	return false
}

// keepsChallenge reports whether a 401 of the upstream is the caller's to answer: it
// is lent nothing, and the caller's authorization is not for us. Where it is, the
// upstream's challenge would make a client log in elsewhere, and bring us a token
// that we refuse.
func (t target) keepsChallenge() bool {
	return t.Credential.None() && !slices.ContainsFunc(t.Callers, func(c *policy.Caller) bool {
		return c.JWT != nil && c.JWT.Header == "authorization"
	})
}

// issuers are those whose tokens prove a caller of this upstream, and scopes what
// such a token must hold.
func (t target) issuers() (issuers, scopes []string) {
	for _, c := range t.Callers {
		if c.JWT != nil {
			issuers, scopes = append(issuers, c.JWT.Issuer), append(scopes, c.JWT.RequireScopes...)
		}
	}
	return sortedCopy(issuers), sortedCopy(scopes)
}

// address turns unix:///PATH or HOST:PORT into Envoy's form.
func address(s string) (*corev3.Address, error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !strings.HasPrefix(path, "/") {
			return nil, fmt.Errorf("want unix:///PATH with an absolute path, got %q", s)
		}
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return nil, fmt.Errorf("want HOST:PORT or unix:///PATH, got %q", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("want a port from 1 to 65535, got %q", s)
	}
	return socketAddress(host, uint32(n)), nil
}

func socketAddress(host string, port uint32) *corev3.Address {
	switch host {
	case "":
		host = "0.0.0.0"
	case "localhost":
		// Both families of localhost would become two endpoints, and calls to
		// the one that does not listen would fail.
		host = "127.0.0.1"
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
