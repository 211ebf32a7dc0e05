package compose_test

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
)

// root of the repository, which is what images are built from.
const root = "../.."

// platforms that the images are for, with what a binary of theirs says it is for.
func platforms() map[string]elf.Machine {
	return map[string]elf.Machine{"linux/amd64": elf.EM_X86_64, "linux/arm64": elf.EM_AARCH64}
}

// image is what BuildKit makes of a target of the Dockerfile.
type image struct {
	Target, Platform, Base string
	Image                  struct {
		Config struct {
			User       string
			Entrypoint []string
		}
		History []struct {
			CreatedBy string `json:"created_by"`
		}
	}
}

var errNoDockerfile = errors.New("no reader of Dockerfiles found: set $DOCKERFILE to the program, or run tools/build dockerfile")

// images reads a Dockerfile with BuildKit's own parser and checks.
func images(t *testing.T, file string) ([]image, error) {
	t.Helper()
	find := cached.Part{Env: "DOCKERFILE", Dir: "dockerfile", Program: "dockerfile", Missing: errNoDockerfile}.Find
	cmd := exec.CommandContext(t.Context(), cached.Require(t, "reader of Dockerfiles", find, errNoDockerfile), file)
	for p := range platforms() {
		cmd.Args = append(cmd.Args, p)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.New(said.String())
	}
	var all []image
	for line := range bytes.Lines(out) {
		var i image
		if err := json.Unmarshal(line, &i); err != nil {
			t.Fatal(err)
		}
		all = append(all, i)
	}
	return all, nil
}

// TestDockerfile: BuildKit converts every target for every platform and has no
// warning; every base is pinned, and nothing runs as root.
func TestDockerfile(t *testing.T) {
	t.Parallel()
	all, err := images(t, filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	if want := 4 * len(platforms()); len(all) != want {
		t.Errorf("want %d images, got %d", want, len(all))
	}
	for _, i := range all {
		if !pinned.MatchString(i.Base) {
			t.Errorf("%s: want its base by tag and digest, got %s", i.Target, i.Base)
		}
		c := i.Image.Config
		switch i.Target {
		case "build":
		case "litellm":
			if c.User != user {
				t.Errorf("%s: user %q", i.Target, c.User)
			}
		default:
			if c.User != user || !slices.Equal(c.Entrypoint, []string{"/usr/local/bin/" + i.Target}) || !strings.HasPrefix(i.Base, "gcr.io/distroless/static-") {
				t.Errorf("want %s for user %s on distroless, got %+v", i.Target, user, i)
			}
		}
	}
	if first, _, _ := strings.Cut(string(read(t, filepath.Join(root, "Dockerfile"))), "\n"); !pinned.MatchString(strings.TrimPrefix(first, "# syntax=")) {
		t.Errorf("want the reader of the file pinned, got %q", first)
	}
}

// pinned is a reference to an image with an exact tag and a digest.
var pinned = regexp.MustCompile(`^[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}$`)

// TestDockerfileWithFaults: the check can fail.
func TestDockerfileWithFaults(t *testing.T) {
	t.Parallel()
	good := string(read(t, filepath.Join(root, "Dockerfile")))
	for _, c := range []struct{ what, from, to, want string }{
		{"two stages of one name", " AS demo-servers", " AS litellm", "DuplicateStageName"},
		{"a variable that nobody sets", "WORKDIR /src", "WORKDIR /src\nENV X=$TARGETARHC", "UndefinedVar"},
		{"a word that is no instruction", "USER 65532", "USRE 65532", "unknown instruction"},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			bad := strings.Replace(good, c.from, c.to, 1)
			file := filepath.Join(t.TempDir(), "Dockerfile")
			if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := images(t, file); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want %q, got %v", c.want, err)
			}
		})
	}
}

// TestImagesAreReproducible runs the Dockerfile's own build command in two
// directories, one a checkout and one not: the binaries are the same to the byte,
// static, and for the platform they say.
func TestImagesAreReproducible(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds everything, twice for each platform")
	}
	all, err := images(t, filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{here, checkout(t, here)}
	for _, i := range all {
		if i.Target != "build" {
			continue
		}
		t.Run(i.Platform, func(t *testing.T) {
			sums := map[string][]string{}
			for _, dir := range dirs {
				for name, sum := range build(t, i, dir) {
					sums[name] = append(sums[name], sum)
				}
			}
			if len(sums) != 2 {
				t.Errorf("want two programs, got %v", sums)
			}
			for name, s := range sums {
				if len(s) != 2 || s[0] != s[1] {
					t.Errorf("%s: want the same bytes of two directories", name)
				}
			}
		})
	}
}

// build runs the command of the build stage in a directory, and returns what the
// programs sum up to.
func build(t *testing.T, i image, dir string) map[string]string {
	t.Helper()
	n := slices.IndexFunc(i.Image.History, func(h struct {
		CreatedBy string `json:"created_by"`
	},
	) bool {
		return strings.Contains(h.CreatedBy, "go build")
	})
	arguments, command, ok := strings.Cut(i.Image.History[n].CreatedBy, " /bin/sh -c ")
	if !ok {
		t.Fatalf("no command in %q", i.Image.History[n].CreatedBy)
	}
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", strings.ReplaceAll(strings.TrimSuffix(command, " # buildkit"), "/out/", out+"/"))
	cmd.Dir = dir
	// RUN |3 TARGETOS=linux TARGETARCH=arm64 VERSION=dev
	cmd.Env = append(os.Environ(), strings.Fields(arguments)[2:]...)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	sums := map[string]string{}
	for _, name := range []string{"envoy-mcp-auth", "demo-servers"} {
		path := filepath.Join(out, name)
		sum := sha256.Sum256(read(t, path))
		sums[name] = string(sum[:])
		static(t, path, platforms()[i.Platform])
	}
	return sums
}

// static fails the test unless a program needs no library and no loader.
func static(t *testing.T, path string, machine elf.Machine) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	libraries, _ := f.ImportedLibraries()
	loader := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if f.Machine != machine || len(libraries) > 0 || loader {
		t.Errorf("%s: want a static program for %s, got %s, libraries %v, a loader: %t", path, machine, f.Machine, libraries, loader)
	}
}

// checkout copies the sources to a directory that is no checkout.
func checkout(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("needs a checkout with git: %v", err)
	}
	to := t.TempDir()
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not committed yet
		} else if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}
