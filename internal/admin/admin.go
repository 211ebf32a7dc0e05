// Package admin serves the page, /status, /metrics, /healthz and /readyz:
// read-only, and nothing secret.
package admin

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config is what the handler shows.
type Config struct {
	// Ready returns nil when the server is ready, else an error that says what it waits for. Required.
	Ready func() error
	// Status returns what /status shows as JSON. Required.
	Status func() any
	// Metrics is what /metrics shows. Required.
	Metrics prometheus.Gatherer
	// View returns what the page shows. It is called at most twice a second. Required.
	View func() *View
	// Now is the clock. Required.
	Now func() time.Time
	// Address is the HOST:PORT that is listened on. Its host, when it is a name,
	// is one of those that the page may be called by.
	Address string
}

// New returns the handler of the admin listener.
func New(cfg Config) http.Handler {
	seen := http.NewServeMux() // what a browser shows
	seen.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { show(w, cfg.Status()) })
	newPage(cfg.View, cfg.Now).routes(seen)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := cfg.Ready(); err != nil {
			say(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
		say(w, http.StatusOK, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	mux.Handle("/", hosts(cfg.Address, seen))
	return secure(mux)
}

// hosts answers only those who call this listener by a name of its own. The
// metrics and the two probes are left out: they are asked by service names, and
// say what anybody on the network may know.
func hosts(own string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !known(r.Host, own) {
			say(w, http.StatusMisdirectedRequest, "want the Host of an IP address, localhost or server.admin; open this page by one of them, such as http://127.0.0.1:9441/")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// secure keeps what the listener serves out of other pages and caches, and code
// that is not ours out of it.
func secure(next http.Handler) http.Handler {
	const content = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; " +
		"form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", content)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			say(w, http.StatusMethodNotAllowed, "nothing here can be changed; want GET or HEAD")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n"))
}

func show(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		say(w, http.StatusInternalServerError, "the status cannot be shown")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n'))
}
