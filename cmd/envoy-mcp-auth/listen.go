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
	"time"

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
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("making the socket's directory: %w; make it, or set server.listen to a place this user may write", err)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("%s exists and is not a socket; remove it or change server.listen", path)
		}
		dialer := net.Dialer{Timeout: time.Second}
		if c, err := dialer.DialContext(ctx, "unix", path); err == nil {
			_ = c.Close()
			return nil, fmt.Errorf("another process serves %s; stop it or change server.listen", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the old socket: %w", err)
		}
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on unix://%s: %w; set server.listen to a place this user may write", path, err)
	}
	// The socket lends credentials: whoever may write to it may ask for them.
	if err := os.Chmod(path, 0o660); err != nil { //nolint:gosec // the group is how Envoy's user gets in
		return nil, errors.Join(fmt.Errorf("setting the socket's mode: %w", err), l.Close())
	}
	return l, nil
}

// serverTLS makes the TLS configuration of server.tls. The files are read at
// each handshake, so that a rotated certificate needs no restart; handshakes
// are rare, because Envoy keeps its connections.
func serverTLS(spec *policy.TLSSpec) (*tls.Config, error) {
	if _, err := readTLS(spec); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return readTLS(spec)
		},
	}, nil
}

func readTLS(spec *policy.TLSSpec) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(spec.Certificate, spec.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("server.tls: %w; check certificate and private_key", err)
	}
	pem, err := os.ReadFile(spec.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("server.tls.client_ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("server.tls.client_ca: %s holds no PEM certificate", spec.ClientCA)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
	}, nil
}
