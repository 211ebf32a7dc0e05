package secrets

import (
	"cmp"
	"slices"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Trouble is a secret that cannot be read now.
type Trouble struct {
	// Secret says where it is, such as file /run/secrets/a; never what it is.
	Secret string `json:"secret"`
	// Why is the failure.
	Why string `json:"why"`
	// Held is whether its last good value serves meanwhile.
	Held bool `json:"held"`
}

// Troubles lists the secrets in use that cannot be read now, by name.
func (s *Store) Troubles() []Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Trouble
	for at, sec := range s.held {
		t := Trouble{Secret: at.ref.String(), Held: sec.value.Load() != nil}
		switch fault := sec.fault.Load(); {
		case fault != nil:
			t.Why = fault.Why
		case at.ref.Kind == policy.SecretFile: // ill of a remote one is its follower's
			t.Why = sec.ill
		}
		if t.Why != "" {
			all = append(all, t)
		}
	}
	slices.SortFunc(all, func(a, b Trouble) int { return cmp.Compare(a.Secret, b.Secret) })
	return all
}
