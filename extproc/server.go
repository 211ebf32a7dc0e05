package extproc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// serviceName is the gRPC service Envoy's ext_proc filter calls.
const serviceName = "envoy.service.ext_proc.v3.ExternalProcessor"

// upstreamKey is the initial metadata by which Envoy's configuration names the upstream.
const upstreamKey = "mcp-upstream"

// Config is what a Server needs.
type Config struct {
	// Tokens is where access tokens come from. Required.
	Tokens *tokens.Cache
	// Secrets resolves fixed header credentials. Required.
	Secrets tokens.SecretSource
	// Verifier verifies the tokens of callers. Load tells it what to keep, and
	// does not warm it. Required for policies with jwt callers.
	Verifier *tokens.Verifier
	// Now is the clock. Required.
	Now func() time.Time
	// Log gets one line for each refusal, and none for a request that goes on.
	Log zerolog.Logger
	// Observe is told of every decision before the reply is sent. Nil: nobody is.
	Observe Observer
	// Gate is asked before anything is lent. Nil: nothing is limited.
	Gate Gate
	// Audit keeps a record of every decision. Nil: nobody does.
	Audit Auditor
	// Outcomes is told how calls ended, when Envoy sends us its access log.
	// Nil: nobody is.
	Outcomes OutcomeObserver
}

// Observer is told of decisions. Decided is called on the request path, from
// many goroutines at once: it must not block, nor keep d.
type Observer interface{ Decided(d *Decision) }

// Gate decides whether a caller that may use an upstream may use it now. Admit is
// called once for each request, on its first attempt, from many goroutines at
// once. It returns policy.Allowed, or a refusal and when to try again. It may
// wait as long as ctx lasts, and must not keep d.
type Gate interface {
	Admit(ctx context.Context, d *Decision) (policy.Reason, time.Duration)
}

// Auditor keeps a record of decisions. Record is called before the reply is sent,
// from many goroutines at once; an error refuses the request. It must not keep d.
type Auditor interface{ Record(d *Decision) error }

// Decision is the one event of a request. Nothing in it is secret.
type Decision struct {
	// Upstream and Caller are names of the policy; empty when not found out.
	Upstream, Caller string
	// Issuer and Subject say whom the caller's token speaks of; empty for a
	// caller without one.
	Issuer, Subject string
	// Reason says how it ended.
	Reason policy.Reason
	// Tool is what the request would run, where rules govern that: the name of a
	// tool, else method and target, a URI without query, fragment and user. At most
	// 193 visible characters and a blank, and the caller's to choose.
	Tool string
	// Rule is the number of the rule that decided about it, 0 for none.
	Rule int
	// Token is the fingerprint of the access token lent, or empty.
	Token string
	// Calls are what the request would run, where rules govern that: one, or the
	// elements of a batch. They are the caller's bytes, and good only during the
	// call that brought the Decision.
	Calls []policy.Call
	// RequestID is the x-request-id, and Trace the traceparent (W3C Trace Context),
	// as they came: the caller's to choose, and good as long as Calls.
	RequestID, Trace []byte
	// Began is when the message was received.
	Began time.Time
	// Attempt is Envoy's count, 1 for the first.
	Attempt int
	// CookiesKept and CookiesDropped count cookie pairs.
	CookiesKept, CookiesDropped int
	// RetryAfter is when a refused call may be tried again; 0 when waiting does not help.
	RetryAfter time.Duration
	// Took is the time from message to reply, waiting for a token included, and
	// for a body not.
	Took time.Duration
}

// Server decides. Its methods may be called from any number of goroutines.
type Server struct {
	cfg Config
	now func() time.Time
	// loading is held while snap is replaced, so that what goes with it fits.
	loading sync.Mutex
	snap    atomic.Pointer[snapshot]
	pool    sync.Pool
	log     accessLog
	// sessions says whose session is whose. It outlives a policy.
	sessions *sessions
}

// New returns a Server that refuses everything until Load.
func New(cfg Config) (*Server, error) {
	if cfg.Tokens == nil || cfg.Secrets == nil || cfg.Now == nil {
		return nil, errors.New("extproc: Config needs Tokens, Secrets and Now")
	}
	s := &Server{cfg: cfg, now: cfg.Now, sessions: newSessions()}
	s.sessions.full = s.crowded
	s.log.stop = make(chan struct{})
	s.pool.New = func() any { return new(exchange) }
	s.snap.Store(emptySnapshot())
	return s, nil
}

// Options are the grpc.Server options that Register relies on.
func (*Server) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(codec{encoding.GetCodecV2(proto.Name)}),
		grpc.MaxRecvMsgSize(policy.MaxBody + maxHeaders), // the codec holds each message to what it may be
		grpc.MaxConcurrentStreams(1 << 20),
	}
}

// Register adds the services to a gRPC server made with Options: ext_proc and
// the access log. Whoever may ask for a decision may also report an outcome.
func (s *Server) Register(g *grpc.Server) {
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: serviceName,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName:    "Process",
			Handler:       func(_ any, stream grpc.ServerStream) error { return s.Process(stream) },
			ServerStreams: true,
			ClientStreams: true,
		}},
		Metadata: "envoy/service/ext_proc/v3/external_processor.proto",
	}, s)
	g.RegisterService(s.logService(), s)
}

