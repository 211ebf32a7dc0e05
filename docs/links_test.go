package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile("(?m)^#+ +(.+)$")
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	other   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinks follows every link between the pages of this repository, to the heading.
func TestLinks(t *testing.T) {
	t.Parallel()
	seen := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" || d.Name() == "dist") {
			return skip(d, err)
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(read(t, path), ""), -1) {
			seen++
			follow(t, path, m[1])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Errorf("%d links found, want at least 50", seen)
	}
}

func skip(d fs.DirEntry, err error) error {
	if err == nil && d.IsDir() {
		return filepath.SkipDir
	}
	return err
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// follow fails the test when a link of a page leads nowhere.
func follow(t *testing.T, page, to string) {
	t.Helper()
	if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
		return
	}
	file, anchor, _ := strings.Cut(to, "#")
	target := page
	if file != "" {
		target = filepath.Join(filepath.Dir(page), file)
	}
	if _, err := os.Stat(target); err != nil {
		t.Errorf("%s links to %s, which is not there", page, to)
		return
	}
	if anchor == "" || filepath.Ext(target) != ".md" {
		return
	}
	for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(read(t, target), ""), -1) {
		if slug(h[1]) == anchor {
			return
		}
	}
	t.Errorf("%s links to %s, a heading that is not there", page, to)
}

// slug is the anchor that GitHub gives a heading.
func slug(title string) string {
	title = link.ReplaceAllString(title, "]")
	return strings.ReplaceAll(other.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}
