package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// TestManPages holds the manual pages of the packages to the commands' own help.
func TestManPages(t *testing.T) {
	t.Parallel()
	const kept = "../../packaging/man"
	dir := t.TempDir()
	if *update {
		dir = kept
	}
	root := newRoot(streams{})
	root.DisableAutoGenTag = true
	root.CompletionOptions.DisableDefaultCmd = true // its pages say nothing that --help does not
	// A fixed month: the pages change with the commands and not with the day.
	date := time.Date(2026, time.November, 1, 0, 0, 0, 0, time.UTC)
	header := &doc.GenManHeader{Section: "1", Source: "envoy-mcp-auth", Manual: "envoy-mcp-auth", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	made, want := pages(t, dir), pages(t, kept)
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("packaging/man is not what the commands say of themselves (-kept +made); run make golden:\n%s", diff)
	}
	for _, cmd := range commands(root) {
		if cmd.Runnable() && cmd.Example == "" && !cmd.Hidden && cmd.Name() != "help" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
	}
}

// commands returns cmd's commands, and theirs.
func commands(cmd *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, c := range cmd.Commands() {
		all = append(append(all, c), commands(c)...)
	}
	return all
}

// pages returns the files of a directory by name.
func pages(t *testing.T, dir string) map[string]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no pages in %s: %v", dir, err)
	}
	all := map[string]string{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = string(b)
	}
	return all
}
