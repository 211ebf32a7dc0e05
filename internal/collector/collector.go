// Package collector is the way to an OpenTelemetry collector: HTTP with the
// authorities and headers of the policy, and errors in words of our own.
package collector

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxPEM bounds a file of authorities.
const maxPEM = 4 << 20

// SecretSource is where the values of headers come from.
type SecretSource interface {
	Secret(ref policy.SecretRef) (policy.Secret, error)
}

// Config is what a Transport needs.
type Config struct {
	// Key is the collector's key in the policy, for errors.
	Key string
	// CA is the path of the collector's authorities; empty for the system's.
	CA string
	// Headers are sent with every request. A new secret counts at once.
	Headers []policy.SecretHeader
	// Secrets resolves them.
	Secrets SecretSource
	// Timeout bounds a request.
	Timeout time.Duration
}

// Transport implements http.RoundTripper. It may be used by any number of goroutines.
type Transport struct {
	cfg  Config
	last atomic.Pointer[error] // of the last request; nil when the collector took it

	mu   sync.Mutex // guards what follows
	sum  [sha256.Size]byte
	base *http.Transport
}

// New returns a Transport. It reads the authorities when they are needed.
func New(cfg Config) *Transport { return &Transport{cfg: cfg} }

// Check reports whether the authorities can be read now.
func (t *Transport) Check() error {
	_, _, err := t.authorities()
	return err
}

// Client returns a client that follows no redirects: they would carry the headers elsewhere.
func (t *Transport) Client() *http.Client {
	return &http.Client{
		Transport:     t,
		Timeout:       t.cfg.Timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close gives up the connections that are not in use.
func (t *Transport) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.base != nil {
		t.base.CloseIdleConnections()
	}
}

// errRejected is a failure that the status does not show.
var errRejected = errors.New("it rejected what it got, or its answer is not OTLP; look at its own log")

// Failure says why the last request failed. The errors of exporters quote what the
// collector answers, which may quote what it was sent.
func (t *Transport) Failure() error {
	if err := t.last.Load(); err != nil {
		return *err
	}
	return errRejected
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.send(r)
	failed := err
	if err == nil && resp.StatusCode/100 != 2 {
		failed = fmt.Errorf("it answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	t.last.Store(nil)
	if failed != nil {
		t.last.Store(&failed)
	}
	return resp, err
}

func (t *Transport) send(r *http.Request) (*http.Response, error) {
	base, err := t.current()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	for _, h := range t.cfg.Headers {
		secret, err := t.cfg.Secrets.Secret(h.Value)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", h.Name, err)
		}
		r.Header.Set(h.Name, secret.Reveal())
	}
	return base.RoundTrip(r)
}

// current returns the connections for what the file of authorities holds now.
// While it cannot be read, those for what it held last serve.
func (t *Transport) current() (*http.Transport, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	roots, sum, err := t.authorities()
	switch {
	case err != nil && t.base == nil:
		return nil, err
	case err != nil, t.base != nil && sum == t.sum:
		return t.base, nil
	case t.base != nil:
		t.base.CloseIdleConnections()
	}
	t.sum, t.base = sum, &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout: t.cfg.Timeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     time.Minute,
	}
	return t.base, nil
}

// authorities reads the file; a nil pool stands for the system's.
func (t *Transport) authorities() (*x509.CertPool, [sha256.Size]byte, error) {
	if t.cfg.CA == "" {
		return nil, [sha256.Size]byte{}, nil
	}
	b, err := watchfile.Read(t.cfg.CA, maxPEM)
	if err != nil {
		return nil, [sha256.Size]byte{}, fmt.Errorf("%s.ca: %w", t.cfg.Key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, [sha256.Size]byte{}, fmt.Errorf("%s.ca: %q: want PEM certificates, got none; check the path", t.cfg.Key, t.cfg.CA)
	}
	return roots, sha256.Sum256(b), nil
}
