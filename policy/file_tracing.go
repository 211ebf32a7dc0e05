package policy

// TracingSpec is the `tracing` block: a span for each decision of a traced request, sent to an OpenTelemetry collector off the request path. It holds no arguments and no secrets. See docs/tracing.md.
type TracingSpec struct {
	// OTLP is the collector.
	OTLP OTLPSpec `yaml:"otlp" required:"true"`
	// Sample says which requests get a span: `parent`, those whose `traceparent` says that their trace is recorded; or a share such as `1%`: those, and so many of the requests without a `traceparent`, each as a trace of its own.
	Sample string `yaml:"sample" default:"parent"`
}

// OTLPSpec is an OpenTelemetry collector, spoken to in OTLP over HTTP (protobuf), off the request path. What it does not take is counted as dropped. Of the OTEL_… variables, only OTEL_RESOURCE_ATTRIBUTES counts.
type OTLPSpec struct {
	// Endpoint is the URL that is posted to, such as https://otel.company.com:4318/v1/traces for `tracing` and https://otel.company.com:4318/v1/logs for `audit`.
	Endpoint string `yaml:"endpoint" required:"true"`
	// AllowPlaintext permits an http endpoint that is not loopback.
	AllowPlaintext bool `yaml:"allow_plaintext"`
	// CA is the path of a PEM file with the authorities that sign the collector's certificate. Left out, the system's.
	CA string `yaml:"ca"`
	// Headers are sent with every request: name to secret, such as `authorization: "Bearer ${OTLP_TOKEN}"`.
	Headers map[string]SecretSpec `yaml:"headers"`
}
