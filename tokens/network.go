package tokens

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// maxPEM bounds a file of certificates: the system's whole bundle has about 220 kB.
	maxPEM = 4 << 20
	// pingAfter is how long an HTTP/2 connection is silent before it is asked
	// whether it is alive, and idleConnection how long an unused one is kept and asked.
	pingAfter      = 3 * time.Second
	idleConnection = 30 * time.Second
)

// network holds the transports, one for each trust.
type network struct {
	fixed http.RoundTripper // replaces all, in tests

	mu    sync.Mutex // guards pools
	pools map[trust]*pool
}

// trust is what two requests must have in common to share connections: whom they
// believe, and who they are.
type trust struct {
	ca   string           // path, "" for the system's authorities
	cert string           // path of the client certificate, "" for none
	key  policy.SecretRef // its key
	// guarded refuses private addresses.
	guarded bool
}

// pool is the transport for what the files of a trust held.
type pool struct {
	sum       [sha256.Size]byte
	transport *http.Transport
}

var (
	errCA          = errors.New("reading ca")
	errCertificate = errors.New("reading certificate")
)

func newNetwork(fixed http.RoundTripper) *network {
	return &network{fixed: fixed, pools: map[trust]*pool{}}
}

// check reports whether the files are usable now. Of the certificate's key it
// knows nothing.
func (n *network) check(t trust) error {
	if t.cert != "" && n.fixed == nil {
		if _, err := readCertificate(t.cert); err != nil {
			return err
		}
	}
	_, err := n.transport(trust{ca: t.ca}, "")
	return err
}

// transport returns the transport for a trust; key is the private key of its
// certificate. The files are read each time, so that a new authority or
// certificate counts from the next fetch; while they cannot be read, or
// certificate and key do not fit, what was last good stays.
func (n *network) transport(t trust, key string) (http.RoundTripper, error) {
	if n.fixed != nil {
		return n.fixed, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.pools[t]
	conf, sum, err := t.load(key)
	if err != nil {
		if old != nil {
			return old.transport, nil
		}
		return nil, err
	}
	if old != nil {
		if old.sum == sum {
			return old.transport, nil
		}
		old.transport.CloseIdleConnections()
	}
	n.pools[t] = &pool{sum: sum, transport: newTransport(conf, t.guarded)}
	return n.pools[t].transport, nil
}

// load reads the files and returns a hash of all that was read. No error shows
// more of them than their paths.
func (t trust) load(key string) (*tls.Config, [sha256.Size]byte, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	h := sha256.New()
	if t.ca != "" {
		b, err := watchfile.Read(t.ca, maxPEM)
		if err != nil {
			return nil, [sha256.Size]byte{}, fmt.Errorf("%w: %w", errCA, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(b) {
			return nil, [sha256.Size]byte{}, fmt.Errorf("%w: ca %q: want PEM certificates, got none", errCA, t.ca)
		}
		part(h, "ca", string(b))
	}
	if t.cert != "" {
		cert, err := readCertificate(t.cert)
		if err == nil {
			err = fit(cert, key)
		}
		if err != nil {
			return nil, [sha256.Size]byte{}, err
		}
		conf.Certificates = []tls.Certificate{*cert}
		for _, der := range cert.Certificate {
			part(h, "certificate", string(der))
		}
		part(h, "key", key)
	}
	return conf, [sha256.Size]byte(h.Sum(nil)), nil
}

// readCertificate reads a PEM chain, leaf first.
func readCertificate(path string) (*tls.Certificate, error) {
	rest, err := watchfile.Read(path, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCertificate, err)
	}
	cert := &tls.Certificate{}
	for b, rest := pem.Decode(rest); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == "CERTIFICATE" {
			cert.Certificate = append(cert.Certificate, b.Bytes)
		}
	}
	if len(cert.Certificate) == 0 {
		return nil, fmt.Errorf("%w %q: want PEM certificates, got none", errCertificate, path)
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return nil, fmt.Errorf("%w %q: the first one cannot be read", errCertificate, path)
	}
	return cert, nil
}

// fit puts the key to its certificate.
func fit(cert *tls.Certificate, text string) error {
	key, err := parsePrivateKey(text)
	if err != nil {
		return fmt.Errorf("%w: its private key cannot be used: %w", errCertificate, err)
	}
	public, ok := key.signer.Public().(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.Leaf.PublicKey) {
		return fmt.Errorf("%w: it is not for the private key", errCertificate)
	}
	cert.PrivateKey = key.signer
	return nil
}

// close drops idle connections.
func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pools {
		p.transport.CloseIdleConnections()
	}
}

// newTransport returns a transport without cookies and compression, with TLS
// 1.2 or newer. The deadline of the fetch bounds all of it.
func newTransport(conf *tls.Config, guarded bool) *http.Transport {
	dialer := &net.Dialer{Timeout: fetchDeadline, KeepAlive: 30 * time.Second}
	if guarded {
		dialer.Control = guard
	}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    fetchDeadline,
		ResponseHeaderTimeout:  fetchDeadline,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    4,
		// A connection whose other end is gone without a word takes all requests
		// with it for as long as the system repeats itself, a quarter of an hour:
		// with HTTP/2 they share it, and a deadline ends the request alone. So
		// it is given up by the time that the first of them is.
		HTTP2:           &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: fetchDeadline - pingAfter},
		IdleConnTimeout: idleConnection,
	}
}
