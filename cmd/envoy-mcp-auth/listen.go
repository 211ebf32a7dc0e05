package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/credentials"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// listen opens unix:///PATH or HOST:PORT.
func listen(ctx context.Context, address string) (net.Listener, error) {
	path, unix := strings.CutPrefix(address, "unix://")
	if !unix {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w; free the port or change it in the policy", address, err)
		}
		return l, nil
	}
	return listenUnix(ctx, path)
}

// listenUnix opens a socket that owner and group may use, over one that a dead
// process left. It never takes the place of a living one.
func listenUnix(ctx context.Context, path string) (*socket, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("making the socket's directory: %w; make it, or set server.listen to a place this user may write", err)
	}
	if err := clearStale(ctx, path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on unix://%s: %w; set server.listen to a place this user may write", path, err)
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false) // see socket.Close
	}
	// The socket lends credentials: whoever may write to it may ask for them.
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // the group is how Envoy's user gets in
		return nil, errors.Join(fmt.Errorf("setting the socket's mode: %w", err), l.Close())
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("looking at the socket: %w", err), l.Close())
	}
	return &socket{Listener: l, path: path, info: info}, nil
}

// clearStale removes a socket that a dead process left at path, and nothing else.
func clearStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return nil //nolint:nilerr // nothing there, or listening says what is wrong
	}
	if info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket; remove it or change server.listen", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		_ = c.Close()
	}
	// Only a refusal says that nobody listens: a process that is stuck answers
	// with other errors, and one of another user with permission denied.
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("another process serves %s; stop it or change server.listen", path)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing the old socket: %w; remove it, or set server.listen to a place this user may write", err)
	}
	return nil
}

// socket is a Unix socket that knows its own file.
type socket struct {
	net.Listener
	path string
	info os.FileInfo
	once sync.Once
}

// there reports whether the path still leads to this socket.
func (s *socket) there() bool {
	info, err := os.Lstat(s.path)
	return err == nil && os.SameFile(info, s.info)
}

// Close also removes the file, unless another process has taken its place: a
// replacement that started before we ended must stay reachable. That is looked
// at once: after closing, the file system may give our inode to the other.
func (s *socket) Close() error {
	s.once.Do(func() {
		if s.there() {
			_ = os.Remove(s.path)
		}
	})
	return s.Listener.Close()
}

// tlsFiles are the files of server.tls. They are looked at in each handshake, so
// that a rotated certificate needs no restart; handshakes are rare, because
// Envoy keeps its connections. While the files are missing or do not fit
// together, what they last held stays.
type tlsFiles struct {
	spec *policy.TLSSpec
	log  zerolog.Logger

	mu     sync.Mutex // guards all below
	config *tls.Config
	stamps [3]watchfile.Stamp
	ill    string // the failure last logged
}

// tellingTLS logs handshakes that fail. gRPC itself is silent about them, and a
// wrong certificate on Envoy's side would show nowhere here.
type tellingTLS struct {
	credentials.TransportCredentials
	log zerolog.Logger
}

// ServerHandshake implements credentials.TransportCredentials.
func (t tellingTLS) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := t.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		t.log.Warn().Err(err).Stringer("from", raw.RemoteAddr()).Msg("connection refused: TLS failed")
	}
	return c, info, err
}

// Clone implements credentials.TransportCredentials.
func (t tellingTLS) Clone() credentials.TransportCredentials {
	return tellingTLS{t.TransportCredentials.Clone(), t.log}
}

// maxPEM bounds each file of server.tls.
const maxPEM = 4 << 20

// serverTLS makes the TLS configuration of server.tls.
func serverTLS(spec *policy.TLSSpec, log zerolog.Logger) (*tls.Config, error) {
	files := &tlsFiles{spec: spec, log: log}
	if err := files.refresh(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return files.current(), nil
		},
	}, nil
}

func (f *tlsFiles) current() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.refresh()
	switch {
	case err == nil:
		f.ill = ""
	case f.ill != err.Error():
		f.ill = err.Error()
		f.log.Error().Err(err).Msg("certificates not read again, the last good ones stay")
	}
	return f.config
}

// refresh reads the files if one of them changed. The stamps are taken before,
// so a change in between is seen the next time.
func (f *tlsFiles) refresh() error {
	var stamps [3]watchfile.Stamp
	for i, path := range []string{f.spec.Certificate, f.spec.PrivateKey, f.spec.ClientCA} {
		stamp, err := watchfile.Of(path)
		if err != nil {
			return fmt.Errorf("server.tls: %w; put the file there", err)
		}
		stamps[i] = stamp
	}
	if f.config != nil && stamps == f.stamps {
		return nil
	}
	config, err := readTLS(f.spec)
	if err != nil {
		return err
	}
	f.config, f.stamps = config, stamps
	return nil
}

func readTLS(spec *policy.TLSSpec) (*tls.Config, error) {
	var pem [3][]byte
	for i, path := range []string{spec.Certificate, spec.PrivateKey, spec.ClientCA} {
		b, err := watchfile.Read(path, maxPEM)
		if err != nil {
			return nil, fmt.Errorf("server.tls: %w", err)
		}
		pem[i] = b
	}
	cert, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, fmt.Errorf("server.tls: %w; check certificate and private_key", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem[2]) {
		return nil, fmt.Errorf("server.tls.client_ca: %s holds no PEM certificate; put one there", spec.ClientCA)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
	}, nil
}
