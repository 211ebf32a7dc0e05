package tokens

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// metadataLife is how long metadata counts before it is looked at again, in
	// the background. What it last said stays in force until it says otherwise.
	metadataLife = time.Hour
	// metadataPause is the least time between two looks at metadata that is known.
	metadataPause = time.Minute
)

// directory keeps what authorization servers say of themselves.
type directory struct {
	net      *network
	now      func() time.Time
	dice     func() float64
	spawn    func(func()) bool
	ctx      context.Context //nolint:containedctx // the life of the fetches, which is the cache's and no caller's
	deadline func() time.Duration

	mu      sync.Mutex
	servers map[server]*record
}

// server is an issuer and how it is reached.
type server struct {
	issuer, ca string
	plaintext  bool
	// keys asks for the issuer's keys, not for its token endpoint.
	keys bool
}

// record is what is known of a server.
type record struct {
	good   *metadata // the last good answer
	err    *Error    // why there is none yet
	looked time.Time // when the last look ended
	due    time.Time // when the next one is
	flight chan struct{}
}

// metadata is the part of RFC 8414 §2 that a client needs.
type metadata struct {
	url             string // of the document
	endpoint, alias string // alias is the one for mutual TLS
	methods, algs   []string
	keys            string // jwks_uri, read for those who ask for it
}

// about returns what the issuer says of itself: at once if that is known, else
// when the one fetch in flight has ended.
func (d *directory) about(ctx context.Context, s server) (*metadata, *Error) {
	now := d.now()
	d.mu.Lock()
	r := d.servers[s]
	if r == nil {
		r = &record{}
		d.servers[s] = r
	}
	if r.flight == nil && !now.Before(r.due) {
		d.launch(s, r) //nolint:contextcheck // the fetch is shared: it must outlive the call that wanted it
	}
	good, flight, err := r.good, r.flight, r.err
	d.mu.Unlock()
	switch {
	case good != nil:
		return good, nil
	case flight == nil && err != nil:
		return nil, err
	case flight == nil:
		return nil, unavailable("closed", "this process is stopping")
	}
	select {
	case <-flight:
	case <-ctx.Done():
		return nil, unavailable("timeout", "the metadata of %s did not come in full within %s", s.issuer, fetchDeadline)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.good == nil {
		return nil, r.err
	}
	return r.good, nil
}

// doubt makes the next question look again, after a token endpoint failed that
// the metadata named: it may have moved.
func (d *directory) doubt(s server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.servers[s]; r != nil && r.good != nil {
		if soon := r.looked.Add(metadataPause); soon.Before(r.due) {
			r.due = soon
		}
	}
}

// retain forgets every server but those of keep.
func (d *directory) retain(keep map[server]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for s := range d.servers {
		if !keep[s] {
			delete(d.servers, s)
		}
	}
}

// launch starts a fetch. mu is held.
func (d *directory) launch(s server, r *record) {
	flight := make(chan struct{})
	started := d.spawn(func() {
		ctx, cancel := context.WithTimeout(d.ctx, d.deadline())
		defer cancel()
		m, err := d.fetch(ctx, s)
		d.mu.Lock()
		defer d.mu.Unlock()
		r.looked = d.now()
		switch {
		case err == nil:
			r.good, r.err = m, nil
			r.due = r.looked.Add(spread(metadataLife, 2*metadataLife, d.dice()))
		case r.good != nil:
			r.due = r.looked.Add(spread(metadataPause, 2*metadataPause, d.dice()))
		default:
			// Those who ask back off by themselves. This only keeps many
			// credentials of one issuer from asking one after another.
			r.err, r.due = err, r.looked.Add(firstDelay/2)
		}
		r.flight = nil
		close(flight)
	})
	if started {
		r.flight = flight
	}
}

// fetch tries the forms in the order of rule U2. Only a 404 leads to the next
// one: any other failure is that server's word.
func (d *directory) fetch(ctx context.Context, s server) (*metadata, *Error) {
	base, err := d.net.transport(trust{ca: s.ca}, "")
	if err != nil {
		return nil, unavailable("ca_unreadable", "the authorities of %s cannot be read from its ca file", s.issuer)
	}
	for _, u := range metadataURLs(s.issuer) {
		m, missing, bad := ask(ctx, base, u, s, d.now)
		if !missing {
			return m, bad
		}
	}
	return nil, refused("no_metadata", "%s has no metadata (RFC 8414 or OpenID Connect Discovery): correct issuer, or write token_url in its place", s.issuer)
}

// metadataURLs lists where metadata may be (RFC 8414 §3.1 and §5, OpenID
// Connect Discovery §4): the well-known part goes before the issuer's path, and
// in the oldest form after it.
func metadataURLs(issuer string) []string {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil
	}
	root := u.Scheme + "://" + u.Host
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	all := []string{root + "/.well-known/oauth-authorization-server" + path, root + "/.well-known/openid-configuration" + path}
	if path != "" {
		all = append(all, root+path+"/.well-known/openid-configuration")
	}
	return all
}

