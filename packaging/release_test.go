package packaging

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// dist is where `make release-check` has goreleaser put everything.
const dist = "../dist"

// output runs a program and returns what it prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// one returns the one file of dist that matches.
func one(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dist, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %d files %v, want 1", pattern, len(found), err)
	}
	return found[0]
}

func TestUnit(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("needs systemd-analyze")
	}
	unit, err := os.ReadFile("envoy-mcp-auth.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program is not installed here; what is wrong with the rest is found all the same.
	at := filepath.Join(t.TempDir(), "envoy-mcp-auth.service")
	if err := os.WriteFile(at, bytes.ReplaceAll(unit, []byte("/usr/bin/envoy-mcp-auth"), []byte("/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := output(t, "systemd-analyze", "verify", "--man=no", at); strings.Contains(out, "envoy-mcp-auth.service") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := output(t, "systemd-analyze", "security", "--offline=true", "--threshold=15", at); !strings.Contains(out, "OK") {
		t.Errorf("systemd-analyze security: %s", out)
	}
}

// TestRelease looks into what goreleaser made.
func TestRelease(t *testing.T) {
	t.Parallel()
	if os.Getenv("RELEASE_CHECK") == "" {
		t.Skip("needs what goreleaser makes: run make release-check")
	}
	arch := runtime.GOARCH
	program := filepath.Join(t.TempDir(), "envoy-mcp-auth")

	t.Run("archive", func(t *testing.T) {
		file := one(t, "*_linux_"+arch+".tar.gz")
		list := output(t, "tar", "tzf", file)
		for _, want := range []string{"/envoy-mcp-auth\n", "/LICENSE\n", "/man/envoy-mcp-auth-serve.1\n", "/completions/envoy-mcp-auth.bash\n", "/schema.json\n", "/systemd/"} {
			if !strings.Contains(list, want) {
				t.Errorf("%s lacks %q:\n%s", file, want, list)
			}
		}
	})
	t.Run("deb", func(t *testing.T) {
		file := one(t, "*_linux_"+arch+".deb")
		root := t.TempDir()
		output(t, "dpkg-deb", "-x", file, root)
		out := output(t, filepath.Join(root, "usr/bin/envoy-mcp-auth"), "version", "-o", "json")
		var v struct{ Version string }
		if err := json.Unmarshal([]byte(out), &v); err != nil || !strings.Contains(filepath.Base(file), v.Version) {
			t.Errorf("the program of %s says version %q, %v", file, v.Version, err)
		}
		for _, want := range []string{"usr/lib/systemd/system/envoy-mcp-auth.service", "usr/lib/sysusers.d/envoy-mcp-auth.conf", "usr/share/man/man1/envoy-mcp-auth.1", "etc/envoy-mcp-auth/environment"} {
			if _, err := os.Stat(filepath.Join(root, want)); err != nil {
				t.Error(err)
			}
		}
		if err := os.Rename(filepath.Join(root, "usr/bin/envoy-mcp-auth"), program); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("the same for both architectures", func(t *testing.T) {
		for _, pattern := range []string{"*_linux_amd64.deb", "*_linux_arm64.deb", "*_linux_amd64.rpm", "*_linux_arm64.rpm", "*_darwin_arm64.tar.gz", "*_darwin_amd64.tar.gz", "*_linux_arm64.tar.gz"} {
			one(t, pattern)
		}
	})
	t.Run("sums", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
		cmd.Dir = dist
		out, err := cmd.CombinedOutput()
		if n := strings.Count(string(out), ": OK"); err != nil || n != 12 {
			t.Errorf("%d files of SHA256SUMS fit, want 12; %v: %s", n, err, out)
		}
	})
	t.Run("SBOM", func(t *testing.T) { sbom(t, one(t, "*_linux_"+arch+".cdx.json"), program) })
}

// sbom holds the list of modules to what Go says is in the program.
func sbom(t *testing.T, file, program string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		Components []struct {
			Name, Version      string
			Licenses, Evidence json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &bom); err != nil {
		t.Fatal(err)
	}
	has := map[string]string{}
	for _, c := range bom.Components {
		has[c.Name] = c.Version
	}
	modules := 0
	for line := range strings.Lines(output(t, "go", "version", "-m", program)) {
		if f := strings.Fields(line); len(f) >= 3 && f[0] == "dep" {
			modules++
			if has[f[1]] != f[2] {
				t.Errorf("%s is in the program and %q in its SBOM", f[1]+" "+f[2], has[f[1]])
			}
		}
	}
	if modules < 20 {
		t.Errorf("%d modules found in the program, want at least 20", modules)
	}
}
