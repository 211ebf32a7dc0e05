package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// What the faults of a token endpoint come to: all others are token_refused.
const (
	harmless = "text_plain no_media_type bom bearer_upper case_variant unknown_members error_null same_token set_cookie " +
		"created biggest_token scope_with_line_break no_expires_in delay_300ms expires_in_zero expires_in_null expires_in_empty " +
		"expires_in_minus_one expires_in_minus_wrap expires_in_exponent expires_in_decimal expires_in_integral_decimal " +
		"expires_in_string expires_in_decimal_string expires_in_1e18 expires_in_epoch expires_in_overflow expires_in_over_int64 " +
		"refresh_in refresh_in_junk"
	outages = "echo_form status_429 retry_after_30 endless_body_503 hang slow_header slow_body reset reset_mid_body cut_mid_chunk " +
		"not_http huge_header endless_1xx retry_after_huge retry_after_minus retry_after_junk retry_after_date retry_after_past " +
		"status_500 status_502 status_503 status_504"
)

// oddEndpoints is a policy with an upstream for each fault, whose token endpoint
// shows that one and no other.
func oddEndpoints(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(standard)
	for i, f := range tokenstest.Faults() {
		as := tokenstest.Start(t, tokenstest.Config{Clients: map[string]tokenstest.Client{"alpha-client": {Secret: alphaSecret}}})
		as.Fail(f)
		fmt.Fprintf(&b, "  odd%d: {url: {{.URL \"odd\"}}, credential: {oauth2: {token_url: %q, client_id: alpha-client, client_secret: \"${ALPHA_SECRET}\", scopes: [mcp.read]}}}\n",
			i, as.TokenURL())
	}
	return b.String()
}

// TestT1_T2_O9_O11_O20_EveryFault: whatever a token endpoint does, the call gets a
// good token, or a fixed answer that says nothing of what came, and the upstream
// gets nothing.
func TestT1_T2_O9_O11_O20_EveryFault(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := newRig(t, oddEndpoints(t))
	r.proc = r.serve(r.policy, r.facts.Admin) // ready once all were tried
	r.startEnvoy(r.render())
	told := map[string]string{}
	for i, f := range tokenstest.Faults() {
		name := string(f)
		r.up("odd").take()
		got := r.post(fmt.Sprintf("/odd%d/mcp", i), "{}", own(name)...)
		came := r.up("odd").take()
		status, reason := http.StatusBadGateway, "token_refused"
		switch {
		case slices.Contains(strings.Fields(harmless), name):
			if got.status != http.StatusOK || len(came) != 1 || !strings.HasPrefix(came[0].Header.Get("Authorization"), "Bearer ") {
				t.Errorf("%s: want a token and the call to go on, got %v and %d arrivals", name, got, len(came))
			}
			continue
		case slices.Contains(strings.Fields(outages), name):
			status, reason = http.StatusServiceUnavailable, "token_unavailable"
			if got.header.Get("Retry-After") == "" {
				t.Errorf("%s: want retry-after", name)
			}
		}
		got.refused(t, status, reason)
		if len(came) != 0 {
			t.Errorf("%s: the call went on without a good token", name)
		}
		if told[reason] == "" {
			told[reason] = got.body
		}
		if got.body != told[reason] {
			t.Errorf("%s: want the same words for every cause, got %q and %q", name, got.body, told[reason])
		}
	}
	if len(told) != 2 {
		t.Errorf("want both kinds of refusals, got %v", told)
	}
	r.leaky = true // these tokens name no audience, but all else is audited
	for _, found := range r.audit() {
		if !strings.Contains(found, `a token for "no token of ours`) {
			t.Error(found)
		}
	}
}

// TestO1_DownAtStart: the process starts and lives without the authorization
// server. It is ready, unless the policy wants tokens for that, and upstreams that
// need none are served. The first token ends it all.
func TestO1_DownAtStart(t *testing.T) {
	t.Parallel() // it waits more than it works
	address := free(t)
	r := newRig(t, standard, func(r *rig) { r.facts.TokenURL = "http://" + address + "/token" })
	r.write("strict.yaml", strings.NewReplacer("p.sock", "strict.sock", r.facts.Admin, free(t), "drain_delay:", "ready: tokens\n  drain_delay:").Replace(r.fill(standard)))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	strict := r.launch(r.dir+"/strict.yaml", adminOf(t, r.dir+"/strict.yaml"))
	got := r.post("/alpha/mcp", "{}", own("")...)
	got.refused(t, http.StatusServiceUnavailable, "token_unavailable")
	if got.header.Get("Retry-After") == "" {
		t.Error("want retry-after")
	}
	r.untouched()
	if got := r.post("/fixed/mcp", "{}"); got.status != http.StatusOK {
		t.Errorf("another upstream: got %v", got)
	}
	r.eventually("the strict one lives and is not ready", 10*time.Second, func() bool {
		alive, _ := strict.get("/healthz")
		ready, why := strict.get("/readyz")
		return alive == http.StatusOK && ready == http.StatusServiceUnavailable && strings.Contains(why, "no token for upstream")
	})
	target, err := url.Parse(r.issuer.URL())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: httputil.NewSingleHostReverseProxy(target), ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.Serve(ln) }()
	r.eventually("calls go on", 10*time.Second, func() bool { return r.post("/alpha/mcp", "{}").status == http.StatusOK })
	r.eventually("the strict one is ready, though nobody asks it", 35*time.Second, func() bool {
		status, _ := strict.get("/readyz")
		return status == http.StatusOK
	})
}

// adminOf reads the admin address out of a policy.
func adminOf(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "admin: ")
	address, _, _ := strings.Cut(rest, "\n")
	return address
}

// TestU7_U8_S3_NoMoreThanThePolicySays: the token is in one header and nowhere
// else, and no challenge of an upstream makes its scopes grow.
func TestU7_U8_S3_NoMoreThanThePolicySays(t *testing.T) {
	r := start(t, standard)
	challenged := 0
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
		challenged++
		w.Header().Set("Www-Authenticate", `Bearer error="insufficient_scope", scope="mcp.read admin full-access"`)
		w.WriteHeader([]int{http.StatusForbidden, http.StatusUnauthorized}[challenged%2])
	})
	for range 6 {
		r.post("/alpha/mcp?page=1", "{}", own("")...)
	}
	came := r.up("alpha").take()
	if len(came) < 6 {
		t.Fatalf("want the calls to arrive, got %d", len(came))
	}
	for _, a := range came {
		token := strings.TrimPrefix(a.Header.Get("Authorization"), "Bearer ")
		if token == "" || strings.Count(a.Head, token) != 1 || a.Target != "/mcp?page=1" {
			t.Errorf("want the token once, in its header, got %q", a.Head)
		}
	}
	for _, q := range r.issuer.Recorded() {
		if got := q.Form["scope"]; len(got) != 1 || got[0] != "mcp.read" {
			t.Errorf("want the scopes of the policy, got %q", got)
		}
	}
	if n := r.issuer.RequestsBy("alpha-client"); n < 2 {
		t.Errorf("want the refused token replaced, got %d requests", n)
	}
}
