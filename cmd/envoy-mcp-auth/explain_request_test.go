package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestExplainRecorded: a request out of a file is judged as it was sent.
func TestExplainRecorded(t *testing.T) {
	file := policyFile(t, ruledPolicy)
	body := func(tool string) string {
		return `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + tool + `"}}`
	}
	head := "POST /tools/mcp HTTP/1.1\r\nHost: proxy\r\nContent-Type: application/json\r\nX-Mcp-Auth-Key: key\r\n"
	for name, tc := range map[string]struct {
		text, want string
		code       int
	}{
		"allowed":                   {head + "Content-Length: " + strconv.Itoa(len(body("customer_lookup"))) + "\r\n\r\n" + body("customer_lookup") + "\n", "decision  allowed (200)", 0},
		"S6 a scope is missing":     {head + "\r\n" + body("ticket_new"), "decision  scope_missing (403)", 1},
		"H7 two names":              {head + "Mcp-Name: read\r\nMcp-Name: read\r\n\r\n" + body("read"), "decision  bad_request (400)", 1},
		"S4 another type":           {strings.Replace(head, "application/json", "text/plain", 1) + "\r\n" + body("read"), "decision  tool_unproved (403)", 1},
		"line feeds alone":          {strings.ReplaceAll(head, "\r", "") + "\n" + body("read"), "decision  allowed (200)", 0},
		"a GET":                     {strings.Replace(head, "POST", "GET", 1) + "\r\n", "decision  allowed (200)", 0},
		"no request":                {"canary: a secret\n", "want an HTTP/1.1 request as it was sent", 1},
		"a header that is none":     {head + "canary\r\n\r\n", "want an HTTP/1.1 request as it was sent", 1},
		"chunks":                    {head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "give it whole with --body FILE", 1},
		"less than was said":        {head + "Content-Length: 99\r\n\r\n{}", "content-length is 99, and the file has 2 bytes of body", 1},
		"A8 a token in the query":   {strings.Replace(head, "/tools/mcp", "/tools/mcp?access_token=canary", 1) + "\r\n", "decision  bad_request (400)", 1},
		"tokens: two in one header": {head + "Authorization: Bearer a.b.c, Bearer d.e.f\r\n\r\n" + body("read"), "decision  bad_request (400)", 1},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "recorded.http")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got := program(t, nil, "explain", "-c", file, "--upstream", "tools", "--request", path)
			if said := got.out + got.err; got.code != tc.code || !strings.Contains(said, tc.want) {
				t.Errorf("want %d %q, got %d\n%s", tc.code, tc.want, got.code, said)
			} else if strings.Contains(said, "canary") {
				t.Errorf("it repeats what may be a secret:\n%s", said)
			}
		})
	}
}
