package extproc

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// logServiceName is the gRPC service that Envoy's access log is sent to.
const logServiceName = "envoy.service.accesslog.v3.AccessLogService"

// Outcome is how a call ended, as Envoy's access log tells it once the call is
// over. Nothing in it is secret. What a caller or an upstream can choose is the
// request id and the status. Caller, Reason and Refusal are words of the policy in
// force or of policy.Reasons, whatever the log says, or empty.
type Outcome struct {
	// Upstream is the upstream of the last decision: a name of the policy in force.
	Upstream string
	// Caller and Reason are of the last decision, and Token is the fingerprint
	// of the access token that it lent, or empty.
	Caller, Reason, Token string
	// Status is what the caller was answered, 0 when it was not.
	Status int
	// Refusal is the x-mcp-auth-reason of the answer, empty when it was the upstream's.
	Refusal string
	// Attempts is how often Envoy sent the request, 0 when never.
	Attempts int
	// RequestID is the x-request-id, cut to 64 visible characters.
	RequestID string

	// Tool, Issuer and Subject are of the last decision, as in Decision.
	Tool, Issuer, Subject string
	// Decided is whether the call came to a decision. When not, Upstream is that of
	// Envoy's cluster, and Caller, Reason, Token and what else a decision says are empty.
	Decided bool
	// Began is when Envoy received the request, and Took how long it took until the
	// last byte was sent, streaming included; both zero when Envoy does not say.
	Began time.Time
	Took  time.Duration
	// Own is how long the decisions took, all attempts together, in whole
	// microseconds; waiting for a token and writing the audit record included.
	Own time.Duration
	// Sent and Received are the bytes of the bodies of answer and request.
	Sent, Received int64
	// Reset is whether the call ended without a whole answer of the upstream: a
	// connection was lost, somebody cancelled it, or it ran out of time. Envoy may
	// have answered in the upstream's place: Status is a 503 or 504 then.
	Reset bool
	// Left is whether it was the caller's side that ended it so. The headers of answers
	// do not say: where they tell, it is set for every call that ended before them.
	Left bool
}

// Rejected reports whether the upstream refused our credential for good: Envoy
// says so in the answer, or, without its custom_response, hands on the 401.
func (o *Outcome) Rejected() bool {
	return o.Decided && (o.Refusal == policy.UpstreamRejected.String() || o.Refusal == "" && o.Status == http.StatusUnauthorized)
}

// OutcomeObserver is told of outcomes. Ended is called once for every call that
// an upstream of the policy was found for, decided or not, in no order, from several goroutines
// at once: it must not block for long, nor keep o.
type OutcomeObserver interface{ Ended(o *Outcome) }

// LogStats counts access log entries since the start.
type LogStats struct {
	// Calls are the entries of calls that we decided on.
	Calls uint64
	// Undecided are those of calls to an upstream of the policy in force that no
	// decision was made on: they were answered before it, or we did not answer.
	Undecided uint64
	// Foreign are those of no upstream that the policy in force has: another
	// cluster's, or answered by Envoy where no route leads to an upstream; and of
	// one whose outcomes are told by the headers of answers.
	Foreign uint64
	// Malformed are those that could not be read.
	Malformed uint64
	// Evicted are the tokens dropped because an upstream had refused them.
	Evicted uint64
}

// accessLog is the state of the log service.
type accessLog struct {
	calls, undecided, foreign, malformed, evicted atomic.Uint64

	once sync.Once
	stop chan struct{}
}

// LogStats returns the counts so far.
func (s *Server) LogStats() LogStats {
	return LogStats{
		s.log.calls.Load(), s.log.undecided.Load(), s.log.foreign.Load(), s.log.malformed.Load(), s.log.evicted.Load(),
	}
}

// StopOutcomes ends all access log streams, and no longer waits for the headers of
// answers. Envoy keeps log streams open for ever, and an upstream may take as long as
// it likes, so grpc.Server.GracefulStop would wait for them in vain.
func (s *Server) StopOutcomes() { s.log.once.Do(func() { close(s.log.stop) }) }

