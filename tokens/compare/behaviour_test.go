package compare

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// behaviour is something that a cache, or its request, does or does not do.
type behaviour struct {
	name string
	// ofRequest marks what the request does and not the cache: a contender that
	// has none of its own is not asked.
	ofRequest bool
	see       func(*testing.T, *lab) string
}

const (
	seeRedirect  = "a 307 to another host"
	seeErrorIn2  = "an OAuth error with status 200, then good answers"
	seeHTML      = "an HTML page with status 200, then good answers"
	seeNoExpiry  = "an answer without `expires_in`"
	seeLineBreak = "a token with a line break in it"
	seeAhead     = "renewal of a token of 1 h, for an answer that takes 2 s"
	seeRevoked   = "100 calls whose token was revoked"
	seeEcho      = "an error text, of an endpoint that echoes the request"

	htmlPage = "<!doctype html><title>login</title>"
	asked    = "an error; asked again"
	never    = "**kept for ever** (48 h watched)"
	withIt   = "**followed, with the secret**"
)

func behaviours() []behaviour {
	return []behaviour{
		{seeRedirect, true, redirect},
		{seeErrorIn2, true, func(t *testing.T, l *lab) string { t.Helper(); return l.unusable(`{"error":"server_error"}`) }},
		{seeHTML, true, func(t *testing.T, l *lab) string { t.Helper(); return l.unusable(htmlPage) }},
		{seeNoExpiry, true, noExpiry},
		{seeLineBreak, true, lineBreak},
		{seeAhead, false, ahead},
		{seeRevoked, false, revoked},
		{seeEcho, true, echo},
	}
}

// lab is one contender in fake time, on an endpoint, with another host beside it.
type lab struct {
	as, elsewhere *endpoint
	cache         cache
}

// RoundTrip goes by the host.
func (l *lab) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Hostname() == "elsewhere.test" {
		return l.elsewhere.RoundTrip(r)
	}
	return l.as.RoundTrip(r)
}

func (l *lab) token() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return l.cache.token(ctx)
}

func redirect(t *testing.T, l *lab) string {
	t.Helper()
	l.as.set(mode{status: 307, header: http.Header{"Location": {"https://elsewhere.test/token"}}})
	_, _ = l.token()
	return strayed(l.elsewhere)
}

// strayed words what came to the other host.
func strayed(e *endpoint) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.leaked > 0:
		return withIt
	case len(e.starts) > 0:
		return "followed, without the secret"
	}
	return "not followed"
}

// unusable answers once with the body, then well, and calls for a minute.
func (l *lab) unusable(body string) string {
	l.as.set(mode{status: 200, body: body, header: http.Header{"Content-Type": {"application/json"}}})
	first, err := l.token()
	l.as.set(mode{})
	got := ""
	run(l.cache, time.Minute, func(time.Time, error) bool {
		got, _ = l.token()
		return got == ""
	})
	switch {
	case err != nil && got != "":
		return asked
	case err != nil:
		return "**an error, for ever** (1 min watched)"
	case first == "" && got != "":
		return "**an empty token, as if it were good**; asked again"
	}
	return fmt.Sprintf("%q, then %q", first, got)
}

func noExpiry(t *testing.T, l *lab) string {
	t.Helper()
	l.as.set(mode{status: 200, body: `{"access_token":"endless","token_type":"Bearer"}`, header: http.Header{"Content-Type": {"application/json"}}})
	if _, err := l.token(); err != nil {
		return "refused"
	}
	start := time.Now()
	for l.as.requests() == 1 && time.Since(start) < 48*time.Hour {
		time.Sleep(10 * time.Second)
		_, _ = l.token()
	}
	if l.as.requests() == 1 {
		return never
	}
	return fmt.Sprintf("renewed within %d min", int(time.Since(start).Minutes())+1)
}

func lineBreak(t *testing.T, l *lab) string {
	t.Helper()
	l.as.set(mode{status: 200, body: `{"access_token":"A\r\nx-evil: 1","token_type":"Bearer","expires_in":60}`, header: http.Header{"Content-Type": {"application/json"}}})
	got, err := l.token()
	switch {
	case err != nil:
		return "refused"
	case strings.Contains(got, "\r\n"):
		return "**handed out**"
	}
	return fmt.Sprintf("%q", got)
}

func ahead(t *testing.T, l *lab) string {
	t.Helper()
	l.as.set(mode{latency: 2 * time.Second})
	if _, err := l.token(); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Hour)
	var slowest time.Duration
	run(l.cache, time.Hour+10*time.Second, func(begin time.Time, _ error) bool {
		slowest = max(slowest, time.Since(begin))
		return true
	})
	when := "at its end"
	if before := end.Sub(l.as.at(1)).Round(5 * time.Second); before > 0 {
		when = spaced(before) + " ahead"
	}
	if slowest > 0 {
		return when + ", a call waits"
	}
	return when + ", no call waits"
}

// spaced writes 12m25s as 12 min 25 s.
func spaced(d time.Duration) string {
	var parts []string
	if m := int(d.Minutes()); m > 0 {
		parts = append(parts, fmt.Sprintf("%d min", m))
	}
	if s := int(d.Seconds()) % 60; s > 0 {
		parts = append(parts, fmt.Sprintf("%d s", s))
	}
	return strings.Join(parts, " ")
}

// revoked lets 100 calls find that the upstream refuses the token they got.
func revoked(t *testing.T, l *lab) string {
	t.Helper()
	old, err := l.token()
	if err != nil {
		t.Fatal(err)
	}
	healed := 0
	for range 100 {
		again := l.cache.token
		if l.cache.rejected != nil {
			again = func(ctx context.Context) (string, error) { return l.cache.rejected(ctx, old) }
		}
		if got, err := again(t.Context()); err == nil && got != old {
			healed++
		}
	}
	text := fmt.Sprintf("%d served, %d token requests", healed, l.as.requests()-1)
	if healed > 0 && l.as.requests() > 2 {
		text += " (if your code calls `Invalidate`)"
	}
	return strings.Replace(text, " 1 token requests", " 1 token request", 1)
}

func echo(t *testing.T, l *lab) string {
	t.Helper()
	l.as.set(mode{status: 500, body: "cannot serve ECHO"})
	_, err := l.token()
	switch {
	case err == nil:
		return "no error"
	case strings.Contains(err.Error(), secret), strings.Contains(err.Error(), "assertion=ey"):
		return "**quotes the secret**"
	}
	return "is clean"
}

// habits fills the table of behaviours.
func habits(t *testing.T, x *table) {
	t.Helper()
	for _, b := range behaviours() {
		for _, c := range contenders() {
			open := c.open
			if c.native != nil {
				open = c.native
			}
			if b.ofRequest && c.foreign {
				x.put(b.name, c.name, "–")
				continue
			}
			t.Run(b.name+"/"+c.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := &lab{as: answers(mode{}), elsewhere: answers(mode{})}
					l.cache = open(t, wire{url: "https://as.test/token", transport: l, timeout: 5 * time.Second})
					got := b.see(t, l)
					x.put(b.name, c.name, got)
					t.Log(got)
					if c.name == ours && strings.Contains(got, "**") {
						t.Errorf("%s: want none of this from ours, got %s", b.name, got)
					}
				})
			})
		}
	}
}
