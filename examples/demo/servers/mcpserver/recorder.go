package mcpserver

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// keptRequests is how many requests a Recorder remembers; it counts all.
const keptRequests = 10_000

// Received is one request as it arrived.
type Received struct {
	// Method, Path (with the query), Host and Proto are those of the request line.
	Method, Path, Host, Proto string
	// Header holds every header line. net/http makes the names canonical and
	// keeps the lines of one name apart and in order.
	Header http.Header
	// Status is what was answered; zero while the answer has not begun.
	Status int
	// At is when it arrived, Took how long the whole answer took.
	At   time.Time
	Took time.Duration
}

// Recorder remembers the requests that pass through it. Use NewRecorder. Its
// methods may be called from any goroutine.
type Recorder struct {
	now  func() time.Time
	done func(Received)

	mu       sync.Mutex // guards what follows
	requests []*Received
	count    int
}

// NewRecorder returns a Recorder. done, if not nil, is called after each answer,
// from the request's goroutine; what it gets may hold secrets.
func NewRecorder(now func() time.Time, done func(Received)) *Recorder {
	return &Recorder{now: now, done: done}
}

// Wrap returns h with the recorder before it.
func (rec *Recorder) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := rec.add(r)
		defer func() {
			rec.mu.Lock()
			got.Took = rec.now().Sub(got.At)
			end := *got
			rec.mu.Unlock()
			if rec.done != nil {
				rec.done(end)
			}
		}()
		h.ServeHTTP(&statusWriter{ResponseWriter: w, set: func(code int) {
			rec.mu.Lock()
			defer rec.mu.Unlock()
			if got.Status == 0 {
				got.Status = code
			}
		}}, r)
	})
}

func (rec *Recorder) add(r *http.Request) *Received {
	got := &Received{
		Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Proto: r.Proto,
		Header: r.Header.Clone(), At: rec.now(),
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.count++
	rec.requests = append(rec.requests, got)
	if len(rec.requests) > keptRequests {
		rec.requests = slices.Delete(rec.requests, 0, keptRequests/2)
	}
	return got
}

// Count returns how many requests have come, whether remembered or not.
func (rec *Recorder) Count() int {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return rec.count
}

// Requests returns what came since the last Reset, oldest first: at most the
// last ten thousand. Header is shared and must not be changed.
func (rec *Recorder) Requests() []Received {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	all := make([]Received, len(rec.requests))
	for i, r := range rec.requests {
		all[i] = *r
	}
	return all
}

// Reset forgets everything, the count included.
func (rec *Recorder) Reset() {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.requests, rec.count = nil, 0
}

// statusWriter sees the status. Unwrap keeps http.ResponseController working,
// without which nothing streams.
type statusWriter struct {
	http.ResponseWriter

	set func(int)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) WriteHeader(code int) {
	w.set(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.set(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

// cookieNames reads names leniently, so that a malformed cookie shows too.
func cookieNames(h http.Header) []string {
	var names []string
	for _, line := range h.Values("Cookie") {
		for pair := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(strings.TrimSpace(pair), "=")
			names = append(names, name)
		}
	}
	return names
}

func headerNames(h http.Header) []string {
	names := slices.Collect(maps.Keys(h))
	for i, n := range names {
		names[i] = strings.ToLower(n)
	}
	slices.Sort(names)
	return names
}
