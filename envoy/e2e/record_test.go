package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
)

// lines returns what is on record, in the order of the chain, which must be whole.
func (r *rig) lines() []audit.Line {
	r.t.Helper()
	report, err := audit.Verify(audit.VerifyConfig{}, r.records())
	if err != nil {
		r.t.Fatal(err)
	}
	if report.Broken != nil {
		r.t.Fatalf("the record is broken: %s", report.Broken)
	}
	var all []audit.Line
	for _, f := range report.Files {
		b, err := os.ReadFile(f.File)
		if err != nil {
			r.t.Fatal(err)
		}
		for text := range strings.Lines(string(b)) {
			var l audit.Line
			if !strings.HasSuffix(text, "\n") {
				break // being written
			}
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				r.t.Fatalf("%v: %s", err, text)
			}
			all = append(all, l)
		}
	}
	return all
}

// call is what is on record of one request id.
type call struct{ decisions, outcomes []audit.Line }

func byID(lines []audit.Line) map[string]call {
	calls := map[string]call{}
	for _, l := range lines {
		c := calls[l.RequestID]
		switch l.Kind {
		case "decision":
			c.decisions = append(c.decisions, l)
		case "outcome":
			c.outcomes = append(c.outcomes, l)
		default:
			continue
		}
		calls[l.RequestID] = c
	}
	return calls
}

// auditUnavailable is the reason of a refusal without a line on record.
const auditUnavailable = "audit_unavailable"

// count returns how many lines of a kind there are.
func count(lines []audit.Line, kind string) (n int) {
	for _, l := range lines {
		if l.Kind == kind {
			n++
		}
	}
	return n
}

// recordedCase is a kind of call and what is to be on record of it.
type recordedCase struct {
	path, key                 string
	leaves                    bool // the caller does not wait for the answer
	early                     bool // Envoy may know that it cannot connect before it asks, or before it is answered
	upstream, reason, refusal string
	decisions, status         int
	attempts                  int
}

// is reports whether a call on record is of this kind.
func (c *recordedCase) is(got call) bool {
	if c.early {
		return len(got.outcomes) > 0 && got.outcomes[0].Upstream == c.upstream
	}
	return len(got.decisions) > 0 && got.decisions[0].Upstream == c.upstream && got.decisions[0].Reason == c.reason
}

// TestRecord_EveryCall: each call, however it ends, is on record with every decision
// of it and one outcome, joined by its id; and each decision is on record before
// the upstream sees the request, which is what "required" promises. What it refuses
// because the disk is busy, where a decision is withdrawn, is called again.
func TestRecord_EveryCall(t *testing.T) {
	r := start(t, standard+"  slow: {url: {{.URL \"slow\"}}, credential: none}\n  closed: {url: http://"+free(t)+"/mcp, credential: none}\n"+
		"audit: {file: \"{{.Dir}}/audit.jsonl\", required: true}\n")
	cases := []recordedCase{
		{path: "/alpha/mcp", upstream: "alpha", reason: "allowed", decisions: 1, status: 200, attempts: 1},
		{path: "/fixed/mcp", upstream: "fixed", reason: "allowed", decisions: 1, status: 200, attempts: 1},
		{path: "/open/mcp", upstream: "open", reason: "allowed", decisions: 1, status: 500, attempts: 1},
		{path: "/keyed/mcp", key: callerKey, upstream: "keyed", reason: "allowed", decisions: 1, status: 200, attempts: 1},
		{path: "/keyed/mcp", upstream: "keyed", reason: "caller_unknown", decisions: 1, status: 403, attempts: 1, refusal: "caller_unknown"},
		{path: "/beta/mcp", upstream: "beta", reason: "allowed", decisions: 2, status: 502, attempts: 2, refusal: "upstream_rejected"},
		{path: "/closed/mcp", early: true, upstream: "closed", status: 503},
		{path: "/slow/mcp", leaves: true, upstream: "slow", reason: "allowed", decisions: 1, attempts: 1},
	}
	late := r.lateDecisions()
	const each = 12
	var wg sync.WaitGroup
	var again atomic.Int64
	for i, c := range cases {
		for n := range each {
			wg.Go(func() { again.Add(int64(r.callOnce(t, c, fmt.Sprintf("%d-%d", i, n)))) })
		}
	}
	wg.Wait()
	r.post("/nobody/mcp", "{}").refused(t, http.StatusForbidden, "no_policy") // by Envoy, of no upstream
	want := each*len(cases) + int(again.Load())
	r.eventually("all outcomes are on record", 10*time.Second, func() bool { return count(r.lines(), "outcome") >= want })
	calls := byID(r.lines())
	if len(calls) != want {
		t.Errorf("want %d calls on record, got %d", want, len(calls))
	}
	lasting := maps.Clone(calls)
	maps.DeleteFunc(lasting, func(_ string, c call) bool { return len(c.outcomes) > 0 && c.outcomes[0].Refusal == auditUnavailable })
	if got := len(calls) - len(lasting); got != int(again.Load()) {
		t.Errorf("want %d calls refused for the record, got %d", again.Load(), got)
	}
	for _, c := range cases {
		c.compare(t, each, lasting)
	}
	for name, u := range r.facts.upstreams {
		for _, a := range u.seen() {
			if got := calls[a.Header.Get("X-Request-Id")]; len(got.decisions) == 0 || got.decisions[0].Upstream != name {
				t.Errorf("a request reached %s, and on record is %+v", name, got)
			}
		}
	}
	if ids := late(); len(ids) > 0 {
		t.Errorf("these reached an upstream before their decision was on record: %q", ids)
	}
	if got := r.proc.metric(`mcp_auth_audit_lines_total{kind="outcome"}`); got != float64(want) {
		t.Errorf("want %d outcomes in the metric, got %v", want, got)
	}
}

