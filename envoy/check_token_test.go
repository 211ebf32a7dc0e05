package envoy_test

import (
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestA8_CheckLogs: where callers have tokens, no log may have their header, nor a
// query.
func TestA8_CheckLogs(t *testing.T) {
	guest := people("https://idp.company.com")
	guest.JWT.Header = "x-user-token"
	u := upstream("a", "https://a.company.com/mcp")
	u.Callers = []*policy.Caller{guest}
	s := set(u)
	s.Callers = u.Callers
	b, err := envoy.Render(s, envoy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := func(rest string) string {
		return `- {name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/stdout` + rest + `}}`
	}
	text := func(f string) string {
		return log(`, log_format: {text_format_source: {inline_string: "` + f + `"}}`)
	}
	for entry, want := range map[string]string{
		"":      "",
		log(""): "query-logged",
		text("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %RESPONSE_CODE%"): "query-logged",
		text("%REQ(:path):60%"):                                                   "query-logged",
		text("%REQUEST_HEADER(X-Envoy-Original-Path)%"):                           "query-logged",
		text("%PATH(WQ:PATH)%"):                                                   "query-logged",
		text("%PATH(WQ)%"):                                                        "query-logged",
		log(`, log_format: {json_format: {p: "%REQ(:PATH)%"}}`):                   "query-logged",
		text("%PATH(NQ)% %PATH(NQ:ORIG)% %RESPONSE_CODE%"):                        "",
		text("%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%"):                  "",
		text("%REQ(:METHOD)% %REQ(:AUTHORITY)% %UPSTREAM_REQUEST_ATTEMPT_COUNT%"): "",
		text("%REQ(X-User-Token)%"):                                               "secret-logged",
	} {
		found, err := envoy.Check("envoy.yaml", []byte(strings.Replace(string(b), "access_log:\n", "access_log:\n                  "+entry+"\n", 1)), s)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, f := range found {
			got += f.ID
		}
		if got != want {
			t.Errorf("%s: want %q, got %v", entry, want, found)
		}
	}
	s.Callers = nil // nobody has a token: the query is the operator's own affair
	found, err := envoy.Check("envoy.yaml", []byte(strings.Replace(string(b), "access_log:\n", "access_log:\n                  "+log("")+"\n", 1)), s)
	if err != nil || len(found) != 0 {
		t.Errorf("without tokens: got %v, %v", found, err)
	}
}
