package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing that is wrong in a policy file, or, among Set.Warnings,
// one thing an operator should know. It never holds the value of a secret or of
// an expanded variable.
type Fault struct {
	// File is the name handed to Parse.
	File string `json:"file"`
	// Line is the line of the key, counted from 1. A fault about a key that is
	// missing has the line of the block it is missing from.
	Line int `json:"line"`
	// Path is the key path, such as upstreams.a.cookies.allow[2]. Empty for the whole file.
	Path string `json:"path,omitempty"`
	// Text says what was wanted, what was found and what to do.
	Text string `json:"text"`
}

// String returns the fault as one line, without a newline.
func (f Fault) String() string {
	if f.Path == "" {
		return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text)
	}
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.Line, f.Path, f.Text)
}

// Faults are all faults of one file, in line order. It is the error of Parse.
type Faults []Fault //nolint:errname // it holds all of them, and Fault itself is also a warning

// Error returns one line per fault.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// inLineOrder sorts by line; faults of one line stay in the order they were found.
func (f Faults) inLineOrder() Faults {
	slices.SortStableFunc(f, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
	return f
}
