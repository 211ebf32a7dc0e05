// Package tracing makes a span of each decision on a request whose trace is
// recorded, and sends it to an OpenTelemetry collector.
//
// Nothing of it waits: a span goes into a bounded queue, and one that finds it full
// is dropped and counted. A request that is not traced costs the reading of a header.
package tracing

import (
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/attribute"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/traceparent"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// What becomes of spans, for Config.Count.
const (
	Exported = "exported" // the collector took them
	Failed   = "failed"   // it did not
	Dropped  = "dropped"  // the queue was full
)

// SecretSource reads secrets, from memory.
type SecretSource interface {
	Secret(ref policy.SecretRef) (policy.Secret, error)
}

// Config is what Tracing needs. Every field but Log is required.
type Config struct {
	// Secrets are asked for the headers of each request to the collector.
	Secrets SecretSource
	// Version is that of this program.
	Version string
	// Now is the clock, and Dice returns a random number from 0 to below 1.
	Now  func() time.Time
	Dice func() float64
	// Count is told what became of spans: Exported, Failed or Dropped.
	Count func(result string, spans int)
	// Log is told when the collector takes no spans, once a minute at most.
	Log zerolog.Logger
}

// Tracing implements extproc.Observer. The zero value and one whose policy has no
// tracing do nothing. Its methods may be called from any number of goroutines, Use
// and Close from one at a time.
type Tracing struct {
	cfg Config
	now atomic.Pointer[tracer]
}

// tracer is what one policy says of tracing.
type tracer struct {
	*pipe
	roots float64
	// places are the attributes of each upstream.
	places map[string][]attribute.KeyValue
}

// New returns a Tracing that does nothing until Use.
func New(cfg Config) *Tracing { return &Tracing{cfg: cfg} }

// Check reports whether a policy's files can be read now.
func (t *Tracing) Check(set *policy.Set) error {
	if set.Tracing == nil {
		return nil
	}
	return wayTo(set.Tracing, &t.cfg).Check()
}

// Use puts a policy in force. What is queued for a collector that it names no more
// is still sent there, in the background.
func (t *Tracing) Use(set *policy.Set) {
	old := t.now.Load()
	var next *tracer
	if set.Tracing != nil {
		next = &tracer{roots: set.Tracing.Roots, places: placesOf(set)}
		if old != nil && old.spec.Equal(set.Tracing) {
			next.pipe = old.pipe
		} else {
			next.pipe = newPipe(set.Tracing, &t.cfg)
		}
	}
	t.now.Store(next)
	if old != nil && (next == nil || next.pipe != old.pipe) {
		go old.close()
	}
}

// Close sends what is queued, for 3 s at most.
func (t *Tracing) Close() {
	if old := t.now.Swap(nil); old != nil {
		old.close()
	}
}

// placesOf says where each upstream is.
func placesOf(set *policy.Set) map[string][]attribute.KeyValue {
	places := make(map[string][]attribute.KeyValue, len(set.Upstreams))
	for _, up := range set.Upstreams {
		at := []attribute.KeyValue{attribute.String("mcp_auth.upstream", up.Name)}
		if u, err := url.Parse(up.URL); err == nil {
			at = append(at, attribute.String("server.address", u.Hostname()), attribute.Int("server.port", port(u)))
		}
		places[up.Name] = at
	}
	return places
}

func port(u *url.URL) int {
	if n, err := strconv.Atoi(u.Port()); err == nil {
		return n
	}
	if u.Scheme == "http" {
		return 80
	}
	return 443
}

// Decided implements extproc.Observer.
func (t *Tracing) Decided(d *extproc.Decision) {
	now := t.now.Load()
	if now == nil {
		return
	}
	parent, ok := traceparent.Parse(d.Trace)
	switch {
	case ok && parent.Sampled():
		now.record(d, &parent, now.attributes(d))
	case !ok && now.roots > 0 && d.Attempt <= 1 && t.cfg.Dice() < now.roots:
		now.record(d, nil, now.attributes(d))
	}
}

// attributes describe a decision, by the semantic conventions for GenAI and MCP
// where they have a word for it. Resources are left out: a URI may hold what
// arguments hold.
func (t *tracer) attributes(d *extproc.Decision) []attribute.KeyValue {
	at := make([]attribute.KeyValue, 0, 16)
	at = append(at, t.places[d.Upstream]...)
	at = append(at, attribute.String("mcp_auth.reason", d.Reason.String()), attribute.Int("mcp_auth.attempt", d.Attempt))
	for _, o := range [...]struct{ key, value string }{{"mcp_auth.caller", d.Caller}, {"mcp_auth.token", d.Token}} {
		if o.value != "" {
			at = append(at, attribute.String(o.key, o.value))
		}
	}
	if d.Reason != policy.Allowed {
		at = append(at, attribute.String("error.type", d.Reason.String()))
	}
	if d.Rule > 0 {
		at = append(at, attribute.Int("mcp_auth.rule", d.Rule))
	}
	return append(at, calls(d)...)
}

// calls describe what the request would run, where the rules looked at it. Of a
// batch, only its size: one span cannot name two tools.
func calls(d *extproc.Decision) []attribute.KeyValue {
	if len(d.Calls) != 1 {
		if len(d.Calls) == 0 {
			return nil
		}
		return []attribute.KeyValue{attribute.Int("mcp_auth.batch", len(d.Calls))}
	}
	if d.Tool == "" {
		return nil // nobody judged it, so its bytes are as they came
	}
	if string(d.Calls[0].Method) == "tools/call" {
		return []attribute.KeyValue{
			attribute.String("mcp.method.name", "tools/call"),
			attribute.String("gen_ai.operation.name", "execute_tool"),
			attribute.String("gen_ai.tool.name", d.Tool),
		}
	}
	method, target, _ := strings.Cut(d.Tool, " ")
	at := []attribute.KeyValue{attribute.String("mcp.method.name", method)}
	if method == "prompts/get" {
		at = append(at, attribute.String("gen_ai.prompt.name", target))
	}
	return at
}
