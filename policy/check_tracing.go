package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// tracing checks the `tracing` block.
func (c *checker) tracing(path string, spec *TracingSpec) {
	if p := path + ".sample"; c.good(p) {
		if _, ok := share(spec.Sample); !ok && spec.Sample != "parent" {
			c.fault(p, "want the word parent, or a share above 0%% and up to 100%%, got %s; write for example 1%%", c.got(p))
		}
	}
	c.otlp(path+".otlp", &spec.OTLP)
}

// otlp checks a collector.
func (c *checker) otlp(path string, spec *OTLPSpec) {
	if p := path + ".endpoint"; c.good(p) && strings.Contains(spec.Endpoint, "@") {
		c.fault(p, "want a URL without user and password, got one with an @ (not shown); send them by headers")
	}
	c.url(path+".endpoint", spec.Endpoint, urlRules{plaintext: spec.AllowPlaintext, hint: "set allow_plaintext: true if the network between is yours"})
	if p := path + ".ca"; c.good(p) && c.good(path+".endpoint") && !strings.HasPrefix(strings.ToLower(spec.Endpoint), "https:") {
		c.fault(p, "this is for https endpoints; remove it, or write https://")
	}
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(spec.Headers)) {
		lower := strings.ToLower(name)
		switch p := join(path+".headers", name); {
		case !isToken(name) || isFraming(lower) || strings.HasPrefix(lower, "content-"):
			c.fault(p, "want the name of a header that a collector asks for; write for example authorization")
		case seen[lower]:
			c.fault(p, "this header is here twice, in another case; remove one")
		}
		seen[lower] = true
	}
}

// share reads a percentage as a number above 0 and up to 1.
func share(text string) (float64, bool) {
	digits, ok := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(digits, 64)
	return n / 100, ok && err == nil && !strings.ContainsAny(digits, "+xXeEpP_") && n > 0 && n <= 100
}

func (c *checker) compileTracing() *Tracing {
	spec := c.f.Tracing
	if spec == nil {
		return nil
	}
	t := &Tracing{Endpoint: spec.OTLP.Endpoint, CA: c.resolve(spec.OTLP.CA)}
	t.Roots, _ = share(spec.Sample)
	t.Headers = spec.OTLP.headers()
	return t
}

// headers returns the headers of a collector, sorted by name.
func (o *OTLPSpec) headers() []SecretHeader {
	var all []SecretHeader
	for _, name := range slices.Sorted(maps.Keys(o.Headers)) {
		all = append(all, SecretHeader{strings.ToLower(name), o.Headers[name].Ref})
	}
	return all
}

// Tracing is the compiled `tracing` block.
type Tracing struct {
	// Endpoint is the URL that spans are posted to, CA the path of the authorities of its
	// certificate, or empty.
	Endpoint, CA string
	// Headers are sent along, sorted by name; names are lower case.
	Headers []SecretHeader
	// Roots is the share of requests without a traceparent that begin a trace, 0 to 1.
	Roots float64
}

// Secrets lists the secrets of tracing; nil has none.
func (t *Tracing) Secrets() []SecretRef {
	if t == nil {
		return nil
	}
	var refs []SecretRef
	for _, h := range t.Headers {
		refs = append(refs, h.Value)
	}
	return refs
}

// Equal reports whether both say the same; nil is equal to nil alone.
func (t *Tracing) Equal(o *Tracing) bool {
	if t == nil || o == nil {
		return t == o
	}
	return t.Endpoint == o.Endpoint && t.CA == o.CA && t.Roots == o.Roots && slices.Equal(t.Headers, o.Headers)
}
