package e2e_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// alertKey signs the alerts of these tests.
const alertKey = "key-of-the-alerts-that-nobody-may-read-SVC"

// watched is a policy whose alpha is switched off when its credential fails.
const watched = `
version: 1
server: {listen: "unix://{{.Socket}}", admin: {{.Admin}}, drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  robot: {key: {sha256: {{.KeySum}}}}
defaults: {callers: [robot]}
watch:
  auth_failures: {share: 10%, min_calls: 5, window: 10s, do: [alert, disable]}
  errors: {share: 25%, min_calls: 5, window: 10s, do: [alert, disable]}
  breaker: {open: 1s, max_open: 2s, successes: 2, probe_timeout: 2s}
  alerts:
    webhook: {url: "{{.URL "hook"}}", secret: {file: {{.Dir}}/hook.secret}}
    slack: {url: {file: {{.Dir}}/chat.secret}}
    alertmanager: {urls: ["http://{{.Addr "manager"}}"], labels: {site: test}}
upstreams:
  alpha:
    url: {{.URL "alpha"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: alpha-client, client_secret: "${ALPHA_SECRET}", scopes: [mcp.read]}}
  beta:
    url: {{.URL "beta"}}
    credential: {oauth2: {token_url: {{.TokenURL}}, client_id: beta-client, client_secret: {file: {{.Dir}}/beta.secret}, scopes: [mcp.read]}}
`

// mailbox keeps what is posted to it.
type mailbox struct {
	mu     sync.Mutex
	mail   []letter
	answer int
}

type letter struct {
	path   string
	header http.Header
	body   string
	at     time.Time
}

// receive makes an upstream of the rig one that keeps bodies.
func (r *rig) receive(name string) *mailbox {
	m := &mailbox{answer: http.StatusOK}
	r.up(name).answerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mail = append(m.mail, letter{req.URL.Path, req.Header, string(body), time.Now()})
		w.WriteHeader(m.answer)
	})
	return m
}

func (m *mailbox) letters() []letter {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mail)
}

// find returns the letters that hold a text.
func (m *mailbox) find(text string) []letter {
	return slices.DeleteFunc(m.letters(), func(l letter) bool { return !strings.Contains(l.body, text) })
}

