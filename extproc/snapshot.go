package extproc

import (
	"errors"
	"fmt"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// snapshot is a policy in force. It is immutable.
type snapshot struct {
	set   *policy.Set
	lanes map[*policy.Upstream]*lane
	// known are the strings a message is likely to hold.
	known map[string]string
	// callers and words are the names of callers and of reasons.
	callers, words map[string]bool
	// before is the policy that this one replaced, while Envoys may be behind: until then.
	before *snapshot
	until  time.Time
}

// lane is what the request path needs of one upstream.
type lane struct {
	up     *policy.Upstream
	source *tokens.Source // nil unless an access token is lent
	fixed  []fixedHeader
	// rules verify the tokens of callers that have one.
	rules map[*policy.Caller]*tokens.Rule
	// asks are the challenges to callers without a token that is enough.
	asks challenges
	// sessions are those of the server at the upstream's url; nil where nobody's are bound.
	sessions *shelf
	// mutation is the part of the reply that is the same for every call.
	mutation []byte
}

// fixedHeader is a header credential.
type fixedHeader struct {
	name    string
	ref     policy.SecretRef
	secrets tokens.SecretSource
}

// secret returns the value now in force, if it can stand in a header: CR, LF or
// NUL would fail the whole request in Envoy.
func (h fixedHeader) secret() (string, error) {
	s, err := h.secrets.Secret(h.ref)
	if err != nil {
		return "", err
	}
	v := s.Reveal()
	if v == "" {
		return "", fmt.Errorf("the secret %s for header %s is empty; put a value there", h.ref, h.name)
	}
	for i := range len(v) {
		if c := v[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "", fmt.Errorf("the secret %s for header %s holds a control character; remove it", h.ref, h.name)
		}
	}
	return v, nil
}

func emptySnapshot() *snapshot {
	return &snapshot{set: new(policy.Set), known: map[string]string{}}
}

func (s *Server) build(set *policy.Set) (*snapshot, error) {
	snap := &snapshot{set: set, lanes: make(map[*policy.Upstream]*lane, len(set.Upstreams)), known: knownNames(), callers: map[string]bool{}, words: map[string]bool{}}
	for _, r := range policy.Reasons() {
		snap.words[r.String()] = true
	}
	for _, up := range set.Upstreams {
		l, err := s.lane(set, up)
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", up.Name, err)
		}
		snap.lanes[up] = l
		snap.know(up.Name, up.Cluster, up.Route)
	}
	for _, c := range set.Callers {
		snap.know(c.Name)
		snap.callers[c.Name] = true
		snap.know(c.SANs...)
		if c.JWT != nil {
			snap.know(c.JWT.Issuer)
		}
	}
	return snap, nil
}

func (s *Server) lane(set *policy.Set, up *policy.Upstream) (*lane, error) {
	l := &lane{up: up}
	if up.BindsSessions {
		l.sessions = s.sessions.shelf(up.Resource)
	}
	if up.TakesTokens() {
		l.asks = newChallenges(set, up)
		if err := l.addRules(s.cfg.Verifier); err != nil {
			return nil, err
		}
	}
	if o := up.Credential.OAuth2; o != nil {
		source, err := s.cfg.Tokens.Source(up.Name, o)
		if err != nil {
			return nil, err
		}
		l.source = source
	}
	for _, h := range up.Credential.Headers {
		fixed := fixedHeader{name: h.Name, ref: h.Value, secrets: s.cfg.Secrets}
		// What a store does not give now, it may give later: until then each
		// call is refused.
		if _, err := fixed.secret(); err != nil && !h.Value.Remote() {
			return nil, err
		}
		l.fixed = append(l.fixed, fixed)
	}
	l.mutation = appendSet(nil, guardHeader, up.Name)
	for _, name := range up.Headers.Always() {
		l.mutation = appendRemove(l.mutation, name)
	}
	return l, nil
}

// addRules makes the rules of the callers with tokens.
func (l *lane) addRules(v *tokens.Verifier) error {
	if v == nil {
		return errors.New("callers with tokens: extproc.Config needs a Verifier")
	}
	l.rules = map[*policy.Caller]*tokens.Rule{}
	for _, c := range l.up.Callers {
		if c.JWT == nil {
			continue
		}
		rule, err := v.Rule(c.JWT)
		if err != nil {
			return fmt.Errorf("caller %s: %w", c.Name, err)
		}
		l.rules[c] = rule
	}
	return nil
}

func (s *snapshot) know(names ...string) {
	for _, n := range names {
		if n != "" {
			s.known[n] = n
		}
	}
}

// sources lists the token sources in use.
func (s *snapshot) sources() []*tokens.Source {
	var all []*tokens.Source
	for _, l := range s.lanes {
		if l.source != nil {
			all = append(all, l.source)
		}
	}
	return all
}

// rules lists the rules in use.
func (s *snapshot) rules() []*tokens.Rule {
	var all []*tokens.Rule
	for _, l := range s.lanes {
		for _, r := range l.rules {
			all = append(all, r)
		}
	}
	return all
}

// knownNames are the header names and words seen in most messages.
func knownNames() map[string]string {
	known := map[string]string{}
	for _, n := range []string{
		":method", ":scheme", ":path", ":authority", "host",
		"accept", "accept-encoding", "accept-language", "authorization", "cache-control", "content-length",
		"content-type", "cookie", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version",
		"mcp-session-id", "origin", "te", "traceparent", "tracestate", "user-agent", "x-envoy-attempt-count",
		"x-envoy-expected-rq-timeout-ms", "x-envoy-original-path", "x-forwarded-for", "x-forwarded-proto",
		"x-litellm-api-key", "x-mcp-auth-key", "x-request-id",
	} {
		known[n] = n
	}
	for _, r := range policy.Reasons() {
		known[r.String()] = r.String()
	}
	return known
}
