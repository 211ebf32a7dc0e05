package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestGlob(t *testing.T) {
	for _, tc := range []struct {
		pattern, s string
		want       bool
	}{
		{"read", "read", true},
		{"read", "Read", false},
		{"read", "reads", false},
		{"read", "", false},
		{"", "", true},
		{"", "a", false},
		{"*", "", true},
		{"*", "anything", true},
		{"**", "x", true},
		{"ticket_*", "ticket_create", true},
		{"ticket_*", "ticket_", true},
		{"ticket_*", "aticket_x", false},
		{"*_read", "a_read", true},
		{"*_read", "a_read_b_read", true},
		{"*_read", "a_reader", false},
		{"file:///srv/*/a.txt", "file:///srv/x/y/a.txt", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "acb", false},
		{"a?c", "abc", false},
		{"a?c", "a?c", true},
		{"[a-z]", "b", false},
	} {
		if got := glob(tc.pattern, tc.s); got != tc.want {
			t.Errorf("glob(%q, %q) = %v, want %v", tc.pattern, tc.s, got, tc.want)
		}
	}
	if glob(strings.Repeat("*a", 1000), strings.Repeat("a", 2000)+"b") {
		t.Error("want no match")
	}
}

// TestGlobAgainstSlow compares with a matcher that is plainly right.
func TestGlobAgainstSlow(t *testing.T) {
	var slow func(p, s string) bool
	slow = func(p, s string) bool {
		if p == "" {
			return s == ""
		}
		if p[0] == '*' {
			return slow(p[1:], s) || s != "" && slow(p, s[1:])
		}
		return s != "" && s[0] == p[0] && slow(p[1:], s[1:])
	}
	text := func(alphabet string) *rapid.Generator[string] {
		return rapid.StringOfN(rapid.RuneFrom([]rune(alphabet)), 0, 8, -1)
	}
	rapid.Check(t, func(rt *rapid.T) {
		p, s := text("ab*").Draw(rt, "pattern"), text("ab").Draw(rt, "s")
		if glob(p, s) != slow(p, s) {
			rt.Fatalf("glob(%q, %q) = %v", p, s, glob(p, s))
		}
	})
}

func tool(name string) Call {
	return Call{Method: []byte("tools/call"), Target: []byte(name), ID: []byte("1")}
}

func method(name string) Call { return Call{Method: []byte(name), ID: []byte("1")} }

