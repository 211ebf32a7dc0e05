package admin

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// handler serves a View that stands still.
func handler(v *View, ready error, address string) http.Handler {
	return New(Config{
		Ready:   func() error { return ready },
		Status:  func() any { return map[string]string{"a": "<b>"} },
		Metrics: prometheus.NewRegistry(),
		View:    func() *View { return v }, Now: time.Now, Address: address,
	})
}

func ask(t *testing.T, h http.Handler, method, host, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), method, target, http.NoBody)
	r.Host = host
	h.ServeHTTP(w, r)
	return w
}

func TestAdmin(t *testing.T) {
	h := handler(calm(), errors.New("1 credential not tried yet"), "127.0.0.1:9441")
	for _, tc := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/healthz", 200, "ok\n"},
		{"GET", "/readyz", 503, "not ready: 1 credential not tried yet\n"},
		{"GET", "/status", 200, "{\n  \"a\": \"\\u003cb\\u003e\"\n}\n"},
		{"GET", "/metrics", 200, ""},
		{"GET", "/", 200, "<!doctype html>"},
		{"HEAD", "/", 200, ""},
		{"GET", "/assets/page.css", 200, ":root"},
		{"GET", "/assets/page.js", 200, "//"},
		{"GET", "/assets/icon.svg", 200, "<svg"},
		{"GET", "/upstreams/crm", 200, "<!doctype html>"},
		{"GET", "/upstreams/other", 404, "<!doctype html>"},
		{"GET", "/upstreams/", 404, "404 page not found\n"},
		{"GET", "/assets/layout.html", 404, "404 page not found\n"},
		{"GET", "/assets/../web/page.js", 307, ""},
		{"POST", "/status", 405, "nothing here can be changed"},
		{"POST", "/healthz", 405, "nothing here can be changed"},
		{"DELETE", "/upstreams/crm", 405, "nothing here can be changed"},
		{"GET", "/debug/pprof/", 404, "404 page not found\n"},
	} {
		w := ask(t, h, tc.method, "127.0.0.1:9441", tc.path)
		if w.Code != tc.status || !strings.HasPrefix(w.Body.String(), tc.body) {
			t.Errorf("%s %s = %d %.200q, want %d %q", tc.method, tc.path, w.Code, w.Body, tc.status, tc.body)
		}
		if h := w.Header(); h.Get("Cache-Control") != "no-store" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Set-Cookie") != "" ||
			h.Get("Referrer-Policy") != "no-referrer" || h.Get("Cross-Origin-Resource-Policy") != "same-origin" || h.Get("Cross-Origin-Opener-Policy") != "same-origin" {
			t.Errorf("%s %s has headers %v", tc.method, tc.path, h)
		}
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} {
			if got := w.Header().Get("Content-Security-Policy"); !strings.Contains(got, want) || strings.Contains(got, "unsafe") {
				t.Errorf("%s %s has the policy %q", tc.method, tc.path, got)
			}
		}
	}
	if w := ask(t, handler(calm(), nil, ""), "GET", "10.0.0.7:9441", "/readyz"); w.Code != 200 {
		t.Errorf("/readyz = %d when ready", w.Code)
	}
}

// TestL3_OtherNamesAreNotAnswered: a name that somebody else pointed here must not
// read the page through a browser of ours.
func TestL3_OtherNamesAreNotAnswered(t *testing.T) {
	for host, good := range map[string]bool{
		"127.0.0.1:9441": true, "127.0.0.1": true, "10.1.2.3:9441": true, "[::1]:9441": true, "[::1]": true, "[fd00::7]:80": true,
		"localhost:9441": true, "LOCALHOST": true, "mcp.localhost:9441": true, "localhost.:9441": true, "admin.company.com:9441": true, "Admin.Company.com": true,
		"evil.example": false, "evil.example:9441": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "": false, ":9441": false,
		"notlocalhost": false, "admin.company.com.evil.example": false, "company.com": false, "[::1].evil.example": false,
	} {
		h := handler(calm(), nil, "admin.company.com:9441")
		for _, path := range []string{"/", "/status", "/upstreams/crm", "/assets/page.js"} {
			if got := ask(t, h, "GET", host, path).Code; got != 200 && good || got != http.StatusMisdirectedRequest && !good {
				t.Errorf("Host %q, %s = %d", host, path, got)
			}
		}
		for _, path := range []string{"/metrics", "/healthz", "/readyz"} { // asked by the names of services
			if got := ask(t, h, "GET", host, path).Code; got != 200 {
				t.Errorf("Host %q, %s = %d", host, path, got)
			}
		}
	}
	if known("", ":9441") || known(":9441", ":9441") {
		t.Error("an address without a host knows the empty name")
	}
}

