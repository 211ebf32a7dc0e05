package envoy

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
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
	t := target{Upstream: u, tls: parsed.Scheme == "https", host: parsed.Hostname(), authority: parsed.Host, path: parsed.EscapedPath()}
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
	t.port = 80
	if t.tls {
		t.port = 443
	}
	if p := parsed.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return target{}, fmt.Errorf("port of url %q: want 1 to 65535", u.URL)
		}
		t.port = uint32(n)
	}
	if strings.Contains(t.path, "//") || strings.Contains(t.path, "/.") {
		return target{}, fmt.Errorf("url %q: want a path without empty or dot segments: Envoy normalises the caller's path and would never match it", u.URL)
	}
	return t, nil
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

// ip returns the host as an address, if it is one.
func (t target) ip() (netip.Addr, bool) {
	a, err := netip.ParseAddr(t.host)
	return a, err == nil
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