// lateDecisions has each upstream look into the record when a request arrives, and
// answer in a way of its own. The function returned lists the ids that were not there.
func (r *rig) lateDecisions() func() []string {
	var mu sync.Mutex
	var late []string
	status := map[string]int{"open": http.StatusInternalServerError, "beta": http.StatusUnauthorized}
	for name, u := range r.facts.upstreams {
		u.answerFunc(func(w http.ResponseWriter, req *http.Request) {
			id := req.Header.Get("X-Request-Id")
			b, err := os.ReadFile(r.record())
			if err != nil || id == "" || !strings.Contains(string(b), `"kind":"decision","request_id":"`+id+`"`) {
				mu.Lock()
				late = append(late, id)
				mu.Unlock()
			}
			if name == "slow" {
				<-req.Context().Done()
			}
			w.WriteHeader(cmp.Or(status[name], http.StatusOK))
		})
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return late
	}
}

// untilSeen is a context that ends once an upstream has seen the request with that
// X-Case: a caller leaves then, of whom there is an outcome.
func (r *rig) untilSeen(upstream, name string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.t.Context())
	go func() {
		for ctx.Err() == nil && !slices.ContainsFunc(r.up(upstream).seen(), func(a arrival) bool { return a.Header.Get("X-Case") == name }) {
			time.Sleep(20 * time.Millisecond)
		}
		cancel()
	}()
	return ctx, cancel
}

// callOnce calls, and leaves once the request is with the upstream if it is to leave.
// It calls again when a busy disk had its decision come too late to be on record, and
// returns how often that was.
func (r *rig) callOnce(t *testing.T, c recordedCase, name string) (tooLate int) {
	t.Helper()
	headers := pairs{"X-Case", name}
	if c.key != "" {
		headers = append(headers, "X-Mcp-Auth-Key", c.key)
	}
	ctx := t.Context()
	if c.leaves {
		until, cancel := r.untilSeen(c.upstream, name)
		defer cancel()
		ctx = until
	}
	for ; ; tooLate++ {
		got, err := r.try(ctx, nil, r.url+c.path, strings.NewReader("{}"), headers)
		if got.reason() == auditUnavailable {
			continue
		}
		if c.leaves != (err != nil) || got.status != c.status {
			t.Errorf("%s: want %d, got %v, %v", c.path, c.status, got, err)
		}
		return tooLate
	}
}

// compare holds what is on record of calls of one kind against what happened.
func (c *recordedCase) compare(t *testing.T, want int, calls map[string]call) {
	t.Helper()
	n := 0
	for id, got := range calls {
		if !c.is(got) {
			continue
		}
		n++
		if c.early && len(got.decisions) <= 1 && len(got.outcomes) == 1 && got.outcomes[0].Status == c.status {
			continue
		}
		if len(got.decisions) != c.decisions || len(got.outcomes) != 1 {
			t.Errorf("%s: want %d decisions and an outcome, got %+v", id, c.decisions, got)
			continue
		}
		for i, d := range got.decisions {
			if d.Upstream != c.upstream || d.Reason != c.reason || d.Attempt != i+1 {
				t.Errorf("%s: want attempt %d for %s to be %s, got %+v", id, i+1, c.upstream, c.reason, d)
			}
		}
		o, last := got.outcomes[0], got.decisions[c.decisions-1]
		if !o.Decided || o.Upstream != c.upstream || o.Reason != c.reason || o.Status != c.status ||
			o.Attempts != c.attempts || o.Refusal != c.refusal || o.Reset != c.leaves || o.Left != c.leaves {
			t.Errorf("%s: want %+v, got %+v", id, *c, o)
		}
		if o.Token != last.Token || o.Caller != last.Caller || o.Seq < last.Seq {
			t.Errorf("%s: the outcome %+v is not that of %+v", id, o, last)
		}
	}
	if n != want {
		t.Errorf("%s %s: want %d calls on record, got %d", c.upstream, c.reason, want, n)
	}
}

