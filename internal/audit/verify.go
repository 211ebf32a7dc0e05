package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// VerifyConfig says how to verify.
type VerifyConfig struct {
	// Keys are those that the chain was made with. With any, every line must be
	// made with one of them; without, none may be.
	Keys [][]byte
	// Head is a line that must be there, as SEQ:HASH of an earlier /status; empty for none.
	Head string
	// Read counts the bytes read so far. It may be nil.
	Read *atomic.Int64
}

// Report is what Verify found.
type Report struct {
	OK bool `json:"ok"`
	// Files are in the order of the chain.
	Files []FileReport `json:"files"`
	// Lines is the number of good lines, from First to Last.
	Lines uint64 `json:"lines"`
	First uint64 `json:"first,omitempty"`
	Last  uint64 `json:"last,omitempty"`
	// Head is the hash of the last good line.
	Head string `json:"head,omitempty"`
	// Keyed is whether the hashes are made with a key.
	Keyed bool `json:"keyed"`
	// Broken is the first line that is not as it was written; nil when all are.
	Broken *Broken `json:"broken,omitempty"`
	// Unfinished is how many bytes stand after the last line: it is being written, or the process was killed.
	Unfinished int `json:"unfinished,omitempty"`
	// Closed is whether the last line is the end that a server writes, and Continues
	// whether that says that a file was to follow, which was not given then.
	Closed    bool `json:"closed"`
	Continues bool `json:"continues"`
	// Dropped, Recovered and Withdrawn sum up what the log says of itself: lines that
	// could not be written, unfinished lines cut off, decisions written too late.
	Dropped   uint64 `json:"dropped"`
	Recovered uint64 `json:"recovered"`
	Withdrawn uint64 `json:"withdrawn"`
}

// FileReport is one file.
type FileReport struct {
	File  string `json:"file"`
	Lines uint64 `json:"lines"`
	First uint64 `json:"first,omitempty"`
	Last  uint64 `json:"last,omitempty"`
}

// Broken is a line that is not as it was written.
type Broken struct {
	File string `json:"file"`
	// Line counts from 1. It is one more than there are when something is missing at the end.
	Line uint64 `json:"line"`
	// Text says what is wrong.
	Text string `json:"text"`
}

// String returns it as one line.
func (b *Broken) String() string { return fmt.Sprintf("%s:%d: %s", b.File, b.Line, b.Text) }

// verifier walks the lines.
type verifier struct {
	cfg     VerifyConfig
	seals   seals
	anchor  head
	met     bool // the anchor was
	report  *Report
	last    chain
	read    read
	scratch []byte

	file *FileReport
	in   *bufio.Reader
	line uint64
}

// Verify reads files of a log, in any order, and finds the first line that is not as
// it was written. An error means that it could not look. It reads each file once, and
// keeps one line in memory.
func Verify(cfg VerifyConfig, files []string) (*Report, error) {
	v := &verifier{cfg: cfg, report: &Report{Files: []FileReport{}}}
	if v.cfg.Read == nil {
		v.cfg.Read = new(atomic.Int64)
	}
	if err := v.setUp(); err != nil {
		return nil, err
	}
	ordered, err := inOrder(files)
	if err != nil {
		return nil, err
	}
	for i, name := range ordered {
		v.report.Files = append(v.report.Files, FileReport{File: name})
		v.file = &v.report.Files[i]
		if err := v.walk(name, i == len(ordered)-1); err != nil {
			return nil, err
		}
		if v.report.Broken != nil {
			return v.report, nil
		}
	}
	v.end()
	return v.report, nil
}

