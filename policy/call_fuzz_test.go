package policy

import (
	"encoding/json"
	"testing"

	"github.com/tidwall/gjson"
)

// executed is what a server would run that reads bodies with some parser.
type executed struct{ method, name, uri string }

// lastWins reads as Go's encoding/json does: member names in any case, and of
// two the last one. Many servers are built on it.
func lastWins(body []byte) []executed {
	type request struct {
		Method string
		Params struct {
			Name string
			URI  string
		}
	}
	var one request
	var many []request
	if json.Unmarshal(body, &one) == nil {
		many = append(many, one)
	} else if json.Unmarshal(body, &many) != nil {
		return nil
	}
	var out []executed
	for _, r := range many {
		out = append(out, executed{r.Method, r.Params.Name, r.Params.URI})
	}
	return out
}

// firstWins reads as a lenient parser does that stops at the first match and
// never looks at what follows.
func firstWins(body []byte) []executed {
	read := func(r gjson.Result) executed {
		return executed{r.Get("method").String(), r.Get("params.name").String(), r.Get("params.uri").String()}
	}
	root := gjson.ParseBytes(body)
	if !root.IsArray() {
		return []executed{read(root)}
	}
	var out []executed
	for _, r := range root.Array() {
		out = append(out, read(r))
	}
	return out
}

// FuzzS3_ParseCalls: whatever a body makes one of two other parsers run, the
// calls that were judged name it. What ParseCalls refuses never gets to a server.
func FuzzS3_ParseCalls(f *testing.F) {
	for _, seed := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"a":[1,{"b":null}]}}}`,
		`[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}]`,
		`{"jsonrpc":"2.0","id":"a","method":"resources/read","params":{"uri":"file:///a","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}`,
		`{"jsonrpc":"2.0","id":1,"\u006dethod":"tools\/call","params":{"n\u0061me":"\ud83d\ude00"}}`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/list","METHOD":"tools/call","params":{"name":"x","Name":"y"}}`,
		`{"jsonrpc":"2.0","id":7,"result":{"method":"tools/call"}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized","params":null}`,
		"\ufeff{}", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"name":["x"],"uri":1e9}} `,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		judged, err := ParseCalls(body, nil)
		if err != nil {
			return
		}
		if !json.Valid(body) {
			t.Fatal("accepted what is no JSON")
		}
		for parser, runs := range map[string][]executed{"last wins": lastWins(body), "first wins": firstWins(body)} {
			for i, e := range runs {
				if i >= len(judged) {
					t.Fatalf("%s runs %d messages, %d were judged", parser, len(runs), len(judged))
				}
				c := judged[i]
				if e.method != string(c.Method) {
					t.Fatalf("%s runs method %q, judged was %q", parser, e.method, c.Method)
				}
				switch e.method {
				case "tools/call", "prompts/get":
					if e.name != string(c.Target) {
						t.Fatalf("%s runs %q, judged was %q", parser, e.name, c.Target)
					}
				case "resources/read", "resources/subscribe":
					if e.uri != string(c.Target) {
						t.Fatalf("%s reads %q, judged was %q", parser, e.uri, c.Target)
					}
				}
			}
		}
	})
}
