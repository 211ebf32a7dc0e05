package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

const smallPolicy = `version: 1
callers:
  anyone: {any: true}
  ci: {key: {sha256: "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"}}
upstreams:
  tools:
    url: https://tools.company.com/mcp
    callers: [ci]
    cookies: {allow: [session_id]}
    credential:
      oauth2: {token_url: "https://auth.company.com/token", client_id: proxy, client_secret: "${SECRET}"}
  open: {url: "https://open.company.com/mcp", callers: [anyone], credential: none}
`

// result is what a run of the program left.
type result struct {
	code     int
	out, err string
}

// program runs the command line in this process.
func program(t *testing.T, env map[string]string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(t.Context(), args, streams{out: &out, err: &errs, env: func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}})
	return result{code, out.String(), errs.String()}
}

func policyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func secretEnv() map[string]string { return map[string]string{"SECRET": "canary-secret"} }

func TestEveryCommandHasAnExample(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Runnable() && (cmd.Example == "" || cmd.Short == "") {
			t.Errorf("%s has no example or no description", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(streams{}))
}

func TestCommands(t *testing.T) {
	file := policyFile(t, smallPolicy)
	bad := policyFile(t, "version: 1\nupstreams:\n  a: {url: nope}\n")
	for _, tc := range []struct {
		name     string
		args     []string
		code     int
		out, err string // must be part of
	}{
		{"check good", []string{"check", "-c", file}, 0, "ok: ", ""},
		{"check bad names each fault", []string{"check", "-c", bad}, 1, "bad", ""},
		{"no policy", []string{"check"}, 1, "", "give one with -c FILE"},
		{"missing file", []string{"check", "-c", "/nowhere.yaml"}, 1, "", "existing file"},
		{"unknown command", []string{"fly"}, 1, "", "unknown command"},
		{"file and quick", []string{"serve", "-c", file, "--upstream", "a=b"}, 1, "", "use one"},
		{"quick without a url", []string{"render", "envoy", "--upstream", "a"}, 1, "", "NAME=URL"},
		{"bad format", []string{"check", "-c", file, "-o", "xml"}, 1, "", "want text or json"},
		{"bad log level", []string{"serve", "-c", file, "--log-level", "loud"}, 1, "", "want one of trace"},
		{"log level by number", []string{"serve", "-c", file, "--log-level", "99"}, 1, "", "want one of trace"},
		{"unknown flag says where to look", []string{"check", "--nope"}, 1, "", "see envoy-mcp-auth check --help"},
		{"version flag", []string{"--version"}, 0, "envoy-mcp-auth ", ""},
		{"render of an unknown kind", []string{"render", "envoi", "-c", file}, 1, "", "unknown"},
		{"render to a file named as a format", []string{"render", "envoy", "-c", file, "-o", "json"}, 1, "", "-o is the file to write"},
		{"completion of a format", []string{"__complete", "check", "-o", ""}, 0, "json", ""},
		{"a device is no policy", []string{"check", "-c", "/dev/zero"}, 1, "", "more than"},
		{"version", []string{"version", "-o", "json"}, 0, `"version"`, ""},
		{
			"explain allowed",
			[]string{"explain", "-c", file, "--upstream", "tools", "-H", "x-mcp-auth-key: key", "-H", "Cookie: session_id=canary-cookie; t=1", "-H", "Authorization: canary-caller"},
			0, "set       cookie: session_id=***", "",
		},
		{"explain refused", []string{"explain", "-c", file, "--upstream", "tools"}, 1, "caller_unknown (403)", ""},
		{"explain unknown upstream", []string{"explain", "-c", file, "--upstream", "x"}, 1, "no_policy", ""},
		{"explain without upstream", []string{"explain", "-c", file}, 1, "", "--upstream NAME"},
		{"explain bad header", []string{"explain", "-c", file, "--upstream", "tools", "-H", "canary"}, 1, "", "Name: value"},
		{"explain header without a name", []string{"explain", "-c", file, "--upstream", "tools", "-H", " : x"}, 1, "", "Name: value"},
		{"render envoy", []string{"render", "envoy", "-c", file}, 0, "failure_mode_allow", ""},
		{"render litellm", []string{"render", "litellm", "-c", file}, 0, "mcp_servers:", ""},
		{"token for an upstream without one", []string{"token", "-c", file, "--upstream", "open"}, 1, "", "no upstream"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := program(t, secretEnv(), tc.args...)
			if tc.name == "check bad names each fault" {
				tc.out = "upstreams.a.url"
			}
			if got.code != tc.code || !strings.Contains(got.out, tc.out) || !strings.Contains(got.err, tc.err) {
				t.Errorf("status %d, want %d; out %q, want %q; err %q, want %q", got.code, tc.code, got.out, tc.out, got.err, tc.err)
			}
			if strings.Contains(got.out+got.err, "canary") {
				t.Errorf("a secret is shown: %s%s", got.out, got.err)
			}
		})
	}
}

