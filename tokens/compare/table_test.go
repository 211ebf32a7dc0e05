package compare

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var write = flag.Bool("write", false, "run everything, with the real Envoy, and write the tables of docs/tokens.md")

const page = "../../docs/tokens.md"

// table is one of the page's tables: contenders down, what was tried across, or
// the other way round.
type table struct {
	name  string
	rows  []string
	cols  []string
	cells map[[2]string]string
}

func newTable(name string, rows, cols []string) *table {
	return &table{name: name, rows: rows, cols: cols, cells: map[[2]string]string{}}
}

func (x *table) put(row, col, text string) { x.cells[[2]string{row, col}] = text }

func (x *table) marks() (begin, end string) {
	return "<!-- " + x.name + ":begin (make compare) -->\n", "<!-- " + x.name + ":end -->"
}

func (x *table) String() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(append([]string{""}, x.cols...))
	line(slices.Repeat([]string{"---"}, len(x.cols)+1))
	for _, row := range x.rows {
		cells := []string{row}
		for _, col := range x.cols {
			cells = append(cells, x.cells[[2]string{row, col}])
		}
		line(cells)
	}
	return b.String()
}

// block cuts the table's text out of the page.
func (x *table) block(text string) (before, in, after string, err error) {
	begin, end := x.marks()
	before, rest, ok := strings.Cut(text, begin)
	in, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", "", "", fmt.Errorf("%s: want the marks of table %q, got none", page, x.name)
	}
	return before + begin, in, end + after, nil
}

// read returns the table as the page has it.
func (x *table) read(text string) (*table, error) {
	_, in, _, err := x.block(text)
	if err != nil {
		return nil, err
	}
	var grid [][]string
	for l := range strings.Lines(in) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(l), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		grid = append(grid, cells)
	}
	got := newTable(x.name, nil, nil)
	for i, cells := range grid {
		if i < 2 {
			continue
		}
		for k, cell := range cells[1:] {
			if k+1 < len(grid[0]) {
				got.put(cells[0], grid[0][k+1], cell)
			}
		}
	}
	return got, nil
}

// agree fails the test where the page says something else than was seen. What
// was not tried this time is not compared, but must be there.
func (x *table) agree(t *testing.T, text string) {
	t.Helper()
	doc, err := x.read(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range x.rows {
		for _, col := range x.cols {
			at := [2]string{row, col}
			said, seen := doc.cells[at], x.cells[at]
			if said == "" || seen != "" && said != seen {
				t.Errorf("%s, table %s, %s / %s: the page says %q, seen was %q; run make compare", page, x.name, row, col, said, seen)
			}
		}
	}
}

// settle compares the tables with the page, or writes them into it.
func settle(t *testing.T, tables ...*table) {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, x := range tables {
		if !*write {
			x.agree(t, text)
			continue
		}
		before, _, after, err := x.block(text)
		if err != nil {
			t.Fatal(err)
		}
		text = before + x.String() + after
	}
	if *write && !t.Failed() {
		if err := os.WriteFile(page, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// number writes 36000 as 36,000.
func number(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