// ask reads one document.
func ask(ctx context.Context, base http.RoundTripper, from string, s server, now func() time.Time) (m *metadata, missing bool, bad *Error) {
	body, _, bad := get(ctx, base, from, "metadata", now)
	if bad == nil {
		if m, bad = parseMetadata(body, s); bad != nil {
			bad.Status = http.StatusOK
		}
	}
	if bad != nil {
		return nil, bad.Status == http.StatusNotFound, bad
	}
	m.url = from
	return m, false, nil
}

// get reads a public document; what names it in errors.
func get(ctx context.Context, base http.RoundTripper, from, what string, now func() time.Time) ([]byte, http.Header, *Error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, from, http.NoBody)
	if err != nil {
		return nil, nil, refused("bad_request", "no request for the %s could be made: correct the URL that leads there", what)
	}
	wants(r.Header)
	host := r.URL.Host
	resp, err := base.RoundTrip(r) // not a http.Client: no redirects, no cookies
	if err != nil {
		return nil, nil, networkError(host, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var bad *Error
	var body []byte
	switch status := resp.StatusCode; {
	case status == http.StatusOK:
		body, bad = readBody(host, resp)
	case status >= 300 && status < 400:
		bad = refused("redirect_refused", "%s answered %d for its %s: redirects are not followed; name its final address", host, status, what)
	case status >= 500 || status == http.StatusTooManyRequests:
		bad = unavailable(fmt.Sprintf("http_%d", status), "%s answered %d for its %s", host, status, what)
		bad.after = retryAfter(resp.Header, now())
	default:
		bad = refused(fmt.Sprintf("http_%d", status), "%s answered %d for its %s", host, status, what)
	}
	if bad != nil {
		bad.Status = resp.StatusCode
		return nil, nil, bad
	}
	return body, resp.Header, nil
}

// parseMetadata takes a document that names this very issuer: compared as
// strings, nothing made equal (RFC 8414 §3.3). Any other may be somebody else's
// attempt to get at the credential.
func parseMetadata(body []byte, s server) (*metadata, *Error) {
	fields, bad := members(body)
	if bad != nil {
		bad.Text = "the metadata of " + s.issuer + " is not usable: " + bad.Text
		return nil, bad
	}
	if got := text(fields["issuer"]); got != s.issuer {
		return nil, refused("issuer_mismatch", "the metadata of %s is that of issuer %q: they must be equal to the letter; correct issuer if that is the right one", s.issuer, oneLine(got, maxQuote))
	}
	if s.keys {
		m := &metadata{keys: text(fields["jwks_uri"])}
		if !usable(m.keys, s) {
			return nil, refused("jwks_uri", "the metadata of %s names no jwks_uri that can be trusted: want an https URL without password and fragment, or write jwks_url", s.issuer)
		}
		return m, nil
	}
	m := &metadata{endpoint: text(fields["token_endpoint"])}
	if !usable(m.endpoint, s) {
		return nil, refused("token_endpoint", "the metadata of %s names no token endpoint that a credential may go to: want an https URL without password and fragment", s.issuer)
	}
	if raw := fields["mtls_endpoint_aliases"]; raw != nil {
		aliases, _ := members(raw)
		if m.alias = text(aliases["token_endpoint"]); m.alias != "" && !usable(m.alias, s) {
			return nil, refused("token_endpoint", "the metadata of %s names an alias that no credential may go to: want an https URL without password and fragment", s.issuer)
		}
	}
	for name, into := range map[string]*[]string{
		"token_endpoint_auth_methods_supported":            &m.methods,
		"token_endpoint_auth_signing_alg_values_supported": &m.algs,
	} {
		if raw := fields[name]; raw != nil && json.Unmarshal(raw, into) != nil {
			return nil, refused("metadata", "the metadata of %s has a %s that is no list of words", s.issuer, name)
		}
	}
	return m, nil
}

// usable reports whether a credential may go to this endpoint.
func usable(endpoint string, s server) bool {
	u, err := url.Parse(endpoint)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.Contains(endpoint, "#") {
		return false
	}
	return u.Scheme == "https" || u.Scheme == "http" && (s.plaintext || isLoopback(u.Hostname()))
}

// target is where and how a client gets its token.
type target struct {
	url, host string
	method    policy.AuthMethod
	algs      []string // for assertions; nil when the server does not say
	guarded   bool     // a private address is refused
	found     *metadata
}

// target returns what the policy says, or what the issuer's metadata makes of it.
func (cl *client) target(ctx context.Context) (target, *Error) {
	if cl.o.Issuer == "" {
		return target{url: cl.o.TokenURL, host: cl.host, method: cl.o.AuthMethod}, nil
	}
	m, bad := cl.directory.about(ctx, cl.server())
	if bad != nil {
		return target{}, bad
	}
	at := target{url: m.endpoint, algs: m.algs, found: m}
	if at.method, bad = cl.choose(m.methods); bad != nil {
		return target{}, bad
	}
	if at.method.MutualTLS() {
		if m.alias != "" {
			at.url = m.alias
		}
		if !strings.HasPrefix(at.url, "https:") {
			return target{}, refused("token_endpoint", "the metadata of %s names no https endpoint, and a client certificate is shown in TLS only", cl.o.Issuer)
		}
	}
	u, err := url.Parse(at.url)
	if err != nil {
		return target{}, refused("token_endpoint", "the metadata of %s names no token endpoint", cl.o.Issuer)
	}
	own, err := url.Parse(cl.o.Issuer)
	at.host, at.guarded = u.Host, !cl.o.AllowPrivate && (err != nil || !strings.EqualFold(u.Hostname(), own.Hostname()))
	cl.last.Store(&at)
	return at, nil
}

// server names the issuer for the directory.
func (cl *client) server() server {
	return server{issuer: cl.o.Issuer, ca: cl.o.CA, plaintext: cl.o.AllowPlaintext}
}

// choose settles how the client authenticates, by what the server offers and
// never by trial (rule U5). A server that does not say is taken to know what was
// asked for, else Basic (RFC 8414 §2).
func (cl *client) choose(offered []string) (policy.AuthMethod, *Error) {
	if cl.o.AuthMethod == policy.NoClientAuth {
		return cl.o.AuthMethod, nil // the assertion is the proof
	}
	can := []policy.AuthMethod{cl.o.AuthMethod}
	if cl.o.AuthMethod == "" {
		can = able(&cl.o)
	}
	for _, m := range can {
		if slices.Contains(offered, string(m)) || offered == nil && (len(can) == 1 || m == policy.ClientSecretBasic || m.MutualTLS()) {
			return m, nil
		}
	}
	if offered == nil {
		return can[0], nil
	}
	words := make([]string, len(can))
	for i, m := range can {
		words[i] = string(m)
	}
	return "", refused(
		"auth_method", "the client authenticates by %s, and %s takes %s: give the client what one of them needs",
		strings.Join(words, " or "), cl.o.Issuer, oneLine(strings.Join(offered, ", "), maxQuote),
	)
}

// able lists the methods that the client has the means for, the best first (RFC 9700 §2.5).
func able(o *policy.OAuth2) []policy.AuthMethod {
	if o.Certificate != "" {
		return []policy.AuthMethod{policy.TLSClientAuth, policy.SelfSignedTLSClientAuth}
	}
	var all []policy.AuthMethod
	if !o.PrivateKey.IsZero() {
		all = append(all, policy.PrivateKeyJWT)
	}
	if !o.ClientSecret.IsZero() {
		all = append(all, policy.ClientSecretBasic, policy.ClientSecretPost)
	}
	return all
}
