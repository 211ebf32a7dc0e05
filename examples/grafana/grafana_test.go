package grafana_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics/metricstest"
)

type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource struct{ UID string }
	GridPos    struct{ X, Y, W, H int }
	Targets    []struct {
		Expr       string
		Legend     string `json:"legendFormat"`
		Datasource struct{ UID string }
	}
}

type variable struct{ Name, Type, Definition string }

// dashboard reads it; the charts come without the headings of rows.
func dashboard(t *testing.T) (charts []panel, variables []variable) {
	t.Helper()
	b, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID        string
		Panels     []panel
		Templating struct{ List []variable }
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		if p.Type != "row" {
			charts = append(charts, p)
		}
	}
	if d.UID == "" || len(charts) < 20 {
		t.Fatalf("uid %q and %d charts: want more", d.UID, len(charts))
	}
	return charts, d.Templating.List
}

// kinds are the metrics of the server with their types.
func kinds(text string) map[string]string {
	all := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\w+)$`).FindAllStringSubmatch(text, -1) {
		all[m[1]] = m[2]
	}
	return all
}

func recorded(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct{ Rules []struct{ Record string } }
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			names = append(names, r.Record)
		}
	}
	return names
}

// TestEveryNameExists holds the names in queries and variables to the registry and to
// the recording rules.
func TestEveryNameExists(t *testing.T) {
	t.Parallel()
	charts, variables := dashboard(t)
	have, rules := kinds(metricstest.Text()), recorded(t)
	name := regexp.MustCompile(`\b(?:[a-z_]+:)?(?:mcp_auth|process|go)_[a-z0-9_:]+`)
	check := func(where, text string) {
		found := name.FindAllString(text, -1)
		if len(found) == 0 {
			t.Errorf("%s: %q names no metric", where, text)
		}
		for _, n := range found {
			family := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(n, "")
			known := have[n] != "" || have[family] == "histogram" || slices.Contains(rules, n)
			if !known {
				t.Errorf("%s: no metric and no rule is named %s", where, n)
			}
		}
	}
	for _, p := range charts {
		for _, q := range p.Targets {
			check(p.Title, q.Expr)
		}
	}
	for _, v := range variables {
		if v.Type == "query" {
			check(v.Name, v.Definition)
		}
	}
}

// TestLayout: charts have room, none covers another, and each has its data source
// from the variable.
func TestLayout(t *testing.T) {
	t.Parallel()
	charts, variables := dashboard(t)
	if variables[0].Name != "datasource" || variables[0].Type != "datasource" {
		t.Errorf("want the data source as the first variable, got %+v", variables[0])
	}
	for i, p := range charts {
		if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%s: data source %q, %d queries", p.Title, p.Datasource.UID, len(p.Targets))
		}
		for _, q := range p.Targets {
			if q.Datasource.UID != "${datasource}" || len(p.Targets) > 1 && q.Legend == "" {
				t.Errorf("%s: %+v", p.Title, q)
			}
		}
		g := p.GridPos
		if g.X < 0 || g.W < 1 || g.X+g.W > 24 || g.H < 1 {
			t.Errorf("%s sticks out: %+v", p.Title, g)
		}
		for _, o := range charts[:i] {
			if p.ID == o.ID || g.X < o.GridPos.X+o.GridPos.W && o.GridPos.X < g.X+g.W && g.Y < o.GridPos.Y+o.GridPos.H && o.GridPos.Y < g.Y+g.H {
				t.Errorf("%s and %s: one id, or one over the other", p.Title, o.Title)
			}
		}
	}
}

var errNoPromtool = errors.New("no promtool found: set $PROMTOOL to the program, or run tools/install promtool")

func promtool(t *testing.T, args ...string) {
	t.Helper()
	find := cached.Part{Env: "PROMTOOL", Dir: "promtool", Program: "promtool", Missing: errNoPromtool}.Find
	program := cached.Require(t, "promtool", find, errNoPromtool)
	if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestEveryQueryAnswers has the real promtool parse every query and run it on every
// metric of the server, by way of the recording rules: a label or a matcher that is
// wrong gives nothing, and what a legend names is there.
func TestEveryQueryAnswers(t *testing.T) {
	t.Parallel()
	charts, _ := dashboard(t)
	rules, err := filepath.Abs("../prometheus/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "2m", "$upstream", ".*", "$instance", ".*")
	type object = map[string]any
	var panels, tests []object
	for _, p := range charts {
		for i, q := range p.Targets {
			name := fmt.Sprintf("panel:%d:%d", p.ID, i)
			var labelled []string
			for _, m := range regexp.MustCompile(`{{(\w+)}}`).FindAllStringSubmatch(q.Legend, -1) {
				labelled = append(labelled, m[1]+`!=""`)
			}
			panels = append(panels, object{"record": name, "expr": variables.Replace(q.Expr)})
			tests = append(tests, object{
				"expr": "count(" + name + "{" + strings.Join(labelled, ",") + "}) > bool 0", "eval_time": "20m",
				"exp_samples": []object{{"labels": "{}", "value": 1}},
			})
		}
	}
	dir := t.TempDir()
	write := func(name string, v any) string {
		b, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := write("panels.yaml", object{"groups": []object{{"name": "panels", "rules": panels}}})
	promtool(t, "check", "rules", path)
	promtool(t, "test", "rules", write("tests.yaml", object{
		"rule_files": []string{rules, path}, "evaluation_interval": "30s",
		"tests": []object{{"interval": "30s", "input_series": series(metricstest.Text()), "promql_expr_test": tests}},
	}))
	promtool(t, "check", "config", "--syntax-only", "prometheus.yaml")
}

// series are all samples of the metrics, as promtool's tests have them: what counts
// rises, gauges stay.
func series(text string) []map[string]string {
	gauges := kinds(text)
	var out []map[string]string
	for _, m := range regexp.MustCompile(`(?m)^(\w+)(?:\{(.*)\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		name, labels, values := m[1], m[2], "0+3x60"
		if gauges[name] == "gauge" {
			values = m[3] + "x60"
		}
		if labels != "" {
			labels = "," + labels
		}
		out = append(out, map[string]string{"series": name + `{job="j",instance="1"` + labels + "}", "values": values})
	}
	return out
}

