package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// tendEvery is how often the writer looks at its file.
	tendEvery = time.Second
	// room is what a file has left for its last line.
	room = 1 << 10
	// retryRotation is how long after a failure to put a file aside it is tried again.
	retryRotation = 10 * time.Second
)

// writer is the one goroutine that numbers, chains and writes. Nobody else
// touches it.
type writer struct {
	log  *Log
	spec *policy.Audit // nil: nothing is recorded
	quit bool

	seal  *seal
	key   policy.Secret
	file  *file // nil without spec.File, and while it cannot be opened
	torn  bool  // standard output was left in the middle of a line
	feeds []*feed

	chain chain
	next  chain // the chain with what is being written
	buf   []byte
	notes [][]byte // lines of our own that wait, open
	lost  uint64   // lines not written since the last that says so
	ill   string   // the failure last logged
	again time.Time
}

func (w *writer) run() {
	defer close(w.log.over)
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for !w.quit {
		select {
		case <-w.log.wake:
			w.flush()
		case do := <-w.log.commands:
			w.flush()
			do()
		case <-tick.C:
			w.flush()
			w.tend()
		}
	}
}

// flush writes all that waits.
func (w *writer) flush() {
	for {
		batch := w.log.take()
		for rest := batch; len(rest) > 0; {
			n, size := 1, len(rest[0].body)+maxTail
			for n < len(rest) && size+len(rest[n].body)+maxTail <= maxBatch {
				size += len(rest[n].body) + maxTail
				n++
			}
			w.write(rest[:n], size)
			rest = rest[n:]
		}
		if len(batch) == 0 {
			break
		}
		clear(batch)
	}
	if w.spec != nil && (len(w.notes) > 0 || w.lost+w.log.counts.unsaid.Load() > 0) {
		w.write(nil, 0)
	}
}

// write writes a batch, at most size bytes with their ends.
func (w *writer) write(batch []*entry, size int) {
	batch = w.wanted(batch)
	err := w.attempt(batch, size)
	w.report(err)
	now := w.log.cfg.Now()
	for _, e := range batch {
		if err == nil {
			w.log.counts.lines[e.kind].Add(1)
		} else {
			w.lose(1)
		}
		seq := e.seq
		withdrawn, free := e.finish(err)
		if withdrawn && err == nil {
			w.notes = append(w.notes, noteWithdrawn(now, seq))
		}
		if free {
			w.log.free(e)
		}
	}
}

// attempt is the part of write that waits for the disk. It is over before anybody is
// told, so that whoever was can submit the next line to a writer that is not busy.
func (w *writer) attempt(batch []*entry, size int) error {
	w.log.busy.Store(w.log.since())
	defer w.log.busy.Store(0)
	if err := w.prepare(size); err != nil {
		return err
	}
	return w.put(batch)
}

// wanted takes those for which nobody has given up waiting.
func (w *writer) wanted(batch []*entry) []*entry {
	return slices.DeleteFunc(batch, func(e *entry) bool {
		if e.take() {
			return false
		}
		w.lose(1)
		w.log.free(e)
		return true
	})
}

func (w *writer) lose(n uint64) {
	w.lost += n
	w.log.counts.dropped[w.primary()].Add(n)
}

// primary is where a line has to be, to be on record.
func (w *writer) primary() sink {
	if w.spec != nil && w.spec.File == "" && w.spec.Stdout {
		return sinkStdout
	}
	return sinkFile
}

// prepare makes sure that there is a file with so much room.
func (w *writer) prepare(size int) error {
	if w.spec == nil {
		return errClosed
	}
	if w.seal == nil || w.spec.File != "" && w.file == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	if now := w.log.cfg.Now(); w.file != nil && w.due(size, now) {
		w.rotateInTime(now)
	}
	return nil
}

// due reports whether the file is to be put aside before so much more is written.
func (w *writer) due(size int, now time.Time) bool {
	f := w.file
	return f.first > 0 && (f.size+int64(size)+room > w.spec.Size || now.Sub(f.born) >= w.spec.Age)
}

// rotateInTime rotates, and lets the file grow when that fails: a record in a large
// file is better than none.
func (w *writer) rotateInTime(now time.Time) {
	if now.Before(w.again) {
		return
	}
	if w.file.moved() { // by another program, since the last look
		w.reopen()
		return
	}
	if err := w.rotate(w.seal); err != nil {
		w.rotationFailed(err)
		return
	}
	w.again = time.Time{}
}

