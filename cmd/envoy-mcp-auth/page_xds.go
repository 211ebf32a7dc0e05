package main

import (
	"fmt"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
)

// shownEnvoys bounds what the page lists of them.
const shownEnvoys = 10

// viewXDS is the part of the page about Envoys that follow the served configuration.
func viewXDS(st *envoy.XDSStatus) admin.Part {
	p := admin.Part{
		ID: "envoys", Name: "Envoys", State: admin.OK, Word: plural(len(st.Envoys), "follower"),
		Facts: []admin.Fact{{Name: "Served", At: st.PushedAt}},
	}
	if st.PushedAt.IsZero() {
		p.Facts[0].Value = "nothing yet"
	}
	refusing := 0
	for _, e := range st.Envoys {
		if e.Refused == nil {
			continue
		}
		if refusing++; refusing == 1 {
			p.Trouble = fmt.Sprintf("%s refused a %s: %s", e.Node, e.Refused.Kind, e.Refused.Error)
		}
	}
	if refusing > 0 {
		p.State, p.Word = admin.Warn, plural(refusing, "refusal")
		p.Do = "It goes on with what it had, so the policy is not in force there as a whole. Compare its version with the others."
	}
	for _, e := range st.Envoys[:min(shownEnvoys, len(st.Envoys))] {
		value := e.Build
		if e.Behind {
			value += ", behind"
		}
		p.Facts = append(p.Facts, admin.Fact{Name: e.Node, Value: orDash(value)})
	}
	if n := len(st.Envoys) - shownEnvoys; n > 0 {
		p.Facts = append(p.Facts, admin.Fact{Name: "Others", Value: plural(n, "Envoy") + " on /status"})
	}
	return p
}
