package tokens

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func read(body string) (granted, *Error) {
	var got granted
	a, err := parseAnswer([]byte(body))
	if err == nil && a.code != "" {
		err = refused("oauth", "%s", a.code)
	}
	if err == nil {
		err = a.accept(&policy.OAuth2{DefaultLifetime: 5 * time.Minute, MaxLifetime: 24 * time.Hour}, &got)
	}
	return got, err
}

func TestO14_Lifetime(t *testing.T) {
	for in, want := range map[string]time.Duration{
		``: 5 * time.Minute, `null`: 5 * time.Minute, `""`: 5 * time.Minute,
		`0`: time.Second, `-0`: time.Second, `-1`: time.Second, `-4294963696`: time.Second, `-1e300`: time.Second, `0.5`: time.Second, `"0"`: time.Second,
		`1e3`: 1000 * time.Second, `3599.5`: 3599*time.Second + 500*time.Millisecond, `3600.0`: time.Hour, `"3600"`: time.Hour, `"3600.0"`: time.Hour,
		`1000000000000000000`: 24 * time.Hour, `1793613600`: 24 * time.Hour, `9223372036854775807`: 24 * time.Hour,
		`99999999999999999999`: 24 * time.Hour, `1e300`: 24 * time.Hour, `86399`: 86399 * time.Second, `"1e18"`: 24 * time.Hour,
	} {
		body := `{"access_token":"x","token_type":"bearer","expires_in":` + in + `}`
		if in == "" {
			body = `{"access_token":"x","token_type":"bearer"}`
		}
		got, err := read(body)
		if err != nil || got.life != want {
			t.Errorf("expires_in %s: want %s, got %s, %v", in, want, got.life, err)
		}
		if defaulted := in == "" || in == "null" || in == `""`; got.noLife != defaulted {
			t.Errorf("expires_in %s: want noLife %v, got %v", in, defaulted, got.noLife)
		}
	}
	for _, in := range []string{
		`1e400`, `-1e400`, `"Infinity"`, `"-Infinity"`, `"NaN"`, `"nan"`, `"inf"`, `"zz"`, `"0x10"`, `"+5"`, `" 60"`, `"60 "`, `"1_000"`,
		`"1e"`, `"-"`, `"true"`, `"null"`, `true`, `false`, `{}`, `[]`, `[60]`, `"[60]"`, `"\"60\""`, `"060"`, `".5"`,
	} {
		if got, err := read(`{"access_token":"x","token_type":"bearer","expires_in":` + in + `}`); err == nil || err.Code != "expires_in" {
			t.Errorf("expires_in %s: want it refused, got %s, %v", in, got.life, err)
		}
	}
}

func TestO14_DefaultLifetimeIsCappedToo(t *testing.T) {
	if life, _, ok := lifetime(nil, time.Hour, time.Minute); !ok || life != time.Minute {
		t.Errorf("want 1m, got %s", life)
	}
}

func TestO13_OnlyB64TokenCharacters(t *testing.T) {
	for c := range 256 {
		want := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.ContainsRune("-._~+/", rune(c))
		if got := isB64Token("a" + string([]byte{byte(c)}) + "b"); got != want {
			t.Errorf("byte %#x: want %v, got %v", c, want, got)
		}
	}
	for s, want := range map[string]bool{"": false, "=": false, "a=": true, "a==": true, "a=b": false, strings.Repeat("a", maxToken): true, strings.Repeat("a", maxToken+1): false} {
		if isB64Token(s) != want {
			t.Errorf("token of %d bytes: want %v", len(s), want)
		}
	}
}

