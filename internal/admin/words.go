package admin

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
)

// maxText bounds every string that somebody else chose, in bytes.
const maxText = 600

// words are the functions of the templates.
func words() template.FuncMap {
	return template.FuncMap{
		"advice": adviseOn, "plain": plain, "thousands": thousands[uint64], "u64": func(n int) uint64 { return uint64(max(0, n)) },
		"took": took, "span": span, "clock": clock, "stamp": stamp, "ago": ago, "percent": percent, "join": strings.Join,
		"life": life, "traffic": drawCalls, "latency": drawLatency,
		"at":   func(t, now time.Time) moment { return moment{t, now} },
		"held": func(t *Token, now time.Time) held { return held{t, now} },
		"list": func(l []refusals.Refusal, now time.Time, single bool) list { return list{l, now, single} },
	}
}

// A template takes one value; these carry the time along.
type (
	moment struct{ T, Now time.Time }
	held   struct {
		Token *Token
		Now   time.Time
	}
	list struct {
		List   []refusals.Refusal
		Now    time.Time
		Single bool
	}
)

// plain makes a string that others chose fit to be shown; escaping is the template's.
func plain(s string) string { return refusals.Plain(s, maxText) }

// thousands writes 10000 as 10,000.
func thousands[N uint64 | int](n N) string {
	s := strconv.FormatUint(uint64(n), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + many
}

// percent writes a share; one that is small and not nothing is never 0.
func percent(part, whole uint64) string {
	if whole == 0 || part == 0 {
		return "0 %"
	}
	p := 100 * float64(part) / float64(whole)
	switch {
	case p < 0.1:
		return "< 0.1 %"
	case p < 10:
		return strconv.FormatFloat(p, 'f', 1, 64) + " %"
	}
	return strconv.FormatFloat(math.Floor(p), 'f', 0, 64) + " %"
}

// took writes the duration of a call.
func took(d time.Duration) string {
	switch {
	case d <= 0:
		return "–"
	case d < time.Millisecond:
		return strconv.FormatInt(max(1, d.Microseconds()), 10) + " µs"
	case d < 10*time.Millisecond:
		return strconv.FormatFloat(d.Seconds()*1000, 'f', 1, 64) + " ms"
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
}

// span writes a time that a person waits for, in one unit.
func span(d time.Duration) string {
	d = d.Abs()
	switch {
	case d < 2*time.Minute:
		return strconv.Itoa(int(d.Seconds())) + " s"
	case d < 2*time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + " days"
}

// ago says where a moment is, seen from now.
func ago(t, now time.Time) string {
	switch d := now.Sub(t); {
	case d < -time.Second:
		return "in " + span(d)
	case d < 2*time.Second:
		return "now"
	default:
		return span(d) + " ago"
	}
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// bar is how much of a token's life is left.
type bar struct {
	// Left is in percent, Width in units of a bar of 100.
	Left    int
	Refresh int // where the refresh is, -1 for nowhere
	Low     bool
}

func life(t *Token, now time.Time) bar {
	if t.Lifetime <= 0 || !t.Ready {
		return bar{Refresh: -1}
	}
	at := func(moment time.Time) int {
		return int(min(100, max(0, math.Round(100*float64(moment.Sub(now))/float64(t.Lifetime)))))
	}
	b := bar{Left: at(t.Expiry), Refresh: -1}
	if !t.Refresh.IsZero() && t.Refresh.Before(t.Expiry) {
		// Counted back from the expiry, as the bar is.
		b.Refresh = int(min(100, max(0, math.Round(100*float64(t.Expiry.Sub(t.Refresh))/float64(t.Lifetime)))))
	}
	b.Low = b.Left < 10
	return b
}

// chart is a small drawing: paths in a box of W by H, and the same in words.
type chart struct {
	W, H          int
	Calls, Failed string
	P50, P99      string
	Text          string
}

// A chart is stretched to its place, so its box is of whole numbers: short paths.
const chartStep, chartHeight = 10, 100

// drawCalls draws calls as bars, with those that failed at their feet.
func drawCalls(t *Traffic) *chart {
	if t == nil || len(t.Points) == 0 {
		return nil
	}
	top, failed := uint64(1), uint64(0)
	for _, p := range t.Points {
		top, failed = max(top, p.Calls), failed+p.Failed
	}
	c := &chart{W: chartStep * len(t.Points), H: chartHeight}
	var calls, bad strings.Builder
	stroke := func(b *strings.Builder, i int, n uint64) {
		if n > 0 {
			h := max(3, int(math.Round(chartHeight*float64(min(n, top))/float64(top))))
			fmt.Fprintf(b, "M%d %dv-%dh%dV%[2]dz", i*chartStep, chartHeight, h, chartStep-2)
		}
	}
	for i, p := range t.Points {
		stroke(&calls, i, p.Calls)
		stroke(&bad, i, p.Failed)
	}
	c.Calls, c.Failed = calls.String(), bad.String()
	c.Text = fmt.Sprintf("Calls in the last %s: at most %s in %s, now %s; %s failed",
		span(t.Step*time.Duration(len(t.Points))), thousands(top), span(t.Step), thousands(t.Points[len(t.Points)-1].Calls), thousands(failed))
	return c
}

// drawLatency draws p50 and p99 as lines; steps without a call leave a gap.
func drawLatency(t *Traffic) *chart {
	if t == nil || len(t.Points) < 2 {
		return nil
	}
	var top time.Duration
	for _, p := range t.Points {
		top = max(top, p.P99)
	}
	if top == 0 {
		return nil
	}
	line := func(of func(Point) time.Duration) string {
		var b strings.Builder
		pen := "M"
		for i, p := range t.Points {
			if of(p) == 0 {
				pen = "M"
				continue
			}
			fmt.Fprintf(&b, "%s%d %d", pen, i*chartStep, 4+int(math.Round((chartHeight-8)*(1-float64(of(p))/float64(top)))))
			if pen == "M" {
				b.WriteString("h.1") // so that a lone point shows
			}
			pen = "L"
		}
		return b.String()
	}
	return &chart{
		W: chartStep * (len(t.Points) - 1), H: chartHeight,
		P50:  line(func(p Point) time.Duration { return p.P50 }),
		P99:  line(func(p Point) time.Duration { return p.P99 }),
		Text: fmt.Sprintf("Time of calls in the last %s: p99 at most %s; now p50 %s, p99 %s", span(t.Step*time.Duration(len(t.Points))), took(top), took(t.P50), took(t.P99)),
	}
}
