package tokens

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"sync/atomic"
	"time"
)

const (
	// atOnce bounds the token requests for users at one endpoint. The others
	// wait in turn.
	atOnce = 64
	// unprovenAtOnce bounds them while no answer has shown that the client is
	// the right one: a wrong secret shown too often locks an account.
	unprovenAtOnce = 4
	// userHold is the pause after a refusal of the user: its grant may have
	// been given meanwhile, and its next JWT is another entry anyway.
	userHold = 30 * time.Second
)

// crowd is what the users of one credential have in common.
type crowd struct {
	cache  *Cache
	base   *entry // knows the upstreams
	client *client
	key    key
	// gate and idp are those of the endpoints; idp is nil but for id_jag.
	gate, idp *gate
	// denied is a refusal of the client, whoever the user. Until proven, the
	// requests go by first.
	denied  trouble
	heals   heals
	proven  atomic.Bool
	first   chan struct{}
	looked  atomic.Int64 // when the client's files were last looked at, Unix seconds
	users   atomic.Int64
	dropped atomic.Bool
}

// gate is the way to one endpoint.
type gate struct {
	slots  chan struct{}
	outage trouble
}

// endpoint is what two requests must have in common to fail together.
type endpoint struct{ host, ca, certificate string }

func (cl *client) endpoint() endpoint { return endpoint{cl.host, cl.o.CA, cl.o.Certificate} }

// newCrowd is called with the cache locked.
func (c *Cache) newCrowd(base *entry, k key) *crowd {
	cr := &crowd{
		cache: c, base: base, client: base.client, key: k, gate: c.gateOf(base.client),
		first: make(chan struct{}, unprovenAtOnce),
	}
	if idp := base.client.idp; idp != nil {
		cr.idp = c.gateOf(idp)
	}
	return cr
}

func (c *Cache) gateOf(cl *client) *gate {
	at := cl.endpoint()
	if c.gates[at] == nil {
		c.gates[at] = &gate{slots: make(chan struct{}, atOnce)}
	}
	return c.gates[at]
}

// drop forgets the users of a credential that is no longer in force.
func (cr *crowd) drop() {
	cr.dropped.Store(true)
	cr.cache.users.sweep(func(u *user) bool { return u.crowd == cr })
}

// nameOf names a user of this credential: all of rule O15 goes in.
func (cr *crowd) nameOf(p *Principal) userName {
	inner := cr.key.of(p)
	var keyed [64]byte
	copy(keyed[:32], cr.cache.key)
	copy(keyed[32:], inner[:])
	return sha256.Sum256(keyed[:])
}

// held is a failure of the endpoints or the client that is too young for
// anybody to try again.
func (cr *crowd) held(now time.Time) *Error {
	for _, g := range []*gate{cr.gate, cr.idp} {
		if g != nil {
			if err := g.outage.held(now, nil); err != nil {
				return err
			}
		}
	}
	if cr.denied.state().err == nil {
		return nil
	}
	cr.look(now)
	if all, err := cr.prove(); err == nil {
		return cr.denied.held(now, cr.sum(all))
	}
	return nil // the fetch finds out what is wrong
}

// look asks, at times and off the request path, whether the files changed that
// a refused client proves itself with.
func (cr *crowd) look(now time.Time) {
	last := cr.looked.Load()
	if now.Unix()-last < int64(secretPoll/time.Second) || !cr.looked.CompareAndSwap(last, now.Unix()) {
		return
	}
	cr.cache.spawn(func() {
		if was := cr.denied.state(); was.err != nil && !hmac.Equal(was.files, cr.files()) {
			cr.denied.clear()
		}
	})
}

// proofs are those of the two clients; the second one is empty but for id_jag.
type proofs [2]proof

func (cr *crowd) prove() (all proofs, err *Error) {
	if all[0], err = cr.cache.prove(cr.client); err == nil && cr.client.idp != nil {
		all[1], err = cr.cache.prove(cr.client.idp)
	}
	return all, err
}

func (cr *crowd) sum(all proofs) []byte {
	return append(cr.cache.sum(all[0]), cr.cache.sum(all[1])...)
}

func (cr *crowd) files() []byte {
	sum := cr.cache.files(cr.client)
	if cr.client.idp != nil {
		sum = append(sum, cr.cache.files(cr.client.idp)...)
	}
	return sum
}

