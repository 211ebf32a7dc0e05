package extproc

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

const sessionHeader = "mcp-session-id"

// What our metadata says of a request where sessions are bound.
const (
	sessionNone = "none" // it brought no id: one in the answer is new
	sessionSent = "sent"
)

// Of the shared cache.
const (
	// slowestPace is the longest that a binding goes without asking: 2^12 s.
	slowestPace = 12
	// missedPace is the one after the cache did not answer.
	missedPace = 3
	// sharedSession is how long a binding is kept there: as long as here, and as
	// long as a replica may wait before it says that the session is in use.
	sharedSession = idleSession + 2*time.Hour
	// sharedFirst is how long that of a first use is kept there before a second
	// one, because callers can make ids up.
	sharedFirst = time.Hour
)

var errForeignSession = errors.New("the Mcp-Session-Id is bound to another principal")

// sessionUse is what one request has to do with a session.
type sessionUse struct {
	word string // for our metadata
	id   []byte // of a session that nobody has yet; aliases the message
	name sessionName
	who  owner
}

// lookUpSession refuses a session of another principal. A later attempt goes by the
// verdict of the first.
func (x *exchange) lookUpSession(ctx context.Context) policy.Reason {
	s := x.lane.sessions
	if s == nil {
		return policy.Allowed
	}
	id, reason := x.lane.up.SessionID(&x.msg.req)
	if reason != policy.Allowed {
		return reason
	}
	if id == nil {
		x.session.word = sessionNone
		return policy.Allowed
	}
	x.session.word = sessionSent
	if x.screen.Attempt > 1 {
		return policy.Allowed
	}
	x.session.name = s.name(id)
	x.session.who = ownerOf(x.caller.Name, x.decision.Issuer, x.decision.Subject)
	st, due, given := s.look(x.session.name, x.session.who, x.start)
	switch {
	case st == foreign:
		return x.refuseSession()
	case st == unknown:
		x.session.id = id
	case due:
		s.all.confirm(ctx, s, id, x.session.name, x.session.who, given)
	}
	return policy.Allowed
}

func (x *exchange) refuseSession() policy.Reason {
	x.cause = errForeignSession
	return policy.SessionMismatch
}

// claimSession binds a session that nobody has to this principal. That is the last
// step: a request that is refused must not take a session. Of two that want one at
// the same time, one gets it.
func (x *exchange) claimSession(ctx context.Context) policy.Reason {
	u := &x.session
	if u.id == nil {
		return policy.Allowed
	}
	s := x.lane.sessions
	who, given := s.all.whose(ctx, s, u.id, u.who)
	if s.claim(u.name, who, given, x.start) != u.who {
		return x.refuseSession()
	}
	return policy.Allowed
}

// learn takes from an outcome to whom a session was given, and that one ended. The
// identity is the one of our own decision.
//
// An id in the answer is that of a new session only if the request brought none:
// most servers repeat the id in every answer, and a thief's request must not make
// the session his.
func (s *Server) learn(l *lane, e *logged) {
	shelf := l.sessions
	if shelf == nil || !e.isSomebodys() {
		return
	}
	fine := e.Status >= 200 && e.Status < 300
	who := ownerOf(e.Caller, e.Issuer, e.Subject)
	switch {
	case e.session == sessionNone && fine && policy.IsSessionID(e.given):
		n := shelf.name([]byte(e.given))
		v := shelf.give(n, who, s.now())
		s.odd(shelf, e, v)
		if id := e.given; v != contested { // the entry is used again
			s.sessions.tell(func(f *tokens.Fleet) { shelf.publish(context.Background(), f, id, n, who, true) })
		}
	case e.session == sessionSent && (e.Status == http.StatusNotFound || fine && e.method == methodDelete) && policy.IsSessionID(e.used):
		// MCP 2025-11-25: 404 is what a server says of a session that ended.
		if shelf.end(shelf.name([]byte(e.used)), who) {
			names := shelf.notes(e.used)
			s.sessions.tell(func(f *tokens.Fleet) { _ = f.Erase(context.Background(), names[:]...) })
		}
	}
}

// isSomebodys reports whether the call was allowed, and whose it was is known. Every
// call that is allowed is some caller's: where the entry names none, a reload took
// that caller away in the meantime (see hold). A session is its first user's then.
func (e *logged) isSomebodys() bool {
	return e.Caller != "" && e.Refusal == "" && e.Reason == policy.Allowed.String()
}

