package limits_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// identity writes a certificate for loopback that is its own authority, and its
// key, and returns it for a server that asks for it.
func identity(t *testing.T, crt, key string) *tls.Config {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, secret.Public(), secret)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{crt: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.LoadX509KeyPair(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	leaf, _ := x509.ParseCertificate(der)
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
}

// TestTLS: with the files as they are at each connection, and not with those of
// somebody else.
func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	crt, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	s, clock, count := &scripted{answer: respond(ok, ok, 10, 0)}, newClock(), &tally{}
	var now atomic.Pointer[tls.Config]
	now.Store(identity(t, crt, key))
	var server tls.Config
	server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return now.Load(), nil }
	addr := s.serve(t, grpc.Creds(credentials.NewTLS(&server)))
	block := strings.Replace(fleet(addr, "refuse", "{name: all, fleet: true}"), "timeout",
		fmt.Sprintf("tls: {ca: %q, certificate: %q, private_key: %q}, timeout", crt, crt, key), 1)

	identity(t, crt, key) // not those that the server knows
	l := gate(t, count.config(clock.now), block)
	d := by("a", "ci")
	if reason, _ := l.Admit(t.Context(), &d); reason == policy.Allowed || len(s.take()) != 0 {
		t.Error("want a server of another authority not asked")
	}
	now.Store(identity(t, crt, key))
	allowed := false
	for end := time.Now().Add(20 * time.Second); !allowed && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		clock.pass(time.Second)
		reason, _ := l.Admit(t.Context(), &d)
		allowed = reason == policy.Allowed
	}
	if !allowed || len(s.take()) != 1 {
		t.Errorf("want the renewed files used by the next connection, got %s and %+v", count.take(), l.Status().Service)
	}
}

// TestSocket: the service may listen on a Unix socket.
func TestSocket(t *testing.T) {
	t.Parallel()
	s, socket := &scripted{answer: respond(ok, ok, 10, 0)}, filepath.Join(t.TempDir(), "s")
	s.listen(t, "unix", socket)
	l := gate(t, (&tally{}).config(newClock().now), fleet("unix://"+socket, "refuse", "{name: all, fleet: true}"))
	d := by("a", "ci")
	if reason, _ := l.Admit(t.Context(), &d); reason != policy.Allowed {
		t.Errorf("want allowed, got %v: %+v", reason, l.Status().Service)
	}
}