// signed reports whether a letter is signed with alertKey, by Standard Webhooks.
func (l *letter) signed() bool {
	mac := hmac.New(sha256.New, []byte(alertKey))
	mac.Write([]byte(l.header.Get("Webhook-Id") + "." + l.header.Get("Webhook-Timestamp") + "." + l.body))
	return l.header.Get("Webhook-Signature") == "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// breaker reads the state of alpha's breaker in /status.
func (p *processor) breaker() string {
	var st struct {
		Watch struct {
			Upstreams []struct {
				Name    string
				Breaker struct{ State string }
			}
		}
	}
	_, text := p.get("/status")
	_ = json.Unmarshal([]byte(text), &st)
	for _, u := range st.Watch.Upstreams {
		if u.Name == "alpha" {
			return u.Breaker.State
		}
	}
	return ""
}

// startWatched runs the line with the receivers of alerts.
func startWatched(t *testing.T, text string) (r *rig, hook, chat, manager *mailbox) {
	t.Helper()
	r = newRig(t, text)
	r.lent = append(r.lent, alertKey)
	r.write("hook.secret", alertKey+"\n")
	r.write("chat.secret", r.facts.URL("chat")+"/SECRET-PATH\n")
	hook, chat, manager = r.receive("hook"), r.receive("chat"), r.receive("manager")
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	return r, hook, chat, manager
}

// TestWatchLine breaks the credential of one upstream: who is to be told is told,
// signed, and the upstream is switched off, alone. It comes back by itself.
func TestWatchLine(t *testing.T) {
	r, hook, chat, manager := startWatched(t, watched)
	key := pairs{"x-mcp-auth-key", callerKey}
	beta := func() {
		t.Helper()
		if got := r.post("/beta/mcp", "{}", key...); got.status != http.StatusOK {
			t.Errorf("beta is not concerned: %v", got)
		}
	}
	for range 10 {
		if got := r.post("/alpha/mcp", "{}", key...); got.status != http.StatusOK {
			t.Fatalf("got %v", got)
		}
		beta()
	}
	if got := r.proc.breaker(); got != "closed" || len(hook.letters()) > 0 {
		t.Fatalf("want nothing told while all is well, got %q, %v", got, hook.letters())
	}

	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	r.eventually("alpha is switched off", 20*time.Second, func() bool {
		beta()
		got := r.post("/alpha/mcp", "{}", key...)
		if got.reason() == "upstream_rejected" {
			return false
		}
		got.refused(t, http.StatusServiceUnavailable, "upstream_disabled")
		if wait := got.header.Get("Retry-After"); wait != "1" && wait != "2" {
			t.Errorf("want a retry-after of the open breaker, got %q", wait)
		}
		return true
	})
	r.eventually("all are told", 20*time.Second, func() bool {
		return len(hook.find(`"status":"firing"`)) == 1 && len(chat.find("*FIRING* auth_failures")) == 1 && len(manager.letters()) > 0
	})
	first := hook.find(`"status":"firing"`)[0]
	if !first.signed() || !strings.Contains(first.body, `"upstream":"alpha"`) || !strings.Contains(first.body, "switched off") || strings.Contains(first.body, "beta") {
		t.Errorf("want a signed alert that says what was done, got %+v", first)
	}
	if l := manager.letters()[0]; l.path != "/mcp/api/v2/alerts" && l.path != "/api/v2/alerts" || !strings.Contains(l.body, `"alertname":"MCPAuthAuthFailures"`) || !strings.Contains(l.body, `"site":"test"`) {
		t.Errorf("want an alert by Alertmanager's API, got %+v", l)
	}
	if got := r.proc.metric(`mcp_auth_upstream_disabled{upstream="alpha"}`); got != 1 {
		t.Errorf("want the metric to show it, got %v", got)
	}
	if got := r.proc.metric(`mcp_auth_upstream_disabled{upstream="beta"}`); got != 0 {
		t.Errorf("beta: got %v", got)
	}
	if _, page := r.proc.get("/upstreams/alpha"); !strings.Contains(page, "Switched off") && !strings.Contains(page, "Trying whether it works") {
		t.Errorf("the page does not show it: %.3000s", page)
	}

	before := r.up("alpha").total()
	for range 30 {
		r.post("/alpha/mcp", "{}", key...)
		beta()
	}
	// A call that goes on is two attempts, since a 401 is tried once more with a new token.
	if n := r.up("alpha").total() - before; n > 8 {
		t.Errorf("want a probe at times and no other call, got %d requests of 30 calls", n)
	}

	r.up("alpha").answerFunc(fine)
	r.eventually("alpha is back", 30*time.Second, func() bool {
		return r.post("/alpha/mcp", "{}", key...).status == http.StatusOK && r.proc.breaker() == "closed"
	})
	for range 10 {
		if got := r.post("/alpha/mcp", "{}", key...); got.status != http.StatusOK {
			t.Errorf("once it is back, calls pass: %v", got)
		}
	}
	r.eventually("all are told that it is over", 40*time.Second, func() bool {
		return len(hook.find(`"status":"resolved"`)) == 1 && len(chat.find("*RESOLVED* auth_failures")) == 1
	})
	for _, l := range slices.Concat(hook.letters(), chat.letters(), manager.letters()) {
		if strings.Contains(l.body, "SECRET-PATH") {
			t.Errorf("the chat's URL is told: %s", l.body)
		}
	}
	r.mail(hook, chat, manager)
}

// TestWatchOneCaller: no caller can have an upstream switched off for another one,
// neither with wrong keys nor with requests that the upstream fails at.
func TestWatchOneCaller(t *testing.T) {
	const evilKey = "key-of-another-CNRY"
	sum := sha256.Sum256([]byte(evilKey))
	r, hook, _, _ := startWatched(t, strings.ReplaceAll(strings.Replace(watched,
		"defaults: {callers: [robot]}", "  evil: {key: {sha256: "+hex.EncodeToString(sum[:])+"}}\ndefaults: {callers: [robot, evil]}", 1),
		"do: [alert, disable]}", "do: [alert, disable, throttle]}"))
	robot := func(when string) {
		t.Helper()
		if got := r.post("/alpha/mcp", "{}", "x-mcp-auth-key", callerKey); got.status != http.StatusOK {
			t.Fatalf("%s: the other caller is not served: %v", when, got)
		}
	}
	robot("before")
	for range 40 {
		r.post("/alpha/mcp", "{}", "x-mcp-auth-key", "wrong").refused(t, http.StatusForbidden, "caller_invalid")
	}
	r.eventually("wrong keys are told", 20*time.Second, func() bool { return len(hook.find(`"stage":"caller"`)) > 0 })
	robot("after wrong keys")

	r.up("alpha").answerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("X-Crash") != "" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	for range 60 {
		if got := r.post("/alpha/mcp", "{}", "x-mcp-auth-key", evilKey, "x-crash", "1"); got.status != http.StatusInternalServerError {
			t.Fatalf("got %v", got)
		}
	}
	r.eventually("its crashes are told", 20*time.Second, func() bool { return len(hook.find(`"rule":"errors"`)) > 0 })
	for range 20 {
		robot("after crashes")
	}
	if got := r.proc.breaker(); got != "closed" {
		t.Errorf("want it on, got %q", got)
	}
}

// TestWatchReload: an upstream that fails is switched off by its errors, stays so over
// a reload, and is on again when the policy does not want that any more. By hand it
// is off without a reason.
func TestWatchReload(t *testing.T) {
	r, _, _, _ := startWatched(t, strings.Replace(watched, "open: 1s, max_open: 2s", "open: 10m, max_open: 10m", 1))
	key := pairs{"x-mcp-auth-key", callerKey}
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	off := func() bool {
		got := r.post("/alpha/mcp", "{}", key...)
		return got.reason() == "upstream_disabled" && got.status == http.StatusServiceUnavailable && got.header.Get("Retry-After") != ""
	}
	r.eventually("alpha is switched off", 20*time.Second, off)
	text := r.fill(strings.Replace(watched, "open: 1s, max_open: 2s", "open: 10m, max_open: 10m", 1))
	reload := func(text string) {
		const reloads = `mcp_auth_config_reloads_total{result="ok"}`
		before := r.proc.metric(reloads)
		r.write("policy.yaml", text)
		r.eventually("the policy is in force", 10*time.Second, func() bool {
			return r.proc.metric(reloads) > before
		})
	}
	reload(text + "# the same\n")
	if !off() {
		t.Error("a reload switches it on")
	}
	r.up("alpha").answerFunc(fine)
	reload(strings.ReplaceAll(text, "do: [alert, disable]", "do: [alert]"))
	if got := r.post("/alpha/mcp", "{}", key...); got.status != http.StatusOK {
		t.Errorf("want it on again, got %v", got)
	}
	reload(strings.Replace(text, "  alpha:\n", "  alpha:\n    disabled: true\n", 1))
	if !off() || r.proc.breaker() != "disabled" {
		t.Errorf("want it off by hand, got %q", r.proc.breaker())
	}
	if got := r.post("/beta/mcp", "{}", key...); got.status != http.StatusOK {
		t.Errorf("beta: %v", got)
	}
}

// TestWatchSweep: a caller that tries many tools is held back at every upstream, and
// told by name; the other caller is not concerned. What it put into its calls is
// told to nobody.
func TestWatchSweep(t *testing.T) {
	const thiefKey, argument = "key-of-the-thief-CNRY", "an-argument-of-a-call"
	sum := sha256.Sum256([]byte(thiefKey))
	text := strings.NewReplacer(
		"defaults: {callers: [robot]}", "  thief: {key: {sha256: "+hex.EncodeToString(sum[:])+"}}\ndefaults: {callers: [robot, thief], tools: {default: allow}}",
		"  breaker:", "  sweep: {tools: 5, window: 1m, do: [alert, throttle]}\n  throttle: {rate: 1/min, for: 10m}\n  breaker:",
	).Replace(watched)
	r, hook, chat, manager := startWatched(t, text)
	call := func(upstream, key, tool string) reply {
		return r.post("/"+upstream+"/mcp", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+tool+`","arguments":{"password":"`+argument+`"}}}`,
			"X-Mcp-Auth-Key", key, "Authorization", "Bearer "+callerToken, "Cookie", "session="+canary, "Content-Type", "application/json")
	}
	for i := range 6 {
		if got := call([]string{"alpha", "beta"}[i%2], thiefKey, fmt.Sprintf("tool_%d", i)); got.status != http.StatusOK {
			t.Fatalf("got %v", got)
		}
	}
	r.eventually("the sweep is told", 20*time.Second, func() bool {
		return len(hook.find(`"caller":"thief"`)) == 1 && len(chat.find("thief")) == 1 && len(manager.find("MCPAuthSweep")) > 0
	})
	for _, upstream := range []string{"alpha", "beta"} { // one a minute is left, of both together
		if got := call(upstream, thiefKey, "tool_1"); got.status != http.StatusOK {
			got.refused(t, http.StatusTooManyRequests, "rate_limited")
			if wait, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || wait < 1 || wait > 60 {
				t.Errorf("want a retry-after within the minute, got %q", got.header.Get("Retry-After"))
			}
		} else if upstream == "beta" {
			t.Error("want the second call of a minute refused")
		}
		if got := call(upstream, callerKey, "tool_1"); got.status != http.StatusOK {
			t.Errorf("the other caller: %v", got)
		}
	}
	r.mail(hook, chat, manager)
	for where, text := range r.channels() {
		if strings.Contains(text, argument) || strings.Contains(text, thiefKey) {
			t.Errorf("an argument or a key can be read in %s", where)
		}
	}
}

// mail has everything that was told scanned for secrets, with all else, at the end.
func (r *rig) mail(boxes ...*mailbox) {
	var all strings.Builder
	for _, m := range boxes {
		for _, l := range m.letters() {
			fmt.Fprintln(&all, l.path, l.header, l.body)
		}
	}
	r.write("mail", all.String())
	r.told = append(r.told, filepath.Join(r.dir, "mail"))
}
