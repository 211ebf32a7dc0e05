package compare

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
)

// watched is how long the injector may keep still before we say that it
// stopped. It tries again every 2 s by default.
const watched = 15 * time.Second

// rig is a real Envoy with the credential_injector, an endpoint and an upstream.
type rig struct {
	envoy    *realenvoy.Envoy
	base     string
	as       *endpoint
	http     *http.Client
	mu       sync.Mutex
	arrived  []string // the authorization of each call that came through
	refusing string   // the authorization that the upstream refuses
}

// upstream answers 401 to the refused token and remembers the rest.
func (r *rig) upstream(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := q.Header.Get("Authorization")
	if got == r.refusing {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.arrived = append(r.arrived, got)
}

// bootstrap is a proxy with the injector and nothing else; all but the endpoint
// is at its default.
const bootstrap = `
static_resources:
  secrets:
  - {name: client-secret, generic_secret: {secret: {inline_string: SECRET}}}
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: LISTEN}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: compare
          route_config:
            virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: upstream}}]}]
          http_filters:
          - name: envoy.filters.http.credential_injector
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector
              overwrite: true
              credential:
                name: envoy.http.injected_credentials.oauth2
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.http.injected_credentials.oauth2.v3.OAuth2
                  token_endpoint: {cluster: as, timeout: 5s, uri: "TOKENURL"}
                  client_credentials: {client_id: CLIENT, client_secret: {name: client-secret}}
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - {name: upstream, load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: UPSTREAM}}}}]}]}, circuit_breakers: {thresholds: [{max_connections: 4096, max_pending_requests: 4096, max_requests: 4096}]}}
  - {name: as, load_assignment: {cluster_name: as, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: ASPORT}}}}]}]}}
`

func port(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}

func freePort(t *testing.T) string {
	t.Helper()
	address, err := realprocess.Address(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return port(t, "http://"+address)
}

// startInjector starts the Envoy. Its first token request comes at once.
func startInjector(t *testing.T, as *endpoint) *rig {
	t.Helper()
	r := &rig{as: as, http: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: callers}}}
	up := httptest.NewServer(http.HandlerFunc(r.upstream))
	t.Cleanup(up.Close)
	t.Cleanup(r.http.CloseIdleConnections)
	tokenURL, listen := as.serve(t), freePort(t)
	conf := strings.NewReplacer(
		"SECRET", secret, "LISTEN", listen, "TOKENURL", tokenURL, "CLIENT", clientID,
		"UPSTREAM", port(t, up.URL), "ASPORT", port(t, tokenURL),
	).Replace(bootstrap)
	var err error
	r.envoy, err = realenvoy.Start(t.Context(), realenvoy.Config{Bootstrap: []byte(conf), Dir: t.TempDir(), LogLevel: "info"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.envoy.Stop)
	r.base = "http://127.0.0.1:" + listen + "/"
	return r
}

// call goes through Envoy. A good one returns the token that the upstream got.
func (r *rig) call(ctx context.Context) (string, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := r.http.Do(q)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%d: %s", resp.StatusCode, body)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.TrimPrefix(r.arrived[len(r.arrived)-1], "Bearer "), nil
}

func (r *rig) cache() cache { return cache{token: r.call} }

// good calls until a call is good, and returns how long that took.
func (r *rig) good(limit time.Duration) (took time.Duration, ok bool) {
	begin := time.Now()
	run(r.cache(), limit, func(_ time.Time, err error) bool {
		ok = err == nil
		return !ok
	})
	return time.Since(begin), ok
}

// injectorHerds adds Envoy's rows to the tables of herds.
func injectorHerds(t *testing.T, counts, times *table) {
	t.Helper()
	for _, s := range scenarios(false) {
		if s.leaves > 0 {
			counts.put(injector, s.name, "– (no call waits)")
			times.put(injector, s.name, "–")
			continue
		}
		s.settle = 2 * time.Second // all calls have come through Envoy before the token is there
		t.Run(s.name+"/"+injector, func(t *testing.T) {
			e := answers(s.mode)
			var r *rig
			got := stampede(s, e, func() cache {
				r = startInjector(t, e)
				return r.cache()
			})
			t.Logf("%+v", got)
			counts.put(injector, s.name, got.counts(s))
			times.put(injector, s.name, number(int(got.slowest.Milliseconds()))+" (refused)")
		})
	}
}

// injectorOutage adds Envoy's row to the table of outages, in real time.
func injectorOutage(t *testing.T, x *table) {
	t.Helper()
	t.Run(injector, func(t *testing.T) {
		e := answers(down())
		r := startInjector(t, e)
		time.Sleep(5 * time.Second)
		e.set(up())
		soon, ok := r.good(time.Minute)
		if !ok {
			t.Error("want a good call after 5 s of outage")
		}
		e = answers(down())
		r = startInjector(t, e)
		before := e.requests()
		run(r.cache(), time.Minute, func(time.Time, error) bool { return true })
		n := e.requests() - before
		e.set(up())
		late, ok := r.good(time.Minute)
		if !ok {
			t.Error("want a good call after 60 s of outage")
		}
		x.put(injector, hourOf503, fmt.Sprintf("%s (%d in 60 s)", number(60*n), n))
		x.put(injector, backSoon, seconds(soon)+" (one run)")
		x.put(injector, backLate, seconds(late)+" (one run, 60 s)")
		x.put(injector, failedCalls, "– (no fake clock)")
	})
}

// stops starts on an endpoint that answers oddly once, then well.
func stops(t *testing.T, body string) string {
	t.Helper()
	e := answers(mode{status: 200, body: body, header: http.Header{"Content-Type": {"application/json"}}})
	r := startInjector(t, e)
	for e.requests() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	e.set(mode{})
	if _, ok := r.good(watched); ok {
		return asked
	}
	return fmt.Sprintf("**stops: %d token requests in %s**, every call refused", e.requests()-1, spaced(watched))
}

// injectorHabits adds Envoy's column to the table of behaviours.
func injectorHabits(t *testing.T, x *table) {
	t.Helper()
	for name, see := range map[string]func(*testing.T) string{
		seeRedirect: injectorRedirect,
		seeErrorIn2: func(t *testing.T) string { t.Helper(); return stops(t, `{"error":"server_error"}`) },
		seeHTML:     func(t *testing.T) string { t.Helper(); return stops(t, htmlPage) },
		seeNoExpiry: func(t *testing.T) string {
			t.Helper()
			return stops(t, `{"access_token":"endless","token_type":"Bearer"}`)
		},
		seeLineBreak: injectorLineBreak,
		seeAhead:     injectorAhead,
		seeRevoked:   injectorRevoked,
		seeEcho:      injectorEcho,
	} {
		t.Run(name+"/"+injector, func(t *testing.T) {
			got := see(t)
			t.Log(got)
			x.put(name, injector, got)
		})
	}
}

func injectorRedirect(t *testing.T) string {
	t.Helper()
	elsewhere := answers(mode{})
	to := strings.Replace(elsewhere.serve(t), "127.0.0.1", "localhost", 1)
	e := answers(mode{status: 307, header: http.Header{"Location": {to}}})
	r := startInjector(t, e)
	_, _ = r.good(5 * time.Second)
	return strayed(elsewhere)
}

func injectorLineBreak(t *testing.T) string {
	t.Helper()
	e := answers(mode{status: 200, body: `{"access_token":"A\r\nx-evil: 1","token_type":"Bearer","expires_in":60}`, header: http.Header{"Content-Type": {"application/json"}}})
	r := startInjector(t, e)
	_, ok := r.good(5 * time.Second)
	switch _, err := r.envoy.Get(t.Context(), "/ready"); {
	case err != nil:
		return "**Envoy ended**"
	case ok:
		return "**handed out**"
	}
	return "no call served"
}

// injectorAhead uses a token of 20 s, since the clock is real.
func injectorAhead(t *testing.T) string {
	t.Helper()
	const life = 20 * time.Second
	e := answers(mode{life: life, latency: 100 * time.Millisecond})
	r := startInjector(t, e)
	if _, ok := r.good(5 * time.Second); !ok {
		t.Fatal("want a good call")
	}
	failed := 0
	run(r.cache(), life, func(_ time.Time, err error) bool {
		if err != nil {
			failed++
		}
		return true
	})
	if e.requests() < 2 {
		return "at its end"
	}
	share := float64(e.at(1).Sub(e.at(0))) / float64(life)
	text := fmt.Sprintf("at %.0f %% of its life (seen with 20 s), ", 10*float64(int(10*share+0.5)))
	if failed == 0 {
		return text + "no call waits"
	}
	return text + fmt.Sprintf("%d calls refused", failed)
}

func injectorRevoked(t *testing.T) string {
	t.Helper()
	e := answers(mode{})
	r := startInjector(t, e)
	if _, ok := r.good(5 * time.Second); !ok {
		t.Fatal("want a good call")
	}
	r.mu.Lock()
	r.refusing = r.arrived[0]
	r.mu.Unlock()
	before, healed := e.requests(), 0
	for range 100 {
		if _, err := r.call(t.Context()); err == nil {
			healed++
		}
	}
	return fmt.Sprintf("%d served, %d token requests", healed, e.requests()-before)
}

// injectorEcho looks at the caller's answer and at Envoy's log.
func injectorEcho(t *testing.T) string {
	t.Helper()
	e := answers(mode{status: 500, body: "cannot serve ECHO"})
	r := startInjector(t, e)
	for e.requests() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	_, err := r.call(t.Context())
	log, readErr := os.ReadFile(r.envoy.Log)
	if err == nil || readErr != nil {
		t.Fatalf("want a refused call and a log, got %v and %v", err, readErr)
	}
	switch {
	case strings.Contains(err.Error(), secret):
		return "**quotes the secret**"
	case bytes.Contains(log, []byte(secret)):
		return "is clean; **the log quotes the secret**"
	}
	return "is clean, and so is the log"
}
