package extproc

import (
	"errors"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// answer is what Envoy sends of the headers of an answer.
func answer(headers ...string) *extprocv3.ProcessingRequest {
	h := &corev3.HeaderMap{}
	for i := 0; i+1 < len(headers); i += 2 {
		h.Headers = append(h.Headers, &corev3.HeaderValue{Key: headers[i], RawValue: []byte(headers[i+1])})
	}
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: h},
	}}
}

// followed runs messages through Process for an upstream, and returns the outcomes.
func (r *rig) followed(t *testing.T, upstream string, msgs ...*extprocv3.ProcessingRequest) (*stream, []Outcome, error) {
	t.Helper()
	seen := &ends{}
	r.cfg.Outcomes = seen
	s := newStream(t, []string{upstream}, msgs...)
	err := r.Process(s)
	return s, seen.all(), err
}

// TestOutcomeByTheHeadersOfTheAnswer: what they say, and what the decision said.
func TestOutcomeByTheHeadersOfTheAnswer(t *testing.T) {
	r := newRig(t)
	r.call(t, "a", headersRequest(nil, nil)) // so that there is a token
	tool := []*extprocv3.ProcessingRequest{post("x-request-id", "r-1"), bodyRequest(callOf("read"))}
	for name, tc := range map[string]struct {
		upstream string
		msgs     []*extprocv3.ProcessingRequest
		want     Outcome
		replies  int
	}{
		"fine": {
			"followed",
			[]*extprocv3.ProcessingRequest{headersRequest(nil, nil), answer(":status", "204", "x", "y")},
			Outcome{Caller: "anyone", Reason: "allowed", Status: 204, Attempts: 1},
			2,
		},
		"attempt 2 is one of its own": {
			"followed",
			[]*extprocv3.ProcessingRequest{
				headersRequest(nil, map[string]any{"upstream": "followed", "caller": "anyone", "reason": "allowed", "own": "999000000"}, "x-envoy-attempt-count", "2"),
				answer(":status", "200"),
			},
			Outcome{Caller: "anyone", Reason: "allowed", Status: 200, Attempts: 1},
			2,
		},
		"with a body": {
			"followed_ruled", append(tool, answer(":status", "200")),
			Outcome{Caller: "ci", Reason: "allowed", Tool: "read", Status: 200, Attempts: 1, RequestID: "r-1"},
			3,
		},
		"Envoy's words": {
			"followed",
			[]*extprocv3.ProcessingRequest{headersRequest(nil, nil), answer(":status", "502", reasonHeader, "upstream_rejected")},
			Outcome{Caller: "anyone", Reason: "allowed", Status: 502, Refusal: "upstream_rejected", Attempts: 1},
			2,
		},
		"an upstream's words": {
			"followed",
			[]*extprocv3.ProcessingRequest{headersRequest(nil, nil), answer(":status", "200", reasonHeader, "whatever")},
			Outcome{Caller: "anyone", Reason: "allowed", Status: 200, Attempts: 1},
			2,
		},
		"no answer, and nothing says who ended it: not held against the upstream": {
			"followed",
			[]*extprocv3.ProcessingRequest{headersRequest(nil, nil)},
			Outcome{Caller: "anyone", Reason: "allowed", Attempts: 1, Reset: true, Left: true},
			1,
		},
		"refused": {
			"followed_ruled",
			[]*extprocv3.ProcessingRequest{headersRequest(nil, nil, "x-request-id", "r-2")},
			Outcome{Reason: "caller_unknown", Status: 403, Refusal: "caller_unknown", RequestID: "r-2"},
			1,
		},
	} {
		s, got, err := r.followed(t, tc.upstream, tc.msgs...)
		if err != nil || len(s.sent) != tc.replies || len(got) != 1 {
			t.Errorf("%s: want %d replies and one outcome, got %d, %d, %v", name, tc.replies, len(s.sent), len(got), err)
			continue
		}
		if tc.replies > 1 && s.sent[tc.replies-1].GetResponseHeaders() == nil {
			t.Errorf("%s: want the answer let through, got %v", name, s.sent[tc.replies-1])
		}
		tc.want.Upstream, tc.want.Decided = tc.upstream, true
		if diff := cmp.Diff(tc.want, got[0], cmpopts.IgnoreFields(Outcome{}, "Began", "Took", "Own", "Token")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if got[0].Began.IsZero() || got[0].Took <= 0 || got[0].Own <= 0 || got[0].Own > time.Minute || got[0].Own > got[0].Took {
			t.Errorf("%s: got %s, %s of it our own", name, got[0].Took, got[0].Own)
		}
		if lent := got[0].Token != ""; lent != (got[0].Reason == "allowed") {
			t.Errorf("%s: token %q", name, got[0].Token)
		}
	}
	if got := r.LogStats(); got != (LogStats{Evicted: 1}) {
		t.Errorf("want nothing of an access log, and one token dropped, got %+v", got)
	}
}

// TestFollowedStreamGoesOnOnlyWithTheAnswer: anything else is out of order, as
// without an outcome.
func TestFollowedStreamGoesOnOnlyWithTheAnswer(t *testing.T) {
	r := newRig(t)
	for name, second := range map[string]*extprocv3.ProcessingRequest{
		"a body": bodyRequest("{}"), "the request again": headersRequest(nil, nil), "nothing": {},
	} {
		_, got, err := r.followed(t, "followed", headersRequest(nil, nil), second)
		if !errors.Is(err, errOrder) || len(got) != 0 {
			t.Errorf("%s: want the stream ended with an error, got %v and %v", name, err, got)
		}
	}
	// An upstream whose outcomes the access log tells of has its stream ended at once.
	if s, got, err := r.followed(t, "a", headersRequest(nil, nil), answer(":status", "401")); err != nil || len(s.sent) != 1 || len(got) != 0 {
		t.Errorf("got %d replies, %v, %v", len(s.sent), got, err)
	}
}

// TestO18_TheAnswerEvicts: a 401 costs one token request, and the next call has a
// new token.
func TestO18_TheAnswerEvicts(t *testing.T) {
	r := newRig(t)
	first, _, _ := r.followed(t, "followed", headersRequest(nil, nil), answer(":status", "401"))
	for range 5 { // as late as they like
		stale := &logged{Outcome: Outcome{Upstream: "followed", Decided: true, Status: 401, Token: described(first.sent[0])["token"].(string)}}
		r.endedByHeaders(stale)
	}
	if n := r.LogStats().Evicted; n != 1 {
		t.Errorf("want one token dropped, got %d", n)
	}
	s, _, _ := r.followed(t, "followed", headersRequest(nil, nil), answer(":status", "200"))
	if set, _ := changes(s.sent[0]); set["authorization"] != "Bearer tok-2" || r.auth.requests.Load() != 2 {
		t.Errorf("want a new token by one request, got %q and %d", set["authorization"], r.auth.requests.Load())
	}
}

// TestAccessLogOfAFollowedUpstream counts for nothing: each call has one outcome.
func TestAccessLogOfAFollowedUpstream(t *testing.T) {
	r, seen := newRig(t), &ends{}
	r.cfg.Outcomes = seen
	_, st := logClient(t, r)
	send(t, st, logOf(logEntry(200, "", map[string]any{"upstream": "followed", "reason": "allowed"}), logEntry(200, "", map[string]any{"upstream": "a", "reason": "allowed"})))
	eventually(t, "both are read", func() bool { return r.LogStats() == (LogStats{Calls: 1, Foreign: 1}) && len(seen.all()) > 0 })
	if got := seen.all(); len(got) != 1 || got[0].Upstream != "a" {
		t.Errorf("got %+v", got)
	}
}

// slowStream has its answer only when it is told to.
type slowStream struct {
	*stream

	goOn    chan struct{}
	waiting chan struct{}
}

func (s *slowStream) RecvMsg(m any) error {
	if len(s.sent) > 0 {
		close(s.waiting)
		<-s.goOn
	}
	return s.stream.RecvMsg(m)
}

// TestStopOutcomesEndsTheWait, without an error: Envoy goes on without us. What is
// waited for holds nothing of the request.
func TestStopOutcomesEndsTheWait(t *testing.T) {
	r, seen := newRig(t), &ends{}
	r.cfg.Outcomes = seen
	s := &slowStream{stream: newStream(t, []string{"followed"}, headersRequest(nil, nil), answer(":status", "200")), goOn: make(chan struct{}), waiting: make(chan struct{})}
	ended := make(chan error)
	go func() { ended <- r.Process(s) }()
	<-s.waiting
	r.StopOutcomes()
	if err := <-ended; err != nil {
		t.Errorf("want a clean end, got %v", err)
	}
	close(s.goOn)
	if got := seen.all(); len(got) != 0 {
		t.Errorf("nothing is known of the call, got %+v", got)
	}
}

// TestA11_SessionsByTheHeadersOfAnswers: whose a new session is, and that one ended.
func TestA11_SessionsByTheHeadersOfAnswers(t *testing.T) {
	r := newSessionRig(t)
	call := func(caller, status string, in, out []string) string {
		s := newStream(t, []string{"told"}, headersRequest(nil, nil, append(in, "x-mcp-auth-key", caller)...), answer(append(out, ":status", status)...))
		if err := r.Process(s); err != nil {
			t.Fatal(err)
		}
		return reasonOf(s.sent[0])
	}
	for i, step := range []struct {
		caller, status string
		in, out        []string
		want           string
	}{
		{"alice", "200", nil, []string{"mcp-session-id", "s-1"}, "allowed"},
		{"bob", "200", []string{"mcp-session-id", "s-1"}, nil, "session_mismatch"},
		{"alice", "200", []string{"mcp-session-id", "s-1", ":method", "DELETE"}, nil, "allowed"},
		{"bob", "200", []string{"mcp-session-id", "s-1"}, nil, "allowed"},
	} {
		if got := call(step.caller, step.status, step.in, step.out); got != step.want {
			t.Errorf("step %d: want %s, got %s", i+1, step.want, got)
		}
	}
}