func (v *verifier) setUp() error {
	for _, key := range v.cfg.Keys {
		s, err := newSeal(key)
		if err != nil {
			return err
		}
		v.seals = append(v.seals, s)
	}
	if v.report.Keyed = len(v.cfg.Keys) > 0; !v.report.Keyed {
		plain, _ := newSeal(nil) // without a key, it cannot fail
		v.seals = seals{plain}
	}
	if v.cfg.Head == "" {
		return nil
	}
	number, hash, _ := strings.Cut(v.cfg.Head, ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil || hash == "" {
		return fmt.Errorf("head %q: want SEQ:HASH, such as 1204:sha256:9f86…, from seq and head of audit in /status", v.cfg.Head)
	}
	v.anchor = head{seq, hash}
	return nil
}

// inOrder sorts files by the number of their first lines. One changed byte must not
// change that order, so three lines are asked.
func inOrder(files []string) ([]string, error) {
	first := map[string]uint64{}
	for _, name := range files {
		if _, twice := first[name]; twice {
			return nil, fmt.Errorf("%s is given twice; give each file once", name)
		}
		n, err := firstOf(name)
		if err != nil {
			return nil, err
		}
		first[name] = n
	}
	ordered := slices.Clone(files)
	slices.SortStableFunc(ordered, func(a, b string) int { return cmp.Compare(first[a], first[b]) })
	return ordered, nil
}

func firstOf(name string) (uint64, error) {
	f, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return 0, fmt.Errorf("%w; give the paths of the files that audit.file names", err)
	}
	defer f.Close() //nolint:errcheck // read only
	in := bufio.NewReaderSize(f, maxLine)
	var votes []uint64
	for i := range uint64(3) {
		line, err := in.ReadSlice('\n')
		if err != nil {
			break
		}
		if r, err := parse(line[:len(line)-1]); err == nil && r.seq > i {
			votes = append(votes, r.seq-i)
		}
	}
	if len(votes) == 0 {
		return ^uint64(0), nil // whatever it is, it comes last
	}
	slices.Sort(votes)
	return votes[len(votes)/2], nil
}

// walk verifies the lines of one file. An empty one is no fault: a process may be
// killed between making it and writing to it, and what is missing shows elsewhere.
func (v *verifier) walk(name string, newest bool) error {
	f, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	v.in, v.line = bufio.NewReaderSize(f, maxLine), 0
	for v.report.Broken == nil {
		line, err := v.in.ReadSlice('\n')
		v.cfg.Read.Add(int64(len(line)))
		v.line++
		switch {
		case err == nil:
			v.check(line[:len(line)-1])
		case errors.Is(err, bufio.ErrBufferFull):
			v.broken("it is longer than 1 MiB: this is no line of this log")
		case !errors.Is(err, io.EOF):
			return fmt.Errorf("reading %s: %w", name, err)
		default:
			v.unfinished(line, newest)
			return nil
		}
	}
	return nil
}

func (v *verifier) broken(format string, args ...any) {
	v.report.Broken = &Broken{v.file.File, v.line, fmt.Sprintf(format, args...)}
}

// check verifies one line, without its newline.
func (v *verifier) check(line []byte) {
	var err error
	v.read, err = parse(line)
	r := &v.read
	if err != nil {
		v.broken("%v: it was changed, or torn apart", err)
		return
	}
	v.scratch, err = v.seals.check(r, v.scratch)
	switch {
	case errors.Is(err, errOtherKey):
		v.broken("%s", v.wrongKey(r))
		return
	case err != nil:
		v.broken("%v", err)
		return
	}
	if v.line == 1 && string(r.kind) != kindStart.String() && v.last.seq == 0 {
		v.broken("every file begins with a line of the kind start, and this is line %d of the chain: lines before it are missing", r.seq)
		return
	}
	if !v.follows(r) {
		return
	}
	v.accept(r, line)
}

// wrongKey says what to do about a hash that was made with another key than those given.
func (v *verifier) wrongKey(r *read) string {
	switch {
	case keyed(r.hash) && !v.report.Keyed:
		return "its hash is made with a key; give that with --key-file or --key-env"
	case keyed(r.hash):
		id, _, _ := strings.Cut(strings.TrimPrefix(string(r.hash), keyedPrefix), ":")
		return fmt.Sprintf("its hash is made with the key %.8q, which was not given; give all keys that were in use", id)
	}
	return "its hash is made without a key, as anybody can; lines from before there was a key are verified by themselves, without one"
}

