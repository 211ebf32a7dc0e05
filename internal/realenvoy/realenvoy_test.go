package realenvoy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
)

const bootstrap = `static_resources: {listeners: [], clusters: []}`

func TestStartAndStop(t *testing.T) {
	e, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: realenvoy.Require(t), Bootstrap: []byte(bootstrap), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if n, ok, err := e.Stat(t.Context(), "server.live"); n != 1 || !ok || err != nil {
		t.Errorf("server.live: got %d, %t, %v", n, ok, err)
	}
	if _, ok, err := e.Stat(t.Context(), "no.such"); ok || err != nil {
		t.Errorf("no.such: got %t, %v", ok, err)
	}
	e.Stop()
	e.Stop()
	if err := syscall.Kill(e.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("want no process %d, got %v", e.PID, err)
	}
}

func TestStartTellsWhatEnvoySaid(t *testing.T) {
	_, err := realenvoy.Start(t.Context(), realenvoy.Config{Binary: realenvoy.Require(t), Bootstrap: []byte("no_such_field: 1"), Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "no_such_field") {
		t.Errorf("want Envoy's complaint about no_such_field, got %v", err)
	}
}

func TestValidate(t *testing.T) {
	binary := realenvoy.Require(t)
	file := filepath.Join(t.TempDir(), "envoy.yaml")
	for text, want := range map[string]bool{bootstrap: true, "no_such_field: 1": false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := realenvoy.Validate(t.Context(), binary, file); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestFindTakesNoOtherThanENVOY(t *testing.T) {
	t.Setenv("ENVOY", filepath.Join(t.TempDir(), "gone"))
	if p, err := realenvoy.Find(); err == nil || errors.Is(err, realenvoy.ErrNotFound) {
		t.Errorf("want an error about $ENVOY, got %q, %v", p, err)
	}
}

// fake records what Require does to a test.
type fake struct{ got string }

func (*fake) Helper()                     {}
func (f *fake) Skipf(s string, a ...any)  { f.got = "skip: " + fmt.Sprintf(s, a...) }
func (f *fake) Fatalf(s string, a ...any) { f.got = "fatal: " + fmt.Sprintf(s, a...) }

func TestRequireWithoutEnvoy(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("PATH", dir)
	t.Setenv("ENVOY", "")
	for ci, want := range map[string]string{"": "skip", "true": "fatal"} {
		t.Setenv("CI", ci)
		f := &fake{}
		if realenvoy.Require(f); !strings.HasPrefix(f.got, want+": needs the real Envoy: no envoy found") {
			t.Errorf("CI=%q: got %q", ci, f.got)
		}
	}
}
