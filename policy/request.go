package policy

// Header is one request header as Envoy sent it. Names are lower case. The
// bytes alias the message they came in: they are good for one call.
type Header struct {
	Name  string
	Value []byte
}

// Request is what a decision reads. Name, Cluster, Route and the SANs come from
// Envoy's configuration and its TLS, the headers from the caller.
type Request struct {
	// Name is the value of the gRPC initial metadata mcp-upstream.
	Name string
	// Cluster and Route are the attributes xds.cluster_name and xds.route_name, empty when not sent.
	Cluster, Route string
	// URISAN and DNSSAN are the attributes connection.uri_san_peer_certificate
	// and connection.dns_san_peer_certificate, empty when not sent.
	URISAN, DNSSAN string
	// Headers are all the headers sent to us, in order.
	Headers []Header
}

// Screening is what Screen found. It is scratch space: reuse one per goroutine
// and the request path does not allocate.
type Screening struct {
	// Attempt is Envoy's x-envoy-attempt-count, 1 when absent.
	Attempt int
	// Authorization is the value of the first authorization header.
	Authorization []byte
	// Key is the value of x-mcp-auth-key; nil when absent.
	Key []byte
	// Bearers are the values of the headers in which callers of the upstream
	// have tokens, nil when absent: see Upstream.TokenOf.
	Bearers [][]byte
	// Cookies are the values of all cookie headers, in order.
	Cookies [][]byte
	// Remove are the names of headers seen that must not go on, without those
	// of HeaderRule.Always. A name may be there twice.
	Remove []string
}

// CookieEdit says what happens to the cookie header.
type CookieEdit uint8

// The edits.
const (
	// CookieRemove takes the header off. It is the zero value.
	CookieRemove CookieEdit = iota
	// CookieKeep leaves the one header as it is.
	CookieKeep
	// CookieSet writes the filtered value.
	CookieSet
	// CookieRefuse refuses the request: a name came twice and the policy says refuse.
	CookieRefuse
)

// CookieResult is the outcome of CookieRule.Filter.
type CookieResult struct {
	Edit CookieEdit
	// Value is the new header for CookieSet. It aliases the buffer handed to Filter.
	Value []byte
	// Kept and Dropped count cookie pairs; malformed pairs count as dropped.
	Kept, Dropped int
}