func TestJudge(t *testing.T) {
	rules := &Tools{
		Rules: []ToolRule{
			{Methods: []string{"tools/call"}, Names: []string{"customer_lookup"}, Scopes: []string{"customer:read"}},
			{Methods: []string{"tools/call"}, Names: []string{"ticket_*"}, Scopes: []string{"ticket:create", "ticket:read"}},
			{Methods: []string{"tools/call"}, Names: []string{"purge"}, Callers: []string{"ci"}},
			{Methods: []string{"resources/read"}, Names: []string{"file:///public/*"}},
			{Methods: []string{"tasks/cancel"}, Names: []string{"*"}, Scopes: []string{"task:cancel"}},
			{Methods: []string{"x/run"}, Names: []string{"*"}},
		},
		Implies: map[string][]string{"admin": {"customer:read", "ticket:create", "ticket:read"}},
	}
	uri := func(u string) Call { return Call{Method: []byte("resources/read"), Target: []byte(u)} }
	for name, tc := range map[string]struct {
		who   Bearer
		calls []Call
		want  Verdict
	}{
		"a scope is there":          {Bearer{"ai", []string{"x", "customer:read"}}, []Call{tool("customer_lookup")}, Verdict{Reason: Allowed}},
		"S6 A5 a scope is missing":  {Bearer{"ai", []string{"ticket:read"}}, []Call{tool("ticket_new")}, Verdict{Reason: ScopeMissing, Rule: 1, Scopes: []string{"ticket:create", "ticket:read"}}},
		"A6 scopes have a case":     {Bearer{"ai", []string{"Customer:Read"}}, []Call{tool("customer_lookup")}, Verdict{Reason: ScopeMissing, Scopes: []string{"customer:read"}}},
		"A6 a broader scope":        {Bearer{"ai", []string{"admin"}}, []Call{tool("ticket_new")}, Verdict{Reason: Allowed, Rule: 1}},
		"S7 an unknown tool":        {Bearer{"ai", []string{"admin"}}, []Call{tool("drop_database")}, Verdict{Reason: ToolDenied, Rule: -1}},
		"S7 a tool in another case": {Bearer{"ai", []string{"admin"}}, []Call{tool("Customer_lookup")}, Verdict{Reason: ToolDenied, Rule: -1}},
		"a rule of another caller":  {Bearer{"ai", nil}, []Call{tool("purge")}, Verdict{Reason: ToolDenied, Rule: -1}},
		"a rule of this caller":     {Bearer{"ci", nil}, []Call{tool("purge")}, Verdict{Reason: Allowed, Rule: 2}},
		"a tool rule is no prompt":  {Bearer{"ai", []string{"admin"}}, []Call{{Method: []byte("prompts/get"), Target: []byte("customer_lookup")}}, Verdict{Reason: ToolDenied, Rule: -1}},
		"a resource":                {Bearer{"ai", nil}, []Call{uri("file:///public/a")}, Verdict{Reason: Allowed, Rule: 3}},
		"another resource":          {Bearer{"ai", nil}, []Call{uri("file:///secret")}, Verdict{Reason: ToolDenied, Rule: -1}},
		"the handshake":             {Bearer{"ai", nil}, []Call{method("initialize")}, Verdict{Reason: Allowed, Rule: -1}},
		"a list":                    {Bearer{"ai", nil}, []Call{method("tools/list")}, Verdict{Reason: Allowed, Rule: -1}},
		"a notification":            {Bearer{"ai", nil}, []Call{method("notifications/cancelled")}, Verdict{Reason: Allowed, Rule: -1}},
		"a response":                {Bearer{"ai", nil}, []Call{{ID: []byte("1")}}, Verdict{Reason: Allowed, Rule: -1}},
		"a method nobody knows":     {Bearer{"ai", []string{"admin"}}, []Call{method("tools/execute")}, Verdict{Reason: ToolDenied, Rule: -1}},
		"a method in another case":  {Bearer{"ai", []string{"admin"}}, []Call{{Method: []byte("TOOLS/CALL"), Target: nil}}, Verdict{Reason: ToolDenied, Rule: -1}},
		"a method with a rule":      {Bearer{"ai", nil}, []Call{method("x/run")}, Verdict{Reason: Allowed, Rule: 5}},
		"housekeeping with a rule":  {Bearer{"ai", nil}, []Call{{Method: []byte("tasks/cancel"), Target: []byte("t1")}}, Verdict{Reason: ScopeMissing, Rule: 4, Scopes: []string{"task:cancel"}}},
		"H8 a batch, one is denied": {Bearer{"ai", []string{"admin"}}, []Call{method("tools/list"), tool("customer_lookup"), tool("drop")}, Verdict{Reason: ToolDenied, Call: 2, Rule: -1}},
		"H8 a batch, one lacks":     {Bearer{"ai", nil}, []Call{method("ping"), tool("customer_lookup"), tool("ticket_x")}, Verdict{Reason: ScopeMissing, Call: 1, Rule: 0, Scopes: []string{"customer:read", "ticket:create", "ticket:read"}}},
		"H8 a batch, lacks, denied": {Bearer{"ai", nil}, []Call{tool("customer_lookup"), tool("drop")}, Verdict{Reason: ToolDenied, Call: 1, Rule: -1}},
		"H8 a batch, all may":       {Bearer{"ai", []string{"admin"}}, []Call{tool("customer_lookup"), tool("ticket_x")}, Verdict{Reason: Allowed}},
		"H8 a batch, denied, lacks": {Bearer{"ai", nil}, []Call{tool("drop"), tool("customer_lookup")}, Verdict{Reason: ToolDenied, Rule: -1}},
		"H8 a batch, missing twice": {Bearer{"ai", nil}, []Call{tool("ticket_x"), tool("ticket_y")}, Verdict{Reason: ScopeMissing, Rule: 1, Scopes: []string{"ticket:create", "ticket:read"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, rules.Judge(tc.who, tc.calls)); diff != "" {
				t.Error(diff)
			}
		})
	}
	open := &Tools{AllowUnlisted: true, Rules: rules.Rules}
	if v := open.Judge(Bearer{"ai", nil}, []Call{tool("drop")}); v.Reason != Allowed {
		t.Errorf("default allow: got %v", v.Reason)
	}
	if v := open.Judge(Bearer{"ai", nil}, []Call{tool("customer_lookup")}); v.Reason != ScopeMissing {
		t.Errorf("default allow, a rule: got %v", v.Reason)
	}
	if !slices.Equal(rules.Rules[1].Scopes, []string{"ticket:create", "ticket:read"}) {
		t.Error("judging changed a rule")
	}
}

