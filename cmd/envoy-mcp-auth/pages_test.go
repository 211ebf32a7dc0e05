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

// TestPages runs what the pages under docs show, as TestReadme does.
func TestPages(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(bin, "envoy-mcp-auth"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for page, commands := range map[string]int{"callers": 6, "upgrade": 7, "tools": 8, "providers": 3, "limits": 3, "watch": 4, "import": 7} {
		text := readPage(t, page)
		blocks := consoleBlocks(text)
		if len(blocks) != commands {
			t.Fatalf("%s: %d commands found, want %d", page, len(blocks), commands)
		}
		cmd := exec.CommandContext(ctx, "bash")
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+t.TempDir())
		runBlocks(t, page, cmd, blocks)
	}
}

func readPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", name+".md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestCallersRefusals holds the table of refusals of docs/callers.md to the code.
func TestCallersRefusals(t *testing.T) {
	t.Parallel()
	refusalsOf(t, readPage(t, "callers"))
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
