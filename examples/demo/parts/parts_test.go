package parts_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the rendered files anew")

// dir holds the checked-in files.
const dir = ".."

// env has a value for whatever a policy names; none of the files shows it.
func env(name string) (string, bool) {
	return strings.Repeat("5e", 32), slices.Contains([]string{parts.ClientSecret, parts.CallerSum, parts.AlertSecret}, name)
}

func load(t *testing.T) ([]byte, *policy.Set) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, parts.PolicyFile))
	if err != nil {
		t.Fatal(err)
	}
	set, err := policy.Parse(parts.PolicyFile, b, env)
	if err != nil {
		t.Fatal(err)
	}
	return b, set
}

func TestFilesAreRendered(t *testing.T) {
	files, err := parts.Render(load(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		path := filepath.Join(dir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the policy renders to; run go generate ./examples/demo/parts (-want +got):\n%s",
				path, cmp.Diff(string(want), string(got)))
		}
		if bytes.Contains(got, []byte(strings.Repeat("5e", 32))) {
			t.Errorf("%s holds the value of a secret", path)
		}
	}
}

func TestPolicyHasNoWarningAndEnvoyNoFinding(t *testing.T) {
	text, set := load(t)
	for _, w := range set.Warnings {
		t.Errorf("warning: %s", w)
	}
	files, err := parts.Render(text, set)
	if err != nil {
		t.Fatal(err)
	}
	found, err := envoy.Check(parts.EnvoyFile, files[parts.EnvoyFile], set)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		t.Errorf("finding: %s", f)
	}
}

func TestShiftMovesEveryAddress(t *testing.T) {
	text, set := load(t)
	was, err := parts.NewLayout(set, parts.LiteLLMPort)
	if err != nil {
		t.Fatal(err)
	}
	moved, err := parts.Shift(text, 100)
	if err != nil {
		t.Fatal(err)
	}
	if set, err = policy.Parse(parts.PolicyFile, moved, env); err != nil {
		t.Fatal(err)
	}
	is, err := parts.NewLayout(set, parts.LiteLLMPort+100)
	if err != nil {
		t.Fatal(err)
	}
	if was.Socket == is.Socket || filepath.Dir(was.Socket)+"-100" != filepath.Dir(is.Socket) {
		t.Errorf("want the socket in a directory of its own, got %q after %q", is.Socket, was.Socket)
	}
	seen := map[string]string{}
	for _, p := range append(was.Parts(), is.Parts()...) {
		if other, ok := seen[p.Address]; ok {
			t.Errorf("%s and %s share %s", other, p.Name, p.Address)
		}
		seen[p.Address] = p.Name
	}
	if len(seen) != 14 {
		t.Errorf("want 7 parts twice, got %v", seen)
	}
	if same, err := parts.Shift(text, 0); err != nil || !bytes.Equal(same, text) {
		t.Errorf("no offset: want the text as it is, got %s (%v)", same, err)
	}
	if _, err := parts.Shift(text, 60000); err == nil {
		t.Error("want an error for a port over 65535")
	}
}
