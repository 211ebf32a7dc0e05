package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realratelimit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

// otherKey is that of a second caller.
const otherKey = "key-of-the-watcher-CNRY"

// limited is a policy with a limit for each way to count.
func limited() string {
	sum := sha256.Sum256([]byte(otherKey))
	return strings.ReplaceAll(`
version: 1
server: {listen: "unix://{{.Socket}}", admin: "{{.Admin}}", drain_delay: 100ms}
envoy: {listen: {{.Listen}}}
callers:
  robot: {key: {sha256: {{.KeySum}}}}
  watcher: {key: {sha256: OTHER}}
limits:
  rules:
    - {name: each, upstreams: [open], per: [caller], rate: 3/day}
    - {name: tool, upstreams: [body], tools: [customer, purge], per: [tool, caller], rate: 4/day, burst: 2}
defaults:
  callers: [robot, watcher]
  credential: none
upstreams:
  open: {url: {{.URL "open"}}}
  bare: {url: {{.URL "bare"}}}
  body: {url: {{.URL "body"}}, tools: {default: allow}}
`, "OTHER", hex.EncodeToString(sum[:]))
}

// over fails the test unless the reply is a refusal by a limit, to come again in so many seconds.
func (r reply) over(t *testing.T, seconds int) {
	t.Helper()
	r.refused(t, 429, "rate_limited")
	got, err := strconv.Atoi(r.header.Get("Retry-After"))
	if seconds == 0 && r.header.Get("Retry-After") == "" {
		return // it never passes
	}
	if err != nil || got > seconds || got < seconds-60 {
		t.Errorf("want retry-after %d, got %q", seconds, r.header.Get("Retry-After"))
	}
}

// TestLimits: a caller over its limit gets a 429 with retry-after through the real
// Envoy, that is not repeated and reaches no upstream; another caller and another
// upstream do not.
func TestLimits(t *testing.T) {
	r, e := start(t, limited()), new(executed)
	r.up("body").answer(e.server())
	asWatcher := func() pairs { return append(asRobot()[2:], "X-Mcp-Auth-Key", otherKey) }
	for range 3 {
		if got := r.post("/open/mcp", "{}", asRobot()...); got.status != 200 {
			t.Fatalf("want 200 within the limit, got %v", got)
		}
	}
	before := r.up("open").total()
	r.post("/open/mcp", "{}", asRobot()...).over(t, 24*3600/3)
	if n := r.up("open").total(); n != before {
		t.Errorf("want a refused call at no upstream, got %d more", n-before)
	}
	for path, headers := range map[string]pairs{"/open/mcp": asWatcher(), "/bare/mcp": asRobot()} {
		if got := r.post(path, "{}", headers...); got.status != 200 {
			t.Errorf("%s: want neither another caller nor another upstream limited, got %v", path, got)
		}
	}
	if n := r.proc.metric(`mcp_auth_rate_limited_total{rule="each",upstream="open"}`); n != 1 {
		t.Errorf("want one refusal counted, got %v", n)
	}
	if _, status := r.proc.get("/status"); !strings.Contains(strings.Join(strings.Fields(status), ""), `"name":"each","rate":"3/day","per":["caller"],"refused":1,"last":"20`) {
		t.Errorf("want the refusal on /status: %s", status)
	}
	if _, page := r.proc.get("/"); !strings.Contains(page, "3/day for each caller: 1 refused") || !strings.Contains(page, "A limit of the policy was reached.") {
		t.Errorf("want the refusal on the page: %s", page)
	}

	for _, call := range []struct {
		what, body string
		headers    pairs
		ran        string
		over       int // seconds, -1 when it passes
	}{
		{"a tool that no rule is about", toolCall("harmless"), asRobot(), "harmless", -1},
		{"a batch of two of one tool and one of another", "[" + toolCall("customer") + "," + toolCall("purge") + "," + toolCall("customer") + "]", asRobot(), "", -1},
		{"the tool that is used up", toolCall("customer"), asRobot(), "", 24 * 3600 / 4},
		{"a batch with it, refused whole", "[" + toolCall("purge") + "," + toolCall("customer") + "]", asRobot(), "", 24 * 3600 / 4},
		{"what the batch would have taken is still there", toolCall("purge"), asRobot(), "purge", -1},
		{"and no more", toolCall("purge"), asRobot(), "", 24 * 3600 / 4},
		{"another caller", toolCall("customer"), asWatcher(), "customer", -1},
		{"a batch larger than the limit", "[" + strings.Repeat(toolCall("purge")+",", 2) + toolCall("purge") + "]", asWatcher(), "", 0},
	} {
		t.Run(call.what, func(t *testing.T) {
			got := r.post("/body/mcp", call.body, append(call.headers, "MCP-Protocol-Version", "2025-03-26")...)
			ran := e.take()
			if strings.HasPrefix(call.body, "[") && call.over < 0 {
				// In no order, and this server may refuse batches.
				if got.header.Get("X-Mcp-Auth-Reason") != "" {
					t.Errorf("want it let through, got %v", got)
				}
				return
			}
			if ran != call.ran {
				t.Errorf("want %q run, got %q: %v", call.ran, ran, got)
			}
			if call.over >= 0 {
				got.over(t, call.over)
			}
		})
	}
}

// TestFleetLimits: two processes behind one Envoy hold one limit, through the real
// rate limit service.
func TestFleetLimits(t *testing.T) {
	redis, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redis.Stop)
	service, err := realratelimit.Start(t.Context(), realratelimit.Config{
		Binary: realratelimit.Require(t), Dir: t.TempDir(), Redis: redis.Addr, Limits: "domain: envoy-mcp-auth\ndescriptors: []\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Stop)
	r := start(t, strings.Replace(limited(), "    - {name: tool", fmt.Sprintf(`    - {name: all, fleet: true, per: [caller], upstreams: [bare, body], rate: 5/day}
  service: {address: %q, on_failure: refuse, timeout: 1s}
#    - {name: tool`, service.Addr), 1))
	passed := 0
	for i := range 10 {
		if i == 3 { // a second process, as a second replica would
			r.proc.kill()
			r.proc = r.serve(r.policy, r.facts.Admin)
			r.waitProcessor(1)
		}
		got := r.post([]string{"/bare/mcp", "/body/mcp"}[i%2], toolCall("x"), asRobot()...)
		if got.status == 429 {
			got.refused(t, 429, "rate_limited")
			if wait, err := strconv.Atoi(got.header.Get("Retry-After")); err != nil || wait < 1 || wait > 24*3600 {
				t.Errorf("want retry-after within a day, got %q", got.header.Get("Retry-After"))
			}
			continue
		}
		passed++
	}
	if passed != 5 {
		t.Errorf("want 5 calls let through, over two upstreams and two processes, got %d", passed)
	}
	if n := r.proc.metric("mcp_auth_ratelimit_service_up"); n != 1 {
		t.Errorf("want the service up, got %v", n)
	}
	if _, status := r.proc.get("/status"); !strings.Contains(strings.ReplaceAll(status, " ", ""), `"state":"up"`) {
		t.Errorf("want the service on /status: %s", status)
	}
}
