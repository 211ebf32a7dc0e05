package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// narrator tells what happens, a line at a time, so that it reads the same on a
// terminal and in a file.
type narrator struct {
	mu     sync.Mutex // guards w
	w      io.Writer
	colour bool
}

// newNarrator colours what goes to a terminal, unless NO_COLOR is set.
func newNarrator(f *os.File) *narrator {
	info, err := f.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &narrator{w: f, colour: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// The colours are those that every terminal has.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
)

func (n *narrator) paint(colour, s string) string {
	if !n.colour {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func (n *narrator) line(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = fmt.Fprintln(n.w, s)
}

func (n *narrator) heading(s string) { n.line("\n" + n.paint(bold, s)) }

// yes tells what went well, and how long it took.
func (n *narrator) yes(what string, took time.Duration) { n.result(n.paint(green, "✓"), what, took) }

// no tells what did not.
func (n *narrator) no(what string, took time.Duration) { n.result(n.paint(red, "✗"), what, took) }

// skip tells what was left out.
func (n *narrator) skip(what string) { n.line("- " + what) }

// width is where the timings stand.
const width = 66

func (n *narrator) result(tick, what string, took time.Duration) {
	n.line(fmt.Sprintf("%s %-*s %s", tick, width, what, n.paint(dim, fmt.Sprintf("%8s", short(took)))))
}

// detail is what was seen, below the line that it belongs to.
func (n *narrator) detail(s string) { n.line("    " + n.paint(dim, s)) }

// Write takes the output of an installation or a build, whole lines of it.
func (n *narrator) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.w.Write(b)
}

// short is a duration with as many digits as anybody reads.
func short(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return "<1ms"
}