// audited is the standard policy with an audit block.
func audited(r *rig, more string) string {
	return r.recorded(standard + "audit: {file: " + r.record() + more + "}\n")
}

// TestRecord_Killed: kill -9 under load, three times, with files being put aside all
// the while. Whatever reached an upstream is on record, and the chain goes on.
func TestRecord_Killed(t *testing.T) {
	r := newRig(t, standard)
	r.write("policy.yaml", audited(r, ", required: true, rotate: {size: 64KiB}"))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	o := r.under(100, func(o *outcomes) { // the last calls are those of a program that lives
		for range 3 {
			r.goOn(o, 100)
			r.proc.kill()
			r.proc = r.serve(r.policy, r.facts.Admin)
		}
	})
	arrivals := r.up("alpha").take()
	if o.fine < 300 || len(arrivals) < o.fine { // Envoy waits for a program that is back soon, so that none may be refused
		t.Errorf("want calls to go through, got %d, %d refused and %d arrivals", o.fine, o.refused, len(arrivals))
	}
	calls := func() map[string]call { return byID(r.lines()) }
	r.eventually("the outcomes of the last calls are on record", 10*time.Second, func() bool {
		return len(calls()[arrivals[len(arrivals)-1].Header.Get("X-Request-Id")].outcomes) == 1
	})
	there, lost := calls(), 0
	for _, a := range arrivals {
		c := there[a.Header.Get("X-Request-Id")]
		// Envoy asks again when a reply was lost with the process.
		if n := len(c.decisions); n == 0 || c.decisions[n-1].Reason != "allowed" || len(c.outcomes) > 1 {
			t.Fatalf("a request reached its upstream, and on record is %+v", c)
		}
		lost += 1 - len(c.outcomes)
	}
	if files := len(r.records()); files < 5 {
		t.Errorf("want files put aside, got %d", files)
	}
	out := r.run(append([]string{"audit", "verify"}, r.records()...)...)
	if !strings.Contains(string(out), "unbroken from 1 to ") {
		t.Errorf("audit verify says %s", out)
	}
	t.Logf("%d calls went through, %d were refused; %d outcomes were lost with the process; audit verify:\n%s", o.fine, o.refused, lost, out)
}

// limitFiles bounds how large the files of a running process may get, as a disk
// without room does. 0 is no bound.
func limitFiles(t *testing.T, pid int, size uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: size, Max: ^uint64(0)}
	if size == 0 {
		limit.Cur = ^uint64(0)
	}
	//nolint:gosec // prlimit(2) of a child; package syscall has no function for it
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}

// TestO10_AuditOnAFullDisk: with `required` a call is refused and nothing is lent,
// without it is served and counted, and with room again both go on; the record
// says how much is missing.
func TestO10_AuditOnAFullDisk(t *testing.T) {
	r := newRig(t, standard)
	r.write("policy.yaml", audited(r, ", required: true"))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK {
		t.Fatalf("with room: got %v", got)
	}
	r.eventually("its outcome is on record", 5*time.Second, func() bool { return count(r.lines(), "outcome") == 1 })
	r.up("alpha").take()
	info, err := os.Stat(r.record())
	if err != nil {
		t.Fatal(err)
	}
	full := uint64(info.Size()) + 100
	limitFiles(t, r.proc.cmd.Process.Pid, full)
	const each = 5
	for range each {
		r.post("/alpha/mcp", "{}").refused(t, http.StatusServiceUnavailable, auditUnavailable)
	}
	if n := len(r.up("alpha").take()); n != 0 {
		t.Errorf("%d calls that are not on record reached the upstream", n)
	}
	r.failing(t, each)

	r.write("policy.yaml", audited(r, ""))
	r.proc.signal(syscall.SIGHUP)
	r.eventually("without required, calls are served", 5*time.Second, func() bool { return r.post("/alpha/mcp", "{}").status == http.StatusOK })
	r.failing(t, each+1)

	limitFiles(t, r.proc.cmd.Process.Pid, 0)
	r.eventually("what is missing is on record", 5*time.Second, func() bool { return count(r.lines(), "dropped") > 0 })
	r.up("alpha").take()
	if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK {
		t.Errorf("with room again: got %v", got)
	}
	id := r.up("alpha").take()[0].Header.Get("X-Request-Id")
	r.eventually("calls are on record again", 5*time.Second, func() bool {
		c := byID(r.lines())[id]
		return len(c.decisions) == 1 && len(c.outcomes) == 1
	})
	var said uint64
	for _, l := range r.lines() {
		said += l.Lines
	}
	if got := r.proc.metric(`mcp_auth_audit_dropped_total{sink="file"}`); got != float64(said) {
		t.Errorf("the record says that %d lines are missing, the metric %v", said, got)
	}
	if got := r.proc.metric("mcp_auth_audit_failing"); got != 0 {
		t.Errorf("want 0 once it works, got %v", got)
	}
}

