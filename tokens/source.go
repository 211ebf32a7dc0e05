package tokens

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// bucketSize and bucketPace bound the fetches that an upstream's 401s can
	// cause: three at once, then one per pace. Without it an upstream that
	// refuses everything turns each call into a token request.
	bucketSize = 3
	bucketPace = 5 * time.Second
)

// Source is an upstream's handle on its credential.
type Source struct {
	name   string
	entry  *entry
	now    func() time.Time
	bucket bucket
	// grace is the stale_grace of the upstream; barred is the last token it refused.
	grace  time.Duration
	barred atomic.Pointer[Token]
	// aged is the expired token whose lending was logged.
	aged atomic.Pointer[Token]
}

// Token returns a living token. While there is one, that costs an atomic load
// and a look at the clock. Else the call waits for the one fetch in flight, as
// long as ctx allows; that fetch is shared, and does not end with ctx. Shortly
// after a failed fetch, the failure is the answer at once. With a StaleGrace, an
// expired token that this upstream has not refused stands in while the endpoint
// is unavailable. Errors are *Error.
func (s *Source) Token(ctx context.Context) (*Token, error) {
	if s.UserBound() {
		return nil, userBound(s.name)
	}
	now := s.now()
	if t := s.entry.alive(now); t != nil {
		return t, nil
	}
	if t := s.stale(now); t != nil { //nolint:contextcheck // the fetch is shared: it must outlive the call that wanted it
		return t, nil
	}
	t, err := s.entry.token(ctx, now)
	if err != nil {
		if old := s.stale(s.now()); old != nil { //nolint:contextcheck // as above
			return old, nil
		}
	}
	return t, err
}

// stale returns the expired token that may still be lent, or nil.
func (s *Source) stale(now time.Time) *Token {
	if s.grace <= 0 {
		return nil
	}
	t := s.entry.stale(now, s.grace)
	if t == s.barred.Load() {
		return nil
	}
	if t != nil && s.aged.Swap(t) != t {
		s.entry.cache.cfg.Log.Warn().Str("upstream", s.name).Time("expired", t.expiry).Time("until", t.expiry.Add(s.grace)).
			Msg("the token endpoint is unavailable: the expired token is lent on (stale_grace)")
	}
	return t
}

// Cached returns the living token, or nil: Token without the wait.
func (s *Source) Cached() *Token { return s.entry.alive(s.now()) }

// Name returns the upstream's name.
func (s *Source) Name() string { return s.name }

// Replace is Token for a call whose authorization value (such as "Bearer x")
// the upstream refused with 401. If that token is still the cached one, it is
// dropped and one new token is fetched, however many calls ask; else the newer
// one is returned. When the upstream keeps refusing new tokens, the answer is an
// *Error of kind Rejected. Never call it for a 403: that token was accepted.
func (s *Source) Replace(ctx context.Context, rejected []byte) (*Token, error) {
	if s.UserBound() {
		return nil, userBound(s.name)
	}
	if t := s.entry.current.Load(); t != nil && bytes.Equal(t.Authorization(), rejected) {
		s.barred.Store(t)
	}
	return s.entry.replace(ctx, s.now(), rejected, s.bucket.take)
}

func userBound(name string) *Error {
	return refused("user_bound", "the credential of %s is the caller's: no token can be had without one", name)
}

// Tried reports whether a fetch has ended, one way or the other. For a
// user-bound credential it is always true: there is nothing to try before a
// user comes.
func (s *Source) Tried() bool { return s.entry.wasTried() }

// Ready reports whether there is a living token. For a user-bound credential it
// is always true, as Tried is.
func (s *Source) Ready() bool { return s.UserBound() || s.entry.alive(s.now()) != nil }

// Stale reports whether an expired token is being lent (StaleGrace).
func (s *Source) Stale() bool {
	now, e := s.now(), s.entry
	if s.grace <= 0 || e.alive(now) != nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return s.lends(now)
}

// lends is Stale with the entry's mu held.
func (s *Source) lends(now time.Time) bool {
	t, err := s.entry.current.Load(), s.entry.fail.err
	return t != nil && err != nil && err.Kind == Unavailable && t != s.barred.Load() &&
		!now.Before(t.expiry) && now.Before(t.expiry.Add(s.grace))
}

