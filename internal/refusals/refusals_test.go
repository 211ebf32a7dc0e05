package refusals

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// ticking is a clock that is a second later each time.
func ticking() func() time.Time {
	at := time.Unix(1_800_000_000, 0)
	return func() time.Time {
		at = at.Add(time.Second)
		return at
	}
}

func TestRingCountsWhatIsAlike(t *testing.T) {
	r := New(ticking())
	r.Decided(&extproc.Decision{Upstream: "crm", Reason: policy.Allowed})
	for range 3 {
		r.Decided(&extproc.Decision{Upstream: "crm", Caller: "ci", Tool: "delete", Reason: policy.ToolDenied, RequestID: []byte("r")})
	}
	r.Decided(&extproc.Decision{Upstream: "crm", Caller: "ci", Tool: "drop", Reason: policy.ToolDenied})
	r.Decided(&extproc.Decision{Upstream: "crm", Caller: "ci", Tool: "delete", Reason: policy.ToolDenied, RequestID: []byte("s")})
	got := r.Recent()
	if len(got) != 2 || got[0].Tool != "delete" || got[0].Count != 4 || got[0].RequestID != "s" || got[0].Word != "tool_denied" ||
		got[0].Last.Sub(got[0].First) != 4*time.Second || got[1].Tool != "drop" || got[1].Count != 1 {
		t.Errorf("Recent = %+v", got)
	}
}

// TestC9_FloodLeavesOthersInSight: one caller that makes up tools and request ids
// costs neither memory nor the sight of everybody else.
func TestC9_FloodLeavesOthersInSight(t *testing.T) {
	r := New(ticking())
	r.Decided(&extproc.Decision{Upstream: "mail", Caller: "people", Reason: policy.ScopeMissing})
	for i := range 5000 {
		r.Decided(&extproc.Decision{Upstream: "crm", Caller: "ci", Tool: fmt.Sprint("t", i), Reason: policy.ToolDenied, RequestID: []byte(strings.Repeat("x", i))})
	}
	got := r.Recent()
	if len(got) != 1+keptAlike || got[len(got)-1].Upstream != "mail" || got[0].Tool != "t4999" {
		t.Errorf("%d kept, want %d: %+v", len(got), 1+keptAlike, got)
	}
	for i := range 500 {
		r.Decided(&extproc.Decision{Upstream: fmt.Sprint("u", i), Reason: policy.CallerUnknown})
	}
	if got := r.Recent(); len(got) != Kept || got[0].Upstream != "u499" || cap(r.kept) != Kept {
		t.Errorf("%d kept, newest %q, want %d, u499", len(got), got[0].Upstream, Kept)
	}
}

func TestRingSeesWhatTheUpstreamRejected(t *testing.T) {
	r := New(ticking())
	r.Ended(&extproc.Outcome{Upstream: "crm", Decided: true, Token: "0a", Status: 200})
	r.Ended(&extproc.Outcome{Upstream: "open", Decided: true, Status: 401}) // nothing of ours was rejected
	r.Ended(&extproc.Outcome{Upstream: "crm", Decided: true, Token: "0a", Status: 401, Caller: "ci"})
	word := policy.UpstreamRejected.String()
	r.Ended(&extproc.Outcome{Upstream: "crm", Decided: true, Reason: word, Refusal: word, Status: 502, Caller: "twice"}) // Decided was told
	if got := r.Recent(); len(got) != 1 || got[0].Reason != policy.UpstreamRejected || got[0].Caller != "ci" || got[0].Count != 1 {
		t.Errorf("Recent = %+v", got)
	}
	r.Ended(&extproc.Outcome{Upstream: "fixed", Decided: true, Reason: "allowed", Refusal: word, Status: 502, Caller: "ci"}) // a fixed header
	if got := r.Recent(); len(got) != 2 || got[0].Upstream != "fixed" {
		t.Errorf("Recent = %+v", got)
	}
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"alice":                    "alice",
		"a\u202eb\x00c\n":          "a\ufffdb\ufffdc\ufffd",
		"<b>":                      "<b>", // escaping is the page's
		"\xff":                     "\ufffd",
		strings.Repeat("é", 10):    "éééé…",
		"née à Genève":             "née à G…",
		"zero\u200bwidth":          "zero\ufffdwidth",
		strings.Repeat("a", 12):    strings.Repeat("a", 12),
		strings.Repeat("a", 1<<20): "aaaaaaaaa…",
	} {
		if got := Plain(in, 12); got != want {
			t.Errorf("Plain(%.20q) = %q, want %q", in, got, want)
		}
	}
}

func BenchmarkDecided(b *testing.B) {
	r := New(time.Now)
	for i := range 500 {
		r.Decided(&extproc.Decision{Upstream: fmt.Sprint("u", i), Reason: policy.CallerUnknown})
	}
	d := &extproc.Decision{Upstream: "u499", Reason: policy.CallerUnknown, RequestID: []byte("0b0c0d")}
	for b.Loop() {
		r.Decided(d)
	}
}
