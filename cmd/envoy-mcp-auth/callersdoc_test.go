package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// TestCallersDoc runs what docs/callers.md shows, as TestReadme does, and holds its
// table of refusals to the code.
func TestCallersDoc(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/callers.md")
	if err != nil {
		t.Fatal(err)
	}
	refusalsOf(t, string(text))
	blocks := consoleBlocks(string(text))
	if len(blocks) != 6 {
		t.Fatalf("%d commands found, want 6", len(blocks))
	}
	bin := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, "envoy-mcp-auth"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const mark = "--- next command ---"
	var script strings.Builder
	for _, b := range blocks {
		fmt.Fprintf(&script, "%s\necho '%s'\n", b.command, mark)
	}
	cmd := exec.CommandContext(ctx, "bash")
	cmd.Stdin = strings.NewReader(script.String())
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := strings.Split(string(out), mark+"\n")
	for i, b := range blocks {
		if got[i] != b.want {
			t.Errorf("$ %s\nprints:\n%s\nthe page says:\n%s", b.command, got[i], b.want)
		}
	}
}

// refusalsOf compares the rows of the table with what the code answers where
// callers have tokens.
func refusalsOf(t *testing.T, text string) {
	t.Helper()
	set, err := policy.Parse("policy.yaml", []byte(jwtPolicy), func(string) (string, bool) { return "x", true })
	if err != nil {
		t.Fatal(err)
	}
	up, _ := set.Lookup(&policy.Request{Name: "tools"})
	rows := 0
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		for _, r := range policy.Reasons() {
			if len(cells) < 5 || strings.TrimSpace(cells[3]) != "`"+r.String()+"`" {
				continue
			}
			rows++
			said, asks := strings.TrimSpace(cells[2]), strings.TrimSpace(cells[4])
			if want := fmt.Sprint(up.Status(r)); !strings.HasPrefix(said, want) || r.Status() != up.Status(r) && !strings.Contains(said, fmt.Sprint(r.Status())) {
				t.Errorf("%s: want %s, the page says %s", r, want, said)
			}
			if want := up.Status(r) == 401 || r == policy.ScopeMissing; want == (asks == "–") {
				t.Errorf("%s: want a challenge %t, the page says %s", r, want, asks)
			}
		}
	}
	if rows != 5 {
		t.Errorf("want five refusals in the table, got %d", rows)
	}
}