// follows reports whether the line is the next one of the chain.
func (v *verifier) follows(r *read) bool {
	last := v.last.seq
	switch {
	case last == 0 && (r.seq == 1) == (len(r.prev) == 0):
		return true // files before it may be gone; the report says where it begins
	case last == 0:
		v.broken("it says to be line %d of the chain, and not what came before it: it was changed", r.seq)
	case r.seq == last+1 && bytes.Equal(r.prev, v.last.hash):
		return true
	case r.seq == last+1:
		v.broken("it does not follow the line before it: that one was replaced by another")
	case r.seq == 1 && len(r.prev) == 0:
		v.broken("another chain begins here, which does not go on from line %d: lines are missing, or two logs were mixed", last)
	case r.seq <= last:
		v.broken("it is line %d of the chain, which comes after line %d here: it was moved or repeated", r.seq, last)
	default:
		v.gap(r.seq, last)
	}
	return false
}

// gap tells a line that is missing from one that stands elsewhere.
func (v *verifier) gap(seq, last uint64) {
	at := fmt.Sprintf("it is line %d of the chain, and line %d comes before it here", seq, last)
	for n := v.line + 1; ; n++ {
		line, err := v.in.ReadSlice('\n')
		if err != nil {
			break
		}
		if r, err := parse(line[:len(line)-1]); err == nil && r.seq == last+1 {
			v.broken("%s: the lines are out of order, line %d stands at %s:%d", at, last+1, v.file.File, n)
			return
		}
	}
	missing := "line " + strconv.FormatUint(last+1, 10) + " is missing"
	if seq > last+2 {
		missing = fmt.Sprintf("lines %d to %d are missing", last+1, seq-1)
	}
	if v.line == 1 {
		missing += ", with a file that was removed or not given"
	}
	v.broken("%s: %s", at, missing)
}

func (v *verifier) accept(r *read, line []byte) {
	v.last.seq, v.last.hash = r.seq, append(v.last.hash[:0], r.hash...)
	if v.report.Lines++; v.report.First == 0 {
		v.report.First = r.seq
	}
	if v.file.Lines++; v.file.First == 0 {
		v.file.First = r.seq
	}
	v.file.Last, v.report.Last = r.seq, r.seq
	v.report.Closed = string(r.kind) == kindEnd.String()
	v.report.Continues = v.report.Closed && bytes.Contains(r.open, []byte(`,"next":true,`))
	if r.seq == v.anchor.seq {
		if v.met = string(r.hash) == v.anchor.hash; !v.met {
			v.broken("line %d is another than the one of --head: the chain was made anew", r.seq)
		}
	}
	switch string(r.kind) {
	case kindDropped.String(), kindRecovered.String(), kindWithdrawn.String():
		var l Line
		if err := json.Unmarshal(line, &l); err != nil {
			return
		}
		v.report.Dropped += l.Lines
		if l.Cut > 0 {
			v.report.Recovered++
		}
		if l.Of > 0 {
			v.report.Withdrawn++
		}
	}
}

// unfinished judges what stands after the last newline: a line that is being
// written, in the newest file.
func (v *verifier) unfinished(rest []byte, newest bool) {
	switch {
	case len(rest) == 0:
	case !newest:
		v.broken("it has no end, and there is a file after this one: the file was cut off")
	case v.report.Closed && !v.report.Continues: // else the file may not have been put aside after all
		v.broken("the file was closed before, and this was added")
	case !isUnfinished(rest):
		v.broken("this is no beginning of a line of this log: it was changed")
	default:
		v.report.Unfinished = len(rest)
	}
}

// isUnfinished reports whether b can be the beginning of a line.
func isUnfinished(b []byte) bool {
	if !isTorn(b) {
		return false
	}
	_, hash, has := cutLast(b, `,"hash":"`)
	if !has {
		return true
	}
	_, after, closed := bytes.Cut(hash, []byte{'"'})
	return !closed || len(after) == 0 || string(after) == "}"
}

// end concludes when no line is broken.
func (v *verifier) end() {
	v.report.Head = string(v.last.hash)
	if v.anchor.seq > 0 && !v.met {
		if v.anchor.seq < v.report.First {
			v.broken("the line %d of --head comes before the first of these files; give those before too", v.anchor.seq)
			return
		}
		v.broken("the log ends at line %d, and --head says that there was a line %d: lines are missing at the end", v.report.Last, v.anchor.seq)
		return
	}
	if v.report.Lines == 0 {
		v.broken("want at least one line, got none; was the file emptied?")
		return
	}
	v.report.OK = true
}
