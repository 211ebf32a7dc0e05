package admin

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAdmin(t *testing.T) {
	ready := errors.New("1 credential not tried yet")
	h := New(Config{
		Ready:   func() error { return ready },
		Status:  func() any { return map[string]string{"a": "<b>"} },
		Metrics: prometheus.NewRegistry(),
	})
	for _, tc := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/healthz", 200, "ok\n"},
		{"GET", "/readyz", 503, "not ready: 1 credential not tried yet\n"},
		{"GET", "/status", 200, "{\n  \"a\": \"\\u003cb\\u003e\"\n}\n"},
		{"GET", "/metrics", 200, ""},
		{"GET", "/", 404, "404 page not found\n"},
		{"POST", "/status", 405, "Method Not Allowed\n"},
		{"GET", "/debug/pprof/", 404, "404 page not found\n"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), tc.method, tc.path, http.NoBody))
		if w.Code != tc.status || !strings.HasPrefix(w.Body.String(), tc.body) {
			t.Errorf("%s %s = %d %q, want %d %q", tc.method, tc.path, w.Code, w.Body, tc.status, tc.body)
		}
		if w.Header().Get("Content-Security-Policy") == "" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s has headers %v", tc.method, tc.path, w.Header())
		}
	}
	ready = nil
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/readyz", http.NoBody))
	if w.Code != 200 {
		t.Errorf("/readyz = %d when ready", w.Code)
	}
}