// Status is how a credential stands. Nothing in it is secret.
type Status struct {
	// Upstream is the handle's name.
	Upstream string `json:"upstream"`
	// Endpoint is the token endpoint, AuthMethod how the client authenticates
	// there. With an Issuer, they are empty until its metadata came.
	Endpoint   string `json:"endpoint"`
	AuthMethod string `json:"auth_method"`
	// Issuer is the issuer of the policy, Metadata the URL of the document
	// that Endpoint was found in, and Offered the authentication methods
	// that this document names.
	Issuer   string   `json:"issuer,omitempty"`
	Metadata string   `json:"metadata,omitempty"`
	Offered  []string `json:"offered_auth_methods,omitempty"`
	// ClientID is empty for a grant that needs none; Grant is jwt_bearer, or
	// empty for the client's own credentials.
	ClientID string `json:"client_id,omitempty"`
	Grant    string `json:"grant,omitempty"`
	// Scopes, Resource and Audience are what is requested.
	Scopes   []string `json:"scopes,omitempty"`
	Resource string   `json:"resource,omitempty"`
	Audience string   `json:"audience,omitempty"`
	// Tried and Ready are those of the Source.
	Tried bool `json:"tried"`
	Ready bool `json:"ready"`
	// Fingerprint, Granted (the scope of the answer), Expiry and Lifetime
	// describe the living token.
	Fingerprint string    `json:"fingerprint,omitempty"`
	Granted     string    `json:"granted_scope,omitempty"`
	Expiry      time.Time `json:"expiry,omitzero"`
	Lifetime    float64   `json:"lifetime_seconds,omitzero"`
	// Refresh is when the background fetches next.
	Refresh time.Time `json:"refresh,omitzero"`
	// Failures counts the failed fetches since the last good one. LastError
	// and Code are of the last of them; before NextTry callers get it at once.
	Failures  int       `json:"failures,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	Code      string    `json:"last_error_code,omitempty"`
	NextTry   time.Time `json:"next_try,omitzero"`
	// Stale is whether an expired token is being lent (stale_grace).
	Stale bool `json:"stale,omitempty"`
	// Fetching is whether a token request is under way.
	Fetching bool `json:"fetching"`
	// UserBound is whether each caller gets a token of its own, and Users how
	// many have one here, or are about to. Failures, LastError, Code and
	// NextTry are then those that all users share, and the rest is empty.
	UserBound bool  `json:"user_bound,omitempty"`
	Users     int64 `json:"users,omitzero"`
	// IDP is what is asked first for an id_jag, from Endpoint to Audience.
	IDP *Status `json:"idp,omitempty"`
}

// Status describes the credential for /status and the command line.
func (s *Source) Status() Status {
	e := s.entry
	st := e.client.describe(s.name)
	if e.client.idp != nil {
		idp := e.client.idp.describe(s.name)
		st.IDP = &idp
	}
	if e.crowd != nil {
		e.crowd.describe(&st)
		return st
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.alive(s.now()); t != nil {
		st.Ready, st.Fingerprint, st.Granted = true, t.fingerprint, t.scope
		st.Expiry, st.Lifetime = t.expiry.Round(0), t.lifetime.Seconds()
	}
	st.Tried, st.Fetching, st.Refresh = e.tried, e.flight != nil, e.wake.Round(0)
	if f := e.fail; f.err != nil {
		st.Stale = s.lends(s.now())
		st.Failures, st.LastError, st.Code, st.NextTry = f.count, f.err.Text, f.err.Code, f.next.Round(0)
	}
	return st
}

// describe says what is asked for, and where.
func (cl *client) describe(upstream string) Status {
	o := &cl.o
	st := Status{
		Upstream: upstream, Endpoint: o.TokenURL, AuthMethod: string(o.AuthMethod), ClientID: o.ClientID, Issuer: o.Issuer,
		Scopes: slices.Clone(o.Scopes), Resource: o.Resource, Audience: o.Audience,
	}
	if o.Grant != policy.ClientCredentials {
		st.Grant = string(o.Grant)
	}
	if at := cl.last.Load(); at != nil {
		st.Endpoint, st.AuthMethod = at.url, string(at.method)
		st.Metadata, st.Offered = at.found.url, slices.Clone(at.found.methods)
	}
	return st
}

// bucket is a token bucket, full when made.
type bucket struct {
	mu    sync.Mutex
	level int
	since time.Time // when the level last grew, or stopped being full
}

// take takes one, or says when there will be one.
func (b *bucket) take(now time.Time) *Error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if grown := int(now.Sub(b.since) / bucketPace); grown > 0 && b.level < bucketSize {
		b.level = min(b.level+grown, bucketSize)
		b.since = b.since.Add(time.Duration(grown) * bucketPace)
	}
	if b.level == bucketSize {
		b.since = now
	}
	if b.level == 0 {
		err := &Error{
			Kind: Rejected, Code: "rejected_repeatedly",
			Text: "the upstream refuses one new token after another: check its audience, scopes and trust in the issuer",
		}
		return err.in(bucketPace - now.Sub(b.since))
	}
	b.level--
	return nil
}
