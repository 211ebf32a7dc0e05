package audit

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// asideLayout is the time in the name of a file that was put aside.
const asideLayout = "20060102T150405Z"

// handle is an open file.
type handle struct {
	*os.File

	dirty atomic.Bool // written to since the last sync
}

// sync brings what was written to the disk. It may be called at any time, by any goroutine.
func (h *handle) sync() error {
	if !h.dirty.Swap(false) {
		return nil
	}
	return h.Sync()
}

// file is the file in use. It is for one goroutine at a time.
type file struct {
	path string
	lock *os.File // of PATH.lock: one process writes
	f    *handle
	size int64
	born time.Time
	// first is the number of the first line, 0 while there is none.
	first uint64
	// torn is set while part of a line that failed may stand at the end.
	torn bool
}

// found is what a file held when it was opened.
type found struct {
	// last is its last line; zero for an empty file.
	last head
	// otherKey is set when last is made with a key that is not at hand.
	otherKey bool
	// cut is how many bytes of an unfinished line were cut off.
	cut int64
	// after names the file that holds last, when it is one put aside.
	after string
}

// openFile opens or makes the file for writing at its end, and cuts an unfinished
// line off. One that ends in anything else is an error, and stays as it is.
func openFile(path string, own seals) (*file, found, error) {
	lock, err := lockFile(path)
	if err != nil {
		return nil, found{}, err
	}
	f := &file{path: path, lock: lock}
	was, err := f.open(own)
	if err != nil {
		f.close()
		return nil, found{}, err
	}
	return f, was, nil
}

// lockFile keeps a second process away. The lock is on a file of its own, since the
// log itself is renamed.
func lockFile(path string) (*os.File, error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o600) //nolint:gosec // the operator names the path
	if err != nil {
		return nil, fmt.Errorf("audit.file: %w; make the directory, and let the user of this process write there", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("audit.file: another process writes %s (%w); give each a file of its own", path, err)
	}
	return lock, nil
}

// open opens the file that path leads to now.
func (f *file) open(own seals) (found, error) {
	h, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600) //nolint:gosec // the operator names the path
	if err != nil {
		return found{}, fmt.Errorf("audit.file: %w; make the directory, and let the user of this process write there", err)
	}
	was, err := f.adopt(h, own)
	if err != nil {
		_ = h.Close()
		return found{}, err
	}
	return was, nil
}

func (f *file) adopt(h *os.File, own seals) (found, error) {
	info, err := h.Stat()
	if err != nil {
		return found{}, fmt.Errorf("audit.file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return found{}, fmt.Errorf("audit.file: %s is not a regular file; give the path of one, or use stdout: true", f.path)
	}
	was, err := endOf(h, info.Size(), own)
	if err != nil {
		return found{}, fmt.Errorf("audit.file: %s: %w", f.path, err)
	}
	f.size, f.first, f.born = info.Size()-was.cut, 0, info.ModTime()
	if was.cut > 0 {
		if err := h.Truncate(f.size); err != nil {
			return found{}, fmt.Errorf("audit.file: cutting off an unfinished line: %w", err)
		}
	}
	if was.last.seq == 0 {
		was.last, was.after, was.otherKey = lastAside(f.path, own)
	} else {
		f.first, f.born = beginningOf(h, f.born)
	}
	f.f, f.torn = &handle{File: h}, false
	return was, nil
}

// write appends whole lines, or nothing.
func (f *file) write(b []byte) error {
	if f.torn {
		if err := f.mend(); err != nil {
			return err
		}
	}
	n, err := f.f.Write(b)
	if err == nil {
		f.size += int64(n)
		f.f.dirty.Store(true)
		return nil
	}
	if n > 0 {
		f.torn = true
		_ = f.mend() // else before the next write
	}
	return err
}

// mend takes the part of a line off that a failed write left behind.
func (f *file) mend() error {
	info, err := f.f.Stat()
	if err != nil {
		return err
	}
	if info.Size() > f.size {
		if err := f.f.Truncate(f.size); err != nil {
			return err
		}
	}
	f.torn = false
	return nil
}

// moved reports whether path leads elsewhere by now, as after a rename by others.
func (f *file) moved() bool {
	there, err := os.Stat(f.path) //nolint:gosec // the operator names the path
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	own, err := f.f.Stat()
	return err == nil && !os.SameFile(there, own)
}

// close may be called in any state.
func (f *file) close() {
	if f.f != nil {
		_ = f.f.sync()
		_ = f.f.Close()
	}
	_ = f.lock.Close() // and with it the lock
}

// aside is a file that was put aside.
type aside struct {
	path  string
	at    time.Time
	first uint64
}

// asideName is the name of a file that is put aside at a time.
func asideName(path string, first uint64, now time.Time) string {
	return path + "." + now.UTC().Format(asideLayout) + "-" + strconv.FormatUint(first, 10)
}

// asides lists the files that were put aside, oldest first.
func asides(path string) []aside {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil
	}
	var all []aside
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		when, number, ok := strings.Cut(rest, "-")
		at, noTime := time.Parse(asideLayout, when)
		first, noNumber := strconv.ParseUint(number, 10, 64)
		if !ok || noTime != nil || noNumber != nil {
			continue
		}
		all = append(all, aside{filepath.Join(filepath.Dir(path), e.Name()), at, first})
	}
	slices.SortFunc(all, func(a, b aside) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.first, b.first)) })
	return all
}

