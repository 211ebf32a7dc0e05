package policy

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzS6_Scopes: whoever passes a rule has, by itself or by what its scopes
// include, every scope of the rule, whatever the graph of scopes looks like. The
// other side is a search over the graph as it is written.
func FuzzS6_Scopes(f *testing.F) {
	f.Add("a>b b>c", "a", "c")
	f.Add("a>b b>a", "b", "a b")
	f.Add("a>a b>c,d d>e", "b x", "e c")
	f.Add("admin>customer:read", "customer:rea", "customer:read")
	f.Add("", "a  b", "a b a")
	f.Add("0", "x 0", "1 1")
	f.Fuzz(func(t *testing.T, graph, has, needs string) {
		implies := map[string][]string{}
		for edge := range strings.FieldsSeq(graph) {
			if from, to, ok := strings.Cut(edge, ">"); ok {
				implies[from] = append(implies[from], strings.Split(to, ",")...)
			}
		}
		need, granted := strings.Fields(needs), strings.Fields(has)
		tools := &Tools{Implies: closure(implies), Rules: []ToolRule{{Methods: []string{"tools/call"}, Names: []string{"*"}, Scopes: need}}}
		v := tools.Judge(Bearer{Caller: "c", Scopes: granted}, []Call{tool("x")})
		want := Allowed
		for _, n := range need {
			if !reachable(implies, granted, n) {
				want = ScopeMissing
			}
		}
		if v.Reason != want {
			t.Fatalf("graph %v: %q for %q: got %v, want %v", implies, granted, need, v.Reason, want)
		}
		named := func(s string) bool { return slices.Contains(v.Scopes, s) }
		if want == ScopeMissing && (!within(need, named) || len(v.Scopes) > len(need)) {
			t.Fatalf("A5: want all of %q in the challenge, got %q", need, v.Scopes)
		}
	})
}

// reachable walks from what is granted, once over each scope.
func reachable(implies map[string][]string, granted []string, need string) bool {
	seen := map[string]bool{}
	todo := slices.Clone(granted)
	for len(todo) > 0 {
		s := todo[0]
		todo = todo[1:]
		if s == need {
			return true
		}
		if !seen[s] {
			seen[s] = true
			todo = append(todo, implies[s]...)
		}
	}
	return false
}

// FuzzH3_ReadStandard: a name is what its bytes say, or what exactly one frame
// of base64 says, and never anything in between; two of a header are refused.
func FuzzH3_ReadStandard(f *testing.F) {
	for _, seed := range []string{
		"read", " read\t", "=?base64?cmVhZA==?=", "=?BASE64?cmVhZA==?=", "=?base64?cmVhZB==?=", "=?base64?cm\nVhZA==?=",
		"=?base64??=", "=?base64?=", "=?base64?/w==?=", "a,b", "=?base64?=?base64?YQ==?=?=", "",
	} {
		f.Add([]byte(seed), []byte("tools/call"), false)
		f.Add([]byte(seed), []byte("resources/read"), true)
	}
	f.Fuzz(func(t *testing.T, name, method []byte, twice bool) {
		r := &Request{Headers: []Header{{"mcp-method", method}, {"mcp-name", name}}}
		if twice {
			r.Headers = append(r.Headers, Header{"mcp-name", name})
		}
		before := bytes.Clone(name)
		var h Standard
		reason := ReadStandard(r, &h)
		if !bytes.Equal(before, name) {
			t.Fatal("H10: the header that goes on was changed")
		}
		if twice && reason != BadRequest {
			t.Fatalf("H7: two names: got %v", reason)
		}
		if reason != Allowed {
			return
		}
		if bytes.IndexByte(method, ',') >= 0 || bytes.IndexByte(name, ',') >= 0 && !bytes.HasPrefix(trim(method), []byte("resources/")) {
			t.Fatalf("H7: %q of %q may be two", name, method)
		}
		plain := trim(name)
		if bytes.Equal(h.Name, plain) {
			return
		}
		framed := "=?base64?" + base64.StdEncoding.EncodeToString(h.Name) + "?="
		if framed != string(plain) || !utf8.Valid(h.Name) {
			t.Fatalf("H3: %q was read as %q", plain, h.Name)
		}
	})
}
