package metricstest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics/metricstest"
)

// TestFullIsFull holds it to every name in the source of the metrics: one that is
// missing here would be missing in the README without a word.
func TestFullIsFull(t *testing.T) {
	t.Parallel()
	families, err := metricstest.Full().Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, f := range families {
		have = append(have, f.GetName())
	}
	files, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, file := range files {
		if matched, _ := filepath.Match("*_test.go", filepath.Base(file)); matched {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`"(mcp_auth_[a-z_]+)"`).FindAllSubmatch(b, -1) {
			seen++
			if !slices.Contains(have, string(m[1])) {
				t.Errorf("%s: Full has no value of %s: give it one", file, m[1])
			}
		}
	}
	if seen < 30 {
		t.Errorf("found %d names in the source, want more", seen)
	}
}