// rotationFailed tells of a file that cannot be changed for another. Lines are
// written all the same.
func (w *writer) rotationFailed(err error) {
	now := w.log.cfg.Now()
	w.again = now.Add(retryRotation)
	w.log.counts.failed(toRotate, now, err)
	w.log.cfg.Log.Error().Err(err).Msg("the audit file cannot be put aside, it goes on as it is")
}

// put chains and writes the notes that wait and the batch, in one go.
func (w *writer) put(batch []*entry) error {
	w.lost += w.log.counts.unsaid.Swap(0)
	notes, now := w.notes, w.log.cfg.Now()
	if w.lost > 0 {
		notes = append(slices.Clip(notes), noteDropped(now, w.lost))
	}
	if len(batch)+len(notes) == 0 {
		return nil
	}
	w.next.seq, w.next.hash = w.chain.seq, append(w.next.hash[:0], w.chain.hash...)
	w.buf = w.buf[:0]
	for _, open := range notes {
		w.buf = w.next.append(w.buf, open, w.seal)
	}
	for _, e := range batch {
		w.buf = w.next.append(w.buf, e.body, w.seal)
		e.seq = w.next.seq
	}
	if err := w.store(len(batch) + len(notes)); err != nil {
		return err
	}
	w.notes, w.lost = w.notes[:0], 0
	return nil
}

// store writes what is in buf. The chain moves on only when that worked, so
// that what was not written leaves no gap.
func (w *writer) store(lines int) error {
	var err error
	switch {
	case w.file != nil:
		err = w.file.write(w.buf)
		if err == nil && w.file.first == 0 {
			w.file.first = w.chain.seq + 1
		}
	case w.spec.Stdout:
		err = w.print(w.buf)
	}
	if err != nil {
		return err
	}
	w.chain, w.next = w.next, w.chain
	w.log.counts.moved(&w.chain)
	w.feed(lines)
	return nil
}

// print writes to standard output, where nothing can be taken back.
func (w *writer) print(b []byte) error {
	out := w.log.cfg.Stdout
	if w.torn {
		if _, err := out.Write([]byte{'\n'}); err != nil {
			return err
		}
		w.torn = false
	}
	n, err := out.Write(b)
	if err != nil && n > 0 {
		w.torn = true
	}
	return err
}

// note writes one line of our own at once.
func (w *writer) note(open []byte, s *seal) error {
	w.next.seq, w.next.hash = w.chain.seq, append(w.next.hash[:0], w.chain.hash...)
	w.buf = w.next.append(w.buf[:0], open, s)
	return w.store(1)
}

// report tells the log once when writing begins to fail, and once when it works again.
func (w *writer) report(err error) {
	if err == nil {
		if w.ill != "" {
			w.ill = ""
			w.log.counts.well(toWrite)
			w.log.cfg.Log.Info().Msg("the audit is written again")
		}
		return
	}
	if errors.Is(err, errClosed) {
		w.log.counts.failures.Add(1)
		return
	}
	w.log.counts.failed(toWrite, w.log.cfg.Now(), err)
	if w.ill != err.Error() {
		w.ill = err.Error()
		w.log.cfg.Log.Error().Err(err).Msg("the audit is not written")
	}
}

// open gets the key and the file, where the policy has them and we do not.
func (w *writer) open() error {
	s, key, err := w.log.sealOf(w.spec)
	if err != nil {
		return err
	}
	w.seal, w.key = s, key
	if w.spec.File == "" {
		w.notes = append(w.notes, noteStart(w.log.cfg.Now(), ""))
		return nil
	}
	f, was, err := openFile(w.spec.File, readable(s))
	if err != nil {
		return err
	}
	w.use(f, was, "")
	return nil
}

// use goes on in a file that was opened. before is the file that we wrote until now.
func (w *writer) use(f *file, was found, before string) {
	w.file, w.again = f, time.Time{}
	w.log.current.Store(f.f)
	if was.last.seq > 0 {
		w.chain.set(was.last)
		before = was.after
	}
	now := w.log.cfg.Now()
	w.notes = append(w.notes, noteStart(now, before))
	if was.cut > 0 {
		w.notes = append(w.notes, noteRecovered(now, was.cut))
		w.log.cfg.Log.Warn().Int64("bytes", was.cut).Msg("an unfinished line at the end of the audit file was cut off")
	}
	// A file holds the hashes of one key, so that one key verifies it.
	if f.first > 0 && (was.otherKey || keyed([]byte(was.last.hash)) != keyed([]byte(w.seal.prefix))) {
		w.notes = slices.DeleteFunc(w.notes, func(open []byte) bool { return bytes.Contains(open, []byte(`"kind":"start"`)) })
		if err := w.rotate(nil); err != nil {
			w.rotationFailed(err)
		}
	}
}