func (s *Server) logService() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: logServiceName,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName:    "StreamAccessLogs",
			Handler:       func(_ any, stream grpc.ServerStream) error { return s.receiveLogs(stream) },
			ClientStreams: true,
		}},
		Metadata: "envoy/service/accesslog/v3/als.proto",
	}
}

// receiveLogs serves one access log stream until Envoy or StopOutcomes ends it.
func (s *Server) receiveLogs(stream grpc.ServerStream) error {
	ended := make(chan error, 1)
	go func() { ended <- s.readLogs(stream) }()
	select {
	case <-s.log.stop:
	case err := <-ended:
		if err != nil {
			return err
		}
	}
	return stream.SendMsg(new(reply)) // StreamAccessLogsResponse has no fields
}

func (s *Server) readLogs(stream grpc.ServerStream) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The value is not logged, as in Server.end.
			s.cfg.Log.Error().Type("panic", p).Msg("internal error, an access log stream is dropped")
			err = status.Error(codes.Internal, "internal error")
		}
	}()
	var m logMessage
	for {
		snap := s.snap.Load()
		m.reset(snap.known)
		if err := stream.RecvMsg(&m); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.log.malformed.Add(uint64(m.malformed)) //nolint:gosec // a count
		for i := range m.entries {
			s.ended(snap, &m.entries[i])
		}
	}
}

// ended handles one entry. What Envoy tells of a call that goes on is no outcome.
func (s *Server) ended(snap *snapshot, e *logged) {
	if e.under {
		return
	}
	up := snap.upstreamOf(e)
	if up == nil || up.OutcomesFromHeaders {
		s.log.foreign.Add(1)
		return
	}
	e.Upstream = up.Name
	snap.hold(e)
	if e.Decided {
		s.log.calls.Add(1)
	} else {
		s.log.undecided.Add(1)
	}
	s.finish(snap.lanes[up], e)
}

// hold takes out of an entry what no decision of ours says. An entry is as good as
// who sends it, and whoever reaches this listener can: it must not write what it
// likes into /status, the audit and the labels of metrics. Nor may an upstream
// whose answer bears our header, where nothing in Envoy takes it off.
func (s *snapshot) hold(e *logged) {
	if !s.callers[e.Caller] { // or one that a reload removed during the call; the decision's own line has it
		e.Caller, e.Issuer, e.Subject = "", "", ""
	}
	if !s.words[e.Reason] {
		e.Reason = ""
	}
	if !s.words[e.Refusal] {
		e.Refusal = ""
	}
	if !isFingerprint(e.Token) {
		e.Token = ""
	}
}

// isFingerprint reports whether s looks like a tokens.Token's.
func isFingerprint(s string) bool { return len(s) == 8 && strings.Trim(s, "0123456789abcdef") == "" }

// finish does what an outcome makes necessary, and tells the observer.
func (s *Server) finish(l *lane, e *logged) {
	if e.Decided {
		s.act(l, e)
	}
	if s.cfg.Outcomes != nil {
		s.cfg.Outcomes.Ended(&e.Outcome)
	}
}

// upstreamOf returns the upstream of a call: the one that was decided on, else, when
// no decision found one, the one that Envoy's cluster is of. It is nil when the
// policy has none.
func (s *snapshot) upstreamOf(e *logged) *policy.Upstream {
	req := policy.Request{Name: e.Upstream}
	if e.Upstream == "" {
		req.Cluster = e.cluster
	}
	up, reason := s.set.Lookup(&req)
	if reason != policy.Allowed {
		return nil
	}
	return up
}

// act draws the consequences. A token that the upstream refused, and that no second
// attempt replaced because the body was too large to be sent again, is replaced for
// the next call.
func (s *Server) act(l *lane, e *logged) {
	if l.source != nil && e.Rejected() && l.source.Evict(e.Token) {
		s.log.evicted.Add(1)
		s.cfg.Log.Info().Str("upstream", e.Upstream).Str("token", e.Token).Msg("the upstream refused the token, a new one is fetched")
	}
	s.learn(l, e)
}
