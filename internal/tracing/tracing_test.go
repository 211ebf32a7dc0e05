package tracing

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/tracing/tracingtest"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
	sampled = "00-" + traceID + "-" + spanID + "-01"
	// canary is the value of every secret.
	canary = "c4n4ry-value"
)

type secrets struct {
	mu    sync.Mutex
	value string
}

func (s *secrets) set(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.value = value
}

func (s *secrets) Secret(policy.SecretRef) (policy.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.value == "" {
		return policy.Secret{}, errors.New("not there yet")
	}
	return policy.NewSecret(s.value), nil
}

// rig is a Tracing, and all that comes of it.
type rig struct {
	*Tracing
	secrets secrets

	mu     sync.Mutex
	log    bytes.Buffer
	counts map[string]int
}

func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *rig) count(result string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[result] += n
}

func (r *rig) counted(result string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[result]
}

func (r *rig) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{counts: map[string]int{}, secrets: secrets{value: canary}}
	r.Tracing = New(Config{
		Secrets: &r.secrets, Version: "v1", Now: time.Now, Dice: func() float64 { return 0.5 },
		Count: r.count, Log: zerolog.New(r),
	})
	t.Cleanup(r.Close)
	return r
}

func newCollector(t *testing.T) *tracingtest.Collector {
	t.Helper()
	c := tracingtest.New()
	t.Cleanup(c.Close)
	return c
}

// to is a policy with one upstream that sends its spans to a URL.
func to(url string) *policy.Set {
	return &policy.Set{
		Tracing:   &policy.Tracing{Endpoint: url, Headers: []policy.SecretHeader{{Name: "x-token", Value: policy.SecretRef{Kind: policy.SecretEnv, Name: "T"}}}},
		Upstreams: []*policy.Upstream{{Name: "crm", URL: "https://crm.example/mcp"}},
	}
}

func decision(trace string) *extproc.Decision {
	return &extproc.Decision{
		Upstream: "crm", Caller: "ci", Reason: policy.Allowed, Attempt: 1, Trace: []byte(trace),
		Began: time.Unix(1000, 5000), Took: 250 * time.Microsecond,
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	c, r := newCollector(t), newRig(t)
	r.Use(to(c.URL))
	d := decision(sampled)
	d.Tool, d.Rule, d.Token, d.Attempt = "lookup", 3, "fp-1", 2
	d.Calls = []policy.Call{{Method: []byte("tools/call"), Target: []byte("lookup"), ID: []byte(`"` + canary + `"`)}}
	r.Decided(d)
	refused := decision(sampled)
	refused.Reason, refused.Tool, refused.Calls = policy.ToolDenied, "resources/read file:///"+canary, []policy.Call{{Method: []byte("resources/read")}}
	r.Decided(refused)
	prompt := decision(sampled)
	prompt.Tool, prompt.Calls = "prompts/get greet", []policy.Call{{Method: []byte("prompts/get")}}
	r.Decided(prompt)
	batch := decision(sampled)
	batch.Tool, batch.Calls = "lookup", []policy.Call{{Method: []byte("tools/call")}, {Method: []byte("tools/call")}}
	r.Decided(batch)
	unproved := decision(sampled)
	unproved.Reason, unproved.Calls = policy.ToolUnproved, []policy.Call{{Method: []byte(canary)}}
	r.Decided(unproved)
	r.Close()
	spans := c.Spans()
	if len(spans) != 5 || len(c.Bad()) > 0 || r.counted(Exported) != 5 {
		t.Fatalf("got %d spans, %v, %v exported, want 5", len(spans), c.Bad(), r.counts)
	}
	s := spans[0]
	if hex.EncodeToString(s.GetTraceId()) != traceID || hex.EncodeToString(s.GetParentSpanId()) != spanID {
		t.Errorf("got trace %x, parent %x, want %s, %s", s.GetTraceId(), s.GetParentSpanId(), traceID, spanID)
	}
	if from, until := s.GetStartTimeUnixNano(), s.GetEndTimeUnixNano(); from != 1000_000_005_000 || until-from != 250_000 {
		t.Errorf("got a span from %d to %d", from, until)
	}
	for i, want := range []map[string]string{
		{
			"mcp.method.name": "tools/call", "gen_ai.tool.name": "lookup", "gen_ai.operation.name": "execute_tool", "error.type": "",
			"mcp_auth.upstream": "crm", "mcp_auth.caller": "ci", "mcp_auth.reason": "allowed", "mcp_auth.token": "fp-1",
			"mcp_auth.attempt": "int_value:2", "mcp_auth.rule": "int_value:3", "server.address": "crm.example", "server.port": "int_value:443",
		},
		{"mcp.method.name": "resources/read", "gen_ai.tool.name": "", "gen_ai.operation.name": "", "error.type": "tool_denied", "mcp_auth.reason": "tool_denied"},
		{"mcp.method.name": "prompts/get", "gen_ai.prompt.name": "greet"},
		{"mcp_auth.batch": "int_value:2", "gen_ai.tool.name": ""},
		{"mcp.method.name": "", "error.type": "tool_unproved"},
	} {
		for key, value := range want {
			if got := spans[i].Attribute(key); got != value {
				t.Errorf("span %d: %s: got %q, want %q", i, key, got, value)
			}
		}
		if text := spans[i].String(); strings.Contains(text, canary) {
			t.Errorf("span %d shows what is the caller's: %s", i, text)
		}
	}
	if h := c.Headers()[0]; h.Get("X-Token") != canary || h.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("got headers %v", h)
	}
}

