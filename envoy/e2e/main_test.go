package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// TestMain serves as a processor with a fault when the environment says so: a
// panic, or the end of a process, cannot be had inside the test's own.
func TestMain(m *testing.M) {
	if mode := os.Getenv("E2E_PROCESSOR"); mode != "" {
		if err := runScripted(mode, os.Getenv("E2E_SOCKET")); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	m.Run()
	built.remove()
}

// built is the program under test, built once for all tests of a run.
var built product

type product struct {
	once sync.Once
	dir  string
	err  error
}

// path builds the program at the first call.
func (p *product) path(t *testing.T) string {
	t.Helper()
	p.once.Do(func() {
		if p.dir, p.err = os.MkdirTemp("", "e2e-bin"); p.err != nil { //nolint:usetesting // it outlives the first test
			return
		}
		cmd := exec.CommandContext(context.Background(), "go", "build", raceFlag, "-o", p.file(), "../../cmd/envoy-mcp-auth")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("building the program: %w\n%s", err, out)
		}
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.file()
}

func (p *product) file() string { return filepath.Join(p.dir, "envoy-mcp-auth") }

func (p *product) remove() {
	if p.dir != "" {
		_ = os.RemoveAll(p.dir)
	}
}
