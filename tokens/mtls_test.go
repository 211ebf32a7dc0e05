package tokens

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// newCertificate makes a client certificate for key, signed by parent and
// parentKey, or by itself.
func newCertificate(t *testing.T, name string, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) *x509.Certificate {
	t.Helper()
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: name == "authority", BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, parentKey = cert, key
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), parentKey))))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// certified is a credential that shows the certificate at path.
func certified(as *tokenstest.Server, m policy.AuthMethod, path string) *policy.OAuth2 {
	o := spec(as.MTLSTokenURL())
	o.CA, o.AuthMethod, o.Certificate = as.CAFile(), m, path
	o.ClientSecret, o.PrivateKey = policy.SecretRef{}, keyRef()
	return o
}

func inCertPEM(c *x509.Certificate) string { return inPEM("CERTIFICATE", c.Raw) }

// TestO8_ClientCertificates gets tokens with certificates alone.
func TestO8_ClientCertificates(t *testing.T) {
	caKey, key := newEC(elliptic.P256()), newEC(elliptic.P384())
	ca := newCertificate(t, "authority", caKey, nil, nil)
	issued := newCertificate(t, "litellm", key, ca, caKey)
	selfSigned := newCertificate(t, "self", key, nil, nil)
	cas := x509.NewCertPool()
	cas.AddCert(ca)
	as := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood, MTLS: true, ClientCAs: cas, Clients: map[string]tokenstest.Client{
		clientID: {Certificates: []*x509.Certificate{selfSigned}, CommonName: "litellm", NeedsResource: true},
	}})
	for name, c := range map[string]struct {
		method policy.AuthMethod
		cert   *x509.Certificate
		key    string
		good   bool
	}{
		"tls_client_auth":             {policy.TLSClientAuth, issued, pkcs8(key), true},
		"self_signed_tls_client_auth": {policy.SelfSignedTLSClientAuth, selfSigned, pkcs8(key), true},
		"key as JWK":                  {policy.TLSClientAuth, issued, inJWK(key, "", ""), true},
		"a stranger's":                {policy.TLSClientAuth, newCertificate(t, "litellm", key, nil, nil), pkcs8(key), false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cert.pem")
			write(t, path, inCertPEM(c.cert)+inCertPEM(ca))
			s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = refStore{"PRIVATE_KEY": c.key} }), "a", certified(as, c.method, path))
			_, err := s.Token(t.Context())
			if c.good != (err == nil) || err != nil && failed(t, err).Code != "invalid_client" {
				t.Fatalf("want a token: %v, got %v", c.good, err)
			}
			log := as.Recorded()
			r := log[len(log)-1]
			if r.Form.Get("client_id") != clientID || r.Form.Has("client_secret") || r.Form.Has("client_assertion") || r.Header.Get("Authorization") != "" {
				t.Errorf("want the client_id and no other proof, got %v", r.Form)
			}
		})
	}
}

// TestO8_ANewCertificateIsUsedAtTheNextFetch: from the moment it fits its key.
func TestO8_ANewCertificateIsUsedAtTheNextFetch(t *testing.T) {
	oldKey, newKey := newEC(elliptic.P256()), newEC(elliptic.P256())
	oldCert, newCert := newCertificate(t, "old", oldKey, nil, nil), newCertificate(t, "new", newKey, nil, nil)
	as := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood, MTLS: true, Clients: map[string]tokenstest.Client{
		clientID: {Certificates: []*x509.Certificate{oldCert, newCert}},
	}})
	path := filepath.Join(t.TempDir(), "cert.pem")
	write(t, path, inCertPEM(oldCert))
	st := &store{secret: pkcs8(oldKey)}
	s := source(t, newCache(t, func(cfg *Config) { cfg.Secrets = st }), "a", certified(as, policy.SelfSignedTLSClientAuth, path))
	shown := func(want *x509.Certificate) {
		t.Helper()
		tok, err := s.Token(t.Context())
		if err == nil {
			_, err = s.Replace(t.Context(), tok.Authorization())
		}
		if err != nil {
			t.Fatal(err)
		}
		log := as.Recorded()
		if got := log[len(log)-1].Certificate; got == nil || !got.Equal(want) {
			t.Errorf("want the certificate of %s", want.Subject.CommonName)
		}
	}
	shown(oldCert)
	write(t, path, inCertPEM(newCert)) // its key is not there yet
	shown(oldCert)
	st.set(pkcs8(newKey), nil)
	shown(newCert)
}

// TestS4_O8_CertificatesThatCannotBeShown are named by their fault.
func TestS4_O8_CertificatesThatCannotBeShown(t *testing.T) {
	key := newEC(elliptic.P256())
	as := startAS(t, tokenstest.Config{TLS: tokenstest.TLSGood, MTLS: true, Clients: map[string]tokenstest.Client{clientID: {}}})
	dir := t.TempDir()
	good := filepath.Join(dir, "cert.pem")
	write(t, good, inCertPEM(newCertificate(t, "a", key, nil, nil)))
	for want, text := range map[string]string{"not for the private key": pkcs8(newEC(elliptic.P256())), "neither": "c4n4ry"} {
		var log buffer
		s := source(t, newCache(t, func(cfg *Config) {
			cfg.Secrets, cfg.Log = refStore{"PRIVATE_KEY": text}, zerolog.New(&log)
		}), "a", certified(as, policy.TLSClientAuth, good))
		_, err := s.Token(t.Context())
		e := failed(t, err)
		if e.Kind != Unavailable || e.Code != "certificate_unusable" || !strings.Contains(e.Text, want) {
			t.Errorf("want certificate_unusable, %s, got %v", want, e)
		}
		shown := e.Text + log.String() + string(must(json.Marshal(s.Status())))
		if strings.Contains(shown, "c4n4ry") || strings.Contains(shown, strings.Split(text+"\n-", "\n")[1]+"\n") {
			t.Errorf("the key is in %q", shown)
		}
	}
	write(t, filepath.Join(dir, "junk.pem"), "junk")
	for path, want := range map[string]string{"absent.pem": "no such file", "junk.pem": "want PEM certificates"} {
		_, err := newCache(t, nil).Source("a", certified(as, policy.TLSClientAuth, filepath.Join(dir, path)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", path, want, err)
		}
	}
	if as.Requests() != 0 {
		t.Error("a request without a proof was sent")
	}
}
