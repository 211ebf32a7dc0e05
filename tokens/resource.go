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

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// resourceTick is how often a watch looks for upstreams whose check is due.
	resourceTick = 10 * time.Second
	// resourcePause is the time to the next try after a failed one.
	resourcePause = 10 * time.Minute
	// resourceChecks bounds the documents that are read at once.
	resourceChecks = 8
)

// ResourceCheck is what an upstream says of itself in its protected resource
// metadata (RFC 9728 §2), next to what the policy says. It is for people:
// nothing is decided by it, and nothing it names is ever asked. The credential
// goes to the issuer of the policy, whatever an upstream would prefer.
type ResourceCheck struct {
	// Metadata is the URL of the document, empty when none was read.
	Metadata string `json:"metadata,omitempty"`
	// Resource and Servers are the document's resource and authorization_servers.
	Resource string   `json:"resource,omitempty"`
	Servers  []string `json:"authorization_servers,omitempty"`
	// Differences are where document and policy disagree, each with what to do.
	Differences []string `json:"differences,omitempty"`
	// Error is why no document was read, Code a word for it.
	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
	// Checked is when that was.
	Checked time.Time `json:"checked,omitzero"`
}

// Findings are the differences, or the error in their place.
func (c *ResourceCheck) Findings() []string {
	if c.Error != "" {
		return []string{c.Error}
	}
	return c.Differences
}

// ResourceConfig is what Resources needs.
type ResourceConfig struct {
	// Now is the clock. Required.
	Now func() time.Time
	// Log gets one line when the findings about an upstream change. The zero
	// value logs nothing.
	Log zerolog.Logger
	// Dice returns random numbers in [0,1) that spread the checks. Required
	// for Watch.
	Dice func() float64
	// Transport replaces the network; nil means the one that token requests
	// have.
	Transport http.RoundTripper
}

// Resources compares upstreams with their policy. Its methods may be called from
// any goroutine.
type Resources struct {
	cfg ResourceConfig
	net *network

	mu    sync.Mutex
	known map[string]*watched
}

// question is all that a check depends on. An upstream whose question changed
// is asked again.
type question struct{ url, ca, issuer, resource string }

// watched is an upstream that is asked again and again.
type watched struct {
	of   question
	last ResourceCheck
	due  time.Time
	ill  string // the findings last logged
}

// NewResources returns a Resources that has checked nothing yet.
func NewResources(cfg ResourceConfig) *Resources {
	return &Resources{cfg: cfg, net: newNetwork(cfg.Transport), known: map[string]*watched{}}
}

func questionOf(up *policy.Upstream) question {
	q := question{url: up.URL, ca: up.CA}
	if o := up.Credential.OAuth2; o != nil {
		q.issuer, q.resource = o.Issuer, o.Resource
	}
	return q
}

// Check reads the document of one upstream now. It makes at most two requests,
// both to the host of the upstream's url and without any credential.
func (r *Resources) Check(ctx context.Context, up *policy.Upstream) ResourceCheck {
	ctx, cancel := context.WithTimeout(ctx, fetchDeadline)
	defer cancel()
	q := questionOf(up)
	c, bad := r.read(ctx, q)
	c.Checked = r.cfg.Now().Round(0)
	if bad != nil {
		c.Error, c.Code = bad.Text, bad.Code
		return c
	}
	c.Differences = q.compare(&c)
	return c
}

// Of returns the last check of an upstream, or nil when there was none.
func (r *Resources) Of(upstream string) *ResourceCheck {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.known[upstream]
	if w == nil || w.last.Checked.IsZero() {
		return nil
	}
	last := w.last
	return &last
}

// Watch checks those of the upstreams that ask for it, about every hour, until
// ctx ends. The function returns the upstreams in force.
func (r *Resources) Watch(ctx context.Context, upstreams func() []*policy.Upstream) {
	tick := time.NewTicker(resourceTick)
	defer tick.Stop()
	for {
		r.round(ctx, upstreams())
		select {
		case <-ctx.Done():
			r.net.close()
			return
		case <-tick.C:
		}
	}
}

// round checks what is due and forgets what is gone.
func (r *Resources) round(ctx context.Context, upstreams []*policy.Upstream) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, resourceChecks)
	for _, up := range r.pending(upstreams) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			if c := r.Check(ctx, up); ctx.Err() == nil {
				r.note(up, c)
			}
		})
	}
	wg.Wait()
}

// pending returns the upstreams whose check is due.
func (r *Resources) pending(upstreams []*policy.Upstream) []*policy.Upstream {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Now()
	var due []*policy.Upstream
	old := r.known
	r.known = make(map[string]*watched, len(old))
	for _, up := range upstreams {
		if !up.Discover {
			continue
		}
		w := old[up.Name]
		if q := questionOf(up); w == nil || w.of != q {
			w = &watched{of: q}
		}
		if r.known[up.Name] = w; !now.Before(w.due) {
			due = append(due, up)
		}
	}
	return due
}

