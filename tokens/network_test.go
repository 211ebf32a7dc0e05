package tokens

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// TestT4_AConnectionThatDiesInSilence: a balancer forgets the connection, and
// nobody says so. All requests share it with HTTP/2, and none may get stuck on it
// for longer than the one that meets it first.
func TestT4_AConnectionThatDiesInSilence(t *testing.T) {
	var serial atomic.Int64
	as := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !r.ProtoAtLeast(2, 0) {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
			return
		}
		_, _ = fmt.Fprintf(w, `{"access_token":"t-%d","token_type":"Bearer","expires_in":300}`, serial.Add(1))
	}))
	as.EnableHTTP2 = true
	as.StartTLS()
	t.Cleanup(as.Close)
	way := startWay(t, as.Listener.Addr().String())
	o := spec("https://" + way.Addr().String() + "/token")
	o.CA = filepath.Join(t.TempDir(), "ca.pem")
	noErr(t, os.WriteFile(o.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: as.Certificate().Raw}), 0o600))
	s := source(t, newCache(t, nil), "a", o)
	tok, err := s.Token(t.Context())
	if err != nil {
		t.Fatalf("want a token over HTTP/2, got %v", err)
	}
	way.forget()
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), fetchDeadline)
		_, err = s.Replace(ctx, tok.Authorization())
		cancel()
		if err == nil {
			break
		}
		if time.Since(start) > 2*fetchDeadline {
			t.Fatalf("want a new connection by now, got %v", err)
		}
	}
}

// way forwards connections, and forgets them without closing them.
type way struct {
	net.Listener
	generation atomic.Int64
}

func (w *way) forget() { w.generation.Add(1) }

func startWay(t *testing.T, target string) *way {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	noErr(t, err)
	w := &way{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := new(net.Dialer).DialContext(t.Context(), "tcp", target)
			if err != nil {
				_ = a.Close()
				continue
			}
			mine := w.generation.Load()
			known := func() bool { return w.generation.Load() == mine }
			go forward(a, b, known)
			go forward(b, a, known)
		}
	}()
	return w
}

func forward(to io.WriteCloser, from io.Reader, known func() bool) {
	defer func() { _ = to.Close() }()
	b := make([]byte, 4<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if !known() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}
