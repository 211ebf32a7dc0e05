package litellmconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/litellmconfig"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// FuzzConvert: whatever the file, there is an answer, and a policy that is
// written passes a check.
func FuzzConvert(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(bomb()))
	f.Fuzz(func(t *testing.T, b []byte) {
		res, err := litellmconfig.Convert("config.yaml", b, litellmconfig.Options{Env: env, Cookies: []string{"sid"}})
		if err != nil {
			return
		}
		if _, err := policy.Parse("policy.yaml", res.Policy, set(res)); err != nil {
			t.Errorf("the policy has faults: %v\n%s", err, res.Policy)
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(res.LiteLLM, &doc); err != nil {
			t.Errorf("LiteLLM's new configuration is no YAML: %v\n%s", err, res.LiteLLM)
		}
	})
}

// FuzzSecret: whatever stands around a secret, neither result has it.
func FuzzSecret(f *testing.F) {
	f.Add("github", "bearer_token", "https://a.test/mcp", "Authorization", "x", false)
	f.Add("a b", "basic", "http://b.test", "x-api-key", "# y", true)
	f.Add("oauth", "oauth2", "https://c.test/mcp?x=y", "x-token\n", "${X}", false)
	f.Add("local", "aws_sigv4", "", "X-Key", "$", true)
	f.Fuzz(func(t *testing.T, name, auth, url, header, around string, flow bool) {
		if strings.Contains(name+auth+url+header+around, canary) {
			t.Skip()
		}
		secret := "sk-" + canary + around
		server := map[string]any{
			"url": url, "auth_type": auth, "auth_value": secret, "authentication_token": "sk-" + canary, "oauth2_flow": "client_credentials",
			"token_url": "https://auth.test/token", "client_id": around, "client_secret": secret, "client_private_key": secret,
			"aws_access_key_id": secret, "aws_secret_access_key": secret, "aws_session_token": secret,
			"static_headers": map[string]string{header: secret, "x-plain": around, "x-key": secret},
			"env":            map[string]string{"TOKEN": secret, header: secret},
			"env_vars":       []map[string]string{{"name": "A", "value": secret, "scope": "global"}},
			"extra_headers":  []string{header, secret, "Cookie"}, "secret_of_ours": secret, secret: around,
		}
		b, err := yaml.Marshal(map[string]any{"mcp_servers": map[string]any{
			name: server, "sure": map[string]string{"url": "https://sure.test/mcp", "auth_type": "api_key", "auth_value": secret},
		}})
		if err != nil {
			t.Skip()
		}
		if flow {
			var n yaml.Node
			if err := yaml.Unmarshal(b, &n); err != nil {
				t.Skip()
			}
			n.Content[0].Style = yaml.FlowStyle
			if b, err = yaml.Marshal(&n); err != nil {
				t.Skip()
			}
		}
		res, err := litellmconfig.Convert("config.yaml", b, litellmconfig.Options{Env: env})
		all := report("config.yaml", res) + string(res.Policy) + string(res.LiteLLM)
		if err != nil {
			all += err.Error()
		}
		if strings.Contains(all, canary) {
			t.Errorf("the secret is in a result:\n%s", all)
		}
	})
}