func TestJudgeDoesNotAllocate(t *testing.T) {
	rules := &Tools{Rules: []ToolRule{{Methods: []string{"tools/call"}, Names: []string{"ticket_*"}, Scopes: []string{"ticket:create"}}}}
	who, calls := Bearer{"ai", []string{"ticket:create"}}, []Call{tool("ticket_new")}
	if n := testing.AllocsPerRun(100, func() { rules.Judge(who, calls) }); n > 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func request(headers ...string) *Request {
	r := &Request{}
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, Header{headers[i], []byte(headers[i+1])})
	}
	return r
}

func TestReadStandard(t *testing.T) {
	for name, tc := range map[string]struct {
		headers []string
		want    Reason
		method  string
		called  string
	}{
		"none":                             {nil, Allowed, "", ""},
		"plain":                            {[]string{"mcp-method", "tools/call", "mcp-name", "read"}, Allowed, "tools/call", "read"},
		"T2 blanks around":                 {[]string{"mcp-method", " tools/call\t", "mcp-name", " read "}, Allowed, "tools/call", "read"},
		"H3 base64":                        {[]string{"mcp-name", "=?base64?cmVhZCDDqQ==?="}, Allowed, "", "read é"},
		"H3 an upper-case marker is text":  {[]string{"mcp-name", "=?BASE64?cmVhZA==?="}, Allowed, "", "=?BASE64?cmVhZA==?="},
		"H3 no end marker is text":         {[]string{"mcp-name", "=?base64?cmVhZA=="}, Allowed, "", "=?base64?cmVhZA=="},
		"H3 bad base64":                    {[]string{"mcp-name", "=?base64?cmVhZA?="}, HeaderMismatch, "", ""},
		"H3 spare bits":                    {[]string{"mcp-name", "=?base64?cmVhZB==?="}, HeaderMismatch, "", ""},
		"H3 base64 of no UTF-8":            {[]string{"mcp-name", "=?base64?/w==?="}, HeaderMismatch, "", ""},
		"H12 too long a name to decode":    {[]string{"mcp-name", "=?base64?" + strings.Repeat("YWFh", 1000) + "?="}, HeaderMismatch, "", ""},
		"H7 S5 two names":                  {[]string{"mcp-name", "a", "mcp-name", "b"}, BadRequest, "", ""},
		"H7 two names joined":              {[]string{"mcp-method", "tools/call", "mcp-name", "a,b"}, BadRequest, "", ""},
		"H7 a URI may hold a comma":        {[]string{"mcp-method", "resources/read", "mcp-name", "file:///a,b"}, Allowed, "resources/read", "file:///a,b"},
		"H7 two methods":                   {[]string{"mcp-method", "tools/list", "mcp-method", "tools/call"}, BadRequest, "", ""},
		"H7 two methods joined":            {[]string{"mcp-method", "tools/list,tools/call"}, BadRequest, "", ""},
		"H7 two versions":                  {[]string{"mcp-protocol-version", "2025-11-25", "mcp-protocol-version", "2025-11-25"}, BadRequest, "", ""},
		"H7 two sessions":                  {[]string{"mcp-session-id", "a", "mcp-session-id", "b"}, BadRequest, "", ""},
		"two lengths":                      {[]string{"content-length", "1", "content-length", "1"}, BadRequest, "", ""},
		"a length that is none":            {[]string{"content-length", "-1"}, BadRequest, "", ""},
		"two encodings joined":             {[]string{"content-encoding", "identity, gzip"}, BadRequest, "", ""},
		"a method in a spelling of CGI":    {[]string{"mcp-method", "tools/list", "mcp_method", "tools/call"}, BadRequest, "", ""},
		"a version in a spelling of CGI":   {[]string{"mcp-protocol-version", "2026-07-28", "mcp_protocol-version", "2025-11-25"}, BadRequest, "", ""},
		"an empty second name is a second": {[]string{"mcp-name", "", "mcp-name", "a"}, BadRequest, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var h Standard
			if got := ReadStandard(request(tc.headers...), &h); got != tc.want {
				t.Fatalf("got %v, want %v", got, tc.want)
			}
			if tc.want == Allowed && (string(h.Method) != tc.method || string(h.Name) != tc.called) {
				t.Errorf("got %q %q, want %q %q", h.Method, h.Name, tc.method, tc.called)
			}
		})
	}
}

