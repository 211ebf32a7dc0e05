package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics/metricstest"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the generated parts of README.md and docs/audit.md anew")

const readme = "../../README.md"

// block is one command of a console block and the output the README shows for it.
type block struct{ command, want string }

// consoleBlocks reads the ```console blocks: lines after "$ " are commands, a
// here-document goes with its command, and the rest is output.
func consoleBlocks(text string) []block {
	var blocks []block
	inside, until := false, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch last := len(blocks) - 1; {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case !inside:
		case until != "":
			blocks[last].command += "\n" + line
			if line == until {
				until = ""
			}
		case strings.HasPrefix(line, "$ "):
			blocks = append(blocks, block{command: line[2:]})
			if strings.Contains(line, "<<'END'") {
				until = "END"
			}
		default:
			blocks[last].want += line + "\n"
		}
	}
	return blocks
}

// TestReadme runs what the README tells a new user to copy, in one shell, and
// compares what each command prints. A line … stands for any output.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	blocks := consoleBlocks(string(text))
	if len(blocks) < 10 {
		t.Fatalf("%d commands found in the README, want at least 10", len(blocks))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(realenvoy.Require(t))+":"+os.Getenv("PATH"), "TMPDIR="+t.TempDir())
	runBlocks(t, "README", cmd, blocks)
}

// runBlocks runs the commands of a page one after the other, and compares what
// each prints with what the page says. … stands for anything.
func runBlocks(t *testing.T, page string, shell *exec.Cmd, blocks []block) {
	t.Helper()
	const mark = "--- next command ---"
	var script strings.Builder
	for _, b := range blocks {
		fmt.Fprintf(&script, "%s\necho '%s'\n", b.command, mark)
	}
	shell.Stdin = strings.NewReader(script.String())
	out, err := shell.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", page, err, out)
	}
	got := strings.Split(string(out), mark+"\n")
	for i, b := range blocks {
		if b.want != "…\n" && got[i] != b.want {
			t.Errorf("$ %s\nprints:\n%s\n%s says:\n%s", b.command, got[i], page, b.want)
		}
	}
}

// TestTables holds the tables of the docs to the code.
func TestTables(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		page, name string
		table      func(*testing.T) string
	}{
		{readme, "reasons", reasonTable},
		{"../../docs/metrics.md", "metrics", metricTable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(tt.page)
			if err != nil {
				t.Fatal(err)
			}
			want := between(t, text, tt.name, tt.table(t))
			if *update {
				if err := os.WriteFile(tt.page, want, 0o644); err != nil {
					t.Fatal(err)
				}
			} else if !bytes.Equal(text, want) {
				t.Errorf("the table of %s is not that of the code; run make golden", tt.page)
			}
		})
	}
}

// between puts a table between the markers of its name.
func between(t *testing.T, text []byte, name, table string) []byte {
	t.Helper()
	begin, end := []byte("<!-- "+name+":begin"), []byte("<!-- "+name+":end -->")
	from, to := bytes.Index(text, begin), bytes.Index(text, end)
	if from < 0 || to < from {
		t.Fatalf("there are no markers for the %s", name)
	}
	from += bytes.IndexByte(text[from:], '\n') + 1
	return slices.Concat(text[:from], []byte(table), text[to:])
}

func reasonTable(t *testing.T) string {
	t.Helper()
	set, err := policy.Parse("policy.yaml", []byte(jwtPolicy), func(string) (string, bool) { return "x", true })
	if err != nil {
		t.Fatal(err)
	}
	tokened, _ := set.Lookup(&policy.Request{Name: "tools"})
	var b strings.Builder
	b.WriteString("| status | reason | what the caller reads |\n| --- | --- | --- |\n")
	for _, r := range policy.Reasons() {
		if r != policy.Allowed {
			status := strconv.Itoa(r.Status())
			if other := tokened.Status(r); other != r.Status() {
				status += fmt.Sprintf("; %d where a `jwt` caller is listed", other)
			}
			fmt.Fprintf(&b, "| %s | `%s` | %s |\n", status, r, r.Text())
		}
	}
	return b.String()
}

func metricTable(t *testing.T) string {
	t.Helper()
	families, err := metricstest.Full().Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| metric | labels | meaning |\n| --- | --- | --- |\n")
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "mcp_auth_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+l.GetName()+"`")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.GetName(), strings.Join(labels, ", "), f.GetHelp())
	}
	return b.String()
}
