package versions

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
)

// update writes docs/versions.md instead of comparing with it.
var update = flag.Bool("write", false, "write docs/versions.md")

const page = "../../../docs/versions.md"

// promise is a line of the table: it is kept when all of its tests pass.
type promise struct {
	what  string
	tests string // names of tests, or how they begin, divided by blanks
}

func promises() []promise {
	return []promise{
		{"E1–E3 a processor that fails, hangs or dies lets nothing through", "TestE1_ TestE2_Faults TestE2_Processes TestE3_"},
		{"E4 nor does one that is missing", "TestE4_"},
		{"E5–E7 odd replies and forbidden changes", "TestE5_ TestE6_ TestE7_"},
		{"E8 `failure_mode_allow`, were it set, is caught by the guard", "TestE8_"},
		{"E9 restarts: health first, then drain", "TestE9_"},
		{"E10 Envoy's own answers", "TestE10_"},
		{"C1–C6 what callers say of themselves", "TestC1_ TestC2_ TestC3_ TestC4_ TestC5_ TestC6_"},
		{"C7 cookies", "TestC7_"},
		{"C8 malformed requests on the wire", "TestC8_"},
		{"the main line, MCP 2025-11-25 and 2026-07-28", "TestMainLine TestOpenServerWorksUnchanged"},
		{"a revoked token heals in the call", "TestO4_RevokedTokenHealsInTheCall"},
		{"… a herd of calls, other statuses, a stream that goes on", "TestO4_Herd TestO4_OtherStatuses TestO4_WithoutARetry TestO4_StreamGoesOn"},
		{"… a body too large to be sent again: the next call", "TestO4_LargeBody"},
		{"tools by the body", "TestS1_ToolsByBody TestH6_ TestLargeBodiesAreRefusedAndNeverHang TestSlowBodyWithToolRules TestSessionWithToolRules"},
		{"… with a retry", "TestO4_RetryWithToolRules"},
		{"tools by headers", "TestH4_ToolsByHeaders"},
		{"tools by Envoy's `mcp` filter", "TestToolsByFilter"},
		{"callers by certificate and by token", "TestA1_CallersByToken TestCallersByTokenAndCertificate TestA3_UpstreamsOwnChallenge"},
		{"outcomes and sessions by the access log", "TestA11_SessionOfAnother TestO4_WithoutARetry"},
		{"what Envoy Gateway 1.9 makes of our objects, with patches and without", "TestGateway_"},
		{"what Istio makes of our objects", "TestIstio_"},
	}
}

func (p promise) holds(test string) bool {
	return slices.ContainsFunc(strings.Fields(p.tests), func(name string) bool {
		return name == test || strings.HasSuffix(name, "_") && strings.HasPrefix(test, name)
	})
}

// TestVersions needs ENVOY_VERSIONS: the programs, divided by blanks.
func TestVersions(t *testing.T) {
	if os.Getenv("ENVOY_VERSIONS") == "" {
		t.Skip("needs several Envoys: run make versions")
	}
	suite := build(t)
	var all []column
	for binary := range strings.FieldsSeq(os.Getenv("ENVOY_VERSIONS")) {
		version, err := realenvoy.Version(t.Context(), binary)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		c := column{version: version, results: run(t, suite, binary, expression())}
		if again := c.failed(); len(again) > 0 { // the machine may have been busy
			t.Logf("Envoy %s: once more, by itself: %s", version, again)
			maps.Copy(c.results, run(t, suite, binary, "^("+strings.Join(again, "|")+")$"))
		}
		t.Logf("Envoy %s: %d tests in %s", version, len(c.results), time.Since(begun).Round(time.Second))
		all = append(all, c)
	}
	settle(t, table(t, all))
}

// column is what one Envoy does.
type column struct {
	version string
	results map[string]result // by test
}

// result is how a test ended, and why parts of it were left out.
type result struct {
	word    string // pass, fail or skip
	skipped []string
}

