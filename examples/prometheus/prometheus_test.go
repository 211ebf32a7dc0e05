package prometheus

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics/metricstest"
)

// rule is a recording rule or an alert.
type rule struct {
	Record, Alert, Expr string
	Annotations         map[string]string
}

// rulesOf reads a rule file.
func rulesOf(t *testing.T, path string) []rule {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []rule }
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 5 {
		t.Fatalf("%s has %d rules, want more", path, len(all))
	}
	return all
}

var errNoPromtool = errors.New("no promtool found: set $PROMTOOL to the program, or run tools/install promtool")

func findPromtool(t *testing.T) string {
	t.Helper()
	find := cached.Part{Env: "PROMTOOL", Dir: "promtool", Program: "promtool", Missing: errNoPromtool}.Find
	return cached.Require(t, "promtool", find, errNoPromtool)
}

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), findPromtool(t), args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", "alerts.yaml")
	promtool(t, "test", "rules", "tests.yaml")
}

// TestMetricsLint: names, types and help as Prometheus' conventions have them, by
// promtool's own linter, on what /metrics says when everything has a value.
func TestMetricsLint(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), findPromtool(t), "check", "metrics")
	cmd.Stdin = strings.NewReader(metricstest.Text())
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// TestMetricsExist holds every name in an expression to the table of metrics in the
// table of the docs, which is made of the registry, and to the recording rules.
func TestMetricsExist(t *testing.T) {
	t.Parallel()
	table, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	rules := rulesOf(t, "rules.yaml")
	for _, r := range rules {
		recorded[r.Record] = true
	}
	name := regexp.MustCompile(`[a-z_:]*mcp_auth_[a-z0-9_:]+`)
	for _, r := range append(rules, rulesOf(t, "alerts.yaml")...) {
		for _, found := range name.FindAllString(r.Expr, -1) {
			counted := strings.TrimSuffix(found, "_bucket")
			known := recorded[found] || strings.Contains(string(table), "| `"+counted+"` |")
			if !known {
				t.Errorf("%s%s: no metric and no rule is named %s", r.Alert, r.Record, found)
			}
		}
	}
}

// TestEveryAlert: each alert is seen to fire and to be quiet by tests.yaml, and has its part of
// the runbook, and the runbook has no other.
func TestEveryAlert(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("tests.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
			PromqlExprTest []struct{ Expr string } `yaml:"promql_expr_test"`
		}
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	fires, tested := map[string]bool{}, map[string]bool{}
	for _, test := range file.Tests {
		for _, a := range test.AlertRuleTest {
			fires[a.Alertname] = fires[a.Alertname] || len(a.ExpAlerts) > 0
		}
		for _, e := range test.PromqlExprTest {
			record, _, _ := strings.Cut(e.Expr, "{")
			tested[record] = true
		}
	}
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	var parts, alerts []string
	for _, m := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(runbook), -1) {
		parts = append(parts, m[1])
	}
	for _, r := range rulesOf(t, "alerts.yaml") {
		alerts = append(alerts, r.Alert)
		if !fires[r.Alert] {
			t.Errorf("tests.yaml does not show %s firing", r.Alert)
		}
		if want := "docs/runbook.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: got runbook_url %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
		}
	}
	if !slices.Equal(parts, alerts) {
		t.Errorf("docs/runbook.md has the parts\n%v, want one for each alert, in their order:\n%v", parts, alerts)
	}
	for _, r := range rulesOf(t, "rules.yaml") {
		if !tested[r.Record] {
			t.Errorf("tests.yaml does not test %s", r.Record)
		}
	}
}
