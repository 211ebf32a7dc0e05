package compare

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	clientID = "compare"
	// secret is easy to find in whatever comes out.
	secret = "canary-of-the-comparison"
)

// mode is how the endpoint answers.
type mode struct {
	latency time.Duration
	hang    bool
	status  int    // 0 is 200 with a token
	body    string // of a status that is not 0
	header  http.Header
	life    time.Duration // of the token; 0 is an hour
}

// endpoint is a token endpoint. On loopback it is the handler of a server; in
// fake time, where sockets are of no use, it is the transport.
type endpoint struct {
	mu     sync.Mutex
	mode   func(time.Time) mode
	gate   <-chan struct{} // the first answer waits for it, if there is one
	starts []time.Time
	leaked int // requests that held the secret or an assertion
}

func answers(m mode) *endpoint {
	return &endpoint{mode: func(time.Time) mode { return m }}
}

func (e *endpoint) set(m mode) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mode = func(time.Time) mode { return m }
}

func (e *endpoint) requests() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.starts)
}

// at returns when the nth request came, counted from 0.
func (e *endpoint) at(n int) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.starts[n]
}

func (e *endpoint) begin(r *http.Request, body string) (n int, m mode, gate <-chan struct{}) {
	form, _ := url.ParseQuery(body)
	_, password, _ := r.BasicAuth()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.starts = append(e.starts, time.Now())
	if form.Get("client_secret")+form.Get("assertion")+password != "" {
		e.leaked++
	}
	if len(e.starts) == 1 {
		gate = e.gate
	}
	return len(e.starts), e.mode(time.Now()), gate
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	n, m, gate := e.begin(r, string(raw))
	if gate != nil {
		select {
		case <-gate:
		case <-r.Context().Done():
			return
		}
	}
	if m.hang {
		m.latency = time.Hour
	}
	if m.latency > 0 { // a timer that is due at once in fake time crashes the race detector (golang/go#78156)
		select {
		case <-time.After(m.latency):
		case <-r.Context().Done():
			return
		}
	}
	maps.Copy(w.Header(), m.header)
	if m.status != 0 {
		w.WriteHeader(m.status)
		_, _ = io.WriteString(w, strings.ReplaceAll(m.body, "ECHO", string(raw)))
		return
	}
	if m.life == 0 {
		m.life = time.Hour
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"access_token": fmt.Sprintf("token-%d", n), "token_type": "Bearer", "expires_in": int(m.life.Seconds()),
	})
}

// RoundTrip answers without a network.
func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	e.ServeHTTP(w, r)
	if err := r.Body.Close(); err != nil {
		return nil, err
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// serve puts the endpoint on loopback and returns its URL.
func (e *endpoint) serve(tb testing.TB) string {
	tb.Helper()
	s := httptest.NewServer(e)
	tb.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL + "/token"
}
