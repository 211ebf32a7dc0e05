package limits

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// maxAnswer bounds an answer of the service: a few dozen bytes for each rule.
const maxAnswer = 256 << 10

// link is the connection to the service. gRPC opens it, and keeps it open.
type link struct {
	spec policy.LimitService

	mu   sync.RWMutex
	conn *grpc.ClientConn
}

// newLink starts connecting and returns at once: a service that is down is no
// error, files that cannot be read are.
func newLink(spec policy.LimitService) (*link, error) {
	l := &link{spec: spec}
	if spec.TLS {
		if _, err := l.tls(); err != nil {
			return nil, err
		}
	}
	var err error
	l.conn, err = l.dial()
	return l, err
}

// dial makes a connection of our own terms: no proxy of the environment, no
// settings out of DNS, no repetitions, and at most a second between two tries.
func (l *link) dial() (*grpc.ClientConn, error) {
	target, creds := l.spec.Address, insecure.NewCredentials()
	if !strings.HasPrefix(target, "unix://") {
		target = "dns:///" + target
	}
	if l.spec.TLS {
		creds = freshTLS{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), l}
	}
	conn, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(creds), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("address: %w", err)
	}
	conn.Connect()
	return conn, nil
}

func (l *link) client() rlsv3.RateLimitServiceClient {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return rlsv3.NewRateLimitServiceClient(l.conn)
}

// redial gives a connection up that does not work.
func (l *link) redial() {
	conn, err := l.dial()
	if err != nil {
		return // it worked with the same address before
	}
	l.mu.Lock()
	conn, l.conn = l.conn, conn
	l.mu.Unlock()
	_ = conn.Close()
}

func (l *link) close() {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_ = l.conn.Close()
}

// tls reads the files anew.
func (l *link) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if l.spec.CA != "" {
		pem, err := os.ReadFile(l.spec.CA)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: want PEM certificates in %q, got none", l.spec.CA)
		}
	}
	if l.spec.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(l.spec.Certificate, l.spec.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("tls.certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// freshTLS reads the files at each handshake, so that renewed ones are used.
type freshTLS struct {
	credentials.TransportCredentials
	link *link
}

// ClientHandshake implements credentials.TransportCredentials.
func (f freshTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := f.link.tls()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// Clone implements credentials.TransportCredentials.
func (f freshTLS) Clone() credentials.TransportCredentials {
	return freshTLS{f.TransportCredentials.Clone(), f.link}
}
