package e2e_test

import (
	"bytes"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/tracing/tracingtest"
)

const (
	traceID  = "4bf92f3577b34da6a3ce929d0e0e4736"
	parentID = "00f067aa0ba902b7"
	recorded = "00-" + traceID + "-" + parentID + "-01"
)

// tracedRig starts the whole line with a collector; change may edit Envoy's configuration.
func tracedRig(t *testing.T, change func(conf config, collector string)) (*rig, *tracingtest.Collector) {
	t.Helper()
	c := tracingtest.New()
	t.Cleanup(c.Close)
	r := newRig(t, standard+"tracing: {otlp: {endpoint: "+c.URL+", headers: {x-token: \"${ALPHA_SECRET}\"}}}\n")
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(edited(r.render(), func(conf config) { change(conf, c.URL) }))
	return r, c
}

// ours are the spans of this program.
func ours(c *tracingtest.Collector) []tracingtest.Span {
	var out []tracingtest.Span
	for _, s := range c.Spans() {
		if s.Service == "envoy-mcp-auth" {
			out = append(out, s)
		}
	}
	return out
}

// scanSpans scans all that the collector got.
func scanSpans(t *testing.T, c *tracingtest.Collector) {
	t.Helper()
	for _, s := range c.Spans() {
		for _, secret := range []string{canary, alphaSecret, "eyJ"} { // a JWT begins with the last
			if text := s.String(); s.Service == "envoy-mcp-auth" && strings.Contains(text, secret) {
				t.Errorf("a span shows %s: %s", secret, text)
			}
		}
	}
	if len(c.Bad()) > 0 {
		t.Error(c.Bad())
	}
}

// TestTraceOfTheCaller: what the caller records has our span in it, and nothing else has.
func TestTraceOfTheCaller(t *testing.T) {
	r, c := tracedRig(t, func(config, string) {})
	r.do(t.Context(), nil, r.url+"/alpha/mcp", nil, pairs{"traceparent", strings.TrimSuffix(recorded, "1") + "0"})
	r.do(t.Context(), nil, r.url+"/alpha/mcp", nil, nil)
	r.do(t.Context(), nil, r.url+"/alpha/mcp", nil, pairs{"traceparent", strings.Replace(recorded, "4bf", "4BF", 1)})
	r.do(t.Context(), nil, r.url+"/keyed/mcp", nil, pairs{"traceparent", recorded, "x-mcp-auth-key", callerToken})
	r.do(t.Context(), nil, r.url+"/alpha/mcp", nil, pairs{"traceparent", recorded, "authorization", "Bearer " + callerToken})
	r.eventually("two spans arrived", 20*time.Second, func() bool { return len(ours(c)) >= 2 })
	scanSpans(t, c)
	spans := ours(c)
	if len(spans) != 2 {
		t.Fatalf("got %d spans, want those of the two recorded requests", len(spans))
	}
	for i, reason := range []string{"caller_invalid", "allowed"} {
		s := spans[i]
		if s.Attribute("mcp_auth.reason") != reason || hex.EncodeToString(s.GetParentSpanId()) != parentID || hex.EncodeToString(s.GetTraceId()) != traceID {
			t.Errorf("span %d: got %s, want %s in the caller's trace", i, s, reason)
		}
	}
	if h := c.Headers()[0].Get("X-Token"); h != alphaSecret {
		t.Errorf("the collector got the header %q", h)
	}
}

// TestTraceOfEnvoy: where Envoy traces by the piece of docs/tracing.md, our span is the
// child of its span of the attempt, the one that the upstream is told of.
func TestTraceOfEnvoy(t *testing.T) {
	r, c := tracedRig(t, func(conf config, collector string) {
		resources := asMap(conf["static_resources"])
		resources["clusters"] = append(resources["clusters"].([]any), piece(t, "static_resources.clusters[]", collector))
		conf.manager()["tracing"] = piece(t, "tracing", collector)
	})
	r.do(t.Context(), nil, r.url+"/alpha/mcp", nil, pairs{"traceparent", recorded})
	envoys := func() map[string]tracingtest.Span {
		by := map[string]tracingtest.Span{}
		for _, s := range c.Spans() {
			if s.Service == "envoy" {
				by[hex.EncodeToString(s.GetSpanId())] = s
			}
		}
		return by
	}
	r.eventually("the spans arrived", 30*time.Second, func() bool { return len(ours(c)) == 1 && len(envoys()) == 3 })
	scanSpans(t, c)
	parent := hex.EncodeToString(ours(c)[0].GetParentSpanId())
	attempt, ok := envoys()[parent]
	if !ok || attempt.GetName() != "router alpha egress" {
		t.Fatalf("our span's parent is %s, %v, want Envoy's span of the attempt", parent, attempt)
	}
	if got, want := r.up("alpha").take()[0].Header.Get("Traceparent"), "00-"+traceID+"-"+parent+"-01"; got != want {
		t.Errorf("the upstream got the traceparent %s, want %s", got, want)
	}
}

// piece returns the piece of docs/tracing.md under that heading, for this collector.
func piece(t *testing.T, name, collector string) map[string]any {
	t.Helper()
	text, err := os.ReadFile("../../docs/tracing.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n# " + regexp.QuoteMeta(name) + "\n(.*?)```").FindSubmatch(text)
	if found == nil {
		t.Fatalf("docs/tracing.md has no piece %q", name)
	}
	port := regexp.MustCompile(`:(\d+)/`).FindStringSubmatch(collector)[1]
	var v map[string]any
	if err := yaml.Unmarshal(bytes.ReplaceAll(found[1], []byte("4318"), []byte(port)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}