// TestComposeFindsTheFiles: what the containers mount is there, under the path that
// the provisioning and Prometheus look at.
func TestComposeFindsTheFiles(t *testing.T) {
	t.Parallel()
	read := func(name string, v any) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, v); err != nil {
			t.Fatal(err)
		}
	}
	var file struct {
		Services map[string]struct {
			Volumes     []string
			Environment map[string]string
		}
	}
	read("../compose/compose.yaml", &file)
	inside := map[string]bool{}
	for _, name := range []string{"prometheus", "grafana"} {
		for _, v := range file.Services[name].Volumes {
			parts := strings.Split(v, ":")
			if _, err := os.Stat(filepath.Join("../compose", parts[0])); err != nil || len(parts) != 3 || parts[2] != "ro" {
				t.Errorf("%s: %v, want a file of the repository, read only", v, err)
			}
			inside[parts[1]] = true
		}
	}
	var prometheus struct {
		RuleFiles []string `yaml:"rule_files"`
	}
	var sources struct {
		Datasources []struct{ URL, Type string }
	}
	var dashboards struct {
		Providers []struct{ Options struct{ Path string } }
	}
	read("prometheus.yaml", &prometheus)
	read("provisioning/datasources/prometheus.yaml", &sources)
	read("provisioning/dashboards/envoy-mcp-auth.yaml", &dashboards)
	wanted := append(prometheus.RuleFiles, dashboards.Providers[0].Options.Path+"/dashboard.json", "/etc/grafana/provisioning",
		file.Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
	for _, w := range wanted {
		if !inside[w] {
			t.Errorf("nothing is mounted at %s, got %v", w, inside)
		}
	}
	if s := sources.Datasources[0]; s.Type != "prometheus" || s.URL != "http://127.0.0.1:9090" {
		t.Errorf("data source: %+v", s)
	}
}
