package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestH7T13_SessionID: one id of visible ASCII, once, in one spelling.
func TestH7T13_SessionID(t *testing.T) {
	u := ruled(HeadersSpec{}, Credential{})
	for _, c := range []struct {
		title   string
		headers []string
		want    string
		reason  Reason
	}{
		{"none", []string{"x-request-id", "r"}, "", Allowed},
		{"a uuid", []string{"mcp-session-id", "0b9ac637-0000-4000-8000-000000000000"}, "0b9ac637-0000-4000-8000-000000000000", Allowed},
		{"every character but the comma", []string{"Mcp-Session-Id", "!\"#+-./09:;<=>?@AZ[\\]^_`az{|}~"}, "!\"#+-./09:;<=>?@AZ[\\]^_`az{|}~", Allowed},
		{"as long as may be", []string{"mcp-session-id", strings.Repeat("x", 4096)}, strings.Repeat("x", 4096), Allowed},
		{"longer", []string{"mcp-session-id", strings.Repeat("x", 4097)}, "", BadRequest},
		{"empty", []string{"mcp-session-id", ""}, "", BadRequest},
		{"a blank", []string{"mcp-session-id", "a b"}, "", BadRequest},
		{"a tab", []string{"mcp-session-id", "a\t"}, "", BadRequest},
		{"DEL", []string{"mcp-session-id", "a\x7f"}, "", BadRequest},
		{"not ASCII", []string{"mcp-session-id", "ä"}, "", BadRequest},
		{"joined", []string{"mcp-session-id", "a,b"}, "", BadRequest},
		{"twice", []string{"mcp-session-id", "a", "mcp-session-id", "b"}, "", BadRequest},
		{"twice the same", []string{"mcp-session-id", "a", "mcp-session-id", "a"}, "", BadRequest},
		{"hidden by underscores", []string{"mcp_session_id", "a"}, "", BadRequest},
		{"hidden beside", []string{"mcp-session-id", "a", "mcp-session_id", "b"}, "", BadRequest},
		{"others", []string{"mcp-session-id-2", "a", "x-mcp-session-id", "b"}, "", Allowed},
	} {
		t.Run(c.title, func(t *testing.T) {
			id, reason := u.SessionID(&Request{Headers: headers(c.headers...)})
			if string(id) != c.want || reason != c.reason {
				t.Errorf("want %q %v, got %q %v", c.want, c.reason, id, reason)
			}
		})
	}
}

// TestSessions: an upstream's own word counts, then that of defaults, and without
// any sessions are bound. Envoy shows us the header where they are, in all spellings.
func TestSessions(t *testing.T) {
	for text, want := range map[string]bool{
		"\nupstreams:\n  a: {url: 'https://a.test', %}":                                                      true,
		"\nupstreams:\n  a: {url: 'https://a.test', %, sessions: bind}":                                      true,
		"\nupstreams:\n  a: {url: 'https://a.test', %, sessions: off}":                                       false,
		"\ndefaults: {sessions: off}\nupstreams:\n  a: {url: 'https://a.test', %}":                           false,
		"\ndefaults: {sessions: off}\nupstreams:\n  a: {url: 'https://a.test', %, sessions: bind}":           true,
		"\ndefaults: {sessions: bind}\nupstreams:\n  a: {url: 'https://a.test', %, sessions: \"off\"}":       false,
		"\ndefaults: {origins: {allow: [\"null\"]}}\nupstreams:\n  a: {url: 'https://a.test', %}":            true,
		"\ndefaults: {headers: {allow: [x-a]}}\nupstreams:\n  a: {url: 'https://a.test', %, sessions: bind}": true,
	} {
		text = "version: 1\ncallers: {anyone: {any: true}}" + strings.ReplaceAll(text, "%", "callers: [anyone], credential: none")
		set, err := Parse("policy.yaml", []byte(text), nil)
		if err != nil {
			t.Fatalf("%s\n%v", text, err)
		}
		up := set.Upstreams[0]
		if up.BindsSessions != want {
			t.Errorf("want %v, got %v of\n%s", want, up.BindsSessions, text)
		}
		names, prefixes, _ := up.Inspected()
		if slices.Contains(names, "mcp-session-id") != want || slices.Contains(prefixes, "mcp_") != want || slices.Contains(prefixes, "mcp-session_") != want {
			t.Errorf("want the header shown: %v, got %q and %q", want, names, prefixes)
		}
	}
}
