package main

import (
	"strconv"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// viewAudit is the audit's part of the page.
func viewAudit(st *audit.Status) admin.Part {
	var written, lost uint64
	for _, n := range st.Lines {
		written += n
	}
	for _, n := range st.Dropped {
		lost += n
	}
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	p := admin.Part{ID: "audit", Name: "Audit", State: admin.OK, Word: "written", Facts: []admin.Fact{{Name: "To", Value: strings.Join(st.Sinks, ", ")}}}
	if st.File != "" {
		p.Facts = append(p.Facts, admin.Fact{Name: "File", Value: st.File}, admin.Fact{Name: "Last line", Value: number(st.Seq)})
	}
	p.Facts = append(p.Facts, admin.Fact{Name: "Since the start", Value: plural64(written, "line")})
	if lost > 0 {
		p.Facts = append(p.Facts, admin.Fact{Name: "Lost", Value: plural64(lost, "line")})
	}
	if st.FailedAt != nil {
		p.Facts = append(p.Facts, admin.Fact{Name: "Last failure", At: *st.FailedAt})
	}
	if !st.Failing {
		return p
	}
	p.State, p.Word, p.Trouble = admin.Warn, "fails", orDash(st.LastError)
	p.Do = "Lines are lost until it can be written: make room, or mend the permissions. It is tried again with every line."
	if st.Required {
		p.State = admin.Bad
		p.Do = "Calls are refused with audit_unavailable until it can be written: make room, or mend the permissions. It is tried again with every call."
	}
	return p
}
