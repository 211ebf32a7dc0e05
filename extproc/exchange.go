package extproc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// exchange is one request on its way through us. Exchanges are reused: every
// field is set anew, or cut to length zero, by Server.begin.
type exchange struct {
	snap  *snapshot
	gate  Gate
	names []string // values of the initial metadata mcp-upstream
	urls  []string // and of mcp-upstream-url

	msg    message
	screen policy.Screening
	cookie []byte // scratch for the filtered cookie header
	out    reply

	standard policy.Standard
	calls    []policy.Call // scratch for what the request would run
	needs    []string      // the scopes that it takes and the caller lacks
	awaiting bool          // the body was asked for
	done     bool          // the last reply is written

	start     time.Time
	lane      *lane
	caller    *policy.Caller
	rules     []*tokens.Rule    // scratch for those that a token is tried by
	principal *tokens.Principal // of a caller with a token
	mark      string            // of that token, for a credential of the caller's own
	token     *tokens.Token
	session   sessionUse
	cookies   policy.CookieResult
	decision  Decision
	own       time.Duration // how long this and earlier attempts took, for the outcome
	cause     error         // what went wrong, for the log; never for the caller
}

// answer works out the reply to a message. An error ends the stream, and with
// it the request: Envoy answers 500.
func (x *exchange) answer(ctx context.Context, s *Server) error {
	switch x.msg.phase {
	case phaseRequestHeaders:
		if x.awaiting {
			return errOrder
		}
		x.start = s.now()
		x.decision.Began, x.decision.RequestID, x.decision.Trace = x.start, x.msg.requestID, x.msg.trace
		x.conclude(s, x.decide(ctx))
		return nil
	case phaseRequestBody:
		if !x.awaiting {
			return errOrder
		}
		x.start = s.now()
		x.conclude(s, x.resume(ctx))
		return nil
	case phaseResponseHeaders, phaseResponseBody, phaseResponseTrailers:
		if x.awaiting {
			return errOrder
		}
		// The upstream answered already: there is nothing left to protect.
		x.out.acknowledge(x.msg.phase)
		x.done = true
		return nil
	case phaseRequestTrailers:
		return errOrder
	case phaseNone:
	}
	return status.Error(codes.Unimplemented, "a message of an unknown kind")
}

// conclude writes the reply to a part of the request: the decision, or that the
// body is needed for it.
func (x *exchange) conclude(s *Server, reason policy.Reason) {
	if x.awaiting {
		x.out.askForBody(x.lane.up.OutcomesFromHeaders)
		x.decision.Took = s.now().Sub(x.start)
		return
	}
	x.decision.Reason = reason
	x.decision.Calls = x.calls
	if reason == policy.Allowed {
		x.decision.Reason = x.allow()
	}
	x.decision.Took += s.now().Sub(x.start)
	x.own = x.msg.prior.own + x.decision.Took
	x.audit(s)
	x.respond()
	x.done = true
	s.record(x)
}

// audit has the decision recorded. What is not on record is not lent.
func (x *exchange) audit(s *Server) {
	if s.cfg.Audit == nil {
		return
	}
	begin := s.now()
	if err := s.cfg.Audit.Record(&x.decision); err != nil {
		x.cause = err
		x.decision.Reason, x.decision.Token, x.decision.RetryAfter = policy.AuditUnavailable, "", time.Second
	}
	x.own += s.now().Sub(begin)
}

// passGate asks whether the caller may use the upstream now. A later attempt is the
// same call.
func (x *exchange) passGate(ctx context.Context) policy.Reason {
	if x.gate == nil || x.screen.Attempt > 1 {
		return policy.Allowed
	}
	ctx, cancel := x.bounded(ctx)
	defer cancel()
	var reason policy.Reason
	x.decision.Calls = x.calls
	reason, x.decision.RetryAfter = x.gate.Admit(ctx, &x.decision)
	return reason
}

// decide is the order of business. Each step refuses or lets the next one look.
func (x *exchange) decide(ctx context.Context) policy.Reason {
	if r := x.identify(); r != policy.Allowed {
		return r
	}
	if r := x.lane.up.Screen(&x.msg.req, &x.screen); r != policy.Allowed {
		return r
	}
	if r := x.authorize(ctx); r != policy.Allowed {
		return r
	}
	if r := x.lookUpSession(ctx); r != policy.Allowed {
		return r
	}
	if r := x.govern(); r != policy.Allowed {
		return r
	}
	return x.grant(ctx)
}

// resume goes on with the body that was asked for.
func (x *exchange) resume(ctx context.Context) policy.Reason {
	if r := x.governBody(); r != policy.Allowed {
		return r
	}
	// A caller may take its time with a body, and whose the session is was perhaps
	// not known before.
	if r := x.lookUpSession(ctx); r != policy.Allowed {
		return r
	}
	return x.grant(ctx)
}