// note keeps a check and logs what is new in it.
func (r *Resources) note(up *policy.Upstream, c ResourceCheck) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.known[up.Name]
	if w == nil {
		return
	}
	again := metadataLife
	if c.Error != "" {
		again = resourcePause
	}
	w.last, w.due = c, r.cfg.Now().Add(spread(again, 2*again, r.cfg.Dice()))
	now := strings.Join(c.Findings(), "; ")
	if now == w.ill {
		return
	}
	w.ill = now
	switch {
	case c.Error != "":
		r.cfg.Log.Warn().Str("upstream", up.Name).Str("code", c.Code).Msg("the upstream cannot be compared with the policy: " + now)
	case now != "":
		r.cfg.Log.Warn().Str("upstream", up.Name).Str("metadata", c.Metadata).Msg("the upstream's protected resource metadata and the policy disagree: " + now)
	default:
		r.cfg.Log.Info().Str("upstream", up.Name).Msg("the upstream's protected resource metadata agrees with the policy")
	}
}

// read tries the forms in the order of rule U2. Only a 404 leads to the next one.
func (r *Resources) read(ctx context.Context, q question) (ResourceCheck, *Error) {
	base, err := r.net.transport(trust{ca: q.ca}, "")
	if err != nil {
		return ResourceCheck{}, unavailable("ca_unreadable", "the authorities of %s cannot be read from its ca file", q.url)
	}
	for _, from := range resourceURLs(q.url) {
		body, _, bad := get(ctx, base, from, "protected resource metadata", r.cfg.Now)
		if bad != nil && bad.Status == http.StatusNotFound {
			continue
		}
		if bad != nil {
			return ResourceCheck{}, bad
		}
		return parseResource(from, body)
	}
	return ResourceCheck{}, refused("no_metadata", "%s has no protected resource metadata (RFC 9728): correct url, or remove discover", q.url)
}

// resourceURLs lists where the document may be (RFC 9728 §3.1; MCP authorization).
func resourceURLs(resource string) []string {
	u, err := url.Parse(resource)
	if err != nil {
		return nil
	}
	root := u.Scheme + "://" + u.Host + "/.well-known/oauth-protected-resource"
	if path := strings.TrimSuffix(u.EscapedPath(), "/"); path != "" {
		return []string{root + path, root}
	}
	return []string{root}
}

// parseResource reads what the policy is compared with.
func parseResource(from string, body []byte) (ResourceCheck, *Error) {
	fields, bad := members(body)
	if bad != nil {
		bad.Text = "the protected resource metadata at " + from + " is not usable: " + bad.Text
		return ResourceCheck{}, bad
	}
	var servers []string
	if raw := fields["authorization_servers"]; raw != nil && json.Unmarshal(raw, &servers) != nil {
		return ResourceCheck{}, refused("metadata", "the protected resource metadata at %s has authorization_servers that are no list of words", from)
	}
	c := ResourceCheck{Metadata: from, Resource: oneLine(text(fields["resource"]), maxQuote)}
	for _, s := range servers {
		c.Servers = append(c.Servers, oneLine(s, maxQuote))
	}
	if c.Resource == "" {
		return c, refused("metadata", "the protected resource metadata at %s names no resource (RFC 9728 §2)", from)
	}
	return c, nil
}

// compare says where the policy and the document differ. Both are compared as
// strings: a server that checks its tokens' audience makes nothing equal either.
func (q question) compare(c *ResourceCheck) []string {
	var all []string
	if q.resource != "" && q.resource != c.Resource {
		all = append(all, fmt.Sprintf("the upstream calls itself %q, and tokens are asked for %q: set credential.oauth2.resource to the former if its metadata is right", c.Resource, q.resource))
	}
	if q.issuer != "" && len(c.Servers) > 0 && !slices.Contains(c.Servers, q.issuer) {
		all = append(all, fmt.Sprintf(
			"the upstream takes tokens of %s, and not of the issuer %q of the policy, to which alone the credential goes: correct credential.oauth2.issuer if the upstream is right",
			strings.Join(quoted(c.Servers), ", "), q.issuer,
		))
	}
	return all
}

func quoted(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%q", w)
	}
	return out
}

// Discover finds out what the issuer's metadata says, so that Status shows
// endpoint and method; for an id_jag also that of the identity provider. It makes
// no token request, and with a token_url in the policy no request at all. Errors
// are *Error, of the first that fails.
func (s *Source) Discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fetchDeadline)
	defer cancel()
	var first *Error
	for cl := s.entry.client; cl != nil; cl = cl.idp {
		if _, bad := cl.target(ctx); first == nil {
			first = bad
		}
	}
	if first != nil {
		return first
	}
	return nil
}
