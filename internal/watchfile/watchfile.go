// Package watchfile notices that a file changed: written in place, replaced by
// rename, or reached through a symlink that now points elsewhere (as kubelet
// updates mounted secrets).
package watchfile

import (
	"fmt"
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
		s.dev, s.ino = st.Dev, st.Ino
		s.ctime = st.Ctim.Nano()
	}
	return s, nil
}