// grant is what is left when the request may go on.
func (x *exchange) grant(ctx context.Context) policy.Reason {
	if r := x.passGate(ctx); r != policy.Allowed {
		return r
	}
	if r := x.filterCookies(); r != policy.Allowed {
		return r
	}
	if r := x.lend(ctx); r != policy.Allowed {
		return r
	}
	return x.claimSession(ctx)
}

// identify finds the upstream, from what Envoy's configuration says and nothing else.
func (x *exchange) identify() policy.Reason {
	if len(x.names) > 1 {
		return policy.BadRequest
	}
	if len(x.names) == 1 {
		x.msg.req.Name = x.names[0]
	}
	up, reason := x.snap.set.Lookup(&x.msg.req)
	if reason != policy.Allowed {
		return reason
	}
	if up, reason = x.follow(up); reason != policy.Allowed {
		return reason
	}
	x.lane = x.snap.lanes[up]
	x.decision.Upstream = up.Name
	return policy.Allowed
}

// errNoVerdict is the cause when Envoy did not bring back what attempt 1 decided.
var errNoVerdict = errors.New("attempt after the first without our verdict on the first; " +
	"list mcp_auth in metadata_options of the ext_proc filter, forwarding and receiving namespaces both")

// authorize finds out who calls. Attempt 1 took the caller's proof off the
// request, so a later attempt goes by the verdict of the first, which Envoy
// keeps where no caller can write.
func (x *exchange) authorize(ctx context.Context) policy.Reason {
	x.decision.Attempt = x.screen.Attempt
	var reason policy.Reason
	if x.screen.Attempt > 1 {
		reason = x.recall()
	} else {
		reason = x.prove(ctx)
	}
	if x.caller != nil {
		x.decision.Caller = x.caller.Name
	}
	return reason
}

// recall goes by the verdict of attempt 1.
func (x *exchange) recall() policy.Reason {
	up, p := x.lane.up, &x.msg.prior
	if p.upstream != up.Name || p.reason != policy.Allowed.String() {
		x.cause = errNoVerdict
		return policy.CallerUnknown
	}
	for _, c := range up.Callers {
		if c.Name == p.caller {
			x.caller = c
		}
	}
	if x.caller == nil {
		return policy.CallerUnknown
	}
	x.decision.Issuer, x.decision.Subject, x.mark = p.issuer, p.subject, p.mark
	x.decision.Tool = p.tool
	return policy.Allowed
}

func (x *exchange) filterCookies() policy.Reason {
	x.cookies = x.lane.up.Cookies.Filter(x.cookie[:0], x.screen.Cookies)
	if x.cookies.Edit == policy.CookieSet {
		x.cookie = x.cookies.Value
	}
	x.decision.CookiesKept, x.decision.CookiesDropped = x.cookies.Kept, x.cookies.Dropped
	if x.cookies.Edit == policy.CookieRefuse {
		return policy.BadRequest
	}
	return policy.Allowed
}

// lend gets the access token, when the upstream is lent one.
func (x *exchange) lend(ctx context.Context) policy.Reason {
	source := x.lane.source
	if source == nil {
		return policy.Allowed
	}
	if x.cached(source) {
		return policy.Allowed
	}
	ctx, cancel := x.bounded(ctx)
	defer cancel()
	// Envoy repeats a call on 401 only, and the request still carries what the
	// upstream refused.
	again, own := x.screen.Attempt > 1, source.UserBound()
	switch {
	case again && own:
		x.token, x.cause = source.ReplaceFor(ctx, x.mark, x.screen.Authorization)
	case again:
		x.token, x.cause = source.Replace(ctx, x.screen.Authorization)
	case own:
		x.token, x.cause = source.TokenFor(ctx, x.principal)
	default:
		x.token, x.cause = source.Token(ctx)
	}
	return x.tokenReason()
}

// cached takes the token that is at hand, on a first attempt.
func (x *exchange) cached(source *tokens.Source) bool {
	if x.screen.Attempt > 1 {
		return false
	}
	if !source.UserBound() {
		x.token = source.Cached()
		return x.token != nil
	}
	x.mark = source.Mark(x.principal)
	x.token = source.CachedFor(x.principal)
	return x.token != nil
}

// bounded is the time that a decision has for all that it waits for.
func (x *exchange) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(ctx, x.start.Add(x.snap.set.Server.Deadline))
}

// tokenReason maps what the token engine said to a refusal.
func (x *exchange) tokenReason() policy.Reason {
	if x.cause == nil {
		return policy.Allowed
	}
	x.decision.RetryAfter = time.Second
	var te *tokens.Error
	if !errors.As(x.cause, &te) {
		return policy.TokenUnavailable // our own deadline, or Envoy went away
	}
	if te.Code == "subject_expired" { // while it was on its way: only the caller can get another
		return policy.CallerInvalid
	}
	x.decision.RetryAfter = max(te.RetryAfter, time.Second)
	switch te.Kind {
	case tokens.Refused:
		return policy.TokenRefused
	case tokens.Rejected:
		return policy.UpstreamRejected
	case tokens.Unavailable:
	}
	return policy.TokenUnavailable
}
