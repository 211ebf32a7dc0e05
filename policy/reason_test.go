package policy

import (
	"strings"
	"testing"
)

// The refusals that callers see: word and status are a promise.
func TestReasonTable(t *testing.T) {
	want := map[Reason]struct {
		word   string
		status int
	}{
		Undecided:        {"undecided", 500},
		Allowed:          {"allowed", 200},
		NoPolicy:         {"no_policy", 403},
		BadRequest:       {"bad_request", 400},
		OriginDenied:     {"origin_denied", 403},
		CallerUnknown:    {"caller_unknown", 403},
		CallerInvalid:    {"caller_invalid", 403},
		ToolDenied:       {"tool_denied", 403},
		ScopeMissing:     {"scope_missing", 403},
		ToolUnproved:     {"tool_unproved", 403},
		HeaderMismatch:   {"header_mismatch", 400},
		BodyTooLarge:     {"body_too_large", 413},
		SessionMismatch:  {"session_mismatch", 403},
		TokenUnavailable: {"token_unavailable", 503},

		RateLimited:       {"rate_limited", 429},
		UpstreamDisabled:  {"upstream_disabled", 503},
		AuditUnavailable:  {"audit_unavailable", 503},
		IssuerUnavailable: {"issuer_unavailable", 503},
		TokenRefused:      {"token_refused", 502},
		UpstreamRejected:  {"upstream_rejected", 502},
	}
	for r := range reasonCount {
		w, ok := want[r]
		if !ok {
			t.Errorf("%v is missing in this table", r)
			continue
		}
		if r.String() != w.word || r.Status() != w.status {
			t.Errorf("want %s %d, got %s %d", w.word, w.status, r, r.Status())
		}
	}
	if len(want) != int(reasonCount) {
		t.Errorf("want %d rows, got %d", reasonCount, len(want))
	}
}

func TestReasonsAreDistinct(t *testing.T) {
	words, texts := map[string]Reason{}, map[string]Reason{}
	for _, r := range Reasons() {
		if other, ok := words[r.String()]; ok {
			t.Errorf("%d and %d share the word %q", other, r, r)
		}
		if other, ok := texts[r.Text()]; ok {
			t.Errorf("%v and %v share a text", other, r)
		}
		words[r.String()], texts[r.Text()] = r, r
	}
}

// The word goes into headers, labels and audit lines, the text into JSON and
// from there into logs: neither may need quoting.
func TestReasonSpelling(t *testing.T) {
	for _, r := range Reasons() {
		if strings.Trim(r.String(), "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("%q is not snake case", r)
		}
		if text := r.Text(); !strings.HasSuffix(text, ".") || strings.ContainsAny(text, "\"\\%\r\n") || len(text) > 160 {
			t.Errorf("%v: want one or two short sentences, got %q", r, text)
		}
	}
}

func TestReasonsListsAllButUndecided(t *testing.T) {
	all := Reasons()
	if len(all) != int(reasonCount)-1 || all[0] != Allowed {
		t.Errorf("want %d reasons from allowed on, got %v", reasonCount-1, all)
	}
	for _, r := range all {
		if r == Undecided || r.String() == "undecided" {
			t.Errorf("%d has no row", r)
		}
	}
}

// No number but Allowed's is a success: an unknown Reason refuses. A refusal is
// never a 200, on which LiteLLM waits for its timeout, nor a 404, which tells an
// MCP client that its session is gone (T13), nor a 401, which starts a login (T15).
func TestOnlyAllowedSucceeds(t *testing.T) {
	for i := range 256 {
		r := Reason(i)
		switch status := r.Status(); {
		case r == Allowed:
		case status < 400, status == 404, status == 401:
			t.Errorf("%v (%d): status %d", r, i, status)
		case r >= reasonCount && r.String() != "undecided":
			t.Errorf("%d: want undecided, got %v", i, r)
		}
	}
}
