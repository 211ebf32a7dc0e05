package extproc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// told is what a gate or an audit was told, with what it may not keep copied.
type told struct {
	Decision

	calls, id, trace string
}

func tell(d *Decision) told {
	var names []string
	for _, c := range d.Calls {
		names = append(names, string(c.Method)+" "+string(c.Target))
	}
	t := told{*d, strings.Join(names, ","), string(d.RequestID), string(d.Trace)}
	t.Calls, t.RequestID, t.Trace = nil, nil, nil
	return t
}

// recorder is a gate and an audit that answers what it is told to.
type recorder struct {
	mu     sync.Mutex
	list   []told
	reason policy.Reason
	after  time.Duration
	err    error
	until  time.Time // the deadline that it had
}

func (r *recorder) add(d *Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, tell(d))
}

func (r *recorder) Admit(ctx context.Context, d *Decision) (policy.Reason, time.Duration) {
	r.add(d)
	r.until, _ = ctx.Deadline()
	return r.reason, r.after
}

func (r *recorder) Record(d *Decision) error {
	r.add(d)
	return r.err
}

func (r *recorder) take() []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list = nil
	return list
}

const aTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// named is what every request of these tests brings for the record.
func named(headers ...string) []string {
	return append([]string{"x-request-id", "r-7", "traceparent", aTrace}, headers...)
}

// TestGateRefuses: by limit or by watch, with when to come again, before a token
// is fetched or a session taken.
func TestGateRefuses(t *testing.T) {
	for _, tc := range []struct {
		reason policy.Reason
		after  time.Duration
		status int
		retry  string
	}{
		{policy.RateLimited, 2500 * time.Millisecond, 429, "3"},
		{policy.UpstreamDisabled, 30 * time.Second, 503, "30"},
		{policy.RateLimited, 0, 429, ""}, // a batch larger than the limit: waiting does not help
		{policy.UpstreamDisabled, 0, 503, "1"},
		{policy.Undecided, 0, 500, ""}, // a gate that decides nothing admits nothing
	} {
		r, gate := newRig(t), &recorder{reason: tc.reason, after: tc.after}
		r.cfg.Gate = gate
		resp := r.call(t, "a", headersRequest(nil, nil, named()...))
		set, _ := changes(resp)
		im := resp.GetImmediateResponse()
		if int(im.GetStatus().GetCode()) != tc.status || set["retry-after"] != tc.retry || set[reasonHeader] != tc.reason.String() || set["authorization"] != "" {
			t.Errorf("%s: got %v", tc.reason, resp)
		}
		if n := r.auth.requests.Load(); n != 0 {
			t.Errorf("%s: want no token fetched, got %d", tc.reason, n)
		}
		if d := r.seen.list; len(d) != 1 || d[0].Reason != tc.reason || d[0].Token != "" || d[0].Caller != "anyone" {
			t.Errorf("%s: want one decision, got %+v", tc.reason, d)
		}
	}
}

// TestGateIsAskedOnce for a request that may go on, with the tool that it would
// run; and not for one that is refused already, nor on a later attempt.
func TestGateIsAskedOnce(t *testing.T) {
	r, gate := newRig(t), &recorder{reason: policy.Allowed}
	r.cfg.Gate = gate
	r.hurry(t)
	begin := time.Now()
	r.judged(t, post(named()...), callOf("ticket_new"))
	got := gate.take()
	if len(got) != 1 || got[0].calls != "tools/call ticket_new" || got[0].Tool != "ticket_new" || got[0].Caller != "ci" || got[0].Upstream != "ruled" ||
		got[0].id != "r-7" || got[0].trace != aTrace || got[0].Began.Before(begin) || got[0].Attempt != 1 {
		t.Errorf("want to be asked once, with everything, got %+v", got)
	}
	if wait := gate.until.Sub(begin); wait <= 0 || wait > time.Second {
		t.Errorf("want server.deadline (300ms) to hold for the gate, got %s", wait)
	}
	one := described(r.call(t, "a", headersRequest(nil, nil)))
	gate.take()
	for name, call := range map[string]func(){
		"attempt 2": func() {
			r.call(t, "a", headersRequest(nil, one, "x-envoy-attempt-count", "2", "authorization", "Bearer tok-1"))
		},
		"unknown upstream": func() { r.call(t, "nobody", headersRequest(nil, nil)) },
		"unknown caller":   func() { r.call(t, "b", headersRequest(nil, nil)) },
		"S7 denied tool":   func() { r.judged(t, post(), callOf("drop")) },
		"unproved tool":    func() { r.judged(t, post(), "{") },
		"the body is yet to come": func() {
			if err := r.Process(newStream(t, []string{"ruled"}, post())); err == nil {
				t.Error("want an error: there is no body")
			}
		},
	} {
		if call(); len(gate.take()) != 0 {
			t.Errorf("%s: the gate was asked", name)
		}
	}
}

