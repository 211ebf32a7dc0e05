package audit

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// closed ends an open line, so that it is JSON.
func closed(open []byte) string { return string(open) + "}" }

// TestL9_WhatCallersChoose: names and ids are bounded, and stay within their line
// and their member.
func TestL9_WhatCallersChoose(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"line ends":           "a\nb\r\nc\u2028d\u0085e",
		"a forged line":       "x\"}\n{\"kind\":\"decision\",\"reason\":\"allowed",
		"a forged end":        `x","seq":1,"prev":"","hash":"sha256:00"}`,
		"no UTF-8":            "a\xff\xfe\xc0\xafb",
		"terminal":            "\x1b[2K\x07\x9b31m",
		"turned around":       "\u202eabc\u2066",
		"large":               strings.Repeat("ü\x01", 5000),
		"beyond the plane":    "\U000e0001\U0010fffd😀",
		"half a long rune":    strings.Repeat("x", 254) + "😀",
		"empty":               "",
		"backslashes":         `\\\u0000\"`,
		"visible but strange": "<script>&amp;",
	} {
		d := decision(1)
		d.Issuer, d.Subject, d.Tool, d.RequestID = text, text, text, []byte(text)
		d.Calls = []policy.Call{{Method: []byte("tools/call"), Target: []byte(text)}, {Method: []byte(text), Target: []byte(text)}}
		o := &extproc.Outcome{Upstream: "crm", Subject: text, Tool: text, RequestID: text, Refusal: text}
		for kind, open := range map[string][]byte{"decision": appendDecision(nil, d, time.Now()), "outcome": appendOutcome(nil, o, time.Now())} {
			line := closed(open)
			if bad := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); bad >= 0 || !utf8.ValidString(line) {
				t.Errorf("%s: want printable text alone, got %q", name, line)
			}
			if len(line) > 8000 {
				t.Errorf("%s: the line has %d bytes", name, len(line))
			}
			var l Line
			dec := json.NewDecoder(strings.NewReader(line))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&l); err != nil || l.Kind != kind || l.Seq != 0 || l.Upstream != "crm" {
				t.Errorf("%s: %v: %s", name, err, line)
			}
		}
	}
}

// TestAppendText: what is read back is what was written, but for what is cut or not UTF-8.
func TestAppendText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.OneOf(rapid.String(), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text")
		limit := rapid.IntRange(8, 64).Draw(t, "limit")
		var out string
		if err := json.Unmarshal(appendText(nil, in, limit), &out); err != nil {
			t.Fatal(err)
		}
		want := in
		if len(in) > limit {
			end := limit
			for end > limit-utf8.UTFMax && !utf8.RuneStart(in[end]) {
				end--
			}
			want = in[:end] + "…"
		}
		want = strings.Map(func(r rune) rune {
			if r > 0xffff && !unicode.IsPrint(r) {
				return utf8.RuneError
			}
			return r
		}, want)
		var valid strings.Builder
		for _, r := range want { // each bad byte becomes U+FFFD
			valid.WriteRune(r)
		}
		if out != valid.String() {
			t.Fatalf("want %q, got %q", valid.String(), out)
		}
	})
}

// TestLineIsWhatIsWritten: every member of Line is written by some line, in the
// order of the type, and no other.
func TestLineIsWhatIsWritten(t *testing.T) {
	t.Parallel()
	d := decision(1)
	d.Issuer, d.Subject = "https://idp.example", "ann"
	d.Calls = make([]policy.Call, 2)
	o := &extproc.Outcome{
		Upstream: "crm", Caller: "c", Reason: "allowed", Token: "t", Status: 200, Refusal: "r", Attempts: 1, RequestID: "i",
		Tool: "t", Issuer: "i", Subject: "s", Decided: true, Took: 1, Own: 1, Sent: 1, Received: 1, Reset: true, Left: true,
	}
	now := time.Now()
	kinds := map[string][]byte{
		"decision": appendDecision(nil, d, now), "outcome": appendOutcome(nil, o, now), "start": noteStart(now, "x"),
		"end": noteEnd(now, true), "dropped": noteDropped(now, 1), "recovered": noteRecovered(now, 1), "withdrawn": noteWithdrawn(now, 1),
	}
	if len(kinds) != kindCount {
		t.Fatalf("want all %d kinds here", kindCount)
	}
	s, err := newSeal(nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, open := range kinds {
		var c chain
		text := string(c.append(nil, open, s))
		var members map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &members); err != nil {
			t.Fatal(err)
		}
		last := -1
		for f := range reflect.TypeFor[Line]().Fields() {
			name := f.Tag.Get("json")
			of := strings.Fields(f.Tag.Get("kinds"))
			want := len(of) > 0 && (of[0] == "all" || strings.Contains(" "+f.Tag.Get("kinds")+" ", " "+kind+" "))
			if _, has := members[name]; has != want {
				t.Errorf("%s: want member %s %t, got %t", kind, name, want, has)
			}
			at := strings.Index(text, `"`+name+`":`)
			if want && at < last && kind == "decision" {
				t.Errorf("%s stands before the member before it", name)
			}
			last = max(at, last)
			delete(members, name)
		}
		if len(members) > 0 {
			t.Errorf("%s: members that Line does not have: %v", kind, members)
		}
	}
}

// TestRequestIDsJoin: a decision has the id in the form of the access log.
func TestRequestIDsJoin(t *testing.T) {
	t.Parallel()
	d := decision(1)
	d.RequestID = []byte(strings.Repeat("ä b", 40))
	var l Line
	if err := json.Unmarshal([]byte(closed(appendDecision(nil, d, time.Now()))), &l); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("b", 16); l.RequestID != want { // of the first 64 bytes, what is visible ASCII
		t.Errorf("want %q, got %q", want, l.RequestID)
	}
}
