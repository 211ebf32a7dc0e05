package reallitellm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
)

const key = "sk-made-up-master-key"

// start runs LiteLLM with that server, and one that nobody serves.
func start(t *testing.T, url string) *reallitellm.LiteLLM {
	t.Helper()
	binary := reallitellm.Require(t)
	l, err := reallitellm.Start(t.Context(), reallitellm.Config{
		Binary: binary,
		Dir:    t.TempDir(),
		Env:    []string{"LITELLM_MASTER_KEY=" + key},
		ConfigYAML: fmt.Appendf(nil, `
general_settings: {master_key: os.environ/LITELLM_MASTER_KEY}
mcp_servers:
  open_server: {url: %s/mcp, transport: http}
  down: {url: "http://127.0.0.1:1/mcp", transport: http}
`, url),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Stop)
	return l
}

type header struct{ name, value string }

func (h header) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(h.name, h.value)
	return http.DefaultTransport.RoundTrip(r)
}

// use lists the tools and calls echo through LiteLLM's gateway.
func use(ctx context.Context, url string, h header) error {
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "0"}, nil)
	session, err := client.Connect(ctx, &mcp.StreamableClientTransport{
		Endpoint:   url + "/open_server/mcp",
		HTTPClient: &http.Client{Transport: h},
		// LiteLLM sends the headers of this stream with its first ping, after
		// 15 s, and the client waits for them.
		DisableStandaloneSSE: true,
	}, nil)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	tools, err := session.ListTools(ctx, nil)
	if err != nil {
		return err
	}
	for _, tool := range tools.Tools {
		if !strings.HasSuffix(tool.Name, "echo") {
			continue
		}
		res, err := session.CallTool(ctx, &mcp.CallToolParams{Name: tool.Name, Arguments: map[string]any{"text": "hello"}})
		if err != nil {
			return err
		}
		b, err := json.Marshal(res)
		if err == nil && (res.IsError || !strings.Contains(string(b), "hello")) {
			err = fmt.Errorf("want hello, got %s", b)
		}
		return err
	}
	return fmt.Errorf("want a tool echo, got %d tools", len(tools.Tools))
}

func TestRealLiteLLM(t *testing.T) {
	rec := mcpserver.NewRecorder(time.Now, nil)
	upstream := httptest.NewServer(rec.Wrap(mcpserver.NewOpen()))
	t.Cleanup(upstream.Close)
	l := start(t, upstream.URL)

	t.Run("its listing has ended", func(t *testing.T) {
		atStart := rec.Count()
		if atStart == 0 {
			t.Error("want the first listing to have come, got no request")
		}
		time.Sleep(2 * time.Second)
		if n := rec.Count(); n != atStart {
			t.Errorf("want no request after the start, got %d more", n-atStart)
		}
	})
	for _, h := range []header{{"x-litellm-api-key", "Bearer " + key}, {"Authorization", "Bearer " + key}} {
		t.Run("list and call with "+h.name, func(t *testing.T) {
			rec.Reset()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := use(ctx, l.URL, h); err != nil {
				t.Fatal(err)
			}
			if rec.Count() == 0 {
				t.Error("nothing came to the upstream")
			}
			for _, r := range rec.Requests() {
				for name := range r.Header {
					if strings.Contains(r.Header.Get(name), key) {
						t.Errorf("the caller's key reached the upstream in %s", name)
					}
				}
			}
		})
	}
	t.Run("a wrong key is refused", func(t *testing.T) {
		if err := use(t.Context(), l.URL, header{"x-litellm-api-key", "Bearer sk-other"}); err == nil {
			t.Error("want an error, got none")
		}
	})
	t.Run("Stop ends the process group", func(t *testing.T) {
		l.Stop()
		l.Stop()
		if err := syscall.Kill(-l.PID, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("want no process left, got %v", err)
		}
	})
}

func TestStartTellsWhy(t *testing.T) {
	binary := reallitellm.Require(t)
	begin := time.Now()
	_, err := reallitellm.Start(t.Context(), reallitellm.Config{
		Binary: binary, Dir: t.TempDir(),
		ConfigYAML: []byte("mcp_servers: {no-hyphens: {url: \"http://127.0.0.1:1/mcp\"}}\n"),
	})
	if err == nil || !strings.Contains(err.Error(), "ended before") || !strings.Contains(err.Error(), "no-hyphens") {
		t.Errorf("want an error with the end of the log, got %v", err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("want to know when the process ends, got it after %v", took)
	}
}

func TestFind(t *testing.T) {
	program := filepath.Join(t.TempDir(), "litellm")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LITELLM", program)
	if p, err := reallitellm.Find(); p != program || err != nil {
		t.Errorf("want %s, got %q, %v", program, p, err)
	}
	t.Setenv("LITELLM", program+"-not")
	if p, err := reallitellm.Find(); err == nil || errors.Is(err, reallitellm.ErrNotFound) {
		t.Errorf("want an error about $LITELLM, got %q, %v", p, err)
	}
	t.Setenv("LITELLM", "0")
	if _, err := reallitellm.Find(); !errors.Is(err, reallitellm.ErrOff) {
		t.Errorf("want ErrOff, got %v", err)
	}
	t.Setenv("LITELLM", "")
	t.Chdir(t.TempDir())
	if _, err := reallitellm.Find(); !errors.Is(err, reallitellm.ErrNotFound) {
		t.Errorf("want ErrNotFound, got %v", err)
	}
}

// verdict records what Require said.
type verdict struct{ said string }

func (*verdict) Helper()                    {}
func (v *verdict) Skipf(s string, _ ...any) { v.said = "skip: " + s }
func (v *verdict) Fatalf(s string, _ ...any) {
	v.said = "fail: " + s
}

func TestRequire(t *testing.T) {
	for _, c := range []struct{ name, ci, litellm, want string }{
		{"a developer may do without", "", "0", "skip"},
		{"CI may not", "true", "0", "fail"},
		{"a wrong $LITELLM is never passed over", "", "/no/such/litellm", "fail"},
	} {
		t.Setenv("CI", c.ci)
		t.Setenv("LITELLM", c.litellm)
		var v verdict
		reallitellm.Require(&v)
		if !strings.HasPrefix(v.said, c.want) {
			t.Errorf("%s: want %s, got %q", c.name, c.want, v.said)
		}
	}
}