// lastAside returns the end of the newest file that was put aside, so that a chain
// goes on when the process ended between two files.
func lastAside(path string, own seals) (last head, after string, otherKey bool) {
	all := asides(path)
	if len(all) == 0 {
		return head{}, "", false
	}
	newest := all[len(all)-1].path
	f, err := os.Open(newest) //nolint:gosec // found by its own name
	if err != nil {
		return head{}, "", false
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return head{}, "", false
	}
	was, err := endOf(f, info.Size(), own)
	if err != nil || was.last.seq == 0 {
		return head{}, "", false
	}
	return was.last, filepath.Base(newest), was.otherKey
}

// prune removes all but the newest files that were put aside; with 0, none.
func prune(path string, keep int) error {
	all := asides(path)
	if keep <= 0 || len(all) <= keep {
		return nil
	}
	var faults []error
	for _, a := range all[:len(all)-keep] {
		faults = append(faults, os.Remove(a.path))
	}
	return errors.Join(faults...)
}

// maxLine bounds a line that is read.
const maxLine = 1 << 20

var (
	errEnd = errors.New("it does not end in a line of this log; " +
		"look at it with envoy-mcp-auth audit verify, and move it away to begin a new chain")
	errLong = errors.New("no line ends in its last MiB; move it away to begin a new chain")
)

// endOf reads the last whole line of a file, which must be good, and tells how
// much comes after it.
func endOf(f *os.File, size int64, own seals) (found, error) {
	tail := make([]byte, min(size, maxLine))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil {
		return found{}, err
	}
	end := bytes.LastIndexByte(tail, '\n')
	if end < 0 && size > maxLine {
		return found{}, errLong
	}
	was := found{cut: int64(len(tail) - end - 1)}
	if end < 0 {
		// Nothing says that this was ours but how it begins.
		if size > 0 && !isTorn(tail) {
			return found{}, errEnd
		}
		return was, nil
	}
	start := bytes.LastIndexByte(tail[:end], '\n') + 1
	r, err := parse(tail[start:end])
	if err != nil {
		return found{}, errEnd
	}
	was.last = head{r.seq, string(r.hash)}
	_, err = own.check(&r, nil)
	if errors.Is(err, errOtherKey) {
		was.otherKey = true
		return was, nil
	}
	if err != nil {
		return found{}, errEnd
	}
	return was, nil
}

// isTorn reports whether b can be the beginning of a first line. A machine that
// failed may leave zeros.
func isTorn(b []byte) bool {
	b = bytes.TrimRight(b, "\x00")
	const first = `{"time":"`
	return strings.HasPrefix(first, string(b)) || bytes.HasPrefix(b, []byte(first))
}

// beginningOf reads number and time of a file's first line.
func beginningOf(f *os.File, unknown time.Time) (first uint64, born time.Time) {
	b := make([]byte, maxLine)
	n, _ := f.ReadAt(b, 0)
	line, _, _ := bytes.Cut(b[:n], []byte{'\n'})
	r, err := parse(line)
	if err != nil {
		return 1, unknown
	}
	if born = timeOf(line); born.IsZero() {
		born = unknown
	}
	return r.seq, born
}

// timeOf returns the time of a line, zero when it has none.
func timeOf(line []byte) time.Time {
	const from = len(`{"time":"`)
	t, err := time.Parse(timeLayout, string(line[min(len(line), from):min(len(line), from+len(timeLayout))]))
	if err != nil {
		return time.Time{}
	}
	return t
}