func (c column) failed() []string {
	var names []string
	for name, r := range c.results {
		if r.word == "fail" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// build compiles the suite, so that all versions are held against the same one.
func build(t *testing.T) string {
	t.Helper()
	suite := filepath.Join(t.TempDir(), "e2e.test")
	if out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", suite, "..").CombinedOutput(); err != nil {
		t.Fatalf("building the suite: %v\n%s", err, out)
	}
	return suite
}

func expression() string {
	var parts []string
	for _, p := range promises() {
		for name := range strings.FieldsSeq(p.tests) {
			if strings.HasSuffix(name, "_") {
				name += ".*"
			}
			parts = append(parts, name)
		}
	}
	return "^(" + strings.Join(parts, "|") + ")$"
}

var because = regexp.MustCompile(`^ +[a-z_]+_test\.go:\d+: (.*)\n`)

// event is a line of `go tool test2json`.
type event struct{ Action, Test, Output string }

// run returns how each test ended.
func run(t *testing.T, suite, binary, tests string) map[string]result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", suite, "-test.v=test2json", "-test.run", tests)
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "ENVOY="+binary)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: %v", binary, errors.Join(err, ctx.Err()))
	}
	results, said := map[string]result{}, map[string]string{}
	for line := range bytes.Lines(out) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v in %q", binary, err, line)
		}
		if m := because.FindStringSubmatch(e.Output); m != nil {
			said[e.Test] = m[1]
		}
		test, _, part := strings.Cut(e.Test, "/")
		r := results[test]
		switch {
		case test == "":
			continue
		case e.Action == "skip" && !slices.Contains(r.skipped, said[e.Test]):
			r.skipped = append(r.skipped, said[e.Test])
		case e.Action == "fail":
			t.Logf("%s: %s failed: %s", binary, e.Test, said[e.Test])
		}
		if !part && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			r.word = e.Action
		}
		results[test] = r
	}
	return results
}

// table renders what works where. A promise without a test is a fault of the list.
func table(t *testing.T, all []column) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| |")
	for _, c := range all {
		fmt.Fprintf(&b, " %s |", c.version)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(all)) + "\n")
	var notes []string
	for _, p := range promises() {
		fmt.Fprintf(&b, "| %s |", p.what)
		for _, c := range all {
			b.WriteString(" " + c.cell(t, p, &notes) + " |")
		}
		b.WriteByte('\n')
	}
	for i, note := range notes {
		fmt.Fprintf(&b, "\n%d. %s", i+1, note)
	}
	return b.String()
}

// cell is yes, no, a dash for what was left out, or yes with the number of a note
// on the part that was.
func (c column) cell(t *testing.T, p promise, notes *[]string) string {
	t.Helper()
	words := map[string]int{}
	var skipped []string
	for name, r := range c.results {
		if p.holds(name) {
			words[r.word]++
			skipped = append(skipped, r.skipped...)
		}
	}
	marks := ""
	slices.Sort(skipped)
	for _, why := range slices.Compact(skipped) {
		if !slices.Contains(*notes, why) {
			*notes = append(*notes, why)
		}
		marks += fmt.Sprintf(" (%d)", 1+slices.Index(*notes, why))
	}
	switch {
	case len(words) == 0:
		t.Errorf("Envoy %s: no test ran for %q", c.version, p.what)
		return "?"
	case words["fail"] > 0:
		return "**no**" + marks
	case words["pass"] == 0:
		return "–" + marks
	}
	return "yes" + marks
}

// settle writes the page, or holds what was seen against it.
func settle(t *testing.T, table string) {
	t.Helper()
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- versions -->\n", "\n<!-- /versions -->"
	head, rest, ok := strings.Cut(string(old), begin)
	was, foot, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s: want the marks %q and %q", page, begin, end)
	}
	if *update {
		if err := os.WriteFile(page, []byte(head+begin+table+end+foot), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(was, table); diff != "" {
		t.Errorf("%s says otherwise (make versions WRITE=1 writes it anew), -page +seen:\n%s", page, diff)
	}
}
