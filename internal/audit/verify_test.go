package audit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const testKey = "0123456789abcdef0123456789abcdef"

// chained writes a log of three files, with or without a key, and returns their
// texts in order. The files have six lines each.
func chained(tb testing.TB, key string) (names []string, texts [][]byte) {
	tb.Helper()
	dir := tb.TempDir()
	path := filepath.Join(dir, "audit.jsonl")
	spec := fileSpec(path)
	l := newLog(tb)
	if key != "" {
		spec.Key = policy.SecretRef{Kind: policy.SecretEnv, Name: "AUDIT_KEY"}
		l.cfg.Secrets = held{spec.Key: key}
	}
	commit(tb, l, spec)
	for i := range 3 {
		if i > 0 {
			l.do(func() {
				if err := l.writer.rotate(l.writer.seal); err != nil {
					tb.Error(err)
				}
			})
		}
		record(tb, l, 4)
	}
	l.Close()
	for _, name := range all(path) {
		b, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		names, texts = append(names, name), append(texts, b)
	}
	if len(names) != 3 {
		tb.Fatalf("want three files, got %q", names)
	}
	return names, texts
}

func linesOf(text []byte) [][]byte {
	lines := bytes.SplitAfter(text, []byte{'\n'})
	return lines[:len(lines)-1]
}

func write(tb testing.TB, name string, b []byte) {
	tb.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// TestVerifyNamesThePlace: what was done to a log, and where verify sees it.
func TestVerifyNamesThePlace(t *testing.T) {
	t.Parallel()
	swap := func(lines [][]byte, i, j int) { lines[i], lines[j] = lines[j], lines[i] }
	for _, tc := range []struct {
		name string
		edit func(lines [][]byte) [][]byte // of the second file, lines 7 to 12 of the chain
		want string                        // FILE is the second file
	}{
		{"nothing", func(l [][]byte) [][]byte { return l }, ""},
		{"a flipped byte", func(l [][]byte) [][]byte { l[2][40] ^= 1; return l }, "FILE:3: its hash is not that of its bytes"},
		{"a flipped byte of a hash", func(l [][]byte) [][]byte { l[2][len(l[2])-5] ^= 1; return l }, "FILE:3: its hash is not that of its bytes"},
		{"a flipped byte of a number", func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte(`"seq":9`), []byte(`"seq":8`), 1)
			return l
		}, "FILE:3: its hash is not that of its bytes"},
		{"the first line changed", func(l [][]byte) [][]byte { l[0][3] ^= 1; return l }, "FILE:1: this is no line of this log"},
		{"a removed line", func(l [][]byte) [][]byte { return slices.Delete(l, 2, 3) }, "FILE:3: it is line 10 of the chain, and line 8 comes before it here: line 9 is missing"},
		{"removed lines", func(l [][]byte) [][]byte { return slices.Delete(l, 2, 4) }, "FILE:3: it is line 11 of the chain, and line 8 comes before it here: lines 9 to 10 are missing"},
		{"the first line removed", func(l [][]byte) [][]byte { return l[1:] }, "FILE:1: it is line 8 of the chain, and line 6 comes before it here: line 7 is missing"},
		{"a reordered pair", func(l [][]byte) [][]byte { swap(l, 2, 3); return l }, "FILE:3: it is line 10 of the chain, and line 8 comes before it here: the lines are out of order, line 9 stands at FILE:4"},
		{"a repeated line", func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[2]) }, "FILE:4: it is line 9 of the chain, which comes after line 9 here: it was moved or repeated"},
		{"a blank line", func(l [][]byte) [][]byte { return slices.Insert(l, 3, []byte{'\n'}) }, "FILE:4: this is no line of this log"},
		{"line ends of another system", func(l [][]byte) [][]byte { l[2] = bytes.Replace(l[2], []byte("\n"), []byte("\r\n"), 1); return l }, "FILE:3: this is no line of this log"},
		{"the last line removed", func(l [][]byte) [][]byte { return l[:5] }, "LAST:1: it is line 13 of the chain, and line 11 comes before it here: line 12 is missing, with a file that was removed or not given"},
		{"cut off within a line", func(l [][]byte) [][]byte { l[5] = l[5][:20]; return l }, "FILE:6: it has no end, and there is a file after this one"},
		{"a line replaced, its hash made anew", func(l [][]byte) [][]byte { return forge(t, l, 2, false) }, "FILE:4: it does not follow the line before it: that one was replaced"},
		{"a line replaced, and all hashes of the file", func(l [][]byte) [][]byte { return forge(t, l, 2, true) }, "LAST:1: it does not follow the line before it: that one was replaced"},
		{"a file removed", func([][]byte) [][]byte { return nil }, "LAST:1: it is line 13 of the chain, and line 6 comes before it here: lines 7 to 12 are missing, with a file that was removed or not given"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			names, texts := chained(t, "")
			files := slices.Clone(names)
			if edited := tc.edit(linesOf(texts[1])); edited == nil {
				files = []string{names[0], names[2]}
			} else {
				write(t, names[1], bytes.Join(edited, nil))
			}
			slices.Reverse(files) // the order of the chain counts, not that of the arguments
			r := verified(t, VerifyConfig{}, files...)
			want := strings.NewReplacer("FILE", names[1], "LAST", names[2]).Replace(tc.want)
			switch {
			case want == "" && (!r.OK || r.Lines != 18 || !r.Closed || r.Continues):
				t.Errorf("want a sound log of 18 lines, got %+v", r)
			case want != "" && (r.OK || !strings.HasPrefix(r.Broken.String(), want)):
				t.Errorf("want %s\ngot %v", want, r.Broken)
			}
		})
	}
}