// Process serves one ext_proc stream: one message, one reply, and the end; or
// two, where the body has to be read; and one more where the headers of the answer
// tell the outcome. It returns nil after the reply that decides was sent and never
// otherwise.
func (s *Server) Process(stream grpc.ServerStream) (err error) {
	x := s.begin(stream.Context())
	defer s.end(x, &err)
	for !x.done {
		if err := stream.RecvMsg(&x.msg); err != nil {
			return unanswered(err)
		}
		if err := x.answer(stream.Context(), s); err != nil {
			return err
		}
		if err := stream.SendMsg(&x.out); err != nil {
			return unanswered(err)
		}
	}
	return s.follow(stream, x)
}

// unanswered turns the end of a stream, however it came, into an error: io.EOF
// must not become the nil that Envoy reads as permission.
func unanswered(err error) error {
	return status.Errorf(codes.Unavailable, "the stream ended before a reply: %v", err)
}

// begin takes an exchange for one stream. The whole stream sees one snapshot.
func (s *Server) begin(ctx context.Context) *exchange {
	x, _ := s.pool.Get().(*exchange)
	x.snap, x.gate = s.snap.Load(), s.cfg.Gate
	x.names = metadata.ValueFromIncomingContext(ctx, upstreamKey)
	x.urls = metadata.ValueFromIncomingContext(ctx, urlKey)
	x.lane, x.caller, x.principal, x.token, x.cause = nil, nil, nil, nil, nil
	x.mark, x.session = "", sessionUse{}
	x.calls, x.needs, x.awaiting, x.done = x.calls[:0], nil, false, false
	x.cookies = policy.CookieResult{}
	x.msg.reset(x.snap.known)
	x.decision = Decision{Attempt: 1}
	return x
}

// end returns the exchange. A panic becomes an error of this stream alone; the
// exchange is left to the garbage collector then, whatever state it is in.
func (s *Server) end(x *exchange, err *error) {
	if p := recover(); p != nil {
		// The value is not logged: it may quote what a header held.
		s.cfg.Log.Error().Str("upstream", x.decision.Upstream).Type("panic", p).Stack().
			Msg("internal error, request refused")
		*err = status.Error(codes.Internal, "internal error")
		return
	}
	x.release()
	s.pool.Put(x)
}

// release lets go of what belongs to the request.
func (x *exchange) release() {
	x.snap, x.principal, x.token = nil, nil, nil
	x.standard = policy.Standard{}
	clear(x.calls)
	x.decision.Calls, x.decision.RequestID, x.decision.Trace = nil, nil, nil
	x.msg.shrink()
}

// record tells the observer and, for a refusal, the log.
func (s *Server) record(x *exchange) {
	if s.cfg.Observe != nil {
		s.cfg.Observe.Decided(&x.decision)
	}
	if x.decision.Reason == policy.Allowed {
		return
	}
	d := &x.decision
	s.cfg.Log.Warn().
		Str("reason", d.Reason.String()).
		Str("upstream", d.Upstream).
		Str("caller", d.Caller).
		Str("issuer", d.Issuer).
		Str("subject", d.Subject).
		Str("request_id", printable(d.RequestID, 64)).
		Int("attempt", d.Attempt).
		Func(d.tool).
		AnErr("cause", x.cause).
		Msg("refused")
}

// tool says what the request would run, where that was judged.
func (d *Decision) tool(e *zerolog.Event) {
	if d.Tool != "" {
		e.Str("tool", d.Tool).Int("rule", d.Rule)
	}
}

// printable returns at most limit characters of b, visible ASCII only: a
// request id is the caller's to choose.
func printable(b []byte, limit int) string {
	out := make([]byte, 0, limit)
	for _, c := range b[:min(len(b), limit)] {
		if c > ' ' && c < 0x7f {
			out = append(out, c)
		}
	}
	return string(out)
}

// Load puts a policy in force: everything that can fail happens first, then one
// pointer is swapped. On an error the policy before it stays. Calls in flight
// end under the policy they began with.
func (s *Server) Load(set *policy.Set) error { return s.LoadAfter(set, func() {}) }

// LoadAfter is Load for a Gate that follows the policy: gate is called when nothing
// can fail any more, and before the first call is decided by the new policy. So no
// upstream is in force before what limits it; it must not block. Calls in between
// meet the new gate, under the policy before.
func (s *Server) LoadAfter(set *policy.Set, gate func()) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	snap, err := s.build(set)
	if err != nil {
		return fmt.Errorf("loading the policy: %w", err)
	}
	gate()
	now := s.now()
	snap.after(s.snap.Load(), now)
	s.snap.Store(snap)
	s.retain(snap)
	if snap.before != nil {
		time.AfterFunc(snap.until.Sub(now), func() { s.forget(snap) })
	}
	return nil
}

// Sources lists the token sources of the policy in force, for status pages.
func (s *Server) Sources() []*tokens.Source { return s.snap.Load().sources() }
