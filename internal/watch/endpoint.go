package watch

import (
	"sync"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// endpoint is how the token requests of an upstream go.
type endpoint struct {
	mu       sync.Mutex
	failures int
	since    time.Time // of the first failure in a row
	last     string
}

// Fetched hears of a token request that ended. Of a credential that is each
// user's own, only an endpoint that cannot be reached counts: that one user gets
// no token is between that user and the authorization server.
func (w *Watch) Fetched(f tokens.Fetch) {
	t := w.table.Load()
	for _, name := range f.Upstreams {
		s := t.byName[name]
		if s == nil || s.userBound && f.Kind != 0 && f.Kind != tokens.Unavailable {
			continue
		}
		s.endpoint.add(w.cfg.Now(), f.Result, f.Kind != 0)
	}
}

func (e *endpoint) add(now time.Time, result string, failed bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = result
	if !failed {
		e.failures, e.since = 0, time.Time{}
		return
	}
	if e.failures++; e.failures == 1 {
		e.since = now
	}
}

// status is nil while there was no request.
func (e *endpoint) status() *EndpointStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last == "" {
		return nil
	}
	return &EndpointStatus{Failures: e.failures, FailingSince: e.since, Last: e.last}
}

// broken holds the rule against it.
func (st *EndpointStatus) broken(now time.Time, r *policy.TokenEndpointRule, lasts bool) bool {
	switch {
	case st == nil || st.Failures == 0:
		return false
	case lasts:
		return true
	}
	return st.Failures >= r.Failures || st.Failures > 1 && now.Sub(st.FailingSince) >= r.For
}
