package policy

import (
	"fmt"
	"testing"
)

// setOf builds a Set as Parse would, clashes aside.
func setOf(upstreams ...*Upstream) *Set {
	s := &Set{Upstreams: upstreams}
	s.index()
	return s
}

func TestLookup(t *testing.T) {
	s := setOf(
		&Upstream{Name: "a", Cluster: "a"},
		&Upstream{Name: "b", Cluster: "mesh-b", Route: "b-route"},
		&Upstream{Name: "c", Cluster: "mesh-c", Route: "tools*"},
		&Upstream{Name: "d", Cluster: "mesh-d", Route: "tools-admin*"},
		&Upstream{Name: "e", Cluster: "mesh-e", Route: "tools-admin-x"},
		&Upstream{Name: "f", Cluster: "", Route: ""},
	)
	for _, c := range []struct {
		title string
		r     Request
		want  string
		why   Reason
	}{
		{"nothing given", Request{}, "", NoPolicy},
		{"C2 headers name nobody", Request{Headers: headers("mcp-upstream", "a", "host", "a", "x-mcp-upstream", "a")}, "", NoPolicy},
		{"by name", Request{Name: "a"}, "a", Allowed},
		{"by name, with its cluster", Request{Name: "b", Cluster: "mesh-b"}, "b", Allowed},
		{"by name, with another's cluster", Request{Name: "a", Cluster: "mesh-b"}, "", BadRequest},
		{"by name, with a cluster nobody knows", Request{Name: "a", Cluster: "zzz"}, "", BadRequest},
		{"by name, an upstream without a cluster", Request{Name: "f", Cluster: "f"}, "", BadRequest},
		{"unknown name", Request{Name: "zzz"}, "", NoPolicy},
		{"unknown name, known cluster", Request{Name: "zzz", Cluster: "a"}, "", NoPolicy},
		{"names are exact", Request{Name: "A"}, "", NoPolicy},
		{"a cluster is not a name", Request{Name: "mesh-b"}, "", NoPolicy},
		{"by cluster", Request{Cluster: "mesh-b"}, "b", Allowed},
		{"a name is not a cluster", Request{Cluster: "b"}, "", NoPolicy},
		{"unknown cluster, known route", Request{Cluster: "zzz", Route: "b-route"}, "", NoPolicy},
		{"by cluster, with its route", Request{Cluster: "mesh-b", Route: "b-route"}, "b", Allowed},
		{"by cluster, outside its route", Request{Cluster: "mesh-b", Route: "b-route2"}, "", BadRequest},
		{"by cluster, within its pattern", Request{Cluster: "mesh-c", Route: "tools-admin-x"}, "c", Allowed},
		{"by cluster, outside its pattern", Request{Cluster: "mesh-d", Route: "tools-x"}, "", BadRequest},
		{"by cluster, route of an upstream without one", Request{Cluster: "a", Route: "b-route"}, "a", Allowed},
		{"by name, outside its route", Request{Name: "b", Route: "tools"}, "", BadRequest},
		{"by name, cluster and route", Request{Name: "b", Cluster: "mesh-b", Route: "b-route"}, "b", Allowed},
		{"by route, exact", Request{Route: "b-route"}, "b", Allowed},
		{"by route, exact is no prefix", Request{Route: "b-route-2"}, "", NoPolicy},
		{"by route, pattern", Request{Route: "tools/x"}, "c", Allowed},
		{"by route, the bare pattern", Request{Route: "tools"}, "c", Allowed},
		{"by route, the longest pattern", Request{Route: "tools-admin-y"}, "d", Allowed},
		{"by route, exact before patterns", Request{Route: "tools-admin-x"}, "e", Allowed},
		{"by route, nobody's", Request{Route: "tool"}, "", NoPolicy},
		{"by route, a star is no pattern in a request", Request{Route: "tools-admin*"}, "d", Allowed},
	} {
		t.Run(c.title, func(t *testing.T) {
			u, why := s.Lookup(&c.r)
			got := ""
			if u != nil {
				got = u.Name
			}
			if got != c.want || why != c.why {
				t.Errorf("want %q %v, got %q %v", c.want, c.why, got, why)
			}
		})
	}
}

