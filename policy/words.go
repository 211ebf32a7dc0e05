package policy

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// show quotes what the file says, cut short. It is handed the text before
// expansion, never a secret.
func show(s string) string { return strconv.Quote(clip(s, 80)) }

// clip cuts s to about n bytes, at a whole character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// choice writes words as "a, b or c".
func choice(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// suggest answers an unknown key: with the key that was probably meant, else
// with all that there are.
func suggest(key string, fields []field) string {
	known := make([]string, len(fields))
	best, least := "", len(key)/3+2
	for i, f := range fields {
		known[i] = f.key
		if n := distance(clip(key, 64), f.key); n < least {
			best, least = f.key, n
		}
	}
	if best != "" {
		return "did you mean " + strconv.Quote(best) + "?"
	}
	slices.Sort(known)
	return "the keys here are " + strings.Join(known, ", ")
}

// distance is the edit distance of two words, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