// TestL3_NothingOfTheQueryIsMarkup: the query is shown in one place, as the value of a field.
func TestL3_NothingOfTheQueryIsMarkup(t *testing.T) {
	h := handler(troubled(), nil, "")
	for _, q := range []string{
		"/?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E", "/?state=%22onload=%22x", "/?sort=%3Cb%3E", "/?page=%3Cb%3E&q=a%00%E2%80%AEb",
		"/upstreams/%3Cscript%3E", "/?q=" + strings.Repeat("%3Cb%3E", 2000),
	} {
		w := ask(t, h, "GET", "localhost", q)
		if b := w.Body.String(); strings.Contains(b, "<script>") || strings.Contains(b, "<b>") || strings.Contains(b, "onload=") || strings.Contains(b, "\u202e") || len(b) > 100_000 {
			t.Errorf("%.60s gives markup, or %d bytes", q, len(b))
		}
	}
	b := ask(t, h, "GET", "localhost", "/").Body.String()
	if strings.Contains(b, "<img") || !strings.Contains(b, "&lt;img src=x onerror=alert(1)&gt;") {
		t.Error("a tool's name is markup, or not shown")
	}
	for _, never := range []string{" style=", "<style", "javascript:", " onclick"} {
		if strings.Contains(b, never) {
			t.Errorf("the page holds %q, which its policy forbids", never)
		}
	}
}

func TestPageFindsAmongMany(t *testing.T) {
	v := many(10000)
	h := handler(v, nil, "")
	for _, tc := range []struct{ path, want, not string }{
		{"/", "1–50 of 10,000", ""},
		{"/?state=bad", "1–10 of 10", "Healthy</span>"},
		{"/?q=SERVER_0777", "1–10 of 10", "server_00500<"},
		{"/?q=server&sort=name&page=200", "9,951", ""},
		{"/?q=server&sort=name&page=999999", "of 10,000", "rel=\"next\""},
		{"/?q=nosuch", "No upstream matches", ""},
		{"/?page=2", "51–100 of 10,000", ""},
		{"/?page=-1", "1–50 of 10,000", ""},
	} {
		b := ask(t, h, "GET", "localhost", tc.path).Body.String()
		b2 := strings.ReplaceAll(b, "9951", "9,951")
		if !strings.Contains(b2, tc.want) || tc.not != "" && strings.Contains(b, tc.not) {
			t.Errorf("%s: want %q and not %q", tc.path, tc.want, tc.not)
		}
		if len(b) > 150_000 {
			t.Errorf("%s has %d bytes", tc.path, len(b))
		}
	}
}

func TestTroubleComesFirst(t *testing.T) {
	b := ask(t, handler(many(10000), nil, ""), "GET", "localhost", "/").Body.String()
	table := b[strings.Index(b, "<tbody"):]
	if first := strings.Index(table, "u-server_00500"); first < 0 || first > strings.Index(table, "u-server_00000") {
		t.Error("the first row is not the one in trouble")
	}
}

// TestC9_ManyLookersCostOneView: who asks a lot makes nobody count a lot.
func TestC9_ManyLookersCostOneView(t *testing.T) {
	made, now := 0, noon()
	h := New(Config{
		Ready: func() error { return nil }, Status: func() any { return "" }, Metrics: prometheus.NewRegistry(), Now: func() time.Time { return now },
		View: func() *View { made++; return calm() },
	})
	for range 20 {
		ask(t, h, "GET", "localhost", "/")
	}
	if made != 1 {
		t.Errorf("%d views for 20 looks at once", made)
	}
	now = now.Add(fresh)
	ask(t, h, "GET", "localhost", "/")
	if made != 2 {
		t.Errorf("%d views, want a second after %s", made, fresh)
	}
}