func TestBodied(t *testing.T) {
	for name, tc := range map[string]struct {
		kind, encoding string
		want           bool
	}{
		"JSON":                                  {"application/json", "", true},
		"with a charset":                        {"Application/JSON; Charset=\"UTF-8\"", "", true},
		"identity":                              {"application/json", "Identity", true},
		"S4 gzip":                               {"application/json", "gzip", false},
		"S4 text":                               {"text/plain", "", false},
		"S4 no type":                            {"", "", false},
		"S4 another charset":                    {"application/json; charset=utf-16", "", false},
		"S4 a charset behind another":           {"application/json; charset=utf-8; charset=utf-7", "", false},
		"S4 a charset with a blank in it":       {"application/json; charset =utf-7", "", false},
		"S4 a charset behind one in quotes":     {`application/json; x="charset=utf-8"; charset=utf-7`, "", false},
		"S4 a charset behind the end of a name": {"application/json; x-charset=utf-8; charset=utf-7", "", false},
		"S4 a charset with an escape":           {`application/json; charset="utf\-8"`, "", false},
		"S4 a charset of RFC 8187":              {"application/json; charset*=utf-7", "", false},
		"with another parameter":                {"application/json; profile=x; charset=utf-8 ;", "", true},
		"a longer type":                         {"application/json-seq", "", false},
		"a form":                                {"multipart/form-data", "", false},
	} {
		h := Standard{Type: []byte(tc.kind), Encoding: []byte(tc.encoding)}
		if got := h.Bodied(); got != tc.want {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

func TestAgree(t *testing.T) {
	const modern, legacy = "2026-07-28", "2025-11-25"
	b := func(s string) []byte {
		if s == "" {
			return nil
		}
		return []byte(s)
	}
	for name, tc := range map[string]struct {
		version, method, name string // headers
		body                  []Call
		want                  bool
	}{
		"legacy without headers":               {legacy, "", "", []Call{tool("read")}, true},
		"no version at all":                    {"", "", "", []Call{tool("read")}, true},
		"H1 modern":                            {modern, "tools/call", "read", []Call{{b("tools/call"), b("read"), b(modern), b("1")}}, true},
		"H2 S1 another name":                   {modern, "tools/call", "read", []Call{{b("tools/call"), b("delete"), b(modern), b("1")}}, false},
		"H6 another name, an old version":      {legacy, "tools/call", "harmless", []Call{tool("delete")}, false},
		"H6 another method over a batch":       {"", "tools/list", "", []Call{method("tools/list"), tool("delete")}, false},
		"H2 another method":                    {modern, "tools/list", "", []Call{{b("tools/call"), b("delete"), b(modern), b("1")}}, false},
		"T2 a method in another case":          {modern, "TOOLS/CALL", "read", []Call{{b("tools/call"), b("read"), b(modern), b("1")}}, false},
		"H2 modern without a method":           {modern, "", "read", []Call{{b("tools/call"), b("read"), b(modern), b("1")}}, false},
		"H2 modern without a name":             {modern, "tools/call", "", []Call{{b("tools/call"), b("read"), b(modern), b("1")}}, false},
		"H1 modern, a list needs no name":      {modern, "tools/list", "", []Call{{b("tools/list"), nil, b(modern), b("1")}}, true},
		"H1 a modern notification needs none":  {modern, "", "", []Call{{b("notifications/cancelled"), nil, nil, nil}}, true},
		"S5 a name where the body has none":    {legacy, "", "read", []Call{method("tools/list")}, false},
		"T12 modern without it in the body":    {modern, "tools/call", "read", []Call{{b("tools/call"), b("read"), nil, b("1")}}, false},
		"T12 modern in the body alone":         {"", "", "", []Call{{b("tools/call"), b("read"), b(modern), b("1")}}, false},
		"T12 old in the header, new in a body": {legacy, "", "", []Call{{b("tools/call"), b("read"), b(modern), b("1")}}, false},
		"a legacy batch":                       {"2025-03-26", "", "", []Call{method("tools/list"), tool("read")}, true},
		"a modern batch":                       {modern, "", "", []Call{method("tools/list"), tool("read")}, false},
		"a modern response":                    {modern, "", "", []Call{{nil, nil, nil, b("1")}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := Standard{Version: b(tc.version), Method: b(tc.method), Name: b(tc.name)}
			if got := h.Agree(tc.body); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
