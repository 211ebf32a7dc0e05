package tracing

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

// sender adds the headers of the policy to each request, so that a new secret counts
// at once.
type sender struct {
	spec    *policy.Tracing
	secrets SecretSource

	last atomic.Pointer[error] // of the last request; nil when the collector took it

	mu   sync.Mutex
	sum  [sha256.Size]byte
	base *http.Transport
}

// errRejected is a failure that the status does not show.
var errRejected = errors.New("it rejected spans, or its answer is not OTLP; look at its own log")

// failure says what the last request came to, in words of our own.
func (s *sender) failure() error {
	if err := s.last.Load(); err != nil {
		return *err
	}
	return errRejected
}

// RoundTrip implements http.RoundTripper.
func (s *sender) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.send(r)
	failed := err
	if err == nil && resp.StatusCode/100 != 2 {
		failed = fmt.Errorf("it answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	s.last.Store(nil)
	if failed != nil {
		s.last.Store(&failed)
	}
	return resp, err
}

func (s *sender) send(r *http.Request) (*http.Response, error) {
	base, err := s.transport()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	for _, h := range s.spec.Headers {
		secret, err := s.secrets.Secret(h.Value)
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", h.Name, err)
		}
		r.Header.Set(h.Name, secret.Reveal())
	}
	return base.RoundTrip(r)
}

// transport returns the connections for what the file of authorities holds now.
// While it cannot be read, those for what it held last serve.
func (s *sender) transport() (*http.Transport, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	roots, sum, err := trust(s.spec.CA)
	switch {
	case err != nil && s.base == nil:
		return nil, err
	case err != nil, s.base != nil && sum == s.sum:
		return s.base, nil
	case s.base != nil:
		s.base.CloseIdleConnections()
	}
	s.sum, s.base = sum, &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout: sendTimeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 1,
		IdleConnTimeout:     time.Minute,
	}
	return s.base, nil
}

// trust reads a file of authorities; nil stands for the system's.
func trust(ca string) (*x509.CertPool, [sha256.Size]byte, error) {
	if ca == "" {
		return nil, [sha256.Size]byte{}, nil
	}
	b, err := watchfile.Read(ca, maxPEM)
	if err != nil {
		return nil, [sha256.Size]byte{}, fmt.Errorf("tracing.otlp.ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(b) {
		return nil, [sha256.Size]byte{}, fmt.Errorf("tracing.otlp.ca: %q: want PEM certificates, got none; check the path", ca)
	}
	return roots, sha256.Sum256(b), nil
}
