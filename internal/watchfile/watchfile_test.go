package watchfile

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestReadNeverWaitsAndIsBounded(t *testing.T) {
	dir := t.TempDir()
	pipe, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "file")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("12345678"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ path, want string }{
		{pipe, "not a regular file"},
		{dir, "not a regular file"},
		{"/dev/zero", "not a regular file"},
		{filepath.Join(dir, "none"), "no such file"},
		{file, "more than 7 bytes"},
	} {
		done := make(chan error, 1)
		go func() {
			_, err := Read(tc.path, 7)
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("reading %s: %v, want %q in it", tc.path, err, tc.want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("reading %s waits", tc.path)
		}
	}
	if b, err := Read(file, 8); err != nil || string(b) != "12345678" {
		t.Errorf("reading a file of exactly the limit: %q, %v", b, err)
	}
}

func TestOfSeesEachKindOfChange(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "one")
	write(other, "two")
	link := filepath.Join(dir, "link")
	swap := func(target string) {
		t.Helper()
		if err := os.Symlink(target, link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
	}
	swap(path)
	last, err := Of(link)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(){
		"a symlink that leads elsewhere": func() { swap(other) },
		"the same size written again":    func() { time.Sleep(20 * time.Millisecond); write(path, "uno"); write(other, "due") },
		"a longer text":                  func() { write(path, "three"); write(other, "three") },
	} {
		change()
		now, err := Of(link)
		if err != nil || now == last {
			t.Errorf("%s is not seen: %v", name, err)
		}
		last = now
	}
}