// failing looks for a failing audit in metrics and status.
func (r *rig) failing(t *testing.T, atLeast float64) {
	t.Helper()
	if got := r.proc.metric(`mcp_auth_audit_dropped_total{sink="file"}`); got < atLeast {
		t.Errorf("want at least %v lines counted as dropped, got %v", atLeast, got)
	}
	if got := r.proc.metric("mcp_auth_audit_failing"); got != 1 {
		t.Errorf("want the failure in the metric, got %v", got)
	}
	_, text := r.proc.get("/status")
	var status struct{ Audit audit.Status }
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatal(err)
	}
	if a := status.Audit; !a.Failing || !strings.Contains(a.LastError, "file too large") || a.Dropped["file"] == 0 {
		t.Errorf("want the failure in /status, got %+v", a)
	}
}

// TestO10_AuditFileCannotBeMade: such a policy is not taken, at the start and later.
func TestO10_AuditFileCannotBeMade(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := newRig(t, standard)
	nowhere := r.recorded(standard + "audit: {file: " + filepath.Join(r.dir, "no", "audit.jsonl") + "}\n")
	r.write("policy.yaml", nowhere)
	p := r.launch(r.policy, r.facts.Admin)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		t.Fatal("the program runs without its record")
	}
	if log := tail(p.log, 4000); p.cmd.ProcessState.ExitCode() != 1 || !strings.Contains(log, "no such file or directory; make the directory") {
		t.Errorf("want status 1 and what to do, got %d: %s", p.cmd.ProcessState.ExitCode(), log)
	}
	r.write("policy.yaml", r.recorded(standard))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	r.write("policy.yaml", nowhere)
	r.proc.signal(syscall.SIGHUP)
	r.eventually("the failure shows", 5*time.Second, func() bool { return r.proc.metric("mcp_auth_config_last_reload_successful") == 0 })
	if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK || count(r.lines(), "decision") != 1 {
		t.Errorf("want the last good policy in force, with its record, got %v and %+v", got, r.lines())
	}
}

// TestRecord_RotatedAndReloaded: under load, files are put aside, another program moves
// one away, the policy is reloaded over and over, and names another file in the end.
// Nothing is refused, and every call is on record once. Nor is any line waited for
// longer than 10 ms: the disk of a test machine may be busy.
func TestRecord_RotatedAndReloaded(t *testing.T) {
	r := newRig(t, standard)
	r.write("policy.yaml", audited(r, ", rotate: {size: 64KiB}"))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	second := filepath.Join(r.dir, "second.jsonl")
	o := r.under(400, func(*outcomes) { // of which a file takes some 70
		if err := os.Rename(r.record(), r.record()+".moved"); err != nil {
			t.Error(err)
		}
		for i := range 10 {
			r.write("policy.yaml", audited(r, fmt.Sprintf(", rotate: {size: %dKiB}", 64+i%2)))
			r.proc.signal(syscall.SIGHUP)
			time.Sleep(200 * time.Millisecond)
		}
		r.write("policy.yaml", strings.Replace(audited(r, ", rotate: {size: 64KiB}"), r.record(), second, 1))
		r.proc.signal(syscall.SIGHUP)
		r.eventually("the new file is written", 5*time.Second, func() bool { info, err := os.Stat(second); return err == nil && info.Size() > 0 })
	})
	if o.refused != 0 || o.fine < 500 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
	r.proc.signal(syscall.SIGTERM)
	<-r.proc.done
	first, more := r.records(), r.recordsOf(second)
	if len(more) < 2 || len(first) < 6 {
		t.Fatalf("want files of both names, got %q and %q", first, more)
	}
	out := r.run(append([]string{"audit", "verify"}, append(first, more...)...)...)
	if !strings.Contains(string(out), "unbroken from 1 to ") || strings.Contains(string(out), "not closed") || strings.Contains(string(out), "not given") {
		t.Errorf("audit verify over both names says %s", out)
	}
	seen := map[string]int{}
	for _, path := range slices.Concat(first, more) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for text := range strings.Lines(string(b)) {
			var l audit.Line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Fatal(err)
			}
			if l.Kind == "decision" {
				seen[l.RequestID]++
			}
		}
	}
	for _, a := range r.up("alpha").take() {
		if id := a.Header.Get("X-Request-Id"); seen[id] != 1 {
			t.Errorf("request %s: want one decision on record, got %d", id, seen[id])
		}
	}
	if len(seen) != o.fine {
		t.Errorf("want %d calls on record, got %d", o.fine, len(seen))
	}
}