// TestGateFollowsBeforeThePolicy: nothing is decided by a policy whose gate is not in
// force yet.
func TestGateFollowsBeforeThePolicy(t *testing.T) {
	r, gate := newRig(t), &recorder{reason: policy.Allowed}
	r.cfg.Gate = gate
	set, err := policy.Parse("policy.yaml", []byte(strings.Replace(testPolicy, "  fixed: ", "  new: ", 1)), testEnv(r.auth.URL))
	if err != nil {
		t.Fatal(err)
	}
	call := func() string { return reasonOf(r.call(t, "new", headersRequest(nil, nil))) }
	before := ""
	if err := r.LoadAfter(set, func() {
		before = call()
		gate.reason = policy.UpstreamDisabled
	}); err != nil {
		t.Fatal(err)
	}
	if after := call(); before != "no_policy" || after != "upstream_disabled" {
		t.Errorf("want an upstream that is not there, and then is switched off, got %s and %s", before, after)
	}
}

// TestAuditSeesEveryDecision: allowed, refused, of either attempt, before the reply
// and before anybody else is told.
func TestAuditSeesEveryDecision(t *testing.T) {
	r, audit := newRig(t), &recorder{}
	r.cfg.Audit = audit
	r.call(t, "a", headersRequest(nil, nil)) // the token is fetched
	audit.take()
	one := described(r.call(t, "a", headersRequest(nil, nil, named("cookie", "session=1; x=2; y=3")...)))
	r.call(t, "a", headersRequest(nil, one, "x-envoy-attempt-count", "2", "authorization", "Bearer tok-1"))
	r.call(t, "nobody", headersRequest(nil, nil))
	r.call(t, "b", headersRequest(nil, nil))
	r.judged(t, post(), `[`+callOf("read")+`,`+callOf("drop")+`]`)
	got := audit.take()
	for i := range got {
		d := &got[i]
		if d.Began.IsZero() || d.Took <= 0 {
			t.Errorf("decision %d: want when it began and how long it took, got %s, %s", i, d.Began, d.Took)
		}
		d.Began, d.Took = time.Time{}, 0
	}
	want := []told{
		{Decision{Upstream: "a", Caller: "anyone", Reason: policy.Allowed, Token: got[0].Token, Attempt: 1, CookiesKept: 1, CookiesDropped: 2}, "", "r-7", aTrace},
		{Decision{Upstream: "a", Caller: "anyone", Reason: policy.Allowed, Token: got[1].Token, Attempt: 2}, "", "", ""},
		{Decision{Reason: policy.NoPolicy, Attempt: 1}, "", "", ""},
		{Decision{Upstream: "b", Reason: policy.CallerUnknown, Attempt: 1}, "", "", ""},
		{Decision{Upstream: "ruled", Caller: "ci", Reason: policy.ToolDenied, Tool: "drop", Attempt: 1}, "tools/call read,tools/call drop", "", ""},
	}
	if len(got) != len(want) {
		t.Fatalf("want %d records, got %d", len(want), len(got))
	}
	for i := range want {
		if !sameTold(got[i], want[i]) {
			t.Errorf("record %d: want %+v, got %+v", i, want[i], got[i])
		}
	}
	if len(got[0].Token) != 8 || got[1].Token == got[0].Token {
		t.Errorf("want the fingerprint of what each attempt was lent, got %q and %q", got[0].Token, got[1].Token)
	}
}

func sameTold(a, b told) bool {
	same := a.calls == b.calls && a.id == b.id && a.trace == b.trace
	x, y := a.Decision, b.Decision
	return same && x.Upstream == y.Upstream && x.Caller == y.Caller && x.Reason == y.Reason && x.Tool == y.Tool && x.Token == y.Token &&
		x.Attempt == y.Attempt && x.CookiesKept == y.CookiesKept && x.CookiesDropped == y.CookiesDropped
}

