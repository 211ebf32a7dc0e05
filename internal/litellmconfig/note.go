package litellmconfig

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Note is one thing that a person must know of the conversion.
type Note struct {
	// File and Line say where, Line counted from 1.
	File string
	Line int
	// Path is the key path in the file, such as mcp_servers.github.auth_type.
	Path string
	// Lost says that something was not carried over; else it needs a look.
	Lost bool
	// Text says why, and what to do.
	Text string

	server string
}

// String returns the note as one line.
func (n Note) String() string { return fmt.Sprintf("%s:%d: %s: %s", n.File, n.Line, n.Path, n.words()) }

func (n Note) words() string {
	if n.Lost {
		return "not carried over: " + n.Text
	}
	return "please check: " + n.Text
}

// Variable is an environment variable that has to be set.
type Variable struct {
	Name string
	// Line and Path say where the file names it, or holds the secret itself.
	Line int
	Path string
	// Literal says that the file holds the secret, which has to be put there.
	Literal bool
	// ForLiteLLM says that LiteLLM reads it, and not envoy-mcp-auth.
	ForLiteLLM bool
	// Of is the variable of LiteLLM's that its value is made of, if it is.
	Of string
	// How says what its value must look like, where that is not plain.
	How string

	server string
}

// lost records what is not carried over.
func (c *converter) lost(s *server, line int, path, text string) {
	c.note(s, line, path, true, text)
}

// look records what was carried over and may surprise.
func (c *converter) look(s *server, line int, path, text string) {
	c.note(s, line, path, false, text)
}

func (c *converter) note(s *server, line int, path string, lost bool, text string) {
	n := Note{File: c.file, Line: max(line, 1), Path: path, Lost: lost, Text: text}
	if s != nil {
		n.server = s.name
	}
	if !slices.Contains(c.notes, n) {
		c.notes = append(c.notes, n)
	}
}

// stays records that a server is not behind Envoy.
func (c *converter) stays(s *server, line int, path, text string) {
	s.direct = true
	c.lost(s, line, path, text)
}

func (c *converter) sortedNotes() []Note {
	notes := slices.Clone(c.notes)
	slices.SortStableFunc(notes, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	return notes
}

// residue looks for secrets that were taken out of mcp_servers in what is left
// of the file: a comment, an anchor, another block.
func (c *converter) residue(text []byte) {
	const short = 8 // would be found in any text
	for i, line := range bytes.Split(text, []byte("\n")) {
		for _, l := range c.literals {
			if len(l.value) >= short && bytes.Contains(line, []byte(l.value)) {
				c.look(nil, i+1, "the new configuration for LiteLLM, line "+strconv.Itoa(i+1),
					"outside of mcp_servers, it still holds the secret that "+l.variable+" stands for; take it out there too")
			}
		}
	}
}

// shown quotes what comes from the file, for a comment or a terminal.
func shown(s string) string {
	if plainName(s) {
		return s
	}
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return strconv.QuoteToASCII(s)
}

func plainName(s string) bool {
	for _, b := range []byte(s) {
		if !isWord(b) && b != '-' && b != '.' {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

func isWord(b byte) bool {
	return b == '_' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9'
}
