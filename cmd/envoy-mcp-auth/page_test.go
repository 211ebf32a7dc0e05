package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realchromium"
)

// markup is what a caller may try to have shown.
const markup = `<img/src=x/onerror=alert(1)>`

// decide asks the running server for a decision, as Envoy does.
func (r *running) decide(t *testing.T, upstream string, headers ...string) *extprocv3.ProcessingResponse {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the end of a question
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(metadata.AppendToOutgoingContext(ctx, "mcp-upstream", upstream))
	if err != nil {
		t.Fatal(err)
	}
	all := []*corev3.HeaderValue{{Key: ":method", RawValue: []byte("POST")}, {Key: ":path", RawValue: []byte("/mcp")}, {Key: ":authority", RawValue: []byte("a")}}
	for pair := range slices.Chunk(headers, 2) {
		all = append(all, &corev3.HeaderValue{Key: pair[0], RawValue: []byte(pair[1])})
	}
	if err := stream.Send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: all}, EndOfStream: true},
	}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// guarded is servePolicy with an upstream that asks for a key.
func guarded(socket, admin, auth string) string {
	text := strings.Replace(servePolicy(socket, admin, auth), "anyone: {any: true}", "anyone: {any: true}, ci: {key: {sha256: "+strings.Repeat("ab", 32)+"}}", 1)
	return text + `  guarded:
    url: http://127.0.0.1:1/other
    callers: [ci]
    credential: {header: {x-api-key: "${SECRET}"}}
`
}

func TestStatusTellsOfRefusalsAndReloads(t *testing.T) {
	r := start(t, guarded)
	good, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	r.decide(t, "tools")
	r.decide(t, "guarded", "x-request-id", markup, "x-mcp-auth-key", "canary-key")
	r.decide(t, "guarded", "x-request-id", "second", "x-mcp-auth-key", "canary-key")
	r.decide(t, "nosuch")
	r.write(t, "version: 1\nupstreams: {")
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 0")
	r.write(t, string(good)+"# once more\n")
	r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 1")
	var got struct {
		Policy struct {
			Hash    string                         `json:"sha256"`
			Reloads []struct{ Hash, Error string } `json:"reloads"`
		} `json:"policy"`
		Refusals []struct {
			Upstream, Reason string
			Count            int
			RequestID        string `json:"request_id"`
		} `json:"recent_refusals"`
	}
	if err := json.Unmarshal([]byte(r.get(t, "/status")), &got); err != nil {
		t.Fatal(err)
	}
	if n := got.Refusals; len(n) != 2 || n[0].Reason != "no_policy" || n[1].Reason != "caller_invalid" || n[1].Count != 2 || n[1].Upstream != "guarded" || n[1].RequestID != "second" {
		t.Errorf("refusals: %+v", n)
	}
	p := got.Policy
	if n := p.Reloads; len(n) != 3 || n[0].Error != "" || n[1].Error == "" || n[2].Error != "" || n[0].Hash != p.Hash || n[0].Hash == n[2].Hash || len(p.Hash) != 12 {
		t.Errorf("reloads: %+v, in force %q", n, p.Hash)
	}
}

func TestReloadsThatFailAlikeAreOne(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	var s *reloadState
	s = s.after(at, "a", "")
	for i := range 40 {
		s = s.after(at.Add(time.Duration(i)*time.Second), "b", "bad line")
	}
	if len(s.Reloads) != 2 || s.Reloads[0].Count != 40 || s.Hash != "a" || !s.LoadedAt.Equal(at) || s.Error != "bad line" {
		t.Errorf("%+v", s)
	}
	for range 20 {
		s = s.after(at, "a", "")
	}
	if len(s.Reloads) != keptReloads || s.Error != "" {
		t.Errorf("%+v", s)
	}
}

