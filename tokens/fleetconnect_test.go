package tokens

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// stores waits until a replica has stored a token on the server.
func stores(t *testing.T, rep *replica) {
	t.Helper()
	eventually(t, "up", rep.state("up"))
	authorization(t, rep.source(t, "a", res("a")))
	eventually(t, "stored", func() bool { return rep.counted()["stored"] == 1 })
}

func on(as *fake, change func(*policy.SharedCache)) func(*Config, *FleetConfig) {
	return func(c *Config, f *FleetConfig) {
		c.Transport = as
		change(&f.Spec)
	}
}

func TestFleetOnASocketAndInADatabase(t *testing.T) {
	r := startRedis(t, realredis.Config{Socket: true})
	stores(t, enlist(t, "unix://"+r.Socket(), busy, on(newFake(), func(*policy.SharedCache) {})))
	settled(t, raw(t, r), 1)
	stores(t, enlist(t, r.URL()+"/3", busy, on(newFake(), func(*policy.SharedCache) {})))
	settled(t, raw(t, r), 1) // nothing more in database 0
}

// TestFleetWithTheLeastRights: the commands that the README names are enough.
func TestFleetWithTheLeastRights(t *testing.T) {
	r := startRedis(t, realredis.Config{})
	db := raw(t, r)
	noErr(t, db.Do(t.Context(), "ACL", "SETUSER", "fleet", "on", ">p4ssword", "~mcp:*", "+set", "+getrange", "+pttl", "+exists", "+eval", "+get", "+del").Err())
	rep := enlist(t, r.URL(), busy, func(c *Config, f *FleetConfig) {
		c.Transport, f.Spec.Username = newFake(), "fleet"
		withPassword("p4ssword")(c, f)
	})
	stores(t, rep)
	settled(t, db, 1)
	s := rep.source(t, "a", res("a"))
	if _, err := s.Replace(t.Context(), []byte(authorization(t, s))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stored again", func() bool { return rep.counted()["stored"] == 2 })
	for result := range rep.counted() {
		if result != "miss" && result != "rejected" && result != "stored" {
			t.Errorf("got %v", rep.counted())
		}
	}
}

// TestFleetTLS: the certificate is verified, and the authorities are those of the policy.
func TestFleetTLS(t *testing.T) {
	dir := t.TempDir()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	pem := inPEM("CERTIFICATE", must(x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)))
	write(t, filepath.Join(dir, "cert.pem"), pem)
	write(t, filepath.Join(dir, "key.pem"), inPEM("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))))
	address := must(realprocess.Address(t.Context()))
	startRedis(t, realredis.Config{Args: []string{
		"--tls-port", fmt.Sprint(must(net.ResolveTCPAddr("tcp", address)).Port), "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(dir, "cert.pem"), "--tls-key-file", filepath.Join(dir, "key.pem"),
	}})
	stores(t, enlist(t, "REDISS://"+address, busy, on(newFake(), func(s *policy.SharedCache) { s.CA = filepath.Join(dir, "cert.pem") })))
	stranger := enlist(t, "rediss://"+address, busy, on(newFake(), func(*policy.SharedCache) {}))
	eventually(t, "down", stranger.state("down"))
	if st := stranger.fleet.Status(); st.Code != "tls" {
		t.Errorf("want tls, got %+v", st)
	}
	authorization(t, stranger.source(t, "a", res("a")))
}

// TestFleetThatCanNeverWork: what is written wrongly shows at the start, and
// nothing of a secret with it.
func TestFleetThatCanNeverWork(t *testing.T) {
	secrets := &vault{values: map[string]string{"KEY": fleetKey}}
	for address, want := range map[string]string{
		"http://h:1": "redis://", "redis://": "redis://", "redis://user:c4n4ry@h:1": "redis://", "redis://h:1/x": "number",
		"unix://h/p": "redis://", "redis://h:1?db=1": "redis://", "rediss://h:1": "ca",
	} {
		_, err := NewFleet(FleetConfig{
			Spec:    policy.SharedCache{Redis: address, Key: named("KEY"), CA: filepath.Join(t.TempDir(), "none.pem")},
			Secrets: secrets, Now: time.Now,
		})
		if err == nil || !strings.HasPrefix(err.Error(), "shared_cache: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%s: want an error with %q, got %v", address, want, err)
		}
	}
}
