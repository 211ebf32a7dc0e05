package extproc

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

const (
	// maxSessions bounds the bindings of a process, over all upstreams: about 100
	// bytes each.
	maxSessions = 200_000
	// idleSession is how long a binding is kept that nobody uses.
	idleSession = 24 * time.Hour
	// sessionShards spreads the sessions of one server, so that no two calls of
	// different sessions wait for one lock.
	sessionShards = 16
)

// sessionName is a session's place in a table: a hash of its id under a key that
// dies with the process, so that whoever reads our memory cannot use a session.
type sessionName [16]byte

// owner names a principal. It is a hash for its size: no two principals can be
// made to share one, and it is no secret.
type owner [16]byte

// ownerOf names a caller, or the issuer and the subject of its token, whichever
// caller of the policy that proves: with a broader token, a person goes on with
// the session (rule A11).
func ownerOf(caller, issuer, subject string) owner {
	if issuer != "" {
		caller = ""
	}
	var room [512]byte
	b := room[:0]
	for _, s := range [...]string{caller, issuer, subject} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	sum := sha256.Sum256(b)
	return owner(sum[:len(owner{})])
}

// sessions holds which MCP session is whose (rule A11): an upstream that lends one
// identity to all callers cannot tell them apart, so that whoever learns the id of
// a session would have it.
//
// What it knows of a session is one of two things. The access log says to whom an
// upstream gave it: that is sure, and stands until the session ends. Until that
// word arrives, or for want of it, a session is its first user's, who gives way
// to it. So a thief who is faster than the log has the session until the log
// arrives, and its owner has it from then on.
type sessions struct {
	limit int64
	count atomic.Int64
	// full is told when a binding had to go for another.
	full  func(*shelf)
	fleet atomic.Pointer[tokens.Fleet]
	// jobs bounds what is under way to the shared cache.
	jobs chan struct{}

	mu      sync.Mutex // for policies coming into force
	shelves map[string]*shelf
	list    atomic.Pointer[[]*shelf]
}

func newSessions() *sessions {
	ss := &sessions{limit: maxSessions, jobs: make(chan struct{}, 64), shelves: map[string]*shelf{}}
	ss.list.Store(new([]*shelf))
	return ss
}

// shelf returns the sessions of the server at that url. Two upstreams of the
// policy may be one server, and a session of the one is good at the other.
func (ss *sessions) shelf(resource string) *shelf {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s := ss.shelves[resource]; s != nil {
		return s
	}
	s := &shelf{all: ss, resource: resource}
	var key [sha256.Size]byte
	_, _ = rand.Read(key[:]) // it never fails
	for i := range s.inner {
		s.inner[i], s.outer[i] = 0x36, 0x5c // RFC 2104
	}
	for i, k := range key {
		s.inner[i] ^= k
		s.outer[i] ^= k
	}
	ss.shelves[resource] = s
	return s
}

// retain forgets the sessions of servers that neither the policy has nor, while Envoys
// may be behind, the one before it.
func (ss *sessions) retain(snap *snapshot) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	kept := map[string]*shelf{}
	var list []*shelf
	for ; snap != nil; snap = snap.before {
		for _, l := range snap.lanes {
			if s := l.sessions; s != nil && kept[s.resource] == nil {
				kept[s.resource] = s
				list = append(list, s)
			}
		}
	}
	for name, s := range ss.shelves {
		if kept[name] == nil {
			s.close()
		}
	}
	ss.shelves = kept
	ss.list.Store(&list)
}

// shelf is the sessions of one server.
type shelf struct {
	all          *sessions
	resource     string
	inner, outer [sha256.BlockSize]byte
	count        atomic.Int64
	gone         atomic.Bool  // no policy has it any more
	warned       atomic.Int64 // when the log was last told of something odd, in Unix seconds
	table        atomic.Pointer[sessionTable]
}

// close forgets all sessions. Calls that are under way still ask, and leave nothing.
func (s *shelf) close() {
	s.gone.Store(true)
	t := s.table.Load()
	if t == nil {
		return
	}
	for i := range t {
		t[i].mu.Lock()
		for _, b := range t[i].byName {
			s.remove(&t[i], b)
		}
		t[i].mu.Unlock()
	}
}

