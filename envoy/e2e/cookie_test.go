package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// cookieRows are lines of the header as sent, and the one line that must arrive;
// empty for none. Every cookie that may not pass holds the word of the scan.
func cookieRows() map[string]struct {
	lines []string
	want  string
} {
	const bad = "=" + canary
	var ninety, many []string
	for i := range 89 {
		ninety = append(ninety, fmt.Sprintf("c%d%s", i, bad))
	}
	ninety = slices.Insert(ninety, 45, "session_id=mid")
	for i := range 3000 {
		many = append(many, fmt.Sprintf("c%d=%s", i, canary[:2]))
	}
	many = slices.Insert(many, 1500, "user_context=mid")
	big := "pad=" + strings.Repeat("p", 57<<10) + "; session_id=end"
	return map[string]struct {
		lines []string
		want  string
	}{
		"one":                     {[]string{"session_id=1"}, "session_id=1"},
		"none permitted":          {[]string{"tracking" + bad}, ""},
		"empty":                   {[]string{""}, ""},
		"90 lines":                {ninety, "session_id=mid"},
		"two lines":               {[]string{"session_id=1; a" + bad, "b" + bad + "; user_context=2"}, "session_id=1; user_context=2"},
		"3,000 pairs":             {[]string{strings.Join(many, "; ")}, "user_context=mid"},
		"57 kB":                   {[]string{big}, "session_id=end"},
		"duplicates":              {[]string{"session_id=1; x" + bad + "; session_id=2"}, "session_id=1; session_id=2"},
		"duplicates in two lines": {[]string{"session_id=2", "session_id=1"}, "session_id=2; session_id=1"},
		"order kept":              {[]string{"user_context=2; t" + bad + "; session_id=1"}, "user_context=2; session_id=1"},
		"no blank":                {[]string{"session_id=1;t" + bad + ";user_context=2"}, "session_id=1; user_context=2"},
		"many blanks":             {[]string{"  session_id=1 ;   t" + bad + " ;\tuser_context=2  "}, "session_id=1; user_context=2"},
		"quotes":                  {[]string{`session_id="a b"; t="` + canary + `"`}, `session_id="a b"`},
		"a quote over the sign":   {[]string{`t="` + canary + `; session_id=1"`}, `session_id=1"`},
		"a comma is a value":      {[]string{"session_id=1,2"}, "session_id=1,2"},
		"an equals sign":          {[]string{"session_id=a=b=="}, "session_id=a=b=="},
		"no name":                 {[]string{bad + "; session_id=1"}, "session_id=1"},
		"no sign":                 {[]string{"session_id; user_context=1"}, "user_context=1"},
		"empty value":             {[]string{"session_id="}, "session_id="},
		"signs only":              {[]string{";;; session_id=1 ;;;"}, "session_id=1"},
		"case":                    {[]string{"Session_Id" + bad + "; SESSION_ID" + bad + "; session_id=1"}, "session_id=1"},
		"__Host-":                 {[]string{"__host-sid" + bad + "; __Host-sid=1; __Secure-sid" + bad}, "__Host-sid=1"},
		"longer names":            {[]string{"session_idx" + bad + "; xsession_id" + bad + "; session_i" + bad}, ""},
		"$Version":                {[]string{"$Version=1; session_id=1; $Path" + bad}, "session_id=1"},
		"non-UTF-8":               {[]string{"session_id=\xff\xfe\x80; t\xff" + bad}, "session_id=\xff\xfe\x80"},
		"percent":                 {[]string{"session_id=%3B%20a; session%5Fid" + bad}, "session_id=%3B%20a"},
		"a no-break space":        {[]string{"\u00a0session_id" + bad + "; session_id=1"}, "session_id=1"},
	}
}

// TestC7_Cookies: one line arrives, byte for byte what is permitted of all that
// was sent.
func TestC7_Cookies(t *testing.T) {
	r := start(t, standard)
	for what, row := range cookieRows() {
		var lines []string
		for _, l := range row.lines {
			lines = append(lines, "cookie: "+l)
		}
		r.both(func(proto string, get func(string, ...string) reply) {
			if proto == "h2" && what == "many blanks" {
				return // a field with blanks around it is malformed in HTTP/2
			}
			a, got := r.lands(t, "alpha", proto+" "+what, func() reply { return get("/alpha/mcp", lines...) })
			var want []string
			if row.want != "" {
				want = []string{row.want}
			}
			if c := a.lines("cookie"); got.status != http.StatusOK || !slices.Equal(c, want) {
				t.Errorf("%s %s: want %.100q, got %v and %.100q", proto, what, want, got, c)
			}
			// An upstream without permitted cookies gets no cookie header at all.
			b, got := r.lands(t, "open", proto+" "+what, func() reply { return get("/open/mcp", lines...) })
			if c := b.lines("cookie"); got.status != http.StatusOK || len(c) != 0 {
				t.Errorf("%s %s, to open: want no cookie, got %v and %.100q", proto, what, got, c)
			}
		})
	}
}

// TestC7_Crumbs: HTTP/2 may cut the header at every pair, up to
// Envoy's limit of 100 fields.
func TestC7_Crumbs(t *testing.T) {
	r := start(t, standard)
	fields := pairs{":method", "GET", ":scheme", "http", ":authority", "x", ":path", "/alpha/mcp"}
	for i := range 45 {
		fields = append(fields, "cookie", fmt.Sprintf("c%d=%s", i, canary), "cookie", fmt.Sprintf("session_id=%d", i))
	}
	a, got := r.lands(t, "alpha", "crumbs", func() reply { return r.h2(fields) })
	c := a.lines("cookie")
	if got.status != http.StatusOK || len(c) != 1 || strings.Count(c[0], "session_id=") != 45 || !strings.HasPrefix(c[0], "session_id=0; session_id=1; ") {
		t.Errorf("want 45 cookies in one line, got %v and %.200q", got, c)
	}
}

// TestC7_TooLarge: over Envoy's limit of 60 KiB, Envoy answers.
func TestC7_TooLarge(t *testing.T) {
	r := start(t, standard)
	r.both(func(proto string, get func(string, ...string) reply) {
		got := get("/alpha/mcp", "cookie: session_id="+strings.Repeat("a", 64<<10))
		if got.status != http.StatusRequestHeaderFieldsTooLarge && (proto == "h1" || got.status != 0) {
			t.Errorf("%s: want 431, got %v", proto, got)
		}
	})
	r.untouched()
}