func TestScopeOfTheAnswer(t *testing.T) {
	for s, want := range map[string]bool{
		"a b:c": true, "": true, "a\"": false, `a\`: false, "a\nb": false, "\x7f": false, "é": false,
		strings.Repeat("a", 4096): true, strings.Repeat("a", 4097): false,
	} {
		if isScope(s) != want {
			t.Errorf("scope of %d bytes %.10q: want %v", len(s), s, want)
		}
	}
}

// FuzzAnswer holds the strict parser to what it promises whatever comes: one
// outcome, a token that fits a header, a life within its caps, and agreement
// with encoding/json on what the exact members are.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		`{"access_token":"x","token_type":"bearer","expires_in":3600,"scope":"a b"}`, `{"error":"invalid_client","error_description":"no"}`,
		`{"access_token":"x","ACCESS_TOKEN":"y","token_type":"bearer"}`, `{"access_token":"x","access_token":"y","token_type":"bearer"}`,
		`[]`, `null`, `{}`, `{"a":1,}`, `{"a":1 "b":2}`, "{\"access_token\":\"\xff\"}", `{"expires_in":"1e400"} x`, "\xef\xbb\xbf{}", ` {"x":{}} `,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := read(string(body))
		if err != nil {
			if got.access != "" || err.Code == "" || err.Kind != Refused || strings.ContainsAny(err.Text, "\r\n") {
				t.Fatalf("a refusal must be clean: %+v %+v", got, err)
			}
			return
		}
		if !isB64Token(got.access) || got.life < time.Second || got.life > 24*time.Hour {
			t.Fatalf("accepted a token it must not: %q %s", got.access, got.life)
		}
		var members map[string]any
		if jerr := json.Unmarshal([]byte(strings.TrimPrefix(string(body), "\xef\xbb\xbf")), &members); jerr != nil {
			t.Fatalf("accepted what is not JSON: %v", jerr)
		}
		if members["access_token"] != got.access {
			t.Fatalf("want token %q, got %q", members["access_token"], got.access)
		}
		if kind, _ := members["token_type"].(string); !strings.EqualFold(kind, "bearer") {
			t.Fatalf("accepted token_type %v", members["token_type"])
		}
		if e := members["error"]; e != nil && e != "" {
			t.Fatalf("accepted an answer with error %v", e)
		}
	})
}

func TestT5_RetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	date := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, c := range []struct {
		value, date string
		want        time.Duration
	}{
		{"", "", 0},
		{"0", "", 0},
		{"7", "", 7 * time.Second},
		{" 7 ", "", 7 * time.Second},
		{"60", "", time.Minute},
		{"61", "", time.Minute},
		{"99999999999999999999", "", time.Minute},
		{"-5", "", 0},
		{"1.5", "", 0},
		{"soon", "", 0},
		{date(20 * time.Second), "", 20 * time.Second},
		{date(-time.Hour), "", 0},
		{date(time.Hour), "", time.Minute},
		{date(time.Hour + 20*time.Second), date(time.Hour), 20 * time.Second},
		{date(20 * time.Second), "junk", 20 * time.Second},
	} {
		h := http.Header{"Retry-After": {c.value}}
		if c.date != "" {
			h.Set("Date", c.date)
		}
		if got := retryAfter(h, now); got != c.want {
			t.Errorf("Retry-After %q, Date %q: want %s, got %s", c.value, c.date, c.want, got)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("5", "")
	f.Add("Mon, 02 Nov 2026 10:00:20 GMT", "Mon, 02 Nov 2026 10:00:00 GMT")
	f.Add("-1", "x")
	f.Fuzz(func(t *testing.T, value, date string) {
		got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}, time.Unix(1_800_000_000, 0))
		if got < 0 || got > retryAfterCap {
			t.Fatalf("%q, %q: %s is out of bounds", value, date, got)
		}
	})
}

func TestO20_CleanDescription(t *testing.T) {
	r := newRedactor("id", "s3cr3t p%ä")
	for in, want := range map[string]string{
		"wrong\r\nclient \"x\" \\ é\x00!": "wrong client x !",
		"the secret s3cr3t p%ä is wrong":  "",
		"S3CR3T P%Ä":                      "",
		"client_secret=s3cr3t+p%25%c3%a4": "",
		"s3cr3t%20p%25%C3%A4":             "",
		"czNjcjN0IHAlw6Q=":                "",
		"aWQ6czNjcjN0K3AlMjUlQzMlQTQ=":    "",
		"":                                "",
		strings.Repeat("a", 500):          strings.Repeat("a", 200),
	} {
		if got := r.clean(in); got != want {
			t.Errorf("%q: want %q, got %q", in, want, got)
		}
	}
}
