package e2e_test

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// byAnswers is a policy whose outcomes are told by the headers of answers.
const byAnswers = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  anyone: {any: true}
  robot: {key: {sha256: {{.KeySum}}}}
defaults:
  credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
upstreams:
  alpha: {url: {{.URL "alpha"}}, callers: [anyone], cookies: {allow: [session_id]}, envoy: {outcomes: response_headers}}
  keyed: {url: {{.URL "keyed"}}, callers: [robot], envoy: {outcomes: response_headers}}
  ruled: {url: {{.URL "ruled"}}, callers: [robot], tools: {rules: [{names: [harmless]}]}, envoy: {outcomes: response_headers}}
`

// ended is how many calls of an upstream ended with a status of that class, whoever
// called.
func (p *processor) ended(upstream, class string) float64 {
	return p.sum("mcp_auth_calls_total", `upstream="`+upstream+`"`, `class="`+class+`"`)
}

// sum adds up the samples of that name which have all these labels.
func (p *processor) sum(name string, labels ...string) float64 {
	_, text := p.get("/metrics")
	return sumOf(text, name, labels...)
}

// inListener moves the filters of alpha from its cluster to the listener, to where
// they see an upstream's 401 before custom_response has made a 502 of it.
func inListener(c config) {
	options := asMap(at(c.cluster("alpha"), "typed_extension_protocol_options", "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"))
	chain := options["http_filters"].([]any)
	options["http_filters"] = []any{chain[0], chain[3]}
	m := c.manager()
	m["http_filters"] = slices.Insert(m["http_filters"].([]any), len(m["http_filters"].([]any))-1, chain[1], chain[2])
}

// TestOutcomesByResponseHeaders, with the filter in the cluster's chain and in the
// listener's.
func TestOutcomesByResponseHeaders(t *testing.T) {
	for where, change := range map[string]func(config){"cluster": nil, "listener": inListener} {
		t.Run(where, func(t *testing.T) {
			t.Parallel() // it waits more than it works
			r := newRig(t, byAnswers)
			r.proc = r.serve(r.policy, r.facts.Admin)
			b := r.render()
			if change != nil {
				b = edited(b, change)
			}
			r.startEnvoy(b)
			r.answersTell(t, where == "cluster")
		})
	}
}

func (r *rig) answersTell(t *testing.T, cluster bool) {
	t.Helper()
	alpha := r.up("alpha")
	alpha.answer(r.guarded(func(w http.ResponseWriter, req *http.Request) {
		switch req.Header.Get("X-Want") {
		case "403":
			w.WriteHeader(http.StatusForbidden)
		case "late": // later than any timeout of the filter
			time.Sleep(3 * time.Second)
		case "cut":
			panic(http.ErrAbortHandler) //nolint:forbidigo // what net/http has for it
		case "wait":
			<-req.Context().Done()
		case "sse":
			length(w, req)
		}
	}))
	call := func(want string) int { return r.post("/alpha/mcp", "{}", append(own(want), "X-Want", want)...).status }
	for want, status := range map[string]int{"": 200, "403": 403, "late": 200, "cut": 503, "sse": 200} {
		if got := call(want); got != status {
			t.Errorf("%q: want %d, got %d", want, status, got)
		}
	}
	ctx, cancel := r.untilSeen("alpha", "wait")
	defer cancel()
	if got, err := r.try(ctx, nil, r.url+"/alpha/mcp", strings.NewReader("{}"), pairs{"X-Case", "wait", "X-Want", "wait"}); err == nil {
		t.Errorf("want the call cancelled, got %v", got)
	}
	wantEnded := func(what string, want map[string]float64) {
		t.Helper()
		for class, n := range want {
			r.eventually(what+" "+class, 5*time.Second, func() bool { return r.proc.ended("alpha", class) == n })
		}
	}
	// Envoy's own answer to the one that was cut passes a filter in the listener only.
	lost, answered := 2.0, 0.0
	if !cluster {
		lost, answered = 1, 1
	}
	wantEnded("first", map[string]float64{"2xx": 3, "4xx": 1, "none": lost, "5xx": answered})
	if n := r.proc.sum("mcp_auth_calls_reset_total", `upstream="alpha"`); n != lost {
		t.Errorf("want %v calls reset, got %v", lost, n)
	}
	// A revoked token heals within the call where the filter sees each attempt, else
	// for the next one.
	r.issuer.Revoke()
	before := r.issuer.Requests()
	if cluster {
		if got := call(""); got != http.StatusOK {
			t.Errorf("revoked: got %d", got)
		}
		wantEnded("revoked", map[string]float64{"2xx": 4, "4xx": 2})
	} else {
		r.post("/alpha/mcp", "{}").refused(t, http.StatusBadGateway, "upstream_rejected")
		r.eventually("the token is dropped", 2*time.Second, func() bool { return r.evicted() == 1 })
		if got := call(""); got != http.StatusOK {
			t.Errorf("after it: got %d", got)
		}
		wantEnded("revoked", map[string]float64{"2xx": 4, "4xx": 2, "5xx": 1})
	}
	if n := r.issuer.Requests() - before; n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
	if cluster {
		r.refusalsTell(t)
	}
	if n := r.proc.metric(`mcp_auth_access_log_entries_total{kind="call"}`); n != 0 {
		t.Errorf("want no outcome of the access log, got %v", n)
	}
	// A program that is told to stop does not cost the calls that wait for an upstream;
	// one that is killed does.
	if got := r.endsUnderway(t, syscall.SIGTERM); got.status != http.StatusOK || got.body != "late" {
		t.Errorf("want the call under way answered, got %v", got)
	}
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.eventually("calls go on", 10*time.Second, func() bool {
		alpha.answerFunc(fine)
		return call("") == http.StatusOK
	})
	if got := r.endsUnderway(t, syscall.SIGKILL); got.status != http.StatusInternalServerError {
		t.Errorf("want a 500 for the call under way, got %v", got)
	}
}

// refusalsTell: what we refuse has its outcome at once, and what a body decides about too.
func (r *rig) refusalsTell(t *testing.T) {
	t.Helper()
	r.post("/keyed/mcp", "{}").refused(t, http.StatusForbidden, "caller_unknown")
	r.eventually("the refusal", 2*time.Second, func() bool { return r.proc.ended("keyed", "4xx") == 1 })
	tool := func(name string) reply {
		return r.post("/ruled/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+name+`"}}`, "X-Mcp-Auth-Key", callerKey, "Content-Type", "application/json")
	}
	if got := tool("harmless"); got.status != http.StatusOK {
		t.Errorf("harmless: got %v", got)
	}
	tool("harmful").refused(t, http.StatusForbidden, "tool_denied")
	r.eventually("one that passed", 2*time.Second, func() bool {
		return r.proc.sum("mcp_auth_calls_total", `upstream="ruled"`, `tool="harmless"`, `class="2xx"`) == 1 && r.proc.ended("ruled", "4xx") == 1
	})
}

// endsUnderway ends the program while an upstream works on a call, and returns what
// becomes of the call.
func (r *rig) endsUnderway(t *testing.T, how syscall.Signal) reply {
	t.Helper()
	begun, goOn := make(chan struct{}), make(chan struct{})
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-goOn
		_, _ = io.WriteString(w, "late")
	})
	answer := make(chan reply)
	go func() {
		got, _ := r.try(t.Context(), nil, r.url+"/alpha/mcp", strings.NewReader("{}"), nil)
		answer <- got
	}()
	<-begun
	r.proc.signal(how)
	select {
	case <-r.proc.done:
	case <-time.After(10 * time.Second):
		t.Error("the program waits for the upstream")
	}
	time.Sleep(200 * time.Millisecond) // Envoy is to have noticed
	close(goOn)
	return <-answer
}
