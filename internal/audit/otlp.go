package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/log"
	sdk "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/collector"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// sendTimeout bounds one delivery to a collector, with everything tried again in it.
const sendTimeout = 10 * time.Second

// otlp sends lines as log records. The SDK's own queue does not say what it drops,
// so that only its records and its exporter are used.
type otlp struct {
	way      *collector.Transport
	exporter *otlploghttp.Exporter
	logger   log.Logger
	records  *records
}

// records is a processor that keeps what is emitted.
type records []sdk.Record

// OnEmit implements sdk.Processor.
func (r *records) OnEmit(_ context.Context, record *sdk.Record) error {
	*r = append(*r, record.Clone())
	return nil
}

// Enabled implements sdk.Processor.
func (*records) Enabled(context.Context, sdk.EnabledParameters) bool { return true }

// Shutdown implements sdk.Processor.
func (*records) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdk.Processor.
func (*records) ForceFlush(context.Context) error { return nil }

func (l *Log) newOTLP(spec *policy.AuditOTLP) (*otlp, error) {
	way := collector.New(collector.Config{
		Key: "audit.otlp", CA: spec.CA, Headers: spec.Headers, Secrets: l.cfg.Secrets, Timeout: sendTimeout,
	})
	if err := way.Check(); err != nil {
		return nil, err
	}
	// Every setting that a variable of the environment could make is made here.
	options := []otlploghttp.Option{
		otlploghttp.WithEndpointURL(spec.Endpoint),
		otlploghttp.WithHeaders(map[string]string{}),
		otlploghttp.WithCompression(otlploghttp.GzipCompression),
		otlploghttp.WithTimeout(sendTimeout),
		otlploghttp.WithRetry(otlploghttp.RetryConfig{
			Enabled: true, InitialInterval: time.Second, MaxInterval: sendTimeout / 2, MaxElapsedTime: sendTimeout,
		}),
		otlploghttp.WithHTTPClient(way.Client()),
	}
	if strings.HasPrefix(strings.ToLower(spec.Endpoint), "https:") { // it is not used, and must not be there for http
		options = append(options, otlploghttp.WithTLSClientConfig(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	exporter, err := otlploghttp.New(l.ctx, options...)
	if err != nil {
		return nil, err
	}
	o := &otlp{way: way, exporter: exporter, records: new(records)}
	o.logger = sdk.NewLoggerProvider(sdk.WithProcessor(o.records), sdk.WithResource(resource.NewSchemaless(
		attribute.String("service.name", "envoy-mcp-auth"),
		attribute.String("service.version", l.cfg.Version),
	))).Logger("github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit")
	return o, nil
}

// send implements sender. A collector takes all or nothing, as far as we can tell.
func (o *otlp) send(ctx context.Context, lines [][]byte) (int, error) {
	*o.records = (*o.records)[:0]
	for _, line := range lines {
		o.logger.Emit(ctx, logRecord(line))
	}
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	if err := o.exporter.Export(ctx, *o.records); err != nil {
		return 0, o.way.Failure()
	}
	return len(lines), nil
}

func (o *otlp) close() { o.way.Close() }

// logRecord has the line as it is, so that its hash can be verified there too.
func logRecord(line []byte) log.Record {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	var r log.Record
	r.SetTimestamp(timeOf(line))
	r.SetSeverity(log.SeverityInfo)
	if refuses(line) {
		r.SetSeverity(log.SeverityWarn)
	}
	r.SetEventName("mcp_auth.audit")
	r.SetBody(attribute.StringValue(string(line)))
	return r
}
