// Package watchfile notices that a file changed: written in place, replaced by
// rename, or reached through a symlink that now points elsewhere (as kubelet
// updates mounted secrets).
package watchfile

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// Stamp identifies one state of a file. Two equal stamps mean the same bytes,
// unless someone sets back the clock and the size by hand.
type Stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
}

// Of returns the stamp of the file that path leads to now, through symlinks.
// It costs one system call.
func Of(path string) (Stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Stamp{}, fmt.Errorf("looking at %s: %w", path, err)
	}
	s := Stamp{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.identify(st)
	}
	return s, nil
}

// Read returns what a regular file of at most limit bytes holds. Unlike
// os.ReadFile it never waits and never fills the memory: a path that leads to a
// pipe, a device or a directory is an error, and so is a larger file.
func Read(path string, limit int64) ([]byte, error) {
	// Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the operator names the path
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; put a file there", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes; is the path right?", path, limit)
	}
	return b, nil
}
