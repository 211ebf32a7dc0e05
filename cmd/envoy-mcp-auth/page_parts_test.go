package main

import (
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// inWords is a part in one line.
func inWords(p admin.Part) string {
	var b strings.Builder
	b.WriteString(p.State.String() + " " + p.Word + " " + p.Trouble + " " + p.Do)
	for _, f := range p.Facts {
		b.WriteString(" " + f.Name + "=" + f.Value)
		if !f.At.IsZero() {
			b.WriteString(f.At.UTC().Format(time.RFC3339))
		}
	}
	return b.String()
}

func TestPageShowsTheAudit(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	good := audit.Status{
		Sinks: []string{"file", "syslog"}, File: "/var/log/a.jsonl", Seq: 7,
		Lines: map[string]uint64{"decision": 4, "outcome": 3}, Dropped: map[string]uint64{"file": 0, "syslog": 0},
	}
	lossy := good
	lossy.Dropped, lossy.FailedAt = map[string]uint64{"file": 2, "syslog": 1}, &at
	failing := lossy
	failing.Failing, failing.LastError = true, "no space left on device"
	required := failing
	required.Required = true
	for _, c := range []struct {
		what   string
		status audit.Status
		want   admin.State
		says   []string
	}{
		{"good", good, admin.OK, []string{"written", "To=file, syslog", "File=/var/log/a.jsonl", "Last line=7", "Since the start=7 lines"}},
		{"it lost some", lossy, admin.OK, []string{"Lost=3 lines", "Last failure=2027-01-15"}},
		{"failing", failing, admin.Warn, []string{"no space left on device", "Lines are lost"}},
		{"failing, and required", required, admin.Bad, []string{"no space left on device", "audit_unavailable"}},
	} {
		p := viewAudit(&c.status)
		for _, s := range c.says {
			if !strings.Contains(inWords(p), s) {
				t.Errorf("%s: want %q in %s", c.what, s, inWords(p))
			}
		}
		if p.State != c.want || c.what == "good" && strings.Contains(inWords(p), "Lost") {
			t.Errorf("%s: %s", c.what, inWords(p))
		}
	}
}

func TestPageShowsEnvoys(t *testing.T) {
	t.Parallel()
	st := envoy.XDSStatus{}
	if p := viewXDS(&st); p.State != admin.OK || !strings.Contains(inWords(p), "0 followers") || !strings.Contains(inWords(p), "Served=nothing yet") {
		t.Error(inWords(p))
	}
	st.PushedAt = time.Unix(1_800_000_000, 0)
	for range shownEnvoys {
		st.Envoys = append(st.Envoys, envoy.Follower{Node: "edge", Build: "1.40.0"})
	}
	st.Envoys = append(st.Envoys, envoy.Follower{Node: "old", Refused: &envoy.Refusal{Kind: "listener", Error: "unknown filter"}})
	p := viewXDS(&st)
	for _, want := range []string{"1 refusal", "old refused a listener: unknown filter", "goes on with what it had", "edge=1.40.0", "Others=1 Envoy on /status"} {
		if !strings.Contains(inWords(p), want) {
			t.Errorf("want %q in %s", want, inWords(p))
		}
	}
	if p.State != admin.Warn || len(p.Facts) != shownEnvoys+2 {
		t.Error(inWords(p))
	}
}