func TestWhichRequests(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		roots   float64
		trace   string
		attempt int
		want    int
	}{
		{"recorded", 0, sampled, 1, 1},
		{"not recorded", 0, strings.TrimSuffix(sampled, "1") + "0", 1, 0},
		{"not recorded, whatever the share", 1, strings.TrimSuffix(sampled, "1") + "0", 1, 0},
		{"none", 0, "", 1, 0},
		{"invalid", 0, "00-" + traceID + "-xx-01", 1, 0},
		{"none, and the dice within the share", 0.6, "", 1, 1},
		{"none, and the dice beyond it", 0.4, "", 1, 0},
		{"none, a second attempt", 1, "", 2, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, r := newCollector(t), newRig(t)
			set := to(c.URL)
			set.Tracing.Roots = tc.roots
			r.Use(set)
			d := decision(tc.trace)
			d.Attempt = tc.attempt
			r.Decided(d)
			r.Close()
			spans := c.Spans()
			if len(spans) != tc.want {
				t.Fatalf("got %d spans, want %d", len(spans), tc.want)
			}
			if tc.trace == "" && tc.want == 1 && len(spans[0].GetParentSpanId()) > 0 {
				t.Errorf("a trace of its own has the parent %x", spans[0].GetParentSpanId())
			}
		})
	}
}

func TestUntracedDoesNotAllocate(t *testing.T) {
	c, r := newCollector(t), newRig(t)
	for _, use := range []*policy.Set{{}, to(c.URL)} {
		r.Use(use)
		d := decision(strings.TrimSuffix(sampled, "1") + "0")
		if n := testing.AllocsPerRun(100, func() { r.Decided(d) }); n != 0 {
			t.Errorf("a request that is not traced allocates %v times, want 0", n)
		}
	}
}