// forge replaces a line and makes its hash anew, or those of all that follow.
func forge(t *testing.T, lines [][]byte, i int, all bool) [][]byte {
	t.Helper()
	s, err := newSeal(nil)
	if err != nil {
		t.Fatal(err)
	}
	var c chain
	for ; i < len(lines); i++ {
		r, err := parse(lines[i][:len(lines[i])-1])
		if err != nil {
			t.Fatal(err)
		}
		if c.seq == 0 {
			c.seq, c.hash = r.seq-1, slices.Clone(r.prev)
		}
		open := bytes.Replace(r.open[:bytes.LastIndex(r.open, []byte(`,"seq":`))], []byte("litellm"), []byte("another"), 1)
		lines[i] = c.append(nil, open, s)
		if !all {
			break
		}
	}
	return lines
}

// TestVerifyHead: an anchor shows what the files alone cannot.
func TestVerifyHead(t *testing.T) {
	t.Parallel()
	names, texts := chained(t, "")
	whole := sound(t, names...)
	head := fmt.Sprintf("%d:%s", whole.Last, whole.Head)
	if r := verified(t, VerifyConfig{Head: head}, names...); !r.OK {
		t.Fatalf("want the head to be met, got %v", r.Broken)
	}
	last := linesOf(texts[2])
	write(t, names[2], bytes.Join(last[:4], nil))
	if r := verified(t, VerifyConfig{}, names...); !r.OK || r.Closed {
		t.Errorf("lines gone at the end: nothing shows it but that the log is not closed, got %+v", r)
	}
	r := verified(t, VerifyConfig{Head: head}, names...)
	if want := names[2] + ":5: the log ends at line 16, and --head says that there was a line 18"; r.OK || !strings.HasPrefix(r.Broken.String(), want) {
		t.Errorf("want %s, got %v", want, r.Broken)
	}
	write(t, names[2], bytes.Join(forge(t, last, 1, true), nil))
	r = verified(t, VerifyConfig{Head: head}, names...)
	if r.OK || !strings.Contains(r.Broken.Text, "the chain was made anew") {
		t.Errorf("a tail made anew: got %v", r.Broken)
	}
	if r := verified(t, VerifyConfig{Head: head}, names[:2]...); r.OK {
		t.Error("want the head to be missed in the older files")
	}
	for _, bad := range []string{"18", ":sha256:00", "x:sha256:00", "18:"} {
		if _, err := Verify(VerifyConfig{Head: bad}, names); err == nil {
			t.Errorf("want head %q refused", bad)
		}
	}
}

// TestVerifyPart: the newest files alone, and a file that is being written.
func TestVerifyPart(t *testing.T) {
	t.Parallel()
	names, texts := chained(t, "")
	if r := sound(t, names[1:]...); r.First != 7 || r.Lines != 12 {
		t.Errorf("got %+v", r)
	}
	if r := sound(t, names[:2]...); !r.Continues {
		t.Errorf("want to be told that a file is missing after these, got %+v", r)
	}
	lines := linesOf(texts[2])
	for n := 1; n < len(lines[4]); n++ {
		write(t, names[2], append(bytes.Join(lines[:4], nil), lines[4][:n]...))
		if r := sound(t, names...); r.Unfinished != n || r.Closed {
			t.Fatalf("%d bytes of a line: got %+v", n, r)
		}
	}
	for name, tail := range map[string]string{"after the end": `{"time":"2026`, "after the end, too": "x"} {
		write(t, names[2], append(slices.Clone(texts[2]), tail...))
		if r := verified(t, VerifyConfig{}, names...); r.OK || r.Broken.Line != 7 {
			t.Errorf("%s: got %+v", name, r)
		}
	}
	write(t, names[2], append(bytes.Join(lines[:4], nil), "garbage"...))
	if r := verified(t, VerifyConfig{}, names...); r.OK {
		t.Error("want garbage at the end found")
	}
	write(t, names[2], nil)
	if r := verified(t, VerifyConfig{}, names[2]); r.OK {
		t.Error("want an emptied file found")
	}
}

