package policy

// HeaderRule is the compiled `headers` block of one upstream.
type HeaderRule struct {
	always []string
}

// NewHeaderRule compiles a checked block.
func NewHeaderRule(HeadersSpec, Credential) HeaderRule { return HeaderRule{} }

// Always returns the headers to remove from every request.
func (h *HeaderRule) Always() []string { return h.always }

// NeedsAll reports whether Envoy must forward every header to us.
func (h *HeaderRule) NeedsAll() bool { return true }

// Inspected returns the headers that Envoy must forward to us.
func (u *Upstream) Inspected() (names, prefixes []string, all bool) { return nil, nil, true }

// Mutable returns the headers that a reply may set or remove.
func (u *Upstream) Mutable() (names, prefixes []string, all bool) { return nil, nil, false }
