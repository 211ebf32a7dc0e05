// Package cached finds the real parts that tests run: the user's own, or what
// tools/install put beside go.mod.
package cached

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// Part is a real part.
type Part struct {
	// Env names the variable with the user's own program.
	Env string
	// Dir and Program are where tools/install puts it: .cache/DIR/bin/PROGRAM.
	Dir, Program string
	// OnPath is whether PROGRAM on PATH is good too.
	OnPath bool
	// Missing is the error of Find when there is none.
	Missing error
}

// Find returns the path of the part's program: $ENV, else the one on PATH where
// that is good too, else the project's own. A $ENV that does not run is an error
// and not a reason to look further.
func (p Part) Find() (string, error) {
	if own := os.Getenv(p.Env); own != "" {
		found, err := exec.LookPath(own)
		if err != nil {
			return "", fmt.Errorf("$%s: %w", p.Env, err)
		}
		return found, nil
	}
	if p.OnPath {
		if found, err := exec.LookPath(p.Program); err == nil {
			return found, nil
		}
	}
	dir, err := root()
	if err != nil {
		return "", p.Missing
	}
	found, err := exec.LookPath(filepath.Join(dir, ".cache", p.Dir, "bin", p.Program))
	if err != nil {
		return "", p.Missing
	}
	return found, nil
}

// root returns the directory of the go.mod of the module that the working
// directory is in.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod here or above; change into the repository")
		}
		dir = parent
	}
}

// TB is the part of testing.TB that Require needs.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Require returns what find finds. An error that is one of absent skips the test
// on a developer's machine and fails it where CI is set, so that a green run means
// that the real part was there; any other fails it everywhere.
func Require(t TB, name string, find func() (string, error), absent ...error) string {
	t.Helper()
	path, err := find()
	switch {
	case err == nil:
	case os.Getenv("CI") == "" && slices.ContainsFunc(absent, func(a error) bool { return errors.Is(err, a) }):
		t.Skipf("needs the real %s: %v", name, err)
	default:
		t.Fatalf("needs the real %s: %v", name, err)
	}
	return path
}