// rotate puts the file aside and begins a new one. Whatever fails, the old one
// goes on. ending seals its last line; nil for none.
func (w *writer) rotate(ending *seal) error {
	f, now := w.file, w.log.cfg.Now()
	if ending != nil {
		if err := w.note(noteEnd(now, true), ending); err != nil {
			return err
		}
	}
	name := asideName(f.path, f.first, now)
	if err := os.Rename(f.path, name); err != nil {
		return err
	}
	old := *f
	if err := w.beginFile(now, filepath.Base(name)); err != nil {
		*f = old
		w.log.current.Store(f.f)
		_ = os.Remove(f.path)
		return errors.Join(err, os.Rename(name, f.path))
	}
	keep := w.spec.Keep
	go func() { // a disk may take its time
		_ = old.f.sync()
		_ = old.f.Close()
		syncDir(filepath.Dir(name))
		if err := prune(f.path, keep); err != nil {
			w.log.cfg.Log.Warn().Err(err).Msg("an old audit file is not removed")
		}
	}()
	return nil
}

// beginFile makes the file anew and writes its first line.
func (w *writer) beginFile(now time.Time, after string) error {
	f := w.file
	h, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the operator names the path
	if err != nil {
		return err
	}
	if info, err := f.f.Stat(); err == nil {
		_ = h.Chmod(info.Mode().Perm()) // as the operator wants it read
	}
	f.f, f.size, f.born, f.first, f.torn = &handle{File: h}, 0, now, 0, false
	w.log.current.Store(f.f)
	if err := w.note(noteStart(now, after), w.seal); err != nil {
		_ = h.Close()
		return err
	}
	return nil
}

func syncDir(path string) {
	if d, err := os.Open(path); err == nil { //nolint:gosec // of the operator's file
		_ = d.Sync()
		_ = d.Close()
	}
}

// tend looks after the file and the key.
func (w *writer) tend() {
	if w.spec == nil {
		return
	}
	w.follow()
	if w.file == nil {
		return
	}
	now := w.log.cfg.Now()
	if now.Before(w.again) {
		return
	}
	switch {
	case w.file.moved():
		w.reopen()
	case w.due(0, now):
		w.rotateInTime(now)
	default:
		w.log.counts.well(toRotate)
	}
}

// reopen goes on in a new file after another program moved ours away. While there
// can be none, the lines go on into the one that was moved.
func (w *writer) reopen() {
	old := *w.file
	was, err := w.file.open(readable(w.seal))
	opened := *w.file
	*w.file = old
	if err != nil {
		w.rotationFailed(err)
		return
	}
	if was.last.seq > 0 && was.after == "" {
		err = fmt.Errorf("audit.file: %s was replaced by another log; move that away", w.file.path)
	} else {
		err = w.note(noteEnd(w.log.cfg.Now(), true), w.seal)
	}
	if err != nil {
		_ = opened.f.Close() // or each try would leave one open
		w.rotationFailed(err)
		return
	}
	*w.file = opened
	was.last = head{} // the chain that we know goes on
	w.use(w.file, was, "")
	go func() { _ = old.f.sync(); _ = old.f.Close() }()
}

// follow notices another key. The chain goes on with it in a new file.
func (w *writer) follow() {
	if w.spec.Key.IsZero() || w.seal == nil {
		return
	}
	s, key, err := w.log.sealOf(w.spec)
	if err != nil || key.Reveal() == w.key.Reveal() {
		return
	}
	w.rekey(s, key)
}

func (w *writer) rekey(s *seal, key policy.Secret) {
	ending := w.seal
	w.seal, w.key = s, key
	if w.file != nil && w.file.first > 0 {
		if err := w.rotate(ending); err != nil {
			w.rotationFailed(err)
		}
	}
}

// finish ends what is written to, and lets go of it. next is whether the chain goes
// on elsewhere.
func (w *writer) finish(next bool) {
	if w.seal != nil && (w.file != nil || w.spec != nil && w.spec.File == "") {
		w.report(w.note(noteEnd(w.log.cfg.Now(), next), w.seal))
	}
	if w.file != nil {
		w.log.current.Store(nil)
		w.file.close()
		w.file = nil
	}
}

// feed hands what was written to the other sinks.
func (w *writer) feed(lines int) {
	if len(w.feeds) == 0 {
		return
	}
	chunk := slices.Clone(w.buf)
	for _, f := range w.feeds {
		f.offer(chunk, lines)
	}
}
