// Command schemagen writes policy/schema.json and docs/policy.md from the types
// of the policy file and their comments. Run it by `go generate ./policy`.
//
// It is a program of its own so that the product does not link the reflector.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	root := flag.String("root", ".", "the directory of go.mod")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, "schemagen:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	files, err := generate(root)
	if err != nil {
		return err
	}
	for name, text := range files {
		//nolint:gosec // generated files are for everybody to read
		if err := os.WriteFile(filepath.Join(root, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns the generated files, by their path below root.
func generate(root string) (map[string][]byte, error) {
	sources, err := filepath.Glob(filepath.Join(root, "policy", "file*.go"))
	if err != nil {
		return nil, err
	}
	words, err := readComments(sources)
	if err != nil {
		return nil, err
	}
	schema, err := schemaJSON(words)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"policy/schema.json": schema,
		"docs/policy.md":     reference(words),
	}, nil
}
