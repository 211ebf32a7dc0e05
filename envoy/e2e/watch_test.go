package e2e_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
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

// breakerOf reads /status.
func (p *processor) breakerOf(upstream string) string {
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
		if u.Name == upstream {
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
	if got := r.proc.breakerOf("alpha"); got != "closed" || len(hook.letters()) > 0 {
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
		return r.post("/alpha/mcp", "{}", key...).status == http.StatusOK && r.proc.breakerOf("alpha") == "closed"
	})
	for range 10 {
		if got := r.post("/alpha/mcp", "{}", key...); got.status != http.StatusOK {
			t.Errorf("once it is back, calls pass: %v", got)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			_, status := r.proc.get("/status")
			t.Logf("hook %+v, status %s", hook.letters(), status)
			b, _ := os.ReadFile(r.proc.log)
			for line := range strings.Lines(string(b)) {
				if !strings.Contains(line, "refused\"") {
					t.Log(line)
				}
			}
		}
	})
	r.eventually("all are told that it is over", 40*time.Second, func() bool {
		return len(hook.find(`"status":"resolved"`)) == 1 && len(chat.find("*RESOLVED* auth_failures")) == 1
	})
	for _, l := range slices.Concat(hook.letters(), chat.letters(), manager.letters()) {
		for _, secret := range []string{callerKey, alphaSecret, betaSecret, alertKey, "SECRET-PATH", canary} {
			if strings.Contains(l.body, secret) {
				t.Errorf("a secret is told: %s", l.body)
			}
		}
	}
}
