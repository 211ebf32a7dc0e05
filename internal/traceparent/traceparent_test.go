package traceparent

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	good := "00-" + trace + "-" + span + "-01"
	for _, tc := range []struct {
		name, header   string
		valid, sampled bool
	}{
		{"sampled", good, true, true},
		{"not sampled", "00-" + trace + "-" + span + "-00", true, false},
		{"flags of a later version", "00-" + trace + "-" + span + "-03", true, true},
		{"a later version that goes on", "01-" + trace + "-" + span + "-01-what-comes", true, true},
		{"a later version", "cc-" + trace + "-" + span + "-01", true, true},
		{"a later version with more, and no dash", "01-" + trace + "-" + span + "-01.", false, false},
		{"version 00 that goes on", good + "-more", false, false},
		{"version ff", "ff-" + trace + "-" + span + "-01", false, false},
		{"empty", "", false, false},
		{"short", good[:54], false, false},
		{"upper case", strings.ToUpper(good), false, false},
		{"no hexadecimal", "00-" + strings.Replace(trace, "4", "g", 1) + "-" + span + "-01", false, false},
		{"no trace id", "00-" + strings.Repeat("0", 32) + "-" + span + "-01", false, false},
		{"no span id", "00-" + trace + "-" + strings.Repeat("0", 16) + "-01", false, false},
		{"another separator", strings.ReplaceAll(good, "-", "_"), false, false},
	} {
		c, ok := Parse([]byte(tc.header))
		if ok != tc.valid || c.Sampled() != tc.sampled {
			t.Errorf("%s: got %v, sampled %v, want %v, %v", tc.name, ok, c.Sampled(), tc.valid, tc.sampled)
		}
		if !ok && c != (Context{}) {
			t.Errorf("%s: got %v of an invalid header, want nothing", tc.name, c)
		}
		if ok && (c.TraceHex() != trace || c.SpanID != [8]byte{0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 2, 0xb7}) {
			t.Errorf("%s: got %s %x", tc.name, c.TraceHex(), c.SpanID)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	header := []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if n := testing.AllocsPerRun(100, func() { _, _ = Parse(header) }); n != 0 {
		t.Errorf("Parse allocates %v times, want 0", n)
	}
}