// TestIllCollector: one that answers with what it was sent, in every place there is,
// gets nothing into the log, and the log one line.
func TestIllCollector(t *testing.T) {
	t.Parallel()
	elsewhere := newCollector(t)
	for name, answer := range map[string]http.HandlerFunc{
		"400": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, canary, http.StatusBadRequest) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"?"+canary, http.StatusTemporaryRedirect)
		},
		"partial success": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/x-protobuf")
			// ExportTraceServiceResponse{partial_success: {error_message: …}}
			_, _ = w.Write(append([]byte{0x0a, byte(len(canary) + 2), 0x12, byte(len(canary))}, canary...))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, r := newCollector(t), newRig(t)
			c.Answer = answer
			r.Use(to(c.URL))
			for range maxBatch + 1 {
				r.Decided(decision(sampled))
			}
			r.Close()
			if n := r.counted(Failed); n != maxBatch+1 || len(c.Headers()) < 2 {
				t.Errorf("got %d failed in %d requests, want %d in 2", n, len(c.Headers()), maxBatch+1)
			}
			if log := r.logged(); strings.Count(log, "\n") != 1 || strings.Contains(log, canary) {
				t.Errorf("want one line without secrets, got\n%s", log)
			}
		})
	}
	t.Cleanup(func() {
		if n := len(elsewhere.Headers()); n > 0 {
			t.Errorf("the redirect was followed %d times", n)
		}
	})
}

// TestQueueIsBounded: a collector that hangs holds up nobody, and what cannot wait is counted.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	c, r := newCollector(t), newRig(t)
	release := make(chan struct{})
	c.Answer = func(http.ResponseWriter, *http.Request) { <-release }
	r.Use(to(c.URL))
	for range maxQueue + 100 {
		r.Decided(decision(sampled))
	}
	if n := r.counted(Dropped); n != 100 {
		t.Errorf("got %d dropped, want 100", n)
	}
	close(release)
}

// TestReload: what was queued for the old collector goes there, and the rest to the
// new one; a policy that changes something else keeps the queue.
func TestReload(t *testing.T) {
	t.Parallel()
	first, second, r := newCollector(t), newCollector(t), newRig(t)
	r.Use(to(first.URL))
	r.Decided(decision(sampled))
	before := r.now.Load().pipe
	r.Use(to(first.URL))
	if r.now.Load().pipe != before {
		t.Error("the queue is a new one, though nothing changed")
	}
	r.Use(to(second.URL))
	r.secrets.set("new")
	r.Decided(decision(sampled))
	r.Use(&policy.Set{})
	r.Decided(decision(sampled))
	wait(t, func() bool { return len(first.Spans()) == 1 && len(second.Spans()) == 1 })
	if got := second.Headers()[0].Get("X-Token"); got != "new" {
		t.Errorf("got the secret %q, want the new one", got)
	}
}

func wait(t *testing.T, done func() bool) {
	t.Helper()
	for range 2000 {
		if done() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("it did not come in 10 s")
}

// TestCheck: a reload with authorities that cannot be read is refused.
func TestCheck(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	set := to("https://otel.example/v1/traces")
	set.Tracing.CA = t.TempDir() + "/ca.pem"
	if err := r.Check(set); err == nil || !strings.Contains(err.Error(), "tracing.otlp.ca") {
		t.Errorf("got %v", err)
	}
	if err := r.Check(&policy.Set{}); err != nil {
		t.Error(err)
	}
}

// TestEnvironment: the policy says where spans go, and nothing else does.
func TestEnvironment(t *testing.T) {
	c, other, r := newCollector(t), newCollector(t), newRig(t)
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		t.Setenv(name, other.URL)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-env=1")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	t.Setenv("OTEL_SERVICE_NAME", "another")
	t.Setenv("OTEL_ATTRIBUTE_COUNT_LIMIT", "1")
	r.Use(to(c.URL))
	r.Decided(decision(sampled))
	r.Close()
	if len(c.Spans()) != 1 || len(other.Headers()) != 0 || c.Headers()[0].Get("X-Env") != "" {
		t.Fatalf("got %d spans, %d elsewhere, headers %v", len(c.Spans()), len(other.Headers()), c.Headers())
	}
	if s := c.Spans()[0]; s.Service != "envoy-mcp-auth" || len(s.GetAttributes()) < 5 {
		t.Errorf("got %s", fmt.Sprint(s))
	}
}
