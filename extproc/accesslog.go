package extproc

import (
	"errors"
	"io"
	"net/http"
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
// request id and the status.
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
	// Own is how long the decisions took, all attempts together; waiting for a token included.
	Own time.Duration
	// Sent and Received are the bytes of the bodies of answer and request.
	Sent, Received int64
	// Reset is whether the call ended without a whole answer: its connection was
	// lost, it was cancelled, or it ran out of time.
	Reset bool
}

// Rejected reports whether the upstream refused our credential for good: Envoy
// says so in the answer, or, without its custom_response, hands on the 401.
func (o *Outcome) Rejected() bool {
	return o.Refusal == policy.UpstreamRejected.String() || o.Refusal == "" && o.Status == http.StatusUnauthorized
}

// OutcomeObserver is told of outcomes. Ended is called once for every call that
// an upstream of the policy was found for, decided or not, in no order, from several goroutines
// at once: it must not block for long, nor keep o.
type OutcomeObserver interface{ Ended(o *Outcome) }

// LogStats counts access log entries since the start.
type LogStats struct {
	// Calls are the entries of calls that we decided on.
	Calls uint64
	// Foreign are those of others: never decided, or of an upstream that the
	// policy in force does not have.
	Foreign uint64
	// Malformed are those that could not be read.
	Malformed uint64
	// Evicted are the tokens dropped because an upstream had refused them.
	Evicted uint64
}

// accessLog is the state of the log service.
type accessLog struct {
	calls, foreign, malformed, evicted atomic.Uint64

	once sync.Once
	stop chan struct{}
}

// LogStats returns the counts so far.
func (s *Server) LogStats() LogStats {
	return LogStats{s.log.calls.Load(), s.log.foreign.Load(), s.log.malformed.Load(), s.log.evicted.Load()}
}

// StopLogs ends all access log streams. Envoy keeps them open for ever, so
// grpc.Server.GracefulStop would wait for them in vain.
func (s *Server) StopLogs() { s.log.once.Do(func() { close(s.log.stop) }) }

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

// receiveLogs serves one access log stream until Envoy or StopLogs ends it.
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

// ended handles one outcome. A token that the upstream refused, and that no
// second attempt replaced because the body was too large to be sent again, is
// replaced for the next call.
func (s *Server) ended(snap *snapshot, e *logged) {
	o := &e.Outcome
	up, reason := snap.set.Lookup(&policy.Request{Name: o.Upstream})
	if o.Upstream == "" || reason != policy.Allowed {
		s.log.foreign.Add(1)
		return
	}
	s.log.calls.Add(1)
	if source := snap.lanes[up].source; source != nil && o.Rejected() && source.Evict(o.Token) {
		s.log.evicted.Add(1)
		s.cfg.Log.Info().Str("upstream", o.Upstream).Str("token", o.Token).Msg("the upstream refused the token, a new one is fetched")
	}
	s.learn(snap.lanes[up], e)
	if s.cfg.Outcomes != nil {
		s.cfg.Outcomes.Ended(o)
	}
}
