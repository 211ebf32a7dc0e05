package policy

import (
	"cmp"
	"slices"
	"strings"
)

// clash is an identity that two upstreams claim.
type clash struct {
	// kind is "cluster" or "route".
	kind string
	// value is the identity as written, with the trailing * of a pattern.
	value string
	// first and second are the claimants, in the order of Set.Upstreams.
	first, second *Upstream
}

// index builds what Lookup searches from s.Upstreams and returns the identities
// that more than one upstream claims. A clash is a fault of the policy; should
// a Set with one be used all the same, the contested identity names nobody.
func (s *Set) index() []clash {
	var clashes []clash
	s.byName = make(map[string]*Upstream, len(s.Upstreams))
	s.byCluster = make(map[string]*Upstream, len(s.Upstreams))
	claimed := make(map[string]*Upstream, len(s.Upstreams))
	for _, u := range s.Upstreams {
		s.byName[u.Name] = u
		if u.Cluster == "" {
			continue
		}
		if first := claimed[u.Cluster]; first != nil {
			clashes = append(clashes, clash{"cluster", u.Cluster, first, u})
			s.byCluster[u.Cluster] = nil
			continue
		}
		claimed[u.Cluster], s.byCluster[u.Cluster] = u, u
	}
	return append(clashes, s.indexRoutes()...)
}

func (s *Set) indexRoutes() []clash {
	s.routes = s.routes[:0]
	for _, u := range s.Upstreams {
		if u.Route == "" {
			continue
		}
		name, prefix := strings.CutSuffix(u.Route, "*")
		s.routes = append(s.routes, routeKey{name, prefix, u})
	}
	slices.SortStableFunc(s.routes, compareRoutes)

	var clashes []clash
	kept := s.routes[:0]
	for i, r := range s.routes {
		if i > 0 && compareRoutes(kept[len(kept)-1], r) == 0 {
			last := &kept[len(kept)-1]
			// The first claimant is found again through its own Route: last.up
			// is nil once a clash was seen.
			clashes = append(clashes, clash{"route", r.up.Route, s.claimant(r.up.Route), r.up})
			last.up = nil
			continue
		}
		kept = append(kept, r)
	}
	s.routes = kept
	return clashes
}

// claimant returns the first upstream with this very Route.
func (s *Set) claimant(route string) *Upstream {
	i := slices.IndexFunc(s.Upstreams, func(u *Upstream) bool { return u.Route == route })
	return s.Upstreams[i]
}

// compareRoutes is the order of Set.routes: exact names, then patterns, in both
// the longer before the shorter.
func compareRoutes(a, b routeKey) int {
	if a.prefix != b.prefix {
		if b.prefix {
			return -1
		}
		return 1
	}
	if c := cmp.Compare(len(b.name), len(a.name)); c != 0 {
		return c
	}
	return strings.Compare(a.name, b.name)
}

// Lookup names the upstream of a request. Only what Envoy's operator configured
// counts: the name in the call's initial metadata, else the cluster, else the
// route. It never reads a header, so no caller can choose.
//
// NoPolicy means that none was given or that it names no upstream. BadRequest
// means that two were given and disagree: a cluster that is not the named
// upstream's, or a route outside the upstream's own Route. Refusing there keeps
// A's token away from B when Envoy's configuration is at odds with itself. An
// upstream without a Route is not checked against the route.
//
// A cluster that no upstream claims is NoPolicy even if the route is known: a
// route may fan out to clusters of other owners.
func (s *Set) Lookup(r *Request) (*Upstream, Reason) {
	u := s.identify(r)
	switch {
	case u == nil:
		return nil, NoPolicy
	case r.Cluster != "" && s.byCluster[r.Cluster] != u:
		return nil, BadRequest
	case r.Route != "" && u.Route != "" && !matches(u.Route, r.Route):
		return nil, BadRequest
	}
	return u, Allowed
}

// identify follows the first identity that was given, and no other.
func (s *Set) identify(r *Request) *Upstream {
	switch {
	case r.Name != "":
		return s.byName[r.Name]
	case r.Cluster != "":
		return s.byCluster[r.Cluster]
	case r.Route != "":
		return s.byRoute(r.Route)
	}
	return nil
}

// byRoute searches the exact names and then, from the longest on, every prefix
// of the route among the patterns: a binary search each, so that the cost hangs
// on the length of the name and hardly on the number of upstreams.
func (s *Set) byRoute(route string) *Upstream {
	if i, ok := slices.BinarySearchFunc(s.routes, routeKey{name: route}, compareRoutes); ok {
		return s.routes[i].up
	}
	for n := len(route); n >= 0; n-- {
		i, ok := slices.BinarySearchFunc(s.routes, routeKey{name: route[:n], prefix: true}, compareRoutes)
		if ok {
			return s.routes[i].up
		}
	}
	return nil
}

// matches reports whether the route is the pattern, or begins like it when the
// pattern ends in *.
func matches(pattern, route string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(route, prefix)
	}
	return route == pattern
}
