package policy

import (
	"errors"
	"fmt"
	"strings"
)

var (
	errUnclosed = errors.New(`"${" without "}"; close it, or write $$ for a literal $`)
	errVarName  = errors.New(`the text between "${" and "}" is not a variable name; want letters, digits and _`)
	errDollar   = errors.New(`a "$" that starts no ${NAME}; write $$ for a literal $`)
)

// Expand replaces every ${NAME} in s by what env returns for NAME and every $$
// by $. A trailing newline of a variable's value is cut, and what a variable
// holds is not expanded again. A variable that is not set, an unclosed ${ and
// any other $ is an error. The error names the variable at most: never its
// value, and nothing else of s.
func Expand(s string, env func(string) (string, bool)) (string, error) {
	out, _, err := expand(s, env)
	return out, err
}

// expansion lists the variables that a string named.
type expansion struct {
	// count is the number of ${NAME} seen.
	count int
	// empty is the first variable that was set to nothing.
	empty string
}

func expand(s string, env func(string) (string, bool)) (string, expansion, error) {
	var ex expansion
	if !strings.Contains(s, "$") {
		return s, ex, nil
	}
	var out strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		out.WriteString(before)
		switch {
		case !found:
			return out.String(), ex, nil
		case strings.HasPrefix(after, "$"):
			out.WriteByte('$')
			s = after[1:]
		case strings.HasPrefix(after, "{"):
			name, rest, closed := strings.Cut(after[1:], "}")
			value, err := variable(name, closed, env)
			if err != nil {
				return "", ex, err
			}
			if ex.count++; value == "" && ex.empty == "" {
				ex.empty = name
			}
			out.WriteString(value)
			s = rest
		default:
			return "", ex, errDollar
		}
	}
}

// variable reads one variable. A name that is none is not repeated: it may well
// be the secret itself, in braces.
func variable(name string, closed bool, env func(string) (string, bool)) (string, error) {
	if !closed {
		return "", errUnclosed
	}
	if !isVariable(name) {
		return "", errVarName
	}
	value, ok := env(name)
	if !ok {
		return "", fmt.Errorf("the variable %s is not set; set it in the environment of this process", name)
	}
	return cutNewline(value), nil
}

// cutNewline takes one trailing line end off: files and here-documents leave it there.
func cutNewline(s string) string {
	return strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
}

func isVariable(name string) bool {
	for i, c := range []byte(name) {
		letter := c == '_' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