// sessionTable is made for the first session: most upstreams never have one.
type sessionTable [sessionShards]sessionShard

// sessionShard is a part of it. Its lock is held for a few instructions.
type sessionShard struct {
	mu     sync.Mutex
	byName map[sessionName]*binding
	// used are the bindings of first users, given those that an upstream gave.
	used, given line
}

// line is a list of bindings by last use.
type line struct{ newest, oldest *binding }

// binding is a session and whose it is. 200,000 of them are 13 MB, and their
// places in maps as much again at most.
type binding struct {
	name         sessionName
	who          owner
	older, newer *binding
	used         uint32 // when, in Unix seconds
	due          uint32 // when the shared cache is asked about it again
	pace         uint8  // how long after that, as a power of two
	given        bool   // by the upstream, as the access log says; not just used
}

// name is HMAC-SHA-256 of an id. It allocates for ids longer than most.
func (s *shelf) name(id []byte) sessionName {
	var room [512]byte
	sum := sha256.Sum256(append(append(room[:0], s.inner[:]...), id...))
	sum = sha256.Sum256(append(append(room[:0], s.outer[:]...), sum[:]...))
	return sessionName(sum[:len(sessionName{})])
}

// part returns the locked shard of a name.
func (s *shelf) part(n sessionName) *sessionShard {
	t := s.table.Load()
	if t == nil {
		t = new(sessionTable)
		for i := range t {
			t[i].byName = map[sessionName]*binding{}
		}
		if !s.table.CompareAndSwap(nil, t) {
			t = s.table.Load()
		}
	}
	sh := &t[n[0]%sessionShards]
	sh.mu.Lock()
	return sh
}

// standing is what a session is to a principal.
type standing uint8

const (
	unknown standing = iota
	own
	foreign
)

func (b *binding) standing(who owner) standing {
	if b.who == who {
		return own
	}
	return foreign
}

// look says whose a session is. A use keeps the binding, whoever it is: a thief
// must not outwait it. due reports whether the shared cache is to be asked, which
// only one call is told.
func (s *shelf) look(n sessionName, who owner, now time.Time) (st standing, due, given bool) {
	if s.table.Load() == nil {
		return unknown, false, false
	}
	sh := s.part(n)
	defer sh.mu.Unlock()
	b := s.alive(sh, n, now)
	if b == nil {
		return unknown, false, false
	}
	sh.unlink(b)
	b.used = seconds32(now)
	sh.link(b)
	st = b.standing(who)
	if st == own && b.due <= b.used && s.all.fleet.Load() != nil {
		due = true
		b.schedule()
	}
	return st, due, b.given
}

// alive returns a binding that is not idle for too long. The shard is locked.
func (s *shelf) alive(sh *sessionShard, n sessionName, now time.Time) *binding {
	b := sh.byName[n]
	if b != nil && b.idle(now) {
		s.remove(sh, b)
		return nil
	}
	return b
}

func (b *binding) idle(now time.Time) bool {
	return seconds32(now) >= b.used+uint32(idleSession/time.Second)
}

// claim binds a session unless it is bound, and returns whom it is bound to then.
func (s *shelf) claim(n sessionName, who owner, given bool, now time.Time) owner {
	sh := s.part(n)
	if b := s.alive(sh, n, now); b != nil {
		defer sh.mu.Unlock()
		return b.who
	}
	if s.gone.Load() {
		sh.mu.Unlock()
		return who
	}
	b := &binding{name: n, who: who, given: given, used: seconds32(now)}
	b.schedule()
	sh.byName[n] = b
	sh.link(b)
	for _, old := range [...]*binding{sh.used.oldest, sh.given.oldest} {
		if old != nil && old.idle(now) { // what is idle goes as others come
			s.remove(sh, old)
		}
	}
	s.count.Add(1)
	over := s.all.count.Add(1) > s.all.limit
	sh.mu.Unlock()
	if over {
		s.all.evict(s)
	}
	return who
}

// verdict is what became of the upstream's word about a session.
type verdict uint8

const (
	learnt    verdict = iota
	taken             // from somebody else, who was its first user
	contested         // it was given to somebody else before, and stays there
)