// TestWhatIsNotOnRecordIsNotLent: an audit that cannot be written refuses what was
// allowed, and nothing of the credential leaves. What was refused stays refused.
func TestWhatIsNotOnRecordIsNotLent(t *testing.T) {
	r, audit := newRig(t), &recorder{err: errors.New("the disk is full")}
	r.cfg.Audit = audit
	for _, upstream := range []string{"a", "fixed", "open"} {
		s := newStream(t, []string{upstream}, headersRequest(nil, nil, "authorization", "Bearer caller", "cookie", "session=1"))
		raw := &rawStream{stream: s}
		if err := r.Process(raw); err != nil {
			t.Fatal(err)
		}
		checkRefusal(t, s.sent[0], policy.AuditUnavailable, true)
		if d := described(s.sent[0]); d["token"] != nil || d["reason"] != "audit_unavailable" {
			t.Errorf("%s: metadata = %v", upstream, d)
		}
		for _, secret := range []string{"tok-1", "api-canary", "Bearer"} {
			if strings.Contains(string(raw.wire), secret) {
				t.Errorf("%s: %q is in the reply", upstream, secret)
			}
		}
	}
	resp := r.judged(t, post(), callOf("read"))
	if resp.GetImmediateResponse() == nil || reasonOf(resp) != "audit_unavailable" {
		t.Errorf("with a body: got %v", resp)
	}
	if got := reasonOf(r.call(t, "b", headersRequest(nil, nil))); got != "audit_unavailable" {
		t.Errorf("want a refusal that is not on record to say so, got %s", got)
	}
	for _, d := range r.seen.list {
		if d.Reason != policy.AuditUnavailable || d.Token != "" {
			t.Errorf("want the observer told what became of it, got %+v", d)
		}
	}
	if log := r.log.String(); !strings.Contains(log, "the disk is full") {
		t.Errorf("want the cause in the log, got %s", log)
	}
	audit.err = nil
	if got := reasonOf(r.call(t, "a", headersRequest(nil, nil))); got != "allowed" {
		t.Errorf("want the next one allowed, got %s", got)
	}
}

// rawStream keeps the wire bytes of the replies.
type rawStream struct {
	*stream

	wire []byte
}

func (s *rawStream) SendMsg(m any) error {
	if r, ok := m.(*reply); ok {
		s.wire = append(s.wire, r.wire...)
	}
	return s.stream.SendMsg(m)
}

// TestNothingOfARequestIsKept: what an exchange hands to others is gone from it when
// it is put away.
func TestNothingOfARequestIsKept(t *testing.T) {
	r, audit := newRig(t), &recorder{}
	r.cfg.Audit = audit
	s := newStream(t, []string{"ruled"}, post(named()...), bodyRequest("["+callOf("read")+","+callOf("ticket_1")+"]"))
	x := r.begin(s.Context())
	runs := func() {
		for !x.done {
			if err := s.RecvMsg(&x.msg); err != nil {
				t.Fatal(err)
			}
			if err := x.answer(s.Context(), r.Server); err != nil {
				t.Fatal(err)
			}
		}
	}
	runs()
	if got := audit.take(); len(got) != 1 || got[0].calls != "tools/call read,tools/call ticket_1" {
		t.Fatalf("got %+v", got)
	}
	var err error
	r.end(x, &err)
	if x.decision.Calls != nil || x.decision.RequestID != nil || x.decision.Trace != nil || x.msg.requestID != nil || x.msg.trace != nil || x.msg.body != nil {
		t.Errorf("the request is still there: %+v", x.decision)
	}
	if slices.ContainsFunc(x.calls[:cap(x.calls)], func(c policy.Call) bool { return c.ID != nil || c.Method != nil || c.Target != nil }) {
		t.Errorf("calls are still there: %+v", x.calls[:cap(x.calls)])
	}
}

// TestCallsAreNotThoseOfARequestBefore: an exchange is used again.
func TestCallsAreNotThoseOfARequestBefore(t *testing.T) {
	r, audit := newRig(t), &recorder{}
	r.cfg.Audit = audit
	for range 20 {
		r.judged(t, post(named()...), "["+callOf("read")+","+callOf("ticket_1")+"]")
		r.call(t, "open", headersRequest(nil, nil))
		r.judged(t, post(), `{"jsonrpc":"2.0","id":1,"method":"ping"}`)
		got := audit.take()
		if len(got) != 3 || got[1].calls != "" || got[1].id != "" || got[1].trace != "" || got[1].Tool != "" || got[2].calls != "ping " {
			t.Fatalf("got %+v", got)
		}
	}
}

// TestOwnTimeHoldsTheAudit: what a slow disk costs the caller is ours.
func TestOwnTimeHoldsTheAudit(t *testing.T) {
	r := newRig(t)
	now := time.Unix(1_800_000_000, 0)
	r.now = func() time.Time { return now }
	r.cfg.Audit = auditFunc(func(*Decision) error { now = now.Add(40 * time.Millisecond); return nil })
	meta := described(r.call(t, "open", headersRequest(nil, nil)))
	if meta["own"] != "40000" || r.seen.list[0].Took != 0 {
		t.Errorf("want 40 ms of our own, and none of the decision, got %v and %s", meta["own"], r.seen.list[0].Took)
	}
}

type auditFunc func(*Decision) error

func (f auditFunc) Record(d *Decision) error { return f(d) }