func TestQuickTextIsAPolicyThatParses(t *testing.T) {
	env := map[string]string{
		"MCP_OAUTH2_TOKEN_URL": "https://auth.company.com/token", "MCP_OAUTH2_CLIENT_ID": "a", "MCP_OAUTH2_CLIENT_SECRET": "canary",
	}
	got := program(t, env, "render", "litellm", "--upstream", "tools=https://tools.company.com/mcp")
	if got.code != 0 || !strings.Contains(got.out, "/tools/mcp") {
		t.Errorf("status %d, out %q, err %q", got.code, got.out, got.err)
	}
	if got := program(t, nil, "render", "litellm", "--upstream", "tools=https://tools.company.com/mcp"); got.code != 1 ||
		!strings.Contains(got.err, "MCP_OAUTH2_CLIENT_SECRET is not set") {
		t.Errorf("status %d, err %q", got.code, got.err)
	}
}

func TestRenderedConfigurationHasNoFindings(t *testing.T) {
	file := policyFile(t, smallPolicy)
	out := filepath.Join(t.TempDir(), "envoy.yaml")
	if got := program(t, secretEnv(), "render", "envoy", "-c", file, "-o", out); got.code != 0 {
		t.Fatalf("render: %s", got.err)
	}
	if got := program(t, secretEnv(), "check", "-c", file, "--envoy", out); got.code != 0 {
		t.Errorf("check: %s%s", got.out, got.err)
	}
}

func TestCheckReportsAsJSON(t *testing.T) {
	got := program(t, nil, "check", "-o", "json", "-c", policyFile(t, smallPolicy))
	var report struct {
		Faults []struct {
			Line int
			Path string
			Text string
		}
	}
	if err := json.Unmarshal([]byte(got.out), &report); err != nil {
		t.Fatalf("%v: %s", err, got.out)
	}
	if got.code != 1 || len(report.Faults) != 1 || !strings.Contains(report.Faults[0].Text, "SECRET is not set") {
		t.Errorf("status %d, report %+v", got.code, report)
	}
}

// fullWriter fails as a full disk does.
type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestCheckOpensWhatServeOpens: a policy that serve cannot start with is not ok.
func TestCheckOpensWhatServeOpens(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"certificate": {"callers:\n", "server: {tls: {certificate: c, private_key: k, client_ca: a}}\ncallers:\n", "server.tls"},
		"authorities": {"client_id: proxy", "client_id: proxy, ca: none.pem", "ca"},
		"header":      {"credential: none", `credential: {header: {x-api-key: "${CONTROL}"}}`, "control character"},
		"secret":      {`"${SECRET}"`, "{file: none}", "no such file"},
	} {
		file := policyFile(t, strings.Replace(smallPolicy, tc.old, tc.new, 1))
		got := program(t, map[string]string{"SECRET": "canary-secret", "CONTROL": "canary\x01"}, "check", "-c", file)
		if got.code != 1 || !strings.Contains(got.out, tc.want) || strings.Contains(got.out+got.err, "canary") {
			t.Errorf("%s: status %d, %s%s", name, got.code, got.out, got.err)
		}
	}
}

func TestOutputThatCannotBeWrittenIsAFailure(t *testing.T) {
	file := policyFile(t, smallPolicy)
	for _, args := range [][]string{
		{"check", "-c", file},
		{"check", "-c", file, "-o", "json"},
		{"explain", "-c", file, "--upstream", "open"},
		{"render", "envoy", "-c", file},
		{"version"},
	} {
		env := func(string) (string, bool) { return "x", true }
		if code := run(t.Context(), args, streams{out: fullWriter{}, err: io.Discard, env: env}); code != 1 {
			t.Errorf("%v with a full disk: status %d, want 1", args, code)
		}
	}
}

func TestRenderWritesWholeFilesOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("real"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", path("link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path("dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	piped := make(chan string, 1)
	go func() {
		b, _ := os.ReadFile(path("pipe"))
		piped <- string(b)
	}()
	for name, fails := range map[string]bool{"link": false, "new": false, "pipe": false, "dir": true, "none/x": true} {
		if err := write(path(name), []byte("text"), io.Discard); (err != nil) != fails {
			t.Errorf("writing %s: %v", name, err)
		} else if fails && !strings.Contains(err.Error(), "give the path of a file") {
			t.Errorf("writing %s does not say what to do: %v", name, err)
		}
	}
	if got := <-piped; got != "text" {
		t.Errorf("through the pipe came %q", got)
	}
	for _, name := range []string{"real", "new"} {
		if b, err := os.ReadFile(path(name)); err != nil || string(b) != "text" {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	if info, err := os.Lstat(path("link")); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the symlink was replaced: %v", err)
	}
	if left, _ := filepath.Glob(path(".envoy-mcp-auth-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
