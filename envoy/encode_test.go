package envoy

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// TestPiecesAreWhatTheLibraryWrites takes real documents apart in pieces of
// every size, and compares with the library's own text.
func TestPiecesAreWhatTheLibraryWrites(t *testing.T) {
	files, err := filepath.Glob("testdata/*.golden.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		root := doc.Content[0]
		var whole bytes.Buffer
		if err := encodeWhole(&whole, root, ""); err != nil {
			t.Fatal(err)
		}
		for _, limit := range []int{1, 2, 3, 5, 8, 13, 40, 100, 400} {
			var pieces bytes.Buffer
			if err := encode(&pieces, root, "", limit); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(whole.String(), pieces.String()); diff != "" {
				t.Errorf("%s in pieces of %d nodes (-whole +pieces):\n%s", file, limit, diff)
			}
		}
	}
}
