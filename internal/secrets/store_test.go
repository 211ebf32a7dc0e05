package secrets

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func value(t *testing.T, s *Store, ref policy.SecretRef) string {
	t.Helper()
	v, err := s.Secret(ref)
	if err != nil {
		t.Fatal(err)
	}
	return v.Reveal()
}

func file(path string) policy.SecretRef { return policy.SecretRef{Kind: policy.SecretFile, Name: path} }

func TestStoreReadsEachKind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	put(t, path, "from-file\n")
	env := func(name string) (string, bool) { return "from-env", name == "A" }
	s := New(Config{Env: env})
	for ref, want := range map[policy.SecretRef]string{
		{Kind: policy.SecretText, Name: "Bearer ${A}"}: "Bearer from-env",
		{Kind: policy.SecretEnv, Name: "A"}:            "from-env",
		file(path):                                     "from-file",
	} {
		if err := s.Require(Needs{Refs: []policy.SecretRef{ref}}); err != nil {
			t.Fatal(err)
		}
		if got := value(t, s, ref); got != want {
			t.Errorf("%s = %q, want %q", ref, got, want)
		}
	}
}

func TestRequireNamesEveryFaultAndChangesNothing(t *testing.T) {
	dir := t.TempDir()
	good, empty, large := filepath.Join(dir, "good"), filepath.Join(dir, "empty"), filepath.Join(dir, "large")
	put(t, good, "x")
	put(t, empty, "\n")
	put(t, large, strings.Repeat("x", maxSize+1))
	s := New(Config{Env: func(string) (string, bool) { return "", false }})
	err := s.Require(Needs{Refs: []policy.SecretRef{
		file(good), file(empty), file(large), file(dir), file(filepath.Join(dir, "none")), {Kind: policy.SecretEnv, Name: "UNSET"},
	}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"is empty", "more than", "not a regular file", "no such file", "UNSET is not set"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if _, err := s.Secret(file(good)); !errors.Is(err, ErrUnknown) {
		t.Errorf("after a failed Require: %v, want ErrUnknown", err)
	}
}

func TestO9FileRotation(t *testing.T) {
	for name, rotate := range map[string]func(t *testing.T, dir string){
		"in place": func(t *testing.T, dir string) { t.Helper(); put(t, filepath.Join(dir, "s"), "second") },
		"rename": func(t *testing.T, dir string) {
			t.Helper()
			put(t, filepath.Join(dir, "new"), "second")
			if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "s")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ref := file(filepath.Join(dir, "s"))
			put(t, ref.Name, "first")
			s := New(Config{})
			if err := s.Require(Needs{Refs: []policy.SecretRef{ref}}); err != nil {
				t.Fatal(err)
			}
			rotate(t, dir)
			s.Refresh()
			if got := value(t, s, ref); got != "second" {
				t.Errorf("after the rotation: %q", got)
			}
		})
	}
}

// TestO8SymlinkSwap rotates as kubelet does: s → ..data/s, and ..data is moved.
func TestO8SymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, v), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, v, "s"), v)
	}
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("v1", "..data")
	link("..data/s", "s")
	ref := file(filepath.Join(dir, "s"))
	s := New(Config{})
	if err := s.Require(Needs{Refs: []policy.SecretRef{ref}}); err != nil {
		t.Fatal(err)
	}
	link("v2", "..tmp")
	if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	s.Refresh()
	if got := value(t, s, ref); got != "v2" {
		t.Errorf("after the swap: %q, want v2", got)
	}
}

func TestO9LastGoodValueStays(t *testing.T) {
	var log bytes.Buffer
	ref := file(filepath.Join(t.TempDir(), "s"))
	put(t, ref.Name, "canary-secret")
	s := New(Config{Log: zerolog.New(&log)})
	if err := s.Require(Needs{Refs: []policy.SecretRef{ref}}); err != nil {
		t.Fatal(err)
	}
	put(t, ref.Name, "")
	s.Refresh()
	s.Refresh()
	if err := os.Remove(ref.Name); err != nil {
		t.Fatal(err)
	}
	s.Refresh()
	if got := value(t, s, ref); got != "canary-secret" {
		t.Errorf("after the loss: %q", got)
	}
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d log lines, want one for each of two failures: %s", n, &log)
	}
	put(t, ref.Name, "canary-again")
	s.Refresh()
	if got := value(t, s, ref); got != "canary-again" {
		t.Errorf("after it came back: %q", got)
	}
	if strings.Contains(log.String(), "canary") {
		t.Errorf("a secret is in the log: %s", &log)
	}
}

func TestRetainForgets(t *testing.T) {
	a, b := policy.SecretRef{Kind: policy.SecretEnv, Name: "A"}, policy.SecretRef{Kind: policy.SecretEnv, Name: "B"}
	s := New(Config{Env: func(name string) (string, bool) { return name, true }})
	if err := s.Require(Needs{Refs: []policy.SecretRef{a, b}}); err != nil {
		t.Fatal(err)
	}
	s.Retain(Needs{Refs: []policy.SecretRef{b}})
	if _, err := s.Secret(a); !errors.Is(err, ErrUnknown) {
		t.Errorf("a forgotten secret: %v", err)
	}
	if value(t, s, b) != "B" {
		t.Error("a retained secret is gone")
	}
}

func TestStaleFilesAreCounted(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	put(t, target, "good")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	stale := -1
	s := New(Config{Stale: func(n int) { stale = n }})
	if err := s.Require(Needs{Refs: []policy.SecretRef{file(link)}}); err != nil {
		t.Fatal(err)
	}
	want := func(n int, when string) {
		t.Helper()
		s.Refresh()
		if stale != n || value(t, s, file(link)) != "good" {
			t.Errorf("%s: %d stale, want %d; value %q", when, stale, n, value(t, s, file(link)))
		}
	}
	want(0, "at first")
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	want(1, "without the link")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	want(0, "with the link as it was")
}
