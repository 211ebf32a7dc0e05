// Package cached finds the real parts that tools/install put beside go.mod.
package cached

import (
	"os"
	"os/exec"
	"path/filepath"
)

// Program returns the path of .cache/PART/bin/PROGRAM of the module that the
// working directory is in, and false when there is no such program.
func Program(part, program string) (string, bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
	p, err := exec.LookPath(filepath.Join(dir, ".cache", part, "bin", program))
	return p, err == nil
}
