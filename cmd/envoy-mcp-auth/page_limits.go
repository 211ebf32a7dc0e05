package main

import (
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
)

// shownLimits are listed on the page; /status has all.
const shownLimits = 20

// viewLimits shows the rules, and the service that counts for all replicas.
func viewLimits(st *limits.Status) admin.Part {
	p := admin.Part{ID: "limits", Name: "Limits", State: admin.OK, Word: "held"}
	for i := range st.Rules[:min(shownLimits, len(st.Rules))] {
		r := &st.Rules[i]
		p.Facts = append(p.Facts, admin.Fact{Name: r.Name, Value: r.String()})
		if r.Last != nil {
			p.Facts = append(p.Facts, admin.Fact{Name: r.Name + ", last", At: *r.Last})
		}
	}
	if n := len(st.Rules) - shownLimits; n > 0 {
		p.Facts = append(p.Facts, admin.Fact{Name: "Others", Value: plural(n, "rule") + " on /status"})
	}
	if s := st.Service; s != nil {
		p.Facts = append(p.Facts, admin.Fact{Name: "Service", Value: s.Address + ", " + s.State})
		if s.Since != nil {
			p.Facts = append(p.Facts, admin.Fact{Name: "Since", At: *s.Since})
		}
		if s.State == "down" {
			p.State, p.Word, p.Trouble = admin.Warn, "service down", orDash(s.Error)
			p.Do = "It is asked again once a second while there are calls. Until then they are held to the rules of this process alone (on_failure: allow)."
			if s.OnFailure == "refuse" {
				p.State = admin.Bad
				p.Do = "It is asked again once a second while there are calls. Until then those that its rules are about are refused (on_failure: refuse)."
			}
		}
	}
	return p
}
