package tokens

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
)

// maxCA bounds a ca file: the system's whole bundle has about 220 kB.
const maxCA = 4 << 20

// network holds the transports: one for the system's authorities, and one for
// each ca file.
type network struct {
	fixed http.RoundTripper // replaces all, in tests

	mu    sync.Mutex // guards roots
	roots map[string]*rooted
}

// rooted is a transport that trusts what a ca file held.
type rooted struct {
	sum       [sha256.Size]byte
	transport *http.Transport
}

func newNetwork(fixed http.RoundTripper) *network {
	return &network{fixed: fixed, roots: map[string]*rooted{}}
}

// check reports whether a ca file is usable now.
func (n *network) check(ca string) error {
	_, err := n.transport(ca)
	return err
}

// transport returns the transport for a ca file, "" for the system's
// authorities. The file is read each time, so that a new authority is trusted
// at the next fetch; while it cannot be read, what it last held stays.
func (n *network) transport(ca string) (http.RoundTripper, error) {
	if n.fixed != nil {
		return n.fixed, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.roots[ca]
	if ca == "" {
		if old == nil {
			old = &rooted{transport: newTransport(nil)}
			n.roots[ca] = old
		}
		return old.transport, nil
	}
	pem, err := watchfile.Read(ca, maxCA)
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = fmt.Errorf("ca %q: want PEM certificates, got none", ca)
	}
	if err != nil {
		if old != nil {
			return old.transport, nil
		}
		return nil, fmt.Errorf("reading ca: %w", err)
	}
	sum := sha256.Sum256(pem)
	if old != nil {
		if old.sum == sum {
			return old.transport, nil
		}
		old.transport.CloseIdleConnections()
	}
	n.roots[ca] = &rooted{sum: sum, transport: newTransport(pool)}
	return n.roots[ca].transport, nil
}

// close drops idle connections.
func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.roots {
		r.transport.CloseIdleConnections()
	}
}

// newTransport returns a transport without cookies and compression, with TLS
// 1.2 or newer. The deadline of the fetch bounds all of it.
func newTransport(pool *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: fetchDeadline, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
		TLSHandshakeTimeout:    fetchDeadline,
		ResponseHeaderTimeout:  fetchDeadline,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        90 * time.Second,
	}
}
