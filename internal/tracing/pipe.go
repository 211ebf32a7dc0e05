package tracing

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/collector"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/traceparent"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// maxQueue bounds the spans that wait for the collector, a few MB.
	maxQueue = 4096
	maxBatch = 512
	// batchEvery is how long a span waits for others.
	batchEvery = 2 * time.Second
	// sendTimeout bounds a batch, with everything tried again in it.
	sendTimeout = 10 * time.Second
	// closeTimeout bounds the end.
	closeTimeout = 3 * time.Second
	// logEvery is how often an ill collector is worth a line.
	logEvery = time.Minute
)

// pipe leads to one collector.
type pipe struct {
	spec     *policy.Tracing
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// wayTo returns the transport to a collector.
func wayTo(spec *policy.Tracing, cfg *Config) *collector.Transport {
	return collector.New(collector.Config{
		Key: "tracing.otlp", CA: spec.CA, Headers: spec.Headers, Secrets: cfg.Secrets, Timeout: sendTimeout,
	})
}

// newPipe starts the queue. It takes nothing from the environment: the SDK would
// let OTEL_ variables override what the policy leaves out.
func newPipe(spec *policy.Tracing, cfg *Config) *pipe {
	to := wayTo(spec, cfg)
	client := otlptracehttp.NewClient(
		otlptracehttp.WithEndpointURL(spec.Endpoint),
		otlptracehttp.WithHeaders(map[string]string{}),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithTimeout(sendTimeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: sendTimeout / 2, MaxElapsedTime: sendTimeout,
		}),
		otlptracehttp.WithHTTPClient(to.Client()),
	)
	out := &outlet{SpanExporter: otlptrace.NewUnstarted(client), cfg: cfg, to: to}
	queue := sdk.NewBatchSpanProcessor(out, sdk.WithMaxQueueSize(maxQueue), sdk.WithMaxExportBatchSize(maxBatch),
		sdk.WithBatchTimeout(batchEvery), sdk.WithExportTimeout(sendTimeout))
	p := &pipe{spec: spec, provider: sdk.NewTracerProvider(
		sdk.WithSpanProcessor(&inlet{SpanProcessor: queue, out: out}),
		sdk.WithSampler(sdk.AlwaysSample()), // Decided chooses
		sdk.WithRawSpanLimits(sdk.SpanLimits{AttributeValueLengthLimit: -1, AttributeCountLimit: 64}),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "envoy-mcp-auth"), attribute.String("service.version", cfg.Version))),
	)}
	p.tracer = p.provider.Tracer("github.com/envoy-mcp-auth/envoy-mcp-auth/internal/tracing")
	return p
}

// record hands a decision to the queue. Without a parent it begins a trace.
func (p *pipe) record(d *extproc.Decision, parent *traceparent.Context, at []attribute.KeyValue) {
	ctx := context.Background()
	if parent != nil {
		ctx = trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
			TraceID: parent.TraceID, SpanID: parent.SpanID, TraceFlags: trace.FlagsSampled, Remote: true,
		}))
	}
	_, span := p.tracer.Start(ctx, "mcp_auth.decide",
		trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(d.Began), trace.WithAttributes(at...))
	if d.Reason != policy.Allowed {
		span.SetStatus(codes.Error, d.Reason.String())
	}
	span.End(trace.WithTimestamp(d.Began.Add(d.Took)))
}

// close sends what is queued.
func (p *pipe) close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = p.provider.Shutdown(ctx) // what could not be sent is counted
}

// inlet keeps the SDK's queue from overflowing: it drops without a word.
type inlet struct {
	sdk.SpanProcessor
	out *outlet
}

// OnEnd implements sdk.SpanProcessor.
func (i *inlet) OnEnd(s sdk.ReadOnlySpan) {
	if i.out.waiting.Add(1) > maxQueue {
		i.out.waiting.Add(-1)
		i.out.cfg.Count(Dropped, 1)
		return
	}
	i.SpanProcessor.OnEnd(s)
}

// outlet counts what becomes of batches, and keeps errors from the SDK's global
// handler, which prints them. An error may quote what the collector answered, and
// that may repeat our headers: the log gets what our transport says.
type outlet struct {
	sdk.SpanExporter
	cfg     *Config
	to      *collector.Transport
	waiting atomic.Int64

	mu     sync.Mutex
	logged time.Time
}

// ExportSpans implements sdk.SpanExporter. It never fails.
func (o *outlet) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := o.SpanExporter.ExportSpans(ctx, spans)
	o.waiting.Add(-int64(len(spans)))
	if err == nil {
		o.cfg.Count(Exported, len(spans))
		return nil
	}
	o.cfg.Count(Failed, len(spans))
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := o.cfg.Now(); o.logged.IsZero() || now.Sub(o.logged) >= logEvery {
		o.logged = now
		o.cfg.Log.Warn().AnErr("cause", o.to.Failure()).Int("spans", len(spans)).
			Msg("the collector of tracing did not take spans; further failures are counted in mcp_auth_spans_total")
	}
	return nil
}