// odd tells the log, once a minute for each server, what should not happen.
func (s *Server) odd(shelf *shelf, e *logged, v verdict) {
	text := ""
	switch v {
	case learnt:
		return
	case taken:
		text = "another principal used a session before the access log told whose it is; it has no more access to it"
	case contested:
		text = "the upstream gave two principals one session, which stays the first one's; if it has no sessions, write sessions: off"
	}
	if shelf.mayWarn(s.now()) {
		s.cfg.Log.Warn().Str("upstream", e.Upstream).Str("caller", e.Caller).Str("issuer", e.Issuer).Str("subject", e.Subject).
			Str("request_id", e.RequestID).Msg(text)
	}
}

// crowded tells the log that a binding had to go for another.
func (s *Server) crowded(shelf *shelf) {
	if shelf.mayWarn(s.now()) {
		s.cfg.Log.Warn().Str("url", shelf.resource).Int64("most", s.sessions.limit).
			Msg("there are more sessions than can be remembered; of this upstream the ones longest unused are forgotten, and are whose who uses them next")
	}
}

func (s *shelf) mayWarn(now time.Time) bool {
	last := s.warned.Load()
	return now.Unix() >= last+60 && s.warned.CompareAndSwap(last, now.Unix())
}

// Share makes the server share with other replicas, through f, whose session is
// whose; nil ends that. The caller closes the one that was there before.
func (s *Server) Share(f *tokens.Fleet) { s.sessions.fleet.Store(f) }

// whose returns to whom a session that nobody has here is to be bound: to him who
// asks, unless another replica knows better. Without a shared cache, or while it
// does not answer, each replica has its own first user.
func (ss *sessions) whose(ctx context.Context, s *shelf, id []byte, who owner) (_ owner, given bool) {
	f := ss.fleet.Load()
	if f == nil {
		return who, false
	}
	notes := s.notes(string(id))
	first, gave, err := f.Claim(ctx, notes[0], who[:], sharedFirst, notes[1])
	switch {
	case err != nil:
	case len(gave) == len(who):
		return owner(gave), true
	case len(first) == len(who):
		return owner(first), false
	}
	return who, false
}

// notes are the names under which replicas note a session's first user, and to
// whom the upstream gave it.
func (s *shelf) notes(id string) [2]string {
	return [...]string{"session used " + s.resource + " " + id, "session given " + s.resource + " " + id}
}

// confirm asks the shared cache whether a binding still holds: the word of the
// access log may have come to another replica. No call waits for it, and when too
// many ask already it is left for later.
func (ss *sessions) confirm(ctx context.Context, s *shelf, id []byte, n sessionName, who owner, given bool) {
	f := ss.fleet.Load()
	if f == nil {
		return
	}
	select {
	case ss.jobs <- struct{}{}:
	default:
		return
	}
	text := string(id)
	go func() {
		defer func() { <-ss.jobs }()
		s.publish(ctx, f, text, n, who, given)
	}()
}

// tell lets the shared cache know. Who reads the access log waits for a place.
func (ss *sessions) tell(job func(*tokens.Fleet)) {
	f := ss.fleet.Load()
	if f == nil {
		return
	}
	ss.jobs <- struct{}{}
	go func() {
		defer func() { <-ss.jobs }()
		job(f)
	}()
}

// publish writes a binding to the shared cache, and takes over what is there when
// another replica was first or knows better.
func (s *shelf) publish(ctx context.Context, f *tokens.Fleet, id string, n sessionName, who owner, given bool) {
	notes := s.notes(id)
	mine, other := notes[0], notes[1]
	if given {
		mine, other = notes[1], notes[0]
	}
	there, beside, err := f.Claim(ctx, mine, who[:], sharedSession, other)
	if err != nil {
		s.postpone(n)
		return
	}
	if !given && len(beside) == len(who) {
		s.settle(n, owner(beside), true)
		return
	}
	if len(there) == len(who) && owner(there) != who {
		s.settle(n, owner(there), given)
		return
	}
	// It is in use, so it stays.
	if err := f.Write(ctx, mine, who[:], sharedSession); err != nil {
		s.postpone(n)
	}
}

// postpone has a binding asked about again soon.
func (s *shelf) postpone(n sessionName) {
	sh := s.part(n)
	defer sh.mu.Unlock()
	if b := sh.byName[n]; b != nil {
		b.pace, b.due = missedPace, b.used+1<<missedPace
	}
}

// schedule says when the shared cache is asked next: soon after the first use,
// when the word of the access log is still to be expected, and then ever later.
func (b *binding) schedule() {
	if b.given {
		b.pace = slowestPace
	}
	b.due = b.used + 1<<b.pace
	b.pace = min(b.pace+1, slowestPace)
}
