package tokenstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"time"
)

// TLSMode says whether and how the server speaks TLS.
type TLSMode string

// The modes. All but TLSGood are faults.
const (
	TLSGood      TLSMode = "good"
	TLSExpired   TLSMode = "expired"
	TLSWrongName TLSMode = "wrong_name"
	TLSOld       TLSMode = "tls1.1"
)

// tlsConfig makes an authority and a certificate, and writes the authority's to CAFile.
func (s *Server) tlsConfig() (*tls.Config, error) {
	now := s.cfg.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokenstest authority"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing the authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "tokenstest"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	switch s.cfg.TLS {
	case TLSGood:
	case TLSExpired:
		leaf.NotAfter = now.Add(-time.Hour)
	case TLSWrongName:
		leaf.IPAddresses, leaf.DNSNames = nil, []string{"other.example"}
	case TLSOld:
		conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	default:
		return nil, fmt.Errorf("tls %q: want good, expired, wrong_name or tls1.1", s.cfg.TLS)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate: %w", err)
	}
	conf.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	s.ca = s.caPath()
	if err := os.WriteFile(s.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o600); err != nil {
		return nil, fmt.Errorf("writing the ca file: %w", err)
	}
	return conf, nil
}

// certified returns the method by which the request's client certificate proves
// a client (RFC 8705 §2), or "".
func (s *Server) certified(r *http.Request, c Client) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	leaf := r.TLS.PeerCertificates[0]
	if slices.ContainsFunc(c.Certificates, leaf.Equal) {
		return "self_signed_tls_client_auth"
	}
	if s.cfg.ClientCAs == nil || c.CommonName == "" || leaf.Subject.CommonName != c.CommonName {
		return ""
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: s.cfg.ClientCAs, CurrentTime: s.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return ""
	}
	return "tls_client_auth"
}
