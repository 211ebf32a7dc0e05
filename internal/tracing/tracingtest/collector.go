// Package tracingtest is a collector for tests: a real server that takes traces in
// OTLP over HTTP and keeps them.
package tracingtest

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"

	collect "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span, and the service that sent it.
type Span struct {
	*trace.Span
	Service string
}

// Attribute returns the value of an attribute as text, "" when it is not there.
func (s Span) Attribute(key string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == key {
			if v := a.GetValue().GetStringValue(); v != "" {
				return v
			}
			return a.GetValue().String()
		}
	}
	return ""
}

// Collector is a running server. Its methods may be called from any number of goroutines.
type Collector struct {
	// URL is where traces are posted to.
	URL string
	// Answer, when set before the first request, replaces the answer. The spans are not kept then.
	Answer http.HandlerFunc

	server *httptest.Server

	mu      sync.Mutex
	spans   []Span
	headers []http.Header
	bad     []error
}

// New starts a collector. Close it.
func New() *Collector {
	c := &Collector{}
	c.server = httptest.NewServer(c)
	c.URL = c.server.URL + "/v1/traces"
	return c
}

// Close stops it.
func (c *Collector) Close() { c.server.Close() }

// ServeHTTP implements http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.headers = append(c.headers, r.Header.Clone())
	c.mu.Unlock()
	if c.Answer != nil {
		c.Answer(w, r)
		return
	}
	spans, err := read(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.bad = append(c.bad, err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c.spans = append(c.spans, spans...)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

func read(r *http.Request) ([]Span, error) {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, err
		}
		body = z
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	var m collect.ExportTraceServiceRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	var spans []Span
	for _, resource := range m.GetResourceSpans() {
		service := ""
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				spans = append(spans, Span{s, service})
			}
		}
	}
	return spans, nil
}

// Spans returns the spans so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Headers returns those of the requests so far.
func (c *Collector) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.headers)
}

// Bad returns why requests could not be read.
func (c *Collector) Bad() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.bad)
}