// give binds a session to whom the upstream gave it. That takes it from a first
// user, who learnt the id some other way. It does not take it from somebody whom
// the upstream gave it to before: an upstream whose ids are no secrets must not
// be a way to a session, and the other order of two log entries proves nothing.
func (s *shelf) give(n sessionName, who owner, now time.Time) verdict {
	if s.claim(n, who, true, now) == who {
		s.settle(n, who, true)
		return learnt
	}
	sh := s.part(n)
	defer sh.mu.Unlock()
	b := sh.byName[n]
	switch {
	case b == nil, b.who == who: // within a moment
		return learnt
	case b.given:
		return contested
	}
	sh.rebind(b, who, true)
	return taken
}

// settle puts the word of the shared cache in the place of our own, unless we know
// better: what was given there was given first.
func (s *shelf) settle(n sessionName, who owner, given bool) {
	sh := s.part(n)
	defer sh.mu.Unlock()
	if b := sh.byName[n]; b != nil && (given || !b.given) {
		sh.rebind(b, who, given)
	}
}

// rebind changes whose a session is, and how that is known. The shard is locked.
func (sh *sessionShard) rebind(b *binding, who owner, given bool) {
	sh.unlink(b)
	b.who, b.given = who, given
	sh.link(b)
}

// end forgets a session of that principal. It reports whether nobody else has it.
func (s *shelf) end(n sessionName, who owner) bool {
	sh := s.part(n)
	defer sh.mu.Unlock()
	b := sh.byName[n]
	if b != nil && b.who == who {
		s.remove(sh, b)
		return true
	}
	return b == nil
}

// remove takes a binding out. The shard is locked.
func (s *shelf) remove(sh *sessionShard, b *binding) {
	delete(sh.byName, b.name)
	sh.unlink(b)
	s.count.Add(-1)
	s.all.count.Add(-1)
}

// evict makes room at the server with the most sessions, so that a flood at one
// costs no other's. What was not used for the longest goes, and of first users all
// before any that the upstream gave: ids that a caller makes up must not be a way
// to make us forget. Whoever uses the session next is its first user.
func (ss *sessions) evict(s *shelf) {
	if s.count.Load() <= ss.limit/2 { // else it is the one
		for _, other := range *ss.list.Load() {
			if other.count.Load() > s.count.Load() {
				s = other
			}
		}
	}
	t := s.table.Load()
	if t == nil {
		return
	}
	if !s.drop(t, func(sh *sessionShard) *binding { return sh.used.oldest }) {
		s.drop(t, func(sh *sessionShard) *binding { return sh.given.oldest })
	}
	if ss.full != nil {
		ss.full(s)
	}
}

// drop removes the longest unused of what oldest returns for each shard.
func (s *shelf) drop(t *sessionTable, oldest func(*sessionShard) *binding) bool {
	var from *sessionShard
	age := ^uint32(0)
	for i := range t {
		sh := &t[i]
		sh.mu.Lock()
		if b := oldest(sh); b != nil && b.used < age {
			from, age = sh, b.used
		}
		sh.mu.Unlock()
	}
	if from == nil {
		return false
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	b := oldest(from)
	if b != nil {
		s.remove(from, b)
	}
	return b != nil
}

func (sh *sessionShard) line(b *binding) *line {
	if b.given {
		return &sh.given
	}
	return &sh.used
}

// link puts a binding at the newest end of its line. The shard is locked.
func (sh *sessionShard) link(b *binding) {
	l := sh.line(b)
	b.older, b.newer = l.newest, nil
	if l.newest != nil {
		l.newest.newer = b
	} else {
		l.oldest = b
	}
	l.newest = b
}

// unlink takes a binding off its line. The shard is locked.
func (sh *sessionShard) unlink(b *binding) {
	l := sh.line(b)
	if b.newer != nil {
		b.newer.older = b.older
	} else {
		l.newest = b.older
	}
	if b.older != nil {
		b.older.newer = b.newer
	} else {
		l.oldest = b.newer
	}
	b.older, b.newer = nil, nil
}

func seconds32(t time.Time) uint32 { return uint32(t.Unix()) } //nolint:gosec // good until 2106
