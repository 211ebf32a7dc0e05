package policy

import (
	"strings"
	"time"
)

// messageTimeout is the message_timeout of rendered Envoy configuration. Envoy
// answers 504 then, so our own answer has to come before.
const messageTimeout = 2 * time.Second

// maxSocketPath is below the 108 bytes that Linux gives sun_path, and the 104 of others.
const maxSocketPath = 100

func (c *checker) server() {
	s := &c.f.Server
	c.serverListen(s)
	if c.good("server.admin") {
		host, _, ok := hostPort(s.Admin)
		switch {
		case !ok:
			c.fault("server.admin", "want HOST:PORT, got %s; write for example 127.0.0.1:9441", c.got("server.admin"))
		case !isLoopback(host):
			c.warn("server.admin", "%s is not loopback, and /status and /metrics ask nobody who they are; use 127.0.0.1, or keep others out by network policy", c.got("server.admin"))
		}
	}
	if c.good("server.deadline") && time.Duration(s.Deadline) >= messageTimeout {
		c.fault("server.deadline", "want less than %s, the message_timeout of the rendered Envoy, got %s; write for example 1.5s", messageTimeout, c.got("server.deadline"))
	}
	if s.TLS != nil && c.good("server.tls") && !c.has("server.tls.client_ca") {
		c.fault("server.tls.client_ca", "want a value, got nothing; add the authorities that sign Envoy's certificate, since only their clients may ask for tokens")
	}
}

func (c *checker) serverListen(s *ServerSpec) {
	const path = "server.listen"
	if !c.good(path) {
		return
	}
	if socket, ok := strings.CutPrefix(s.Listen, "unix://"); ok {
		switch {
		case !strings.HasPrefix(socket, "/") || strings.HasSuffix(socket, "/"):
			c.fault(path, "want unix:///ABSOLUTE/PATH, got %s; write three slashes and the socket's path", c.got(path))
		case len(socket) > maxSocketPath:
			c.fault(path, "want a socket path of at most %d bytes, got %d; use a shorter directory", maxSocketPath, len(socket))
		}
		return
	}
	host, _, ok := hostPort(s.Listen)
	switch {
	case !ok:
		c.fault(path, "want unix:///PATH or HOST:PORT, got %s; write for example unix:///run/envoy-mcp-auth/grpc.sock", c.got(path))
	case !isLoopback(host) && s.TLS == nil:
		c.fault(path, "%s is not loopback, and whoever reaches it gets tokens; add server.tls, or listen on a Unix socket", c.got(path))
	}
}

func (c *checker) envoy() {
	e := &c.f.Envoy
	c.envoyListen("envoy.listen", e.Listen)
	if c.good("envoy.public_url") {
		c.url("envoy.public_url", e.PublicURL, urlRules{plaintext: true})
	}
	switch byHost := e.Route == "host"; {
	case byHost && !c.has("envoy.host"):
		c.fault("envoy.host", "want the parent domain of route: host, got nothing; add for example host: mcp.example")
	case !byHost && c.good("envoy.route") && c.good("envoy.host"), !byHost && !c.has("envoy.route") && c.good("envoy.host"):
		c.warn("envoy.host", "this has no effect without route: host; add that, or remove this")
	}
	if c.good("envoy.host") && !isDomain(e.Host) {
		c.fault("envoy.host", "want a domain in lower case without a port, such as mcp.example, got %s; correct it", c.got("envoy.host"))
	}
}

// envoyListen checks an address that Envoy listens on. Envoy resolves no names there.
func (c *checker) envoyListen(path, address string) {
	if !c.good(path) {
		return
	}
	host, port, ok := hostPort(address)
	if !ok || port == 0 || !isIP(host) {
		c.fault(path, "want IP:PORT, got %s; write for example 127.0.0.1:10000, or 0.0.0.0:10000 for all interfaces", c.got(path))
	}
}

// isDomain takes the names that stand in a Host header: labels of letters,
// digits, - and _.
func isDomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, b := range []byte(label) {
			if !isNameStart(b) && b != '-' && b != '_' {
				return false
			}
		}
	}
	return true
}
