package extproc

import (
	"errors"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// urlKey is the initial metadata by which configuration that this program serves
// says where the upstream's cluster leads.
const urlKey = "mcp-upstream-url"

// behindFor is how long an Envoy may be behind a policy that moved an upstream to
// another url. Until it has the new cluster, its calls to the old one are decided by
// the policy that went with that: no credential goes to a host that it is not for.
const behindFor = 5 * time.Second

var errBehind = errors.New("the cluster leads to another url than the policy says; " +
	"see the Envoy's refusal of its configuration in /status, or render its configuration again")

// follow finds the policy that goes with where Envoy's cluster leads.
func (x *exchange) follow(up *policy.Upstream) (*policy.Upstream, policy.Reason) {
	if len(x.urls) == 0 || len(x.urls) == 1 && x.urls[0] == up.URL {
		return up, policy.Allowed
	}
	if old := x.snap.before; old != nil && len(x.urls) == 1 {
		if was, reason := old.set.Lookup(&x.msg.req); reason == policy.Allowed && was.URL == x.urls[0] {
			x.snap = old
			return was, policy.Allowed
		}
	}
	x.decision.Upstream, x.cause = up.Name, errBehind
	return nil, policy.NoPolicy
}

// after has snap remember the policy before it, where an upstream moved; where none did,
// the one that is remembered still.
func (snap *snapshot) after(old *snapshot, now time.Time) {
	urls := make(map[string]string, len(old.set.Upstreams))
	for _, up := range old.set.Upstreams {
		urls[up.Name] = up.URL
	}
	for _, up := range snap.set.Upstreams {
		if url, ok := urls[up.Name]; ok && url != up.URL {
			was := *old
			was.before = nil
			snap.before, snap.until = &was, now.Add(behindFor)
			return
		}
	}
	if now.Before(old.until) {
		snap.before, snap.until = old.before, old.until
	}
}

// forget ends the time that the policy before snap still counts.
func (s *Server) forget(snap *snapshot) {
	s.loading.Lock()
	defer s.loading.Unlock()
	alone := *snap
	alone.before = nil
	if s.snap.CompareAndSwap(snap, &alone) {
		s.retain(&alone)
	}
}

// retain lets go of what only older policies needed.
func (s *Server) retain(snap *snapshot) {
	s.sessions.retain(snap)
	sources, rules := snap.sources(), snap.rules()
	if snap.before != nil {
		sources, rules = append(sources, snap.before.sources()...), append(rules, snap.before.rules()...)
	}
	s.cfg.Tokens.Retain(sources)
	if s.cfg.Verifier != nil {
		s.cfg.Verifier.Retain(rules)
	}
}
