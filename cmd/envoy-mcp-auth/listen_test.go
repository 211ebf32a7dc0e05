package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/credentials"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ema") //nolint:usetesting // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestSocketLeavesAnothersFileAlone(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	open := func() *socket {
		t.Helper()
		s, err := listenUnix(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := open()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if first.there() {
		t.Error("a removed socket is there")
	}
	second := open()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if !second.there() {
		t.Fatal("closing the first socket removed the file of the second")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file of a closed socket is left: %v", err)
	}
	third := open()
	_ = second.Close() // as the end of the program does again
	if !third.there() {
		t.Error("closing twice removed the file of another socket")
	}
	_ = third.Close()
}

// TestSocketOfAStuckProcessStays fills the queue of a listener that nobody
// accepts from: connecting fails then, but not because it is dead.
func TestSocketOfAStuckProcessStays(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd) //nolint:errcheck // the end of the test
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for range 4 {
		var d net.Dialer
		if c, err := d.DialContext(ctx, "unix", path); err == nil {
			defer c.Close() //nolint:errcheck // the end of the test
		}
	}
	if _, err := listenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process serves") {
		t.Errorf("listening on the socket of a stuck process: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of a stuck process was removed: %v", err)
	}
}

// pair writes a certificate of the given name and its key.
func pair(t *testing.T, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: raw}, "ca": {Type: "CERTIFICATE", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFailedHandshakesAreLogged(t *testing.T) {
	dir := t.TempDir()
	pair(t, dir, "one")
	file := func(name string) string { return filepath.Join(dir, name) }
	config, err := serverTLS(&policy.TLSSpec{Certificate: file("cert"), PrivateKey: file("key"), ClientCA: file("ca")}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	theirs, ours := net.Pipe()
	go func() {
		_, _ = theirs.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		_, _ = io.Copy(io.Discard, theirs)
	}()
	if _, _, err := (tellingTLS{credentials.NewTLS(config), zerolog.New(&log)}).Clone().(tellingTLS).ServerHandshake(ours); err == nil {
		t.Fatal("a client without TLS got in")
	}
	_ = theirs.Close()
	if !strings.Contains(log.String(), "TLS failed") {
		t.Errorf("log = %s", &log)
	}
}

func TestCertificatesRotateAndStayWhenTheyBreak(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	pair(t, dir, "one")
	var log lockedBuffer
	spec := &policy.TLSSpec{Certificate: file("cert"), PrivateKey: file("key"), ClientCA: file("ca")}
	config, err := serverTLS(spec, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	serves := func(want string) {
		t.Helper()
		got, err := config.GetConfigForClient(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatalf("handshakes fail: %v", err)
		}
		leaf, err := x509.ParseCertificate(got.Certificates[0].Certificate[0])
		if err != nil || leaf.Subject.CommonName != want || got.ClientAuth != tls.RequireAndVerifyClientCert {
			t.Errorf("certificate %q, client authentication %v, want %q and required; %v", leaf.Subject.CommonName, got.ClientAuth, want, err)
		}
	}
	serves("one")
	pair(t, dir, "two")
	serves("two")
	for what, spoil := range map[string]func() error{
		"half a certificate": func() error { return os.Truncate(file("cert"), 100) },
		"a lost key":         func() error { return os.Remove(file("key")) },
		"a pipe":             func() error { return syscall.Mkfifo(file("ca")+"p", 0o600) },
	} {
		pair(t, dir, "two")
		serves("two")
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if what == "a pipe" {
			if err := os.Rename(file("ca")+"p", file("ca")); err != nil {
				t.Fatal(err)
			}
		}
		before := strings.Count(log.String(), "the last good ones stay")
		serves("two")
		serves("two")
		if n := strings.Count(log.String(), "the last good ones stay") - before; n != 1 {
			t.Errorf("%s: logged %d times, want once", what, n)
		}
		if err := os.RemoveAll(file("ca")); err != nil {
			t.Fatal(err)
		}
	}
	pair(t, dir, "three")
	serves("three")
}