func TestLookupOfNothing(t *testing.T) {
	for _, s := range []*Set{{}, setOf()} {
		for _, r := range []Request{{}, {Name: "a"}, {Cluster: "a"}, {Route: "a"}} {
			if u, why := s.Lookup(&r); u != nil || why != NoPolicy {
				t.Errorf("%+v in an empty set: want no_policy, got %v", r, why)
			}
		}
	}
}

func TestLookupStarAlone(t *testing.T) {
	s := setOf(&Upstream{Name: "all", Cluster: "x", Route: "*"}, &Upstream{Name: "one", Cluster: "y", Route: "one"})
	for route, want := range map[string]string{"one": "one", "two": "all", "on": "all"} {
		if u, _ := s.Lookup(&Request{Route: route}); u == nil || u.Name != want {
			t.Errorf("route %q: want %q, got %+v", route, want, u)
		}
	}
}

// What two upstreams claim names neither.
func TestIndexClashes(t *testing.T) {
	s := &Set{Upstreams: []*Upstream{
		{Name: "a", Cluster: "shared", Route: "r"},
		{Name: "b", Cluster: "shared", Route: "r*"},
		{Name: "c", Cluster: "shared", Route: "r"},
		{Name: "d", Cluster: "own", Route: "r*"},
		{Name: "e", Cluster: "e"},
		{Name: "f"},
		{Name: "g"},
	}}
	var got []string
	for _, c := range s.index() {
		got = append(got, fmt.Sprintf("%s %s %s %s", c.kind, c.value, c.first.Name, c.second.Name))
	}
	want := "[cluster shared a b cluster shared a c route r a c route r* b d]"
	if fmt.Sprint(got) != want {
		t.Errorf("want %s, got %s", want, got)
	}
	for _, r := range []Request{{Cluster: "shared"}, {Route: "r"}, {Route: "rest"}} {
		if u, why := s.Lookup(&r); u != nil || why != NoPolicy {
			t.Errorf("%+v: want no_policy, got %v %v", r, u, why)
		}
	}
	if u, why := s.Lookup(&Request{Name: "a", Cluster: "shared"}); u != nil || why != BadRequest {
		t.Errorf("a contested cluster beside a name: want bad_request, got %v %v", u, why)
	}
	if u, _ := s.Lookup(&Request{Cluster: "e"}); u == nil {
		t.Error("a clash elsewhere took e's cluster away")
	}
}

func TestIndexTwice(t *testing.T) {
	s := setOf(&Upstream{Name: "a", Cluster: "a", Route: "x*"}, &Upstream{Name: "b", Cluster: "b", Route: "y"})
	if again := s.index(); len(again) != 0 {
		t.Errorf("want no clash, got %v", again)
	}
	if u, _ := s.Lookup(&Request{Route: "xy"}); u == nil || u.Name != "a" {
		t.Errorf("want a, got %v", u)
	}
}

// manyUpstreams makes n upstreams, of which every third has an exact route and
// every third a pattern.
func manyUpstreams(n int) *Set {
	s := &Set{}
	for i := range n {
		u := &Upstream{Name: fmt.Sprintf("up-%05d", i), Cluster: fmt.Sprintf("cluster-%05d", i)}
		switch i % 3 {
		case 1:
			u.Route = fmt.Sprintf("route-%05d", i)
		case 2:
			u.Route = fmt.Sprintf("route-%05d/*", i)
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	s.index()
	return s
}

func TestLookupAmongTenThousand(t *testing.T) {
	s := manyUpstreams(10_000)
	for i, u := range s.Upstreams {
		for _, r := range []Request{{Name: u.Name}, {Cluster: u.Cluster}, {Route: u.Route}} {
			if r.Route == "" && r.Name == "" && r.Cluster == "" {
				continue
			}
			if got, why := s.Lookup(&r); got != u || why != Allowed {
				t.Fatalf("upstream %d by %+v: got %v %v", i, r, got, why)
			}
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	s := manyUpstreams(10_000)
	for _, r := range []struct {
		name string
		Request
	}{
		{"name", Request{Name: "up-05000", Cluster: "cluster-05000"}},
		{"cluster", Request{Cluster: "cluster-05000"}},
		{"route", Request{Route: "route-05002"}},
		{"pattern", Request{Route: "route-05003/some/long/rest/of/it"}},
		{"unknown", Request{Route: "zzz"}},
	} {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Lookup(&r.Request)
			}
		})
	}
}
