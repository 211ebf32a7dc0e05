package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
)

const followed = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  robot: {key: {sha256: {{.KeySum}}}}
defaults:
  callers: [robot]
  credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}"}}
upstreams:
  alpha: {url: {{.URL "alpha"}}, cookies: {allow: [session_id]}}
  beta: {url: {{.URL "beta"}}}
`

// startXDS runs the whole line with an Envoy that knows nothing but where the
// server is.
func startXDS(t *testing.T, text string) *rig {
	t.Helper()
	r := newRig(t, text)
	r.follow()
	return r
}

// follow runs the program, and an Envoy that is served by it.
func (r *rig) follow() {
	r.t.Helper()
	r.flags = append(r.flags, "--xds")
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.run("render", "envoy", "--xds", "-c", r.policy))
	r.eventually("Envoy serves", 10*time.Second, func() bool {
		n, ok, err := r.envoy.Stat(r.t.Context(), "http.mcp.rds.mcp.update_success")
		return err == nil && ok && n > 0
	})
}

// followers is what /status says of the Envoys that follow.
func (r *rig) followers() envoy.XDSStatus {
	r.t.Helper()
	var status struct {
		XDS envoy.XDSStatus `json:"xds"`
	}
	_, body := r.proc.get("/status")
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		r.t.Fatal(err)
	}
	return status.XDS
}

// TestXDS: an Envoy with a bootstrap alone does what the rendered one does, and
// follows the policy file.
func TestXDS(t *testing.T) {
	r := startXDS(t, followed)
	call := func(name string) reply { return r.post("/"+name+"/mcp", "{}", asRobot()...) }
	for _, name := range []string{"alpha", "beta"} {
		r.up(name).take()
		if got := call(name); got.status != http.StatusOK {
			t.Fatalf("%s: got %v", name, got)
		}
		r.proper(t, name, r.up(name).take()[0])
	}
	call("gamma").refused(t, http.StatusForbidden, "no_policy")
	r.post("/alpha/mcp", "{}").refused(t, http.StatusForbidden, "caller_unknown")

	t.Run("an upstream is added, moved and taken away", func(t *testing.T) {
		more := followed + "  gamma: {url: {{.URL \"gamma\"}}}\n"
		r.write("policy.yaml", r.fill(more))
		r.eventually("gamma", 5*time.Second, func() bool { return call("gamma").status == http.StatusOK })
		r.write("policy.yaml", r.fill(strings.Replace(more, `{{.URL "gamma"}}`, `{{.URL "elsewhere"}}`, 1)))
		r.eventually("elsewhere", 5*time.Second, func() bool { return call("gamma").status == http.StatusOK && r.up("elsewhere").total() > 0 })
		// The credential is for the url, so neither server saw the other's.
		for _, name := range []string{"gamma", "elsewhere"} {
			for _, a := range r.up(name).seen() {
				if aud := claim(strings.TrimPrefix(a.Header.Get("Authorization"), "Bearer "), "aud"); !strings.Contains(aud, r.up(name).url()) {
					t.Errorf("%s was lent a token for %s", name, aud)
				}
			}
		}
		r.write("policy.yaml", r.fill(followed))
		r.eventually("no gamma", 5*time.Second, func() bool { return call("gamma").reason() == "no_policy" })
	})
	t.Run("a bad file changes nothing", func(t *testing.T) {
		var version uint64
		r.eventually("the push before is complete", 5*time.Second, func() bool {
			was := version
			version = r.followers().Version
			time.Sleep(200 * time.Millisecond)
			return was == version
		})
		r.write("policy.yaml", r.fill(followed+"  gamma: {url: nonsense}\n"))
		r.eventually("it is refused", 5*time.Second, func() bool { return r.proc.metric("mcp_auth_config_last_reload_successful") == 0 })
		if got := call("alpha"); got.status != http.StatusOK || r.followers().Version != version {
			t.Errorf("got %v", got)
		}
		r.write("policy.yaml", r.fill(followed))
		r.eventually("it is mended", 5*time.Second, func() bool { return r.proc.metric("mcp_auth_config_last_reload_successful") == 1 })
	})
	t.Run("what an Envoy refuses is shown", func(t *testing.T) {
		taken := newUpstream(t, "taken", nil) // no Envoy can listen where it does
		r.write("policy.yaml", r.fill(followed+"  own: {url: {{.URL \"own\"}}, envoy: {listen: "+taken.addr+"}}\n"))
		r.eventually("the refusal is in /status", 8*time.Second, func() bool {
			all := r.followers().Envoys
			return len(all) == 1 && all[0].Refused != nil && all[0].Refused.Kind == "listener"
		})
		if n := r.proc.metric(`mcp_auth_xds_refused_total{kind="listener"}`); n < 1 {
			t.Errorf("want it counted, got %v", n)
		}
		if got := call("alpha"); got.status != http.StatusOK {
			t.Errorf("the others: got %v", got)
		}
		r.write("policy.yaml", r.fill(followed))
		r.eventually("it is taken back", 8*time.Second, func() bool {
			all := r.followers().Envoys
			return len(all) == 1 && all[0].Refused == nil
		})
	})
	t.Run("a restart of the server", func(*testing.T) {
		r.proc.kill()
		r.proc = r.serve(r.policy, r.facts.Admin)
		r.eventually("Envoy is back", 20*time.Second, func() bool { return len(r.followers().Envoys) == 1 && call("alpha").status == http.StatusOK })
	})
}

// TestXDSEdits: edit after edit under load, with streams open.
func TestXDSEdits(t *testing.T) {
	edits := 12
	if os.Getenv("SOAK") != "" {
		edits = 200
	}
	r := startXDS(t, followed)
	r.up("beta").answerFunc(events)
	streams := r.open(t, 50)
	var slowest time.Duration
	o := r.at300(t, func() {
		for i := range edits {
			slowest = max(slowest, r.edit(t, i))
		}
	})
	if broken := streams.end(); broken != 0 {
		t.Errorf("want no stream dropped, got %d of 50", broken)
	}
	if o.failed.Load() != 0 || o.fine.Load() < 100 {
		t.Errorf("want no failed call, got %d of %d; the first: %v", o.failed.Load(), o.failed.Load()+o.fine.Load(), o.first.Load())
	}
	if slowest > 5*time.Second {
		t.Errorf("an edit took %s to be in force", slowest)
	}
	t.Logf("%d edits, the slowest in force after %s; %d calls, %d failed; 50 streams, 0 dropped", edits, slowest.Round(time.Millisecond), o.fine.Load()+o.failed.Load(), o.failed.Load())
}

// edit makes change i to the policy and returns how long it took to be in force.
func (r *rig) edit(t *testing.T, i int) time.Duration {
	t.Helper()
	name := fmt.Sprintf("extra%d", i/4)
	text, probe := followed, func() bool { return false }
	call := func(path string) reply { return r.post(path, "{}", asRobot()...) }
	switch i % 4 {
	case 0: // a new upstream
		text += fmt.Sprintf("  %s: {url: {{.URL %q}}}\n", name, name)
		probe = func() bool { return call("/"+name+"/mcp").status == http.StatusOK }
	case 1: // with another url
		text += fmt.Sprintf("  %s: {url: {{.URL %q}}}\n", name, name+"moved")
		probe = func() bool {
			return call("/"+name+"/mcp").status == http.StatusOK && r.up(name+"moved").total() > 0
		}
	case 2: // gone
		probe = func() bool { return call("/"+name+"/mcp").reason() == "no_policy" }
	case 3: // the upstream under load is permitted another cookie, and moved
		cookie := fmt.Sprintf("c%d", i)
		text = strings.Replace(text, "session_id", "session_id, "+cookie, 1)
		text = strings.Replace(text, `{{.URL "alpha"}}`, fmt.Sprintf(`{{.URL "alpha%d"}}`, i), 1)
		probe = func() bool {
			r.post("/alpha/mcp", "{}", asRobot("Cookie", cookie+"=1")...)
			up := r.up(fmt.Sprintf("alpha%d", i))
			for _, a := range up.take() {
				if a.Header.Get("Cookie") == cookie+"=1" {
					return true
				}
			}
			return false
		}
	}
	filled := r.fill(text)
	begun := time.Now()
	r.write("policy.yaml", filled)
	r.eventually(fmt.Sprintf("edit %d", i), 8*time.Second, probe)
	return time.Since(begun)
}

// tally is what became of calls.
type tally struct {
	fine, failed atomic.Int64
	first        atomic.Value // what failed first
}

// at300 calls alpha 300 times a second while f runs.
func (r *rig) at300(t *testing.T, f func()) *tally {
	t.Helper()
	o, client := new(tally), pooled()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const workers = 16
	for range workers {
		wg.Go(func() {
			tick := time.NewTicker(time.Second * workers / 300)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				got, err := r.try(ctx, client, r.url+"/alpha/mcp", strings.NewReader("{}"), asRobot("Cookie", "session_id=s-1"))
				switch {
				case err == nil && got.status == http.StatusOK:
					o.fine.Add(1)
					continue
				case ctx.Err() != nil: // the end of the load, and not of a call
					return
				}
				o.failed.Add(1)
				o.first.CompareAndSwap(nil, fmt.Sprint(got, err))
			}
		})
	}
	f()
	stop()
	wg.Wait()
	return o
}

// events is a stream that does not end by itself.
func events(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := fmt.Fprint(w, "data: tick\n\n"); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-req.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// streams are open ones.
type streams struct {
	stop   context.CancelFunc
	wg     sync.WaitGroup
	ending atomic.Bool
	broken atomic.Int64
}

// open opens n streams to beta, and returns when each has brought something.
func (r *rig) open(t *testing.T, n int) *streams {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &streams{stop: stop}
	t.Cleanup(stop)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	var began sync.WaitGroup
	began.Add(n)
	for range n {
		s.wg.Go(func() {
			once := sync.OnceFunc(began.Done)
			defer once()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+"/beta/mcp", nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("X-Mcp-Auth-Key", callerKey)
			resp, err := client.Do(req)
			if err != nil {
				s.broken.Add(1)
				return
			}
			defer func() { _ = resp.Body.Close() }()
			for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
				once()
			}
			if !s.ending.Load() {
				s.broken.Add(1)
			}
		})
	}
	began.Wait()
	return s
}

// end closes the streams and returns how many had ended before.
func (s *streams) end() int64 {
	s.ending.Store(true)
	s.stop()
	s.wg.Wait()
	return s.broken.Load()
}