// exchange gets one access token for a user.
func (cr *crowd) exchange(who *Principal) (granted, *Error) {
	all, err := cr.prove()
	if err != nil {
		return granted{}, err
	}
	if !cr.proven.Load() {
		if err := cr.turn(cr.first, cr.client); err != nil {
			return granted{}, err
		}
		if leave := func() { <-cr.first }; cr.proven.Load() {
			leave()
		} else {
			defer leave()
		}
	}
	now, secret, files := cr.cache.cfg.Now, cr.sum(all), cr.files()
	probe, err := cr.denied.enter(now(), secret)
	if err != nil {
		return granted{}, err
	}
	got, err := cr.steps(who, all)
	says := aboutClient(err)
	if err != nil && err.secondHand {
		says = nothing
	}
	o := outcome{finding: says, err: err, probe: probe, who: who.person(), secret: secret, files: files}
	changed, recovered := cr.denied.leave(now(), o, cr.cache.cfg.Dice())
	if o.finding == healthy {
		cr.proven.Store(true)
	} else if changed {
		cr.proven.Store(false)
	}
	cr.tell(cr.client, err, changed, recovered)
	return got, err
}

// steps is the way of each grant.
func (cr *crowd) steps(who *Principal, all proofs) (granted, *Error) {
	all[0].subject = who
	if cr.client.idp == nil {
		return cr.ask(cr.client, cr.gate, all[0], who)
	}
	all[1].subject = who
	for again := false; ; again = true {
		// The ID-JAG is good for one attempt: nobody keeps it (rule U11).
		jag, err := cr.ask(cr.client.idp, cr.idp, all[1], who)
		if err != nil {
			return granted{}, err
		}
		all[0].assertion = jag.access
		got, err := cr.ask(cr.client, cr.gate, all[0], who)
		if err == nil || err.Code != "invalid_grant" || again {
			return got, err
		}
	}
}

// ask makes one request, in its turn. The turn is no part of the request's own
// deadline: a queue of ours is no slowness of theirs.
func (cr *crowd) ask(cl *client, g *gate, p proof, who *Principal) (granted, *Error) {
	c := cr.cache
	if err := cr.turn(g.slots, cl); err != nil {
		return granted{}, err
	}
	defer func() { <-g.slots }()
	probe, err := g.outage.enter(c.cfg.Now(), nil)
	if err != nil {
		return granted{}, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, c.deadline)
	defer cancel()
	start := c.cfg.Now()
	got, err := cl.fetch(ctx, p, c.cfg.Now)
	end := c.cfg.Now()
	if err != nil && c.ctx.Err() != nil {
		err = unavailable("closed", "this process is stopping")
	}
	o := outcome{finding: aboutEndpoint(err), err: err, probe: probe, who: who.person()}
	changed, recovered := g.outage.leave(end, o, c.cfg.Dice())
	cr.tell(cl, err, changed, recovered)
	cr.observe(cl, got, err, end.Sub(start))
	return got, err
}

// turn takes a slot when there is one.
func (cr *crowd) turn(slots chan<- struct{}, cl *client) *Error {
	ctx, cancel := context.WithTimeout(cr.cache.ctx, 2*cr.cache.deadline)
	defer cancel()
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		err := unavailable("busy", "%s has not answered the requests for other users yet", cl.host)
		err.secondHand = true
		return err
	}
}

// observe reports one request.
func (cr *crowd) observe(cl *client, got granted, err *Error, took time.Duration) {
	if cr.cache.cfg.Observe == nil {
		return
	}
	f := Fetch{Upstreams: cr.base.upstreams(), Endpoint: cl.host, Result: "ok", Took: took, Skew: got.skew}
	if err != nil {
		f.Result, f.Kind = err.Code, err.Kind
	}
	cr.cache.cfg.Observe(f)
}

// tell logs what changed for everybody. What is one user's own is not logged
// here: a line for each of so many would bury the others.
func (cr *crowd) tell(cl *client, err *Error, changed, recovered bool) {
	log := cr.cache.cfg.Log.With().Strs("upstreams", cr.base.upstreams()).Str("endpoint", cl.host).Logger()
	switch {
	case changed:
		log.Warn().Str("kind", err.Kind.String()).Str("code", err.Code).Int("status", err.Status).
			Msg("no tokens for users: " + err.Text)
	case recovered:
		log.Info().Msg("the token endpoint issues tokens for users again")
	}
}

// describe says how the users' credential stands.
func (cr *crowd) describe(st *Status) {
	st.Tried, st.Ready, st.UserBound, st.Users = true, true, true, cr.users.Load()
	troubles := []*trouble{&cr.denied, &cr.gate.outage}
	if cr.idp != nil {
		troubles = append(troubles, &cr.idp.outage)
	}
	for _, t := range troubles {
		if f := t.state(); f.err != nil {
			st.Failures, st.LastError, st.Code, st.NextTry = f.count, f.err.Text, f.err.Code, f.next.Round(0)
			return
		}
	}
}
