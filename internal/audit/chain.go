package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strconv"
)

const (
	plainPrefix = "sha256:"
	keyedPrefix = "hmac-sha256:"
	// keyIDSize is the length of the ID in a keyed hash.
	keyIDSize = 8
	// maxTail bounds what the chain adds to a line.
	maxTail = len(`,"seq":,"prev":"","hash":""}`) + 20 + 2*(len(keyedPrefix)+keyIDSize+1+2*sha256.Size) + 1
	// minKey is the least length of a key, in bytes, as policy demands it.
	minKey = 32
)

// seal makes the hashes of a chain. It is for one goroutine at a time.
type seal struct {
	prefix string
	hash   hash.Hash
	end    []byte // the bracket; as a literal it would be allocated each time
	sum    [sha256.Size]byte
}

// newSeal returns the seal of a key; of none, one that anybody can make.
func newSeal(key []byte) (*seal, error) {
	if len(key) == 0 {
		return &seal{prefix: plainPrefix, hash: sha256.New(), end: []byte{'}'}}, nil
	}
	if len(key) < minKey {
		return nil, fmt.Errorf("want an audit key of at least %d characters, got %d; make one with: openssl rand -base64 32", minKey, len(key))
	}
	id := hmac.New(sha256.New, key)
	id.Write([]byte("envoy-mcp-auth audit: name of the key"))
	name := hex.EncodeToString(id.Sum(nil))[:keyIDSize]
	return &seal{prefix: keyedPrefix + name + ":", hash: hmac.New(sha256.New, key), end: []byte{'}'}}, nil
}

// appendSum appends the hash of a line that lacks its last bracket.
func (s *seal) appendSum(b, open []byte) []byte {
	s.hash.Reset()
	s.hash.Write(open)
	s.hash.Write(s.end)
	b = append(b, s.prefix...)
	return hex.AppendEncode(b, s.hash.Sum(s.sum[:0]))
}

// head is the last line of a chain.
type head struct {
	seq  uint64
	hash string
}

// chain is where a chain stands.
type chain struct {
	seq  uint64
	hash []byte // the text in the line
}

func (c *chain) set(h head) { c.seq, c.hash = h.seq, append(c.hash[:0], h.hash...) }

// append adds a line to b, with its number, its hash and that of the line before.
// The hash is over the line as it stands but for its own member.
func (c *chain) append(b, open []byte, s *seal) []byte {
	from := len(b)
	c.seq++
	b = append(b, open...)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, c.seq, 10)
	b = append(b, `,"prev":"`...)
	b = append(b, c.hash...)
	b = append(b, '"')
	c.hash = s.appendSum(c.hash[:0], b[from:])
	b = append(b, `,"hash":"`...)
	b = append(b, c.hash...)
	return append(b, '"', '}', '\n')
}

// read is a line that was taken apart; all alias it.
type read struct {
	open, prev, hash, kind []byte
	seq                    uint64
}

// errForeign says that a line is none of this log.
var errForeign = errors.New("this is no line of this log")

// parse takes a line without its newline apart. No text in a line can hold an
// unescaped quote, so the last of each name is the member.
func parse(line []byte) (read, error) {
	var r read
	rest, ok := bytes.CutSuffix(line, []byte(`"}`))
	if !ok || !bytes.HasPrefix(line, []byte(`{"time":"`)) {
		return r, errForeign
	}
	var prev, number []byte
	if r.open, r.hash, ok = cutLast(rest, `,"hash":"`); !ok {
		return r, errForeign
	}
	if prev, r.prev, ok = cutLast(bytes.TrimSuffix(r.open, []byte{'"'}), `,"prev":"`); !ok {
		return r, errForeign
	}
	if _, number, ok = cutLast(prev, `,"seq":`); !ok {
		return r, errForeign
	}
	seq, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil || seq == 0 {
		return r, errForeign
	}
	r.seq = seq
	if _, after, found := bytes.Cut(line[:min(len(line), 128)], []byte(`"kind":"`)); found {
		r.kind, _, _ = bytes.Cut(after, []byte{'"'})
	}
	return r, nil
}

func cutLast(b []byte, sep string) (before, after []byte, found bool) {
	i := bytes.LastIndex(b, []byte(sep))
	if i < 0 {
		return b, nil, false
	}
	return b[:i], b[i+len(sep):], true
}

// keyed reports whether a hash is a keyed one.
func keyed(hash []byte) bool { return bytes.HasPrefix(hash, []byte(keyedPrefix)) }

// errOtherKey says that a line's hash is made with a key that is not at hand.
var errOtherKey = errors.New("its hash is made with another key")

// seals are those that a reader has.
type seals []*seal

// check holds a line against its own hash.
func (all seals) check(r *read, scratch []byte) ([]byte, error) {
	for _, s := range all {
		if !bytes.HasPrefix(r.hash, []byte(s.prefix)) {
			continue
		}
		scratch = s.appendSum(scratch[:0], r.open)
		if !hmac.Equal(scratch, r.hash) {
			return scratch, errors.New("its hash is not that of its bytes: the line was changed")
		}
		return scratch, nil
	}
	if keyed(r.hash) || bytes.HasPrefix(r.hash, []byte(plainPrefix)) {
		return scratch, errOtherKey
	}
	return scratch, errors.New("its hash is of no known kind: the line was changed")
}
