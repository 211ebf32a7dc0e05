package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// gap is a time without the program.
type gap struct {
	how         string
	from, until time.Time // from the signal until it was ready again

	lost, allowed int       // outcomes, and how many of them of calls that were allowed
	first, last   time.Time // when those calls ended
}

func (g *gap) lose(e seenEnd, allowed bool) {
	if g.lost == 0 || e.at.Before(g.first) {
		g.first = e.at
	}
	if e.at.After(g.last) {
		g.last = e.at
	}
	g.lost++
	if allowed {
		g.allowed++
	}
}

// restart ends the program with a signal, and starts it again.
func (r *rig) restart(s syscall.Signal) gap {
	r.t.Helper()
	g := gap{how: s.String(), from: time.Now()}
	r.proc.signal(s)
	<-r.proc.done
	r.proc = r.serve(r.policy, r.facts.Admin)
	g.until = time.Now()
	return g
}

// kept is what is on record of calls, by request id.
type kept struct {
	outcomes map[string]int
	allowed  map[string]bool
}

func (r *rig) kept() kept {
	r.t.Helper()
	out := kept{outcomes: map[string]int{}, allowed: map[string]bool{}}
	f, err := os.Open(r.record())
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l audit.Line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			r.t.Fatal(err)
		}
		switch {
		case l.Kind == "outcome":
			out.outcomes[l.RequestID]++
		case l.Kind == "decision" && l.Reason == "allowed":
			out.allowed[l.RequestID] = true
		}
	}
	return out
}

// seenEnd is a line of Envoy's own access log.
type seenEnd struct {
	id, upstream string
	at           time.Time
}

// ends reads that log.
func (r *rig) ends() []seenEnd {
	r.t.Helper()
	b, err := os.ReadFile(r.accessLog())
	if err != nil {
		r.t.Fatal(err)
	}
	var all []seenEnd
	for line := range strings.Lines(string(b)) {
		var e seenEnd
		var status, took int
		var began float64
		if _, err := fmt.Sscan(line, &e.id, &status, &began, &took, &e.upstream); err != nil {
			r.t.Fatalf("%q: %v", line, err)
		}
		e.at = time.UnixMicro(int64(began * 1e6)).Add(time.Duration(took) * time.Millisecond)
		all = append(all, e)
	}
	return all
}

// TestOutcomesAcrossRestarts: which outcomes a restart costs, and that no other is
// lost, none is told twice, and nothing was lent that is not on record. That the
// record is whole is looked at after every case.
func TestOutcomesAcrossRestarts(t *testing.T) {
	const perRound = 2500
	r, m, o := startCounted(t)
	over := make(chan struct{})
	go func() { m.run(t, 500); close(over) }()
	var gaps []gap
	for i := range m.calls / perRound {
		r.eventually("half a round", 2*time.Minute, func() bool { return m.made.Load() > int64(i*perRound+perRound/2) })
		gaps = append(gaps, r.restart([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[i%2]))
	}
	<-over
	time.Sleep(time.Second) // Envoy flushes each 0.1 s
	r.proc.signal(syscall.SIGTERM)
	<-r.proc.done
	known, ends := r.kept(), r.ends()
	var total float64
	for name, v := range r.envoyStats() {
		if strings.HasPrefix(name, "http.mcp_") && strings.HasSuffix(name, ".downstream_rq_total") {
			total += v
		}
	}
	if int(total) != len(ends) {
		t.Errorf("Envoy counts %v calls and logs %d", total, len(ends))
	}
	for id := range o.seen {
		if !known.allowed[id] {
			t.Errorf("a request reached the upstream and is not on record: %s", id)
		}
	}
	attribute(t, gaps, known, ends)
}

// attribute finds the gap of every outcome that is missing.
func attribute(t *testing.T, gaps []gap, known kept, ends []seenEnd) {
	t.Helper()
	// Envoy may hold an entry for a flush, and send it to a process that is gone.
	const slack = 500 * time.Millisecond
	var stray, all int
	for _, e := range ends {
		n := known.outcomes[e.id]
		if n > 1 {
			t.Errorf("the outcome of %s is told %d times", e.id, n)
		}
		if n > 0 {
			continue
		}
		all++
		i := slices.IndexFunc(gaps, func(g gap) bool { return e.at.After(g.from.Add(-slack)) && e.at.Before(g.until.Add(slack)) })
		if i < 0 {
			stray++
			continue
		}
		gaps[i].lose(e, known.allowed[e.id])
	}
	if stray > 0 {
		t.Errorf("want outcomes lost at restarts only, got %d others", stray)
	}
	for _, g := range gaps {
		span := ""
		if g.lost > 0 {
			span = fmt.Sprintf(", ended from %s after the signal to %s before it was ready",
				g.first.Sub(g.from).Round(time.Millisecond), g.until.Sub(g.last).Round(time.Millisecond))
		}
		t.Logf("%s, %s without the program: %d outcomes lost, %d of them of calls that were allowed%s",
			g.how, g.until.Sub(g.from).Round(time.Millisecond), g.lost, g.allowed, span)
	}
	t.Logf("%d calls, %d restarts, %d outcomes lost, none told twice", len(ends), len(gaps), all)
}
