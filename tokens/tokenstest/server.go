package tokenstest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// recorded is how many requests are kept for Recorded.
const recorded = 4096

// Client is a registered client.
type Client struct {
	// Secret is its secret; empty for a client without one.
	Secret string
	// RawBasic takes client_secret_basic as it comes, without form-decoding.
	RawBasic bool
	// Keys are its public keys, for private_key_jwt.
	Keys []jose.JSONWebKey
	// Certificates are its self-signed certificates, and CommonName the name in
	// one that ClientCAs signed: tls_client_auth (RFC 8705). Config.MTLS must be on.
	Certificates []*x509.Certificate
	CommonName   string
	// Methods are the authentication methods it may use; nil means all that
	// it has the means for.
	Methods []string
	// Grants are the grant types it may use; nil means all.
	Grants []string
	// Scopes, Resources and Audiences are what it may ask for; nil means anything.
	Scopes, Resources, Audiences []string
	// NeedsResource refuses requests without a resource (RFC 8707).
	NeedsResource bool
}

// Config is what a Server needs. The zero value serves no client.
type Config struct {
	// Clients are the registered clients by client_id.
	Clients map[string]Client
	// Workloads are what the subjects of a platform's JWTs may ask for, by the
	// grant of RFC 7523 §2.1. Workload makes such JWTs.
	Workloads map[string]Client
	// Trust holds the keys of other issuers whose tokens about users are taken
	// as subject tokens and assertions. The server's own always are.
	Trust map[string]jose.JSONWebKeySet
	// Addr is the address to listen on; empty means a free port of 127.0.0.1.
	Addr string
	// TLS turns on https with a certificate of the server's own authority
	// (CAFile). See the TLS modes for bad ones.
	TLS TLSMode
	// MTLS opens a second listener, MTLSTokenURL, that asks for client
	// certificates. It needs TLS.
	MTLS bool
	// ClientCAs sign client certificates.
	ClientCAs *x509.CertPool
	// Issuer is the iss of the tokens; empty means the server's URL, followed
	// by IssuerPath (such as /tenant).
	Issuer, IssuerPath string
	// MetadataForms are the forms of metadata that are served, of oauth
	// (RFC 8414), openid (its OpenID form) and appended (OpenID Connect
	// Discovery, below the issuer's path); nil means all.
	MetadataForms []string
	// Lifetime of the tokens; 0 means 5 minutes.
	Lifetime time.Duration
	// Algorithm signs the tokens: ES256 (also when empty) or RS256.
	Algorithm string
	// NoAssertionTyp makes the server an old one that refuses client
	// assertions with a typ header, instead of those without.
	NoAssertionTyp bool
	// Control serves /control/revoke, /control/rotate, /control/fail?fault=NAME
	// and /control/heal (POST), so that another process can drive the server.
	Control bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Request is a token request as it came.
type Request struct {
	// Form is the body, decoded; Raw is the body as it came.
	Form url.Values
	Raw  string
	// Header holds all headers, Query the query of the URL.
	Header http.Header
	Query  string
	// Certificate is the client certificate it came with, nil for none.
	Certificate *x509.Certificate
	// At is when it came.
	At time.Time
}

// Server is a running authorization server. Its methods may be called from any
// goroutine.
type Server struct {
	cfg       Config
	base      string
	http      *http.Server
	elsewhere *http.Server
	otherBase string
	mtls      *http.Server
	mtlsBase  string
	dir       string
	ca        string
	done      chan struct{}

	mu       sync.Mutex // guards all below
	keys     []signer   // the last one signs
	issued   map[string]issue
	platform signer
	used     map[string]time.Time // the jti of assertions, to their end
	requests int
	byClient map[string]int
	log      []Request
	strayed  int
	fault    Fault
	left     int // requests the fault still has, -1 for all
	serial   int

	jwks       jwks
	disabled   []string // users
	answerEdit func(map[string]any)
	idJAGEdit  func(*string, map[string]any)

	metadataPaths []string // of the requests for metadata
	metadataFault Fault
	metadataEdit  func(map[string]any)
}

// issue is a token that was issued.
type issue struct {
	expiry  time.Time
	revoked bool
}

// New starts a server. Close stops it.
func New(cfg Config) (*Server, error) {
	if cfg.Lifetime == 0 {
		cfg.Lifetime = 5 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	s := &Server{cfg: cfg, done: make(chan struct{}), issued: map[string]issue{}, used: map[string]time.Time{}, byClient: map[string]int{}}
	if err := s.rotate(); err != nil {
		return nil, err
	}
	s.platform = s.keys[0]
	var err error
	if s.dir, err = os.MkdirTemp("", "tokenstest"); err != nil {
		return nil, fmt.Errorf("making a place for the ca file: %w", err)
	}
	if err := s.listen(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Start is New for tests: it fails the test on an error, and closes the server
// at the test's end.
func Start(tb testing.TB, cfg Config) *Server {
	tb.Helper()
	s, err := New(cfg)
	if err != nil {
		tb.Fatalf("starting the authorization server: %v", err)
	}
	tb.Cleanup(s.Close)
	return s
}

// listen opens the server's own listener and the one that redirects lead to.
func (s *Server) listen() error {
	var lc net.ListenConfig
	ctx := context.Background()
	l, err := lc.Listen(ctx, "tcp", s.cfg.Addr)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	other, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("listening: %w", err)
	}
	scheme := "http"
	if s.cfg.TLS != "" {
		conf, err := s.tlsConfig()
		if err != nil {
			_, _ = l.Close(), other.Close()
			return err
		}
		scheme, l = "https", tls.NewListener(l, conf)
		if err := s.listenMTLS(conf.Clone()); err != nil {
			_, _ = l.Close(), other.Close()
			return err
		}
	}
	s.base, s.otherBase = scheme+"://"+l.Addr().String(), "http://"+other.Addr().String()
	if s.cfg.Issuer == "" {
		s.cfg.Issuer = s.base + s.cfg.IssuerPath
	}
	s.http = &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet()}
	s.elsewhere = &http.Server{Handler: http.HandlerFunc(s.serveElsewhere), ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet()}
	go func() { _ = s.http.Serve(l) }()
	go func() { _ = s.elsewhere.Serve(other) }()
	return nil
}

// listenMTLS opens the listener that asks for client certificates. It takes any:
// the token endpoint judges them.
func (s *Server) listenMTLS(conf *tls.Config) error {
	if !s.cfg.MTLS {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	conf.ClientAuth = tls.RequestClientCert
	s.mtlsBase = "https://" + l.Addr().String()
	s.mtls = &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: quiet()}
	go func() { _ = s.mtls.Serve(tls.NewListener(l, conf)) }()
	return nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/token", s.serveToken)
	mux.HandleFunc("GET /jwks", s.serveJWKS)
	mux.HandleFunc("/", s.serveMetadata)
	mux.HandleFunc("GET /revoked", s.serveRevoked)
	if s.cfg.Control {
		mux.HandleFunc("POST /control/{do}", s.serveControl)
	}
	return mux
}

// Close stops the server and cuts every connection.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	s.mu.Unlock()
	for _, h := range []*http.Server{s.http, s.elsewhere, s.mtls} {
		if h != nil {
			_ = h.Close()
		}
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// URL returns the server's base URL, which is its issuer unless Config says otherwise.
func (s *Server) URL() string { return s.base }

// Issuer returns the iss of the tokens.
func (s *Server) Issuer() string { return s.cfg.Issuer }

// TokenURL returns the token endpoint.
func (s *Server) TokenURL() string { return s.base + "/token" }

// MTLSTokenURL returns the token endpoint that asks for client certificates.
func (s *Server) MTLSTokenURL() string { return s.mtlsBase + "/token" }

// JWKSURL returns where the keys are.
func (s *Server) JWKSURL() string { return s.base + "/jwks" }

// CAFile returns the path of a PEM file with the authority of the server's
// certificate, empty without TLS.
func (s *Server) CAFile() string { return s.ca }

// Requests returns how many token requests came.
func (s *Server) Requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

// RequestsBy returns how many token requests named the client.
func (s *Server) RequestsBy(clientID string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byClient[clientID]
}

// Recorded returns the last token requests, oldest first, 4096 at most.
func (s *Server) Recorded() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// Strayed returns how many requests followed a redirect to the other host.
func (s *Server) Strayed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.strayed
}

// Fail makes every further token request end in the fault; the empty fault, like
// Heal, ends that.
func (s *Server) Fail(f Fault) { s.FailNext(-1, f) }

// FailNext makes the next n token requests end in the fault.
func (s *Server) FailNext(n int, f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.left = f, n
}

// Heal ends a fault.
func (s *Server) Heal() { s.FailNext(0, "") }

// Revoke revokes every token issued so far. Servers that ask Revoked, or GET
// /revoked?jti=, refuse them from then on.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, i := range s.issued {
		i.revoked = true
		s.issued[id] = i
	}
}

// Revoked reports whether the token of this jti was revoked, or never issued.
func (s *Server) Revoked(jti string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.issued[jti]
	return !ok || i.revoked
}

// RotateKeys makes a new key sign. The old ones stay published.
func (s *Server) RotateKeys() error { return s.rotate() }

// SetLifetime changes the life of further tokens.
func (s *Server) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cfg.Lifetime = d
}

// SetSecret changes a client's secret.
func (s *Server) SetSecret(clientID, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clients := make(map[string]Client, len(s.cfg.Clients))
	for id, c := range s.cfg.Clients {
		if id == clientID {
			c.Secret = secret
		}
		clients[id] = c
	}
	s.cfg.Clients = clients
}

func (s *Server) record(r Request) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	if len(s.log) == recorded {
		s.log = slices.Delete(s.log, 0, 1)
	}
	s.log = append(s.log, r)
	if s.left == 0 || s.fault == "" {
		return "", false
	}
	if s.left > 0 {
		s.left--
	}
	return s.fault, true
}

func (s *Server) caPath() string { return filepath.Join(s.dir, "ca.pem") }
