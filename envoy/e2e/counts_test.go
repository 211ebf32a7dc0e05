package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// counted is a policy whose upstreams stand for the ways in which calls end. Each has
// a listener of its own, so that Envoy counts its calls apart.
const counted = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  anyone: {any: true}
  robot: {key: {sha256: {{.KeySum}}}}
defaults: {callers: [anyone], credential: none}
upstreams:
  alpha:
    url: ORIGIN
    envoy: {listen: "LISTEN alpha"}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
  keyed:
    url: ORIGIN
    envoy: {listen: "LISTEN keyed"}
    callers: [robot]
    credential: {header: {x-api-key: {file: {{.Dir}}/fixed.secret}}}
  open: {url: ORIGIN, envoy: {listen: "LISTEN open"}}
  slow: {url: ORIGIN, envoy: {listen: "LISTEN slow"}}
  cut: {url: ORIGIN, envoy: {listen: "LISTEN cut"}}
  half: {url: ORIGIN, envoy: {listen: "LISTEN half"}}
  left: {url: ORIGIN, envoy: {listen: "LISTEN left"}}
`

// countedUpstreams are those of counted.
func countedUpstreams() []string {
	return []string{"alpha", "keyed", "open", "slow", "cut", "half", "left"}
}

// kind is one of the ways in which a call ends.
type kind struct {
	share    int    // of a hundred calls
	upstream string // empty for one that the policy does not have
	want     string // of the server: a status, or what origin understands
	key      bool
}

func kinds() []kind {
	return []kind{
		{share: 52, upstream: "alpha"},
		{share: 3, upstream: "alpha", want: "404"},
		{share: 3, upstream: "alpha", want: "500"},
		{share: 2, upstream: "alpha", want: "403"},
		{share: 2, upstream: "alpha", want: "304"},
		{share: 12, upstream: "open"},
		{share: 2, upstream: "open", want: "401"}, // the caller's own
		{share: 5, upstream: "keyed"},             // refused here
		{share: 5, upstream: "keyed", key: true},
		{share: 2, upstream: "keyed", key: true, want: "401"}, // a 502 for the caller
		{share: 2, upstream: "slow"},
		{share: 2, upstream: "slow", want: "wait"}, // until the route's time is up
		{share: 3, upstream: "cut", want: "cut"},
		{share: 2, upstream: "half", want: "half"},
		{share: 2, upstream: "left", want: "wait"}, // until the caller leaves
		{share: 1},
	}
}

// origin is the server behind all upstreams of counted. It keeps the request ids.
type origin struct {
	url    string
	issuer *tokenstest.Server

	mu   sync.Mutex
	seen map[string]bool
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{url: "http://" + ln.Addr().String() + "/mcp", seen: map[string]bool{}}
	srv := &http.Server{ReadHeaderTimeout: 30 * time.Second, Handler: o}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return o
}

// ServeHTTP does what the request asks for, unless its token was revoked.
func (o *origin) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	o.mu.Lock()
	o.seen[req.Header.Get("X-Request-Id")] = true
	o.mu.Unlock()
	token, lent := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if lent && o.issuer.Revoked(claim(token, "jti")) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	_, _ = io.Copy(io.Discard, req.Body)
	switch want := req.Header.Get("X-Want"); want {
	case "cut":
		panic(http.ErrAbortHandler) //nolint:forbidigo // what net/http has for it
	case "half":
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half of it")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) //nolint:forbidigo // as above
	case "wait":
		<-req.Context().Done()
	default:
		status, _ := strconv.Atoi(want)
		w.WriteHeader(max(status, http.StatusOK))
		_, _ = io.WriteString(w, "0123456789")
	}
}

// mix is the load: calls of all kinds.
type mix struct {
	issuer *tokenstest.Server
	urls   map[string]string // by upstream
	calls  int
	made   atomic.Int64
	client *http.Client
}

// leaving is how many calls the caller takes back, at most: those of one kind.
func (m *mix) leaving() int { return m.calls * 2 / 100 }

// run makes the calls on 16 connections, no more than perSecond, and revokes the
// token three times meanwhile.
func (m *mix) run(t *testing.T, perSecond int) {
	t.Helper()
	var plan []kind
	for _, k := range kinds() {
		plan = append(plan, slices.Repeat([]kind{k}, k.share)...)
	}
	const workers = 16
	m.client = &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: workers, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer m.client.CloseIdleConnections()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			tick := time.NewTicker(workers * time.Second / time.Duration(perSecond))
			defer tick.Stop()
			for range tick.C {
				i := int(next.Add(1)) - 1
				if i >= m.calls {
					return
				}
				if i%(m.calls/3) == m.calls/6 {
					m.issuer.Revoke()
				}
				m.one(t, plan[i*37%len(plan)]) // 37: neighbours differ
				m.made.Add(1)
			}
		})
	}
	wg.Wait()
}

func (m *mix) one(t *testing.T, k kind) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if k.upstream == "left" {
		time.AfterFunc(30*time.Millisecond, cancel)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.urls[k.upstream], strings.NewReader("{}"))
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("X-Want", k.want)
	if k.key {
		req.Header.Set("X-Mcp-Auth-Key", callerKey)
	}
	resp, err := m.client.Do(req)
	if err != nil {
		return // how it ended is Envoy's to tell
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}

// callsToCount is how many calls a test makes that compares counts.
func callsToCount() int {
	if os.Getenv("SOAK") != "" {
		return 50_000
	}
	return 5_000
}

// startCounted runs the line of counted. The route to slow has a time limit, and each
// upstream's listener a second access log, which is a file.
func startCounted(t *testing.T) (*rig, *mix, *origin) {
	t.Helper()
	o := newOrigin(t)
	m := &mix{urls: map[string]string{}, calls: callsToCount()}
	text := strings.ReplaceAll(counted, "ORIGIN", o.url)
	for _, name := range countedUpstreams() {
		address := free(t)
		m.urls[name] = "http://" + address + "/mcp"
		text = strings.ReplaceAll(text, "LISTEN "+name, address)
	}
	r := newRig(t, text)
	o.issuer, m.issuer = r.issuer, r.issuer
	m.urls[""] = r.url + "/nowhere/mcp"
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(edited(r.render(), func(c config) {
		for i := range at(c, "static_resources", "listeners").([]any) {
			manager := asMap(at(c, "static_resources", "listeners", i, "filter_chains", 0, "filters", 0, "typed_config"))
			if manager["stat_prefix"] == "mcp" {
				continue
			}
			manager["access_log"] = append(manager["access_log"].([]any), fileLog(r.accessLog()))
			for _, route := range at(manager, "route_config", "virtual_hosts", 0, "routes").([]any) {
				if manager["stat_prefix"] == "mcp_slow" && asMap(route)["route"] != nil {
					asMap(asMap(route)["route"])["timeout"] = "0.06s"
				}
			}
		}
	}))
	return r, m, o
}

func (r *rig) accessLog() string { return filepath.Join(r.dir, "access.log") }

// fileLog is an access log of Envoy's own that has id, status and the time of its end.
func fileLog(path string) map[string]any {
	return map[string]any{"name": "envoy.access_loggers.file", "typed_config": map[string]any{
		"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": path,
		"log_format": map[string]any{"text_format_source": map[string]any{
			"inline_string": "%REQ(X-REQUEST-ID)% %RESPONSE_CODE% %START_TIME(%s.%6f)% %DURATION% %ROUTE_NAME%\n",
		}},
	}}
}

// callsAtEnvoy is how many calls came to its listeners.
func (r *rig) callsAtEnvoy() (n float64) {
	r.t.Helper()
	for name, v := range r.envoyStats() {
		if strings.HasPrefix(name, "http.mcp") && strings.HasSuffix(name, ".downstream_rq_total") {
			n += v
		}
	}
	return n
}

// envoyStats are the counters of Envoy by name.
func (r *rig) envoyStats() map[string]float64 {
	r.t.Helper()
	b, err := r.envoy.Get(r.t.Context(), "/stats?usedonly")
	if err != nil {
		r.t.Fatal(err)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] = v
		}
	}
	return all
}

// TestOutcomesEqualEnvoysStats after a mix of calls that were answered, refused,
// repeated, reset, timed out and cancelled.
func TestOutcomesEqualEnvoysStats(t *testing.T) {
	r, m, _ := startCounted(t)
	begun := time.Now()
	m.run(t, 2000)
	// A caller that leaves at once may be gone before Envoy hears of its call.
	var came float64
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		came = r.callsAtEnvoy()
		if r.proc.sum("mcp_auth_access_log_entries_total") == came {
			break
		}
	}
	stats := r.envoyStats()
	if told := r.proc.sum("mcp_auth_access_log_entries_total"); told != came || int(came) > m.calls || int(came) < m.calls-m.leaving() {
		t.Errorf("want an outcome of each of the %v calls that came to Envoy, of %d made, %d of which were taken back; got %v, %v entries written and %v dropped by Envoy",
			came, m.calls, m.leaving(), told, stats["access_logs.grpc_access_log.logs_written"], stats["access_logs.grpc_access_log.logs_dropped"])
	}
	_, text := r.proc.get("/metrics")
	same := func(what string, ours, envoys float64) {
		t.Helper()
		if ours != envoys {
			t.Errorf("%s: want %v as in Envoy's statistics, got %v", what, envoys, ours)
		}
	}
	for _, name := range countedUpstreams() {
		label, listener, cluster := fmt.Sprintf("upstream=%q", name), "http.mcp_"+name+".downstream_rq_", "cluster."+name+"."
		ended := func(class string) float64 {
			return sumOf(text, "mcp_auth_calls_total", label, fmt.Sprintf("class=%q", class))
		}
		for _, class := range []string{"1xx", "2xx", "3xx", "4xx", "5xx"} {
			same(name+" "+class, ended(class), stats[listener+class])
		}
		calls, retries := stats[listener+"total"], stats[cluster+"upstream_rq_retry"]
		same(name+", all calls", sumOf(text, "mcp_auth_calls_total", label), calls)
		same(name+", without an answer", ended("none"), calls-stats[listener+"completed"])
		same(name+", attempts", sumOf(text, "mcp_auth_attempts_total", label), calls+retries)
		same(name+", undecided", sumOf(text, "mcp_auth_calls_undecided_total", label), calls+retries-stats[cluster+"ext_proc.stream_msgs_received"])
	}
	reset := func(name string) float64 {
		return sumOf(text, "mcp_auth_calls_reset_total", fmt.Sprintf("upstream=%q", name))
	}
	for name, stat := range map[string]string{
		"cut": "cluster.cut.upstream_cx_destroy_remote_with_active_rq", "half": "http.mcp_half.downstream_rq_tx_reset",
		"left": "http.mcp_left.downstream_rq_rx_reset", "slow": "cluster.slow.upstream_rq_timeout",
	} {
		same(name+", reset", reset(name), stats[stat])
	}
	same("refused", sumOf(text, "mcp_auth_decisions_total", `reason="caller_unknown"`), stats["cluster.keyed.ext_proc.immediate_responses_sent"])
	same("refused by the upstream", sumOf(text, "mcp_auth_auth_failures_total", `upstream="keyed"`, `stage="upstream"`), stats["cluster.keyed.upstream_rq_401"])
	same("of no upstream", sumOf(text, "mcp_auth_access_log_entries_total", `kind="foreign"`), stats["http.mcp.downstream_rq_total"])
	same("dropped by Envoy", 0, stats["access_logs.grpc_access_log.logs_dropped"])
	for _, want := range []string{"cluster.alpha.upstream_rq_retry", "cluster.slow.upstream_rq_timeout", "http.mcp_left.downstream_rq_rx_reset"} {
		if stats[want] == 0 {
			t.Errorf("want %s above 0, for the test to show something", want)
		}
	}
	t.Logf("%v calls in %s, all counts equal: %v repeated, %v timed out, %v reset by the upstream, %v by the caller, %v refused, %v undecided",
		came, time.Since(begun).Round(time.Second), stats["cluster.alpha.upstream_rq_retry"], stats["cluster.slow.upstream_rq_timeout"],
		reset("cut")+reset("half"), reset("left"), stats["cluster.keyed.ext_proc.immediate_responses_sent"],
		sumOf(text, "mcp_auth_calls_undecided_total"))
}
