// Package rows keeps docs/rules.md: what the ids in the names of tests stand for,
// and which tests keep each of them. It has no code but its test.
package rows

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/rules.md anew")

const document = "../../docs/rules.md"

// row is one rule or one fault. Its tests are those with its id in their names, and
// those of also. Where two series have an id in common, only names itself, and the
// other series has the rest.
type row struct {
	id, what   string
	only, also string
	// untested says why nothing can be tested here.
	untested string
}

type series struct {
	title string
	rows  []row
}

// TestEveryRowIsKept: each row has tests. With -v it says which.
func TestEveryRowIsKept(t *testing.T) {
	tests, taken := names(t), map[string]bool{}
	for _, s := range table() {
		for _, r := range s.rows {
			kept := r.tests(t, tests, taken)
			if (len(kept) == 0) != (r.untested != "") {
				t.Errorf("%s, %s (%s): want a test that names it, or why there is none", s.title, r.id, r.what)
			}
			t.Logf("%s, %s: %s%s", s.title, r.id, r.what, r.untested)
			for _, name := range kept {
				t.Logf("    %s in %s", name, tests[name])
			}
		}
	}
}

// TestDocument: docs/rules.md is the table.
func TestDocument(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Rules and faults\n\nThe ids in the names of tests are those of this page: `TestO16_…` keeps O16. Two series count O1 to O10; " +
		"`go test -v ./internal/rows`\nshows the tests of each row, and fails when a row has none. The tables are made by `make golden`.\n")
	for _, s := range table() {
		fmt.Fprintf(&b, "\n## %s\n\n| id | what must hold |\n| --- | --- |\n", s.title)
		for _, r := range s.rows {
			what := r.what
			if r.untested != "" {
				what += " (no test: " + r.untested + ")"
			}
			fmt.Fprintf(&b, "| %s | %s |\n", r.id, what)
		}
	}
	if *update {
		if err := os.WriteFile(document, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(document); err != nil || string(got) != b.String() {
		t.Errorf("docs/rules.md is not the table of this test (%v); run make golden", err)
	}
}

// tests returns the names of the tests of a row. taken holds what an earlier
// series has of an id in common.
func (r row) tests(t *testing.T, all map[string]string, taken map[string]bool) []string {
	t.Helper()
	var kept []string
	for name := range strings.FieldsSeq(r.only + " " + r.also) {
		if all[name] == "" {
			t.Errorf("%s: there is no test %s", r.id, name)
		}
		kept = append(kept, name)
	}
	for name := range strings.FieldsSeq(r.only) {
		if !ids(name)[r.id] {
			t.Errorf("%s: %s does not name it", r.id, name)
		}
		taken[r.id+name] = true
	}
	if r.only == "" {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if ids(name)[r.id] && !taken[r.id+name] && !slices.Contains(kept, name) {
				kept = append(kept, name)
			}
		}
	}
	slices.Sort(kept)
	return kept
}

var idInName = regexp.MustCompile(`[A-Z][0-9]+`)

// ids returns the ids at the head of a test's name: TestO4_U5_Keys has two.
func ids(name string) map[string]bool {
	out := map[string]bool{}
	head := regexp.MustCompile(`^(?:Test|Fuzz|Benchmark)((?:[A-Z][0-9]+_?)*)`).FindStringSubmatch(name)
	if head != nil {
		for _, id := range idInName.FindAllString(head[1], -1) {
			out[id] = true
		}
	}
	return out
}

// names returns all tests and fuzz targets of the tree, each with its file.
func names(t *testing.T) map[string]string {
	t.Helper()
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	out := map[string]string{}
	tree := os.DirFS("../..")
	err := fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := fs.ReadFile(tree, path)
		for _, m := range function.FindAllSubmatch(text, -1) {
			out[string(m[1])] = path
		}
		return err
	})
	if err != nil || len(out) < 100 {
		t.Fatalf("want the tests of the whole tree, got %d, %v", len(out), err)
	}
	return out
}

func TestIDs(t *testing.T) {
	for name, want := range map[string]string{
		"TestO4_U5_EveryKey": "O4 U5", "TestO8SymlinkSwap": "O8", "TestO18_Evict": "O18", "TestO1_O2X": "O1 O2", "TestT1": "T1",
		"TestTokenFor": "", "FuzzS3_ParseCalls": "S3", "TestJ11_Known": "J11", "TestMTLS": "", "TestU": "", "TestA_O4": "",
	} {
		if got := strings.Join(slices.Sorted(maps.Keys(ids(name))), " "); got != want {
			t.Errorf("%s: want %q, got %q", name, want, got)
		}
	}
}