// TestVerifyKey: with a key, nobody else can make the chain up.
func TestVerifyKey(t *testing.T) {
	t.Parallel()
	names, texts := chained(t, testKey)
	key := VerifyConfig{Keys: [][]byte{[]byte(testKey)}}
	if r := verified(t, key, names...); !r.OK || !r.Keyed {
		t.Fatalf("got %v", r.Broken)
	}
	for name, cfg := range map[string]VerifyConfig{
		"its hash is made with a key; give that": {},
		"which was not given":                    {Keys: [][]byte{[]byte(strings.Repeat("x", 32))}},
	} {
		if r := verified(t, cfg, names...); r.OK || !strings.Contains(r.Broken.Text, name) {
			t.Errorf("want %q, got %v", name, r.Broken)
		}
	}
	both := VerifyConfig{Keys: [][]byte{[]byte(strings.Repeat("x", 32)), []byte(testKey)}}
	if r := verified(t, both, names...); !r.OK {
		t.Errorf("with two keys: got %v", r.Broken)
	}
	write(t, names[0], bytes.Join(forge(t, linesOf(texts[0]), 0, true), nil))
	if r := verified(t, key, names...); r.OK || r.Broken.Line != 1 || !strings.Contains(r.Broken.Text, "without a key, as anybody can") {
		t.Errorf("a chain made anew without the key: got %v", r.Broken)
	}
	if _, err := Verify(VerifyConfig{Keys: [][]byte{[]byte("short")}}, names); err == nil {
		t.Error("want a short key refused")
	}
}

// TestAnySingleChangeIsFound: whatever is done once to a log of three files, with an
// anchor at its end, is found.
func TestAnySingleChangeIsFound(t *testing.T) {
	t.Parallel()
	names, texts := chained(t, "")
	whole := sound(t, names...)
	cfg := VerifyConfig{Head: fmt.Sprintf("%d:%s", whole.Last, whole.Head)}
	var n atomic.Int64
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		files := make([][]byte, len(texts))
		for i := range texts {
			files[i] = slices.Clone(texts[i])
		}
		i := rapid.IntRange(0, 2).Draw(rt, "file")
		lines := linesOf(files[i])
		at := rapid.IntRange(0, len(lines)-1).Draw(rt, "line")
		pos := rapid.IntRange(0, len(files[i])-1).Draw(rt, "byte")
		switch kind := rapid.SampledFrom([]string{"flip", "replace", "insert", "delete", "cut", "remove", "repeat", "swap", "drop"}).Draw(rt, "kind"); kind {
		case "flip":
			files[i][pos] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		case "replace":
			files[i][pos] += rapid.Byte().Filter(func(b byte) bool { return b != 0 }).Draw(rt, "by")
		case "insert":
			files[i] = slices.Insert(files[i], pos, rapid.Byte().Draw(rt, "what"))
		case "delete":
			files[i] = slices.Delete(files[i], pos, pos+1)
		case "cut":
			files[i] = files[i][:pos]
		case "remove":
			files[i] = bytes.Join(slices.Delete(lines, at, at+1), nil)
		case "repeat":
			files[i] = bytes.Join(slices.Insert(slices.Clone(lines), at, lines[at]), nil)
		case "swap":
			other := rapid.IntRange(0, len(lines)-1).Filter(func(j int) bool { return j != at }).Draw(rt, "other")
			lines[at], lines[other] = lines[other], lines[at]
			files[i] = bytes.Join(lines, nil)
		case "drop":
			files[i] = nil
		}
		var given []string
		for j, text := range files {
			if text == nil {
				continue
			}
			name := filepath.Join(dir, fmt.Sprintf("%d-%d", n.Add(1), j))
			write(t, name, text)
			given = append(given, name)
		}
		r, err := Verify(cfg, given)
		for _, name := range given {
			_ = os.Remove(name)
		}
		if err != nil {
			rt.Fatal(err)
		}
		if i == 0 && len(files[0]) == 0 {
			if r.First == 1 {
				rt.Fatalf("the first file is gone, and the log begins at %d", r.First)
			}
			return // the report says that lines before are not there
		}
		if r.OK {
			rt.Fatalf("not found: %+v", r)
		}
	})
}

// TestVerifyErrors: what it cannot look at is an error, not a verdict.
func TestVerifyErrors(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "audit.jsonl")
	if _, err := Verify(VerifyConfig{}, []string{name}); err == nil {
		t.Error("want an error for a file that is not there")
	}
	write(t, name, bytes.Repeat([]byte("x"), 3<<20))
	if r := verified(t, VerifyConfig{}, name); r.OK || !strings.Contains(r.Broken.Text, "longer than 1 MiB") {
		t.Errorf("got %+v", r)
	}
	if _, err := Verify(VerifyConfig{}, []string{name, name}); err == nil {
		t.Error("want a file that is given twice refused")
	}
}

// TestVerifyStreams: memory does not grow with the file.
func TestVerifyStreams(t *testing.T) {
	dir := t.TempDir()
	s, err := newSeal(nil)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "big.jsonl")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	var c chain
	b := c.append(nil, noteStart(timeOf(nil), ""), s)
	for c.seq < 100_000 {
		for len(b) < 1<<20 {
			b = c.append(b, appendDecision(nil, decision(int(c.seq)), timeOf(nil)), s)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		b = b[:0]
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	allocated := testing.AllocsPerRun(1, func() { sound(t, name) })
	if allocated > 500 {
		t.Errorf("want a constant number of allocations for %d lines, got %v", c.seq, allocated)
	}
}
