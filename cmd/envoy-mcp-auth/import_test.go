package main

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const litellmFile = `mcp_servers:
  github:
    url: https://api.githubcopilot.com/mcp
    auth_type: bearer_token
    auth_value: ghp_canary
    extra_headers: [Cookie]
  local: {transport: stdio, command: npx}
general_settings: {master_key: sk-canary}
`

// importDir is a directory with a LiteLLM configuration in it.
func importDir(t *testing.T, text string) func(string) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("config.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return at
}

func contents(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestImportLiteLLM: the files are written, the policy passes a check with the
// variables that the report names, and Envoy's and LiteLLM's configurations come
// of it.
func TestImportLiteLLM(t *testing.T) {
	at := importDir(t, litellmFile)
	args := []string{
		"import", "litellm", at("config.yaml"), "-o", at("policy.yaml"), "--litellm-out", at("litellm.yaml"),
		"--key-file", at("key"), "--cookie", "session_id", "--listen", "unix://" + at("s"), "--envoy-listen", "127.0.0.1:20000", "--envoy-url", "http://envoy:20000",
	}
	got := program(t, nil, args...)
	if got.code != 0 || got.out != "" || strings.Contains(got.err, "canary") {
		t.Fatalf("status %d, out %q, err %q", got.code, got.out, got.err)
	}
	for _, want := range []string{"config.yaml:7: mcp_servers.local.transport: not carried over: ", "GITHUB_MCP_TOKEN: what is written in ", "$(cat " + at("key") + ")", "1 server behind Envoy, 1 called directly"} {
		if !strings.Contains(got.err, want) {
			t.Errorf("want %q in the report, got %s", want, got.err)
		}
	}
	key := strings.TrimSpace(contents(t, at("key")))
	sum := sha256.Sum256([]byte(key))
	text := contents(t, at("policy.yaml"))
	if len(key) != 64 || strings.Contains(text+got.err, key) || !strings.Contains(text, hex.EncodeToString(sum[:])) {
		t.Errorf("want the SHA-256 of a new key of 32 bytes, and no key, in the policy:\n%s", text)
	}
	for _, name := range []string{"key", "litellm.yaml"} {
		if info, err := os.Stat(at(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("want %s for its user alone, got %v, %v", name, info.Mode(), err)
		}
	}
	env := map[string]string{"GITHUB_MCP_TOKEN": "t"}
	if checked := program(t, env, "check", "-c", at("policy.yaml")); checked.code != 0 || !strings.HasPrefix(checked.out, "ok: ") {
		t.Errorf("want no fault and no warning, got %q %q", checked.out, checked.err)
	}
	rendered := program(t, env, "render", "litellm", "-c", at("policy.yaml")).out
	if now := contents(t, at("litellm.yaml")); !strings.Contains(now, "url: http://envoy:20000/github/mcp") || !strings.Contains(rendered, "url: http://envoy:20000/github/mcp") ||
		strings.Contains(now, "ghp_") || !strings.Contains(now, "master_key: sk-canary") {
		t.Errorf("want what render litellm says, the rest as it was and no token, got\n%s", now)
	}
	if again := program(t, nil, args...); again.code != 1 || !strings.Contains(again.err, "--force") {
		t.Errorf("want nothing overwritten, got status %d, %q", again.code, again.err)
	}
	if again := program(t, nil, append(args, "--force", "--strict")...); again.code != 1 || contents(t, at("policy.yaml")) != text {
		t.Errorf("want the same with the same key, and status 1 of --strict, got status %d, %q", again.code, again.err)
	}
}

func TestImportLiteLLMToStandardOutput(t *testing.T) {
	at := importDir(t, litellmFile)
	got := program(t, map[string]string{"KEY": "a-key-of-some-length"}, "import", "litellm", at("config.yaml"), "--key-env", "KEY")
	sum := sha256.Sum256([]byte("a-key-of-some-length"))
	if got.code != 0 || !strings.Contains(got.out, hex.EncodeToString(sum[:])) || strings.Contains(got.out+got.err, "a-key-of") {
		t.Errorf("status %d, out %q, err %q", got.code, got.out, got.err)
	}
}

func TestImportLiteLLMRefuses(t *testing.T) {
	at := importDir(t, litellmFile)
	for _, tc := range []struct {
		name, want string
		args       []string
	}{
		{"no file", "got 0 arguments", nil},
		{"a file that is not there", "existing file", []string{at("none.yaml")}},
		{"its own input", "same file", []string{at("config.yaml"), "-o", at("config.yaml"), "--force"}},
		{"one file twice", "same file", []string{at("config.yaml"), "-o", at("p"), "--litellm-out", at("p")}},
		{"two keys", "use one", []string{at("config.yaml"), "--key-env", "A", "--key-file", at("k")}},
		{"a key that is not set", "not set or empty", []string{at("config.yaml"), "--key-env", "NOT_SET"}},
		{"a short key", "at least 16", []string{at("config.yaml"), "--key-env", "SHORT"}},
		{"a directory that is not there", "writing: ", []string{at("config.yaml"), "-o", at("no/such/file")}},
		{"a listener that is none", "envoy.listen", []string{at("config.yaml"), "--envoy-listen", "canary:x y"}},
		{"a directory in the place of a file", "not overwritten", []string{at("config.yaml"), "-o", at(".")}},
		{"a directory, by force", "is no file", []string{at("config.yaml"), "-o", at("."), "--force"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := program(t, map[string]string{"SHORT": "canary"}, append([]string{"import", "litellm"}, tc.args...)...)
			if got.code != 1 || !strings.Contains(got.err, tc.want) || strings.Contains(got.err, "canary\n") {
				t.Errorf("want status 1 and %q, got status %d and %q", tc.want, got.code, got.err)
			}
		})
	}
}