func TestEveryReasonHasAdvice(t *testing.T) {
	seen := map[advice]policy.Reason{}
	for _, r := range policy.Reasons()[1:] {
		a := adviseOn(r)
		if other, twice := seen[a]; twice || a == adviseOn(policy.Undecided) || !strings.HasSuffix(a.Means, ".") || !strings.HasSuffix(a.Do, ".") {
			t.Errorf("%s: %+v (as %s)", r, a, other)
		}
		seen[a] = r
	}
}

func TestJudge(t *testing.T) {
	token := func(f func(*Token)) Upstream {
		u := sample("a", 1)
		f(u.Token)
		return u
	}
	for _, tc := range []struct {
		name string
		up   Upstream
		want State
		why  string
	}{
		{"well", sample("a", 1), OK, ""},
		{"no token needed", Upstream{Name: "a", Credential: "none"}, OK, ""},
		{"refresh failed, token lives", token(func(t *Token) { t.LastError = "down" }), Warn, "down"},
		{"no token", token(func(t *Token) { t.LastError, t.Ready = "down", false }), Bad, "down"},
		{"stale", token(func(t *Token) { t.LastError, t.Stale = "down", true }), Warn, "expired token"},
		{"not tried", token(func(t *Token) { t.Tried, t.Ready = false, false }), Starting, "No token"},
		{"users' endpoint fails", token(func(t *Token) { t.LastError, t.UserBound, t.Ready = "down", true, false }), Warn, "down"},
		{"open", Upstream{Name: "a", Breaker: &Breaker{State: "open"}}, Bad, "Switched off"},
		{"half open", Upstream{Name: "a", Breaker: &Breaker{State: "half_open"}}, Warn, "Trying"},
		{"closed", Upstream{Name: "a", Breaker: &Breaker{State: "closed"}}, OK, ""},
		{"metadata differs", Upstream{Name: "a", Findings: []string{"resource differs"}}, Warn, "resource differs"},
	} {
		state, why := tc.up.judge(nil)
		if text := strings.Join(why, " "); state != tc.want || !strings.Contains(text, tc.why) || (tc.why == "") != (text == "") {
			t.Errorf("%s: %s %q, want %s %q", tc.name, state, text, tc.want, tc.why)
		}
	}
	up := sample("a", 1)
	if state, why := up.judge([]Alert{{Upstream: "a", Text: "slow"}, {Upstream: "b", Text: "other"}}); state != Warn || fmt.Sprint(why) != "[slow]" {
		t.Errorf("with an alert: %s %q", state, why)
	}
}

func TestWords(t *testing.T) {
	now := noon()
	for _, tc := range []struct{ got, want string }{
		{thousands(0), "0"},
		{thousands(999), "999"},
		{thousands(1000), "1,000"},
		{thousands(1234567), "1,234,567"},
		{percent(0, 0), "0 %"},
		{percent(1, 100000), "< 0.1 %"},
		{percent(1, 3), "33 %"},
		{percent(5, 100), "5.0 %"},
		{percent(9999, 10000), "99 %"},
		{percent(7, 7), "100 %"},
		{took(0), "–"},
		{took(300 * time.Nanosecond), "1 µs"},
		{took(1500 * time.Microsecond), "1.5 ms"},
		{took(45 * time.Millisecond), "45 ms"},
		{took(2500 * time.Millisecond), "2.5 s"},
		{ago(now, now), "now"},
		{ago(now.Add(-90*time.Second), now), "90 s ago"},
		{ago(now.Add(3*time.Minute), now), "in 3 min"},
		{ago(now.Add(-72*time.Hour), now), "3 days ago"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
	if b := life(&Token{Ready: true, Lifetime: time.Hour, Expiry: now.Add(15 * time.Minute), Refresh: now.Add(3 * time.Minute)}, now); b != (bar{Left: 25, Refresh: 20}) {
		t.Errorf("life = %+v", b)
	}
	if b := life(&Token{Ready: true, Lifetime: time.Hour, Expiry: now.Add(-time.Minute)}, now); b.Left != 0 || !b.Low {
		t.Errorf("life of a dead token = %+v", b)
	}
}

func BenchmarkPage(b *testing.B) {
	v := many(10000)
	p := newPage(func() *View { return v }, time.Now)
	for b.Loop() {
		p.last = nil // as if half a second had passed
		w := httptest.NewRecorder()
		p.overview(w, httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/", http.NoBody))
	}
}
