package extproc

import (
	"strconv"

	"google.golang.org/grpc"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// follow waits for the headers of the answer, where the policy says that they tell
// how a call ended. The decision is with Envoy by then, so that an end of the stream
// without an error lets through only what was allowed; and while Envoy waits for
// the upstream, any error of the stream would cost the call.
//
// What Envoy repeats in a cluster's chain, it asks about twice: each attempt is an
// outcome of its own then.
func (s *Server) follow(stream grpc.ServerStream, x *exchange) error {
	if x.lane == nil || !x.lane.up.OutcomesFromHeaders {
		return nil
	}
	e := x.entry()
	if x.decision.Reason != policy.Allowed { // answered already
		e.Status, e.Refusal, e.Attempts = x.lane.up.Status(x.decision.Reason), e.Reason, 0
		s.endedByHeaders(e)
		return nil
	}
	known := x.snap.known
	x.release()
	m, err := s.nextMessage(stream, known)
	switch {
	case m == nil && err == nil: // told to stop
		return nil
	case err != nil:
		// The caller left, the upstream did, or Envoy, and nothing says which. As often as
		// not somebody lost patience, and what callers do must not speak against the upstream.
		e.Reset, e.Left = true, true
	case m.phase != phaseResponseHeaders:
		return errOrder
	default:
		e.answered(m)
	}
	e.Took = s.now().Sub(e.Began)
	s.endedByHeaders(e)
	if e.Reset {
		return nil
	}
	x.out.acknowledge(phaseResponseHeaders)
	return stream.SendMsg(&x.out)
}

// nextMessage receives one message more, however long that takes, or returns nil
// when the server stops.
func (s *Server) nextMessage(stream grpc.ServerStream, known map[string]string) (*message, error) {
	m, ended := new(message), make(chan error, 1)
	m.reset(known)
	go func() { // it ends with the stream
		defer func() {
			if p := recover(); p != nil {
				s.cfg.Log.Error().Type("panic", p).Msg("internal error, an outcome is lost") // the value as little as in Server.end
				ended <- errWire
			}
		}()
		ended <- stream.RecvMsg(m)
	}()
	select {
	case err := <-ended:
		return m, err
	case <-s.log.stop:
		return nil, nil //nolint:nilnil // neither is there
	}
}

// endedByHeaders handles the outcome of a call under the policy now in force.
func (s *Server) endedByHeaders(e *logged) {
	snap := s.snap.Load()
	if up := snap.upstreamOf(e); up != nil {
		s.finish(snap.lanes[up], e)
	}
}

// entry is what an access log would say of the call so far. It holds on to nothing
// of the request.
func (x *exchange) entry() *logged {
	d := &x.decision
	e := &logged{
		Outcome: Outcome{
			Upstream: d.Upstream, Caller: d.Caller, Issuer: d.Issuer, Subject: d.Subject, Tool: d.Tool,
			Reason: d.Reason.String(), Token: d.Token, RequestID: printable(d.RequestID, 64), Attempts: 1,
			Decided: true, Began: d.Began, Took: d.Took, Own: x.own - x.msg.prior.own,
		},
		session: x.session.word,
	}
	if e.session != sessionSent {
		return e
	}
	if id, reason := x.lane.up.SessionID(&x.msg.req); reason == policy.Allowed {
		e.used = string(id)
	}
	for _, h := range x.msg.req.Headers {
		if h.Name == ":method" && string(h.Value) == "DELETE" {
			e.method = methodDelete
		}
	}
	return e
}

// answered reads the headers of the answer. A reason may be the upstream's own
// words, so that none but ours count.
func (e *logged) answered(m *message) {
	for _, h := range m.req.Headers {
		switch h.Name {
		case ":status":
			e.Status, _ = strconv.Atoi(string(h.Value))
		case sessionHeader:
			e.given = string(h.Value)
		case reasonHeader:
			for _, r := range policy.Reasons() {
				if r.String() == string(h.Value) {
					e.Refusal = r.String()
				}
			}
		}
	}
}
