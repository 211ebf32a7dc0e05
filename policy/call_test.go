package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// call is a Call in strings.
type call struct{ method, target, version, id string }

func calls(in []Call) []call {
	var out []call
	for _, c := range in {
		out = append(out, call{string(c.Method), string(c.Target), string(c.Version), string(c.ID)})
	}
	return out
}

func TestParseCalls(t *testing.T) {
	for name, tc := range map[string]struct {
		body string
		want []call
	}{
		"a tool":               {`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"a":[1,{"b":null}]}}}`, []call{{"tools/call", "read", "", "1"}}},
		"members in any order": {"\t{\"params\" : {\"arguments\":{},\"name\":\"read\"} ,\r\n \"method\":\"tools/call\",\"id\":\"x\",\"jsonrpc\":\"2.0\"} \n", []call{{"tools/call", "read", "", `"x"`}}},
		"escapes":              {`{"jsonrpc":"2.0","id":-1.5e3,"\u006dethod":"tools\/call","params":{"name":"\ud83d\ude00\u00e9\n"[0:]}}`, nil},
		"escaped name":         {`{"jsonrpc":"2.0","id":2,"\u006dethod":"tools\/call","params":{"name":"\ud83d\ude00\u00e9x"}}`, []call{{"tools/call", "😀éx", "", "2"}}},
		"a notification":       {`{"jsonrpc":"2.0","method":"notifications/initialized"}`, []call{{"notifications/initialized", "", "", ""}}},
		"params null":          {`{"jsonrpc":"2.0","id":3,"method":"ping","params":null}`, []call{{"ping", "", "", "3"}}},
		"a resource":           {`{"jsonrpc":"2.0","id":3,"method":"resources/read","params":{"uri":"file:///a,b"}}`, []call{{"resources/read", "file:///a,b", "", "3"}}},
		"a completion":         {`{"jsonrpc":"2.0","id":3,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"x","value":""}}}`, []call{{"completion/complete", "p", "", "3"}}},
		"T12 the version":      {`{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","x":{"y":[]}},"name":"t"}}`, []call{{"tools/call", "t", "2026-07-28", "3"}}},
		"a response":           {`{"jsonrpc":"2.0","id":7,"result":{"method":"tools/call"}}`, []call{{"", "", "", "7"}}},
		"an error":             {`{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"m"}}`, []call{{"", "", "", "7"}}},
		"H8 a batch": {
			`[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete"}}]`,
			[]call{{"tools/list", "", "", "1"}, {"tools/call", "delete", "", "2"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseCalls([]byte(tc.body), nil)
			if tc.want == nil {
				if err == nil {
					t.Fatalf("got %v, want an error", calls(got))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, calls(got), cmp.AllowUnexported(call{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestParseCallsRefuses holds one body for each way in which two parsers may
// read different things.
func TestParseCallsRefuses(t *testing.T) {
	const good = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"}}`
	if _, err := ParseCalls([]byte(good), nil); err != nil {
		t.Fatal(err)
	}
	tool := func(params string) string {
		return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":` + params + `}`
	}
	for name, body := range map[string]string{
		"empty":                          "",
		"blanks":                         " \n",
		"S4 a byte order mark":           "\ufeff" + good,
		"S4 UTF-16":                      "{\x00\"\x00j\x00",
		"S4 two documents":               good + good,
		"S4 trailing data":               good + "x",
		"S4 a trailing NUL":              good + "\x00",
		"a comment":                      "/**/" + good,
		"a trailing comma":               strings.Replace(good, `"}}`, `",}}`, 1),
		"single quotes":                  strings.ReplaceAll(good, `"`, `'`),
		"a form feed":                    "\f" + good,
		"cut off":                        good[:len(good)-1],
		"a text":                         `"tools/call"`,
		"a number":                       "1",
		"an empty batch":                 "[]",
		"H8 a batch in a batch":          "[[" + good + "]]",
		"H8 a batch of a text":           `["x"]`,
		"H8 65 messages":                 "[" + strings.Repeat(good+",", 64) + good + "]",
		"S3 two methods":                 `{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{"name":"x"}}`,
		"S3 two params":                  `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"},"params":{"name":"delete"}}`,
		"S3 two names":                   tool(`{"name":"read","name":"delete"}`),
		"S3 two names, one escaped":      tool(`{"name":"read","\u006eame":"delete"}`),
		"S3 the same name twice":         tool(`{"name":"read","name":"read"}`),
		"S3 two unknown members":         `{"jsonrpc":"2.0","id":1,"method":"ping","x":1,"x":2}`,
		"S4 a method in capitals":        `{"jsonrpc":"2.0","id":1,"method":"tools/list","METHOD":"tools/call","params":{"name":"x"}}`,
		"S4 only a method in capitals":   `{"jsonrpc":"2.0","id":1,"Method":"tools/call","params":{"name":"x"}}`,
		"S4 a name in capitals":          tool(`{"name":"read","Name":"delete"}`),
		"S4 params with a long s":        `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"},"paramſ":{"name":"delete"}}`,
		"two versions in _meta":          tool(`{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"a","io.modelcontextprotocol/protocolVersion":"b"}}`),
		"no method, no result":           `{"jsonrpc":"2.0","id":1}`,
		"method and result":              `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"},"result":{}}`,
		"no version of JSON-RPC":         `{"id":1,"method":"tools/call","params":{"name":"x"}}`,
		"JSON-RPC 1.0":                   `{"jsonrpc":"1.0","id":1,"method":"tools/call","params":{"name":"x"}}`,
		"JSON-RPC 2.0 as a number":       `{"jsonrpc":2.0,"id":1,"method":"tools/call","params":{"name":"x"}}`,
		"a method that is no text":       `{"jsonrpc":"2.0","id":1,"method":["tools/call"],"params":{"name":"x"}}`,
		"an empty method":                `{"jsonrpc":"2.0","id":1,"method":""}`,
		"a method with a blank":          `{"jsonrpc":"2.0","id":1,"method":"tools/call "}`,
		"a method with a NUL":            `{"jsonrpc":"2.0","id":1,"method":"tools/call\u0000"}`,
		"a URI with dots":                `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"crm://public/../delete"}}`,
		"a URI with dots, a completion":  `{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"uri":"crm://public/../delete"}}}`,
		"a completion of two":            `{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"x:delete","name":"read"}}}`,
		"params by position":             tool(`["read"]`),
		"no params":                      `{"jsonrpc":"2.0","id":1,"method":"tools/call"}`,
		"no name":                        tool(`{}`),
		"a name that is no text":         tool(`{"name":["read"]}`),
		"a null name":                    tool(`{"name":null}`),
		"an empty name":                  tool(`{"name":""}`),
		"a name with a NUL":              tool(`{"name":"read\u0000delete"}`),
		"a name with a blank before it":  tool(`{"name":" read"}`),
		"a name with a wide blank":       tool(`{"name":"read\u00a0"}`),
		"a name with a mark JS trims":    tool(`{"name":"read\ufeff"}`),
		"a name with half a pair":        tool(`{"name":"read\ud83d"}`),
		"a name with the second half":    tool(`{"name":"read\ude00"}`),
		"a name with two first halves":   tool(`{"name":"\ud83d\ud83d"}`),
		"a member name with half a pair": tool(`{"name":"read","a\ud83d":1}`),
		"a long name":                    tool(`{"name":"` + strings.Repeat("x", 2049) + `"}`),
		"H12 it nests too deep":          tool(`{"name":"x","arguments":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`),
		"H12 it never stops nesting":     strings.Repeat("[", 1<<20),
		"many members":                   tool(`{"name":"x"` + manyMembers(70) + `}`),
		"a raw line break in a text":     tool("{\"name\":\"re\nad\"}"),
		"a bad escape":                   tool(`{"name":"\x41"}`),
		"a bad unicode escape":           tool(`{"name":"\u00zz"}`),
		"a leading zero":                 tool(`{"name":"x","n":01}`),
		"a bare point":                   tool(`{"name":"x","n":1.}`),
		"a bare exponent":                tool(`{"name":"x","n":1e}`),
		"a plus":                         tool(`{"name":"x","n":+1}`),
		"NaN":                            tool(`{"name":"x","n":NaN}`),
		"True":                           tool(`{"name":"x","n":True}`),
		"an id that is an object":        `{"jsonrpc":"2.0","id":{},"method":"ping"}`,
		"an id that is true":             `{"jsonrpc":"2.0","id":true,"method":"ping"}`,
		"not UTF-8":                      tool("{\"name\":\"read\xff\"}"),
		"an overlong slash":              tool("{\"name\":\"read\xc0\xaf\"}"),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseCalls([]byte(body), nil); err == nil {
				t.Errorf("got %v, want an error", calls(got))
			} else if strings.Contains(err.Error(), "delete") {
				t.Errorf("the error quotes the body: %v", err)
			}
		})
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(`,"m` + string(rune('a'+i%26)) + string(rune('a'+i/26)) + `":1`)
	}
	return b.String()
}

func BenchmarkParseCalls(b *testing.B) {
	small := []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"customer_lookup","arguments":{"id":"42"},"_meta":{"progressToken":1}}}`)
	large := []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"store","arguments":{"text":"` + strings.Repeat("lorem ipsum ", 25_000) + `"}}}`)
	for name, body := range map[string][]byte{"150B": small, "300kB": large} {
		b.Run(name, func(b *testing.B) {
			var buf [4]Call
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseCalls(body, buf[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestIsShortened holds which URIs a server makes another one of.
func TestIsShortened(t *testing.T) {
	for uri, want := range map[string]bool{
		"crm://public/a":           false,
		"crm://public/..a/b..":     false,
		"crm://public/a.b/...":     false,
		"crm://public/%41.txt":     false,
		"crm://public/%":           false,
		"":                         false,
		"crm://public/../secret":   true,
		"crm://public/..":          true,
		"crm://public/./a":         true,
		"crm://public/..?x":        true,
		"crm://public/..#x":        true,
		`file:///public\..\secret`: true,
		"crm://public/%2e%2E/x":    true,
		"crm://public/.%2e/x":      true,
		"crm://public/a%2f..%5Cx":  true,
		"crm://public/%/../x":      true,
		"crm://public/%4/../x":     true,
	} {
		if got := isShortened([]byte(uri)); got != want {
			t.Errorf("%q: got %v, want %v", uri, got, want)
		}
	}
}
