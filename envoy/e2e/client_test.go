package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// reply is an answer, whichever way it came. Status 0 is a connection that
// ended without one.
type reply struct {
	status int
	header http.Header
	body   string
	took   time.Duration
}

func (r reply) String() string {
	return fmt.Sprintf("%d %s %.300q", r.status, r.header.Get("X-Mcp-Auth-Reason"), r.body)
}

// reason is the reason of the JSON-RPC body, or empty.
func (r reply) reason() string {
	var parsed struct {
		Error struct {
			Data struct {
				Reason string `json:"reason"`
			} `json:"data"`
		} `json:"error"`
	}
	_ = json.Unmarshal([]byte(r.body), &parsed) // not every answer is JSON
	return parsed.Error.Data.Reason
}

// isRefusal reports whether the reply is our refusal, whole.
func (r reply) isRefusal(status int, reason string) bool {
	return r.status == status && r.reason() == reason && r.header.Get("X-Mcp-Auth-Reason") == reason &&
		r.header.Get("Cache-Control") == "no-store" && r.header.Get("Content-Type") == "application/json"
}

// refused fails the test unless the reply is our refusal, whole.
func (r reply) refused(t *testing.T, status int, reason string) {
	t.Helper()
	if !r.isRefusal(status, reason) {
		t.Errorf("want %d %s as JSON with no-store, got %v %v", status, reason, r, r.header)
	}
}

// pairs is a list of header names and values, in turn.
type pairs []string

// post sends one request by HTTP/1.1 on a connection of its own.
func (r *rig) post(path, body string, headers ...string) reply {
	r.t.Helper()
	return r.do(r.t.Context(), nil, r.url+path, strings.NewReader(body), headers)
}

// do sends a POST and remembers the answer for the scan.
func (r *rig) do(ctx context.Context, client *http.Client, url string, body io.Reader, headers pairs) reply {
	r.t.Helper()
	out, err := r.try(ctx, client, url, body, headers)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// try is do for goroutines that are not the test's.
func (r *rig) try(ctx context.Context, client *http.Client, url string, body io.Reader, headers pairs) (reply, error) {
	return r.send(ctx, client, http.MethodPost, url, body, headers)
}

// send is try with another method.
func (r *rig) send(ctx context.Context, client *http.Client, method, url string, body io.Reader, headers pairs) (reply, error) {
	if client == nil {
		client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return reply{}, err
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	start := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	return r.read(resp, start)
}

func (r *rig) read(resp *http.Response, start time.Time) (reply, error) {
	b, err := io.ReadAll(resp.Body)
	out := reply{status: resp.StatusCode, header: resp.Header, body: string(b), took: time.Since(start)}
	r.heard(out)
	return out, err
}

// heard keeps an answer for the scan of secrets.
func (r *rig) heard(a reply) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answers.Len() < 8<<20 {
		_ = a.header.Write(&r.answers)
		r.answers.WriteString(a.body)
	}
}

// h1 sends bytes as they are, and reads one answer.
func (r *rig) h1(raw string) reply {
	r.t.Helper()
	start := time.Now()
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(r.t.Context(), "tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	if _, err := io.WriteString(conn, raw); err != nil {
		return reply{}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return reply{body: err.Error()}
	}
	defer func() { _ = resp.Body.Close() }()
	out, _ := r.read(resp, start) // a connection that is cut is an answer too
	return out
}

// get1 sends a GET with header lines as written; each line is "name: value".
func (r *rig) get1(path string, lines ...string) reply {
	r.t.Helper()
	return r.h1("GET " + path + " HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n" + joined(lines) + "\r\n")
}

func joined(lines []string) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l)
		b.WriteString("\r\n")
	}
	return b.String()
}

// get2 is get1 over HTTP/2 with prior knowledge: one field per line, no more
// checked on this side than there.
func (r *rig) get2(path string, lines ...string) reply {
	r.t.Helper()
	fields := pairs{":method", "GET", ":scheme", "http", ":authority", "x.test", ":path", path}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		fields = append(fields, strings.ToLower(name), strings.TrimPrefix(value, " "))
	}
	return r.h2(fields)
}

// h2 sends one request without a body, made of these fields.
func (r *rig) h2(fields pairs) reply {
	r.t.Helper()
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(r.t.Context(), "tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	start := time.Now()
	out, err := exchange2(conn, fields)
	if err != nil {
		out.body = err.Error()
	}
	out.took = time.Since(start)
	r.heard(out)
	return out
}

func exchange2(conn net.Conn, fields pairs) (reply, error) {
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return reply{}, err
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		return reply{}, err
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i+1 < len(fields); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return reply{}, err
		}
	}
	if err := writeHeaders(f, block.Bytes()); err != nil {
		return reply{}, err
	}
	return read2(f)
}

// writeHeaders cuts a block into frames of the size that every server accepts.
func writeHeaders(f *http2.Framer, block []byte) error {
	const most = 16 << 10
	first := block[:min(len(block), most)]
	rest := block[len(first):]
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndStream: true, EndHeaders: len(rest) == 0}); err != nil {
		return err
	}
	for len(rest) > 0 {
		part := rest[:min(len(rest), most)]
		rest = rest[len(part):]
		if err := f.WriteContinuation(1, len(rest) == 0, part); err != nil {
			return err
		}
	}
	return nil
}

func read2(f *http2.Framer) (reply, error) {
	out := reply{header: http.Header{}}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return out, err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				if h.Name == ":status" {
					_, _ = fmt.Sscan(h.Value, &out.status)
					continue
				}
				out.header.Add(h.Name, h.Value)
			}
			if frame.StreamEnded() {
				return out, nil
			}
		case *http2.DataFrame:
			out.body += string(frame.Data())
			if frame.StreamEnded() {
				return out, nil
			}
		case *http2.RSTStreamFrame:
			return out, fmt.Errorf("stream reset: %v", frame.ErrCode)
		case *http2.GoAwayFrame:
			return out, fmt.Errorf("goaway: %v", frame.ErrCode)
		}
	}
}

// both runs a case over HTTP/1.1 and over HTTP/2.
func (r *rig) both(f func(proto string, get func(path string, lines ...string) reply)) {
	f("h1", r.get1)
	f("h2", r.get2)
}

// load calls f at a steady rate until the context ends, and then waits for all
// that were begun. It returns how many there were. At most 32 are under way: a
// machine that cannot do the rate does fewer calls, and not ever later ones.
func load(ctx context.Context, perSecond int, f func()) int {
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					n.Add(1)
					f()
				}
			}
		})
	}
	wg.Wait()
	return int(n.Load())
}

// pooled is a client that keeps its connections, as a busy caller does.
func pooled() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
}

// h2c is a client that speaks HTTP/2 with prior knowledge.
func h2c() *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: &p}}
}
