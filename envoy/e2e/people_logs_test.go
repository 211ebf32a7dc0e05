package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestA8_AccessLogs: the rendered configuration writes no query down. An operator's
// own log does, with Envoy's default format: check --envoy says so, and what it
// advises helps.
func TestA8_AccessLogs(t *testing.T) {
	p := newPeople(t, byToken)
	p.proc = p.serve(p.policy, p.facts.Admin)
	logs := map[string]string{
		"default": "", "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %RESPONSE_CODE%\n", "bare": "%PATH(NQ:ORIG)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %DYNAMIC_METADATA(mcp_auth)%\n",
		"advised": "%PATH(NQ)% %RESPONSE_CODE%\n",
	}
	warned := map[string]bool{"default": true, "path": true}
	bootstrap := p.render()
	for name, format := range logs {
		one := edited(bootstrap, func(c config) { p.logTo(c, name, format) })
		p.write(name+".yaml", string(one))
		out, err := p.command("check", "-c", p.policy, "--envoy", filepath.Join(p.dir, name+".yaml")).CombinedOutput()
		if found := strings.Contains(string(out), "query-logged"); found != warned[name] || found != (err != nil) {
			t.Errorf("check --envoy, %s: want query-logged %t, got %v\n%s", name, warned[name], err, out)
		}
	}
	p.startEnvoy(edited(bootstrap, func(c config) {
		for name, format := range logs {
			p.logTo(c, name, format)
		}
	}))
	alice := p.mint(p.idp, "alice", scopesOfPeople, nil)
	inQuery := p.mint(p.idp, "query", scopesOfPeople, nil)
	p.both(func(proto string, get func(string, ...string) reply) {
		if got := get("/alpha/mcp?x=1&access_token=" + inQuery); got.status != http.StatusBadRequest {
			t.Errorf("%s: got %v", proto, got)
		}
		if got := get("/alpha/mcp?x=1", bearer(alice)); got.status != http.StatusOK {
			t.Errorf("%s: got %v", proto, got)
		}
	})
	for name := range logs {
		path := filepath.Join(p.dir, name+".log")
		p.eventually("the calls are in "+name, 5*time.Second, func() bool {
			b, _ := os.ReadFile(path)
			return strings.Count(string(b), "/alpha/mcp") >= 4
		})
		b, err := os.ReadFile(path)
		if err != nil || strings.Contains(string(b), inQuery) != warned[name] {
			t.Errorf("%s: want a token in the log %t, got %v\n%s", name, warned[name], err, b)
		}
		if !warned[name] {
			p.mu.Lock()
			p.told = append(p.told, path)
			p.mu.Unlock()
		}
	}
	// The calls are in our own log too, with reason and request id, and in metrics.
	if log := tail(p.proc.log, 1<<20); strings.Count(log, `"reason":"bad_request"`) != 2 {
		t.Errorf("want two refusals in the program's log, got %s", log)
	}
}

// logTo adds an access log; an empty format is Envoy's own.
func (p *people) logTo(c config, name, format string) {
	typed := map[string]any{
		"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": filepath.Join(p.dir, name+".log"),
	}
	if format != "" {
		typed["log_format"] = map[string]any{"text_format_source": map[string]any{"inline_string": format}}
	}
	c.manager()["access_log"] = append(c.manager()["access_log"].([]any), map[string]any{"name": "file", "typed_config": typed})
}