// TestPageOfARunningServer looks at real data with the real Chromium.
func TestPageOfARunningServer(t *testing.T) {
	b := realchromium.Start(t)
	r := start(t, guarded)
	tab := b.Open(t, "http://"+r.admin+"/", realchromium.Look{})
	if got := realchromium.Eval[string](t, tab, `document.title`); got != "All is well · envoy-mcp-auth" {
		t.Errorf("title %q", got)
	}
	if !realchromium.Eval[bool](t, tab, `document.querySelectorAll('.upstreams tbody tr').length === 2 && !!document.querySelector('#u-tools .life')
		&& document.body.innerText.includes('None since the start')`) {
		t.Errorf("the page shows %s", realchromium.Eval[string](t, tab, `document.body.innerText`))
	}
	realchromium.Eval[bool](t, tab, `window.same = true`)
	r.decide(t, "guarded", "x-request-id", markup, "x-mcp-auth-key", "canary-key")
	tab.Until(t, `window.same && document.querySelector('.refusals')?.innerText.includes('caller_invalid')`)
	if !realchromium.Eval[bool](t, tab, `document.querySelector('.refusals').innerText.includes('`+markup+`') && !document.querySelector('img')`) {
		t.Error("the request id is not shown as text")
	}
	r.write(t, "version: 1\nupstreams: {")
	tab.Until(t, `document.getElementById('attention')?.innerText.includes('could not be put in force')`)
	for _, path := range []string{"/", "/upstreams/tools", "/upstreams/guarded", "/status", "/assets/page.js", "/?q=canar"} {
		if got := r.get(t, path); strings.Contains(got, "canary") || got == "" {
			t.Errorf("%s shows a secret, or nothing: %s", path, got)
		}
	}
	if all := tab.Complaints(); len(all) > 0 {
		t.Errorf("the page complains: %q", all)
	}
	tab = b.Open(t, "http://"+r.admin+"/upstreams/tools", realchromium.Look{NoScript: true})
	if !realchromium.Eval[bool](t, tab, `document.body.innerText.includes('envoy-mcp-auth explain -c `+r.policy+` --upstream tools')`) {
		t.Error("no command line to try it")
	}
}

// TestL3_PageIsNotReadByOtherNames: the listener of a running server knows its own.
func TestL3_PageIsNotReadByOtherNames(t *testing.T) {
	r := start(t, servePolicy)
	for host, want := range map[string]int{r.admin: http.StatusOK, "localhost": http.StatusOK, "rebound.example": http.StatusMisdirectedRequest} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.admin+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Host %s: %d, want %d", host, resp.StatusCode, want)
		}
	}
}

// TestPageShowsLimits: what was refused, and what an outage of the service means.
func TestPageShowsLimits(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	service := func(state, on string) *limits.ServiceStatus {
		return &limits.ServiceStatus{Address: "a:1", State: state, Since: &at, Error: "no answer", OnFailure: on}
	}
	for _, c := range []struct {
		what    string
		service *limits.ServiceStatus
		state   admin.State
		says    string
	}{
		{"no service", nil, admin.OK, ""},
		{"up", service("up", "refuse"), admin.OK, ""},
		{"down, and calls go on", service("down", "allow"), admin.Warn, "held to the rules of this process alone"},
		{"down, and calls are refused", service("down", "refuse"), admin.Bad, "are refused"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			p := viewLimits(&limits.Status{
				Service: c.service,
				Rules: slices.Concat([]limits.RuleStatus{{Name: "all", Per: []string{"upstream", "caller"}, Fleet: true, Refused: 3, Last: &at}},
					slices.Repeat([]limits.RuleStatus{{Name: "r", Rate: "1/s"}}, shownLimits)),
			})
			if p.State != c.state || !strings.Contains(p.Do, c.says) || (p.Trouble == "no answer") != (c.state != admin.OK) {
				t.Errorf("want %v, %q; got %+v", c.state, c.says, p)
			}
			if f := p.Facts; f[0].Value != "a rate of the service for each upstream and caller, all replicas: 3 refused" || !f[1].At.Equal(at) ||
				f[2].Value != "1/s: 0 refused" || f[shownLimits+1].Value != "1 rule on /status" {
				t.Errorf("%+v", f)
			}
		})
	}
}
