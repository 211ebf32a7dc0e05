package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// arrival is one request that reached an upstream.
type arrival struct {
	Method, Target, Host string
	Header               http.Header
	// Head is the request line and the headers as they came over the wire.
	Head string
	Body int
	At   time.Time
}

// lines returns the values of a header, byte for byte and in order of arrival.
func (a arrival) lines(name string) []string {
	var out []string
	for line := range strings.SplitSeq(a.Head, "\r\n") {
		n, v, ok := strings.Cut(line, ":")
		if ok && strings.EqualFold(n, name) {
			out = append(out, strings.TrimPrefix(v, " "))
		}
	}
	return out
}

// upstream is a server that keeps every byte that reaches it.
type upstream struct {
	name, addr string
	key        string // a fixed one that is its own
	srv        *http.Server

	mu       sync.Mutex
	handler  http.Handler
	arrivals []arrival
	count    int
	proto    string // of the last request
	taps     []*tap
	secure   bool         // speaks TLS, so that the taps read nothing
	inside   bytes.Buffer // of a secure one, all headers and trailers
}

// tap is a connection that keeps what was read from it.
type tap struct {
	net.Conn

	mu   sync.Mutex
	got  []byte
	mark int // where the current request begins
}

// tapLimit bounds what one connection keeps: bodies of megabytes come by.
const tapLimit = 4 << 20

func (c *tap) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.got) < tapLimit {
		c.got = append(c.got, p[:n]...)
	}
	return n, err
}

// head returns the request line and headers of the current request.
func (c *tap) head() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	raw := c.got[min(c.mark, len(c.got)):]
	if end := bytes.Index(raw, []byte("\r\n\r\n")); end >= 0 {
		raw = raw[:end]
	}
	return string(raw)
}

func (c *tap) next() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mark = len(c.got)
}

func (c *tap) all() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

type tapListener struct {
	net.Listener

	keep func(*tap)
}

func (l tapListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t := &tap{Conn: c}
	l.keep(t)
	return t, nil
}

type tapKey struct{}

// newUpstream starts an upstream that answers 200 to everything.
func newUpstream(t *testing.T, name string, tlsConfig *tls.Config) *upstream {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{name: name, addr: ln.Addr().String(), handler: http.HandlerFunc(fine), secure: tlsConfig != nil}
	u.srv = &http.Server{
		Handler:           http.HandlerFunc(u.serve),
		ReadHeaderTimeout: 30 * time.Second,
		MaxHeaderBytes:    4 << 20,
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, tapKey{}, c) },
	}
	taps := tapListener{ln, func(c *tap) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.taps = append(u.taps, c)
	}}
	go func() {
		if u.secure {
			u.srv.TLSConfig = tlsConfig
			_ = u.srv.ServeTLS(ln, "", "")
			return
		}
		_ = u.srv.Serve(taps)
	}()
	t.Cleanup(func() { _ = u.srv.Close() })
	return u
}

func fine(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func (u *upstream) url() string {
	if u.secure {
		return "https://" + u.addr + "/mcp"
	}
	return "http://" + u.addr + "/mcp"
}

// serve notes a request and lets the handler answer it.
func (u *upstream) serve(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(tapKey{}).(*tap)
	if !ok {
		c = &tap{got: headOf(r)}
	}
	body := &countingBody{ReadCloser: r.Body}
	r.Body = body
	u.mu.Lock()
	u.count++
	u.proto = r.Proto
	i := len(u.arrivals)
	u.arrivals = append(u.arrivals, arrival{
		Method: r.Method, Target: r.RequestURI, Host: r.Host, Header: r.Header.Clone(), Head: c.head(), At: time.Now(),
	})
	h := u.handler
	u.mu.Unlock()
	h.ServeHTTP(w, r)
	_, _ = io.Copy(io.Discard, r.Body)
	u.mu.Lock()
	if i < len(u.arrivals) {
		u.arrivals[i].Body = body.n
	}
	if u.secure {
		u.inside.Write(c.got)
		_ = r.Trailer.Write(&u.inside)
	}
	u.mu.Unlock()
	c.next()
}

// headOf writes the head of a request anew, where it did not come as text.
func headOf(r *http.Request) []byte {
	var b bytes.Buffer
	_, _ = fmt.Fprintf(&b, "%s %s %s\r\nHost: %s\r\n", r.Method, r.RequestURI, r.Proto, r.Host)
	_ = r.Header.Write(&b)
	b.WriteString("\r\n")
	return b.Bytes()
}

type countingBody struct {
	io.ReadCloser

	n int
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += n
	return n, err
}

// answer changes the handler.
func (u *upstream) answer(h http.Handler) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.handler = h
}

func (u *upstream) answerFunc(h http.HandlerFunc) { u.answer(h) }

// seen returns what came since the last take.
func (u *upstream) seen() []arrival {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.arrivals)
}

// take returns what came since the last take, and forgets it.
func (u *upstream) take() []arrival {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.arrivals
	u.arrivals = nil
	return out
}

// total returns how many requests ever came.
func (u *upstream) total() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.count
}

// protocol returns by which one the last request came.
func (u *upstream) protocol() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.proto
}

// raw returns every byte that ever came.
func (u *upstream) raw() []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := slices.Clone(u.inside.Bytes())
	for _, c := range u.taps {
		out = append(out, c.all()...)
		out = append(out, '\n')
	}
	return out
}
