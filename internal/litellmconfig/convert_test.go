package litellmconfig_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/litellmconfig"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the golden files anew")

const canary = "CANARY"

func env(name string) (string, bool) {
	v, ok := map[string]string{"MCP_URL": "https://variable.company.com/v1/mcp", "AUTO_TOKEN_URL": "https://auth.company.com/token"}[name]
	return v, ok
}

// set is an environment with every variable of a result, and no other.
func set(res *litellmconfig.Result) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if v, ok := env(name); ok {
			return v, ok
		}
		if name == litellmconfig.SumVariable {
			return strings.Repeat("5e", 32), true
		}
		for _, v := range res.Variables {
			if v.Name == name && !v.ForLiteLLM {
				return "a-value", true
			}
		}
		return "", false
	}
}

// report is what a person is told.
func report(name string, res *litellmconfig.Result) string {
	var b strings.Builder
	for _, n := range res.Notes {
		fmt.Fprintln(&b, n)
	}
	for _, v := range res.Variables {
		fmt.Fprintf(&b, "%s (for LiteLLM: %t): %s\n", v.Name, v.ForLiteLLM, v.About(name))
	}
	fmt.Fprintf(&b, "%d behind Envoy, %d direct\n", res.Servers, res.Direct)
	return b.String()
}

// TestConvert: the files of testdata, and beside each what it becomes. The policy
// passes a check once the variables are set that the result names, and no secret
// of mcp_servers is in any of it.
func TestConvert(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("want files in testdata", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		if strings.Contains(name, ".") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			opt := litellmconfig.Options{Env: env}
			if name == "headers" {
				opt.Cookies = []string{"session_id", "user_context"}
			}
			res, err := litellmconfig.Convert(name+".yaml", b, opt)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, "yaml")+"policy.yaml", string(res.Policy))
			golden(t, strings.TrimSuffix(file, "yaml")+"litellm.yaml", string(res.LiteLLM))
			told := report(name+".yaml", res)
			golden(t, strings.TrimSuffix(file, "yaml")+"report.txt", told)
			if _, err := policy.Parse("policy.yaml", res.Policy, set(res)); err != nil {
				t.Errorf("the policy has faults: %v", err)
			}
			if strings.Contains(string(res.Policy)+told, canary) {
				t.Error("a secret of the file is in the policy or the report")
			}
			noSecret(t, res.LiteLLM)
		})
	}
}

// noSecret looks at the mcp_servers of LiteLLM's new configuration: the rest of
// the file is as it was.
func noSecret(t *testing.T, text []byte) {
	t.Helper()
	var got struct {
		Servers map[string]map[string]any `yaml:"mcp_servers"`
	}
	if err := yaml.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for name, s := range got.Servers {
		delete(s, "args") // LiteLLM reads no variable there, and the report says so
		if strings.Contains(fmt.Sprint(s), canary) {
			t.Errorf("a secret is in the new configuration of %s", name)
		}
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s; run make golden and read the difference (-want +got):\n%s", path, diff)
	}
}

// TestConvertRefuses: what cannot be read at all is an error, which says what to do.
func TestConvertRefuses(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"empty", "", "empty"},
		{"no YAML", "a: [CANARY", "not YAML"},
		{"an unknown alias", "a: *CANARY", "not YAML"},
		{"a list", "[CANARY]", "mcp_servers"},
		{"two documents", "mcp_servers: {}\n---\na: CANARY", "one YAML document"},
		{"no servers", "model_list: [CANARY]", "database"},
		{"a list of servers", "mcp_servers: [{url: CANARY}]", "at least one server"},
		{"nothing to carry over", "mcp_servers: {a: {transport: stdio, command: CANARY}}", "behind Envoy"},
		{"aliases without end", bomb(), "expand to too much"},
		{"a merge of itself", "mcp_servers: &a {<<: *a, s: {url: 1}}", ""},
		{"an anchor that is used elsewhere", "mcp_servers: {a: &a {url: 'https://a.test/mcp', auth_value: CANARY}}\nother: *a", "write the values out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := litellmconfig.Convert("config.yaml", []byte(tc.text), litellmconfig.Options{})
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("want an error with %q and without what the file says, got %v", tc.want, err)
			}
		})
	}
	_, err := litellmconfig.Convert("config.yaml", []byte("mcp_servers: {a: {url: 'https://a.test/mcp'}}"), litellmconfig.Options{EnvoyListen: "nowhere"})
	if _, ok := errors.AsType[policy.Faults](err); !ok {
		t.Errorf("want the fault of what was asked for, got %v", err)
	}
}

// bomb is a small file whose aliases stand for billions of nodes.
func bomb() string {
	var b strings.Builder
	b.WriteString("a0: &a0 {k: v}\n")
	for i := 1; i < 14; i++ {
		fmt.Fprintf(&b, "a%d: &a%d {%s}\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("<<: *a%d, ", i-1), 1), ", "))
		fmt.Fprintf(&b, "b%d: &b%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%s%d, ", map[bool]string{true: "a", false: "b"}[i == 1], i-1), 10), ", "))
	}
	return b.String() + "mcp_servers: {s: {url: 'https://a.test/mcp', mcp_info: *b13}}\n"
}
