package policy

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	// canary is the value of every variable that the tests do not name.
	canary = "c4n4ry-value"
	// pasted stands in the bad files wherever somebody might paste a secret.
	pasted = "s3cr3t-literal"
)

func testEnv(name string) (string, bool) {
	switch name {
	case "UNSET":
		return "", false
	case "EMPTY":
		return "", true
	case "TENANT":
		return "acme\n", true
	case "MULTILINE":
		return canary + "\nx-evil: 1\n", true
	}
	return canary, true
}

var update = flag.Bool("update", false, "write the .want files of testdata/bad")

// TestBadFiles reads every broken file beside its whole error text.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) < 35 {
		t.Fatalf("want at least 35 broken files, got %d, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			t.Parallel()
			text := readFile(t, file)
			set, err := Parse("policy.yaml", text, testEnv)
			var faults Faults
			if !errors.As(err, &faults) || set != nil {
				t.Fatalf("want Faults and no Set, got %v, %v", set, err)
			}
			got := err.Error() + "\n"
			if strings.Contains(got, canary) || strings.Contains(got, pasted) {
				t.Errorf("S4: the error shows a secret:\n%s", got)
			}
			wantFile := strings.TrimSuffix(file, ".yaml") + ".want"
			if *update {
				if err := os.WriteFile(wantFile, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(readFile(t, wantFile)), got); diff != "" {
				t.Errorf("error text (-want +got):\n%s", diff)
			}
		})
	}
}

func readFile(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
