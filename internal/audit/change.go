package audit

import (
	"reflect"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Change is a policy's audit block, ready to be put in force.
type Change struct {
	log   *Log
	spec  *policy.Audit
	seal  *seal
	key   policy.Secret
	file  *file // nil without one, when it is the one in use, and when it has to wait for the key
	was   found
	feeds []*feed
	same  bool
	begun bool
}

// Prepare opens what an audit block asks for, nil for none, and changes nothing yet: what can
// fail fails here. Commit or Cancel has to follow before the next Prepare.
//
// A key that its store has not given yet is no failure: lines fail until it has.
func (l *Log) Prepare(spec *policy.Audit) (*Change, error) {
	c := &Change{log: l, spec: spec}
	now := l.counts.policy()
	if c.same = reflect.DeepEqual(now, spec); c.same || spec == nil {
		return c, nil
	}
	s, key, err := l.sealOf(spec)
	if err == nil {
		c.seal, c.key = s, key
		if spec.File != "" && (now == nil || now.File != spec.File) {
			if c.file, c.was, err = openFile(spec.File, readable(s)); err != nil {
				return nil, err
			}
		}
	} else if !l.comes(spec) {
		return nil, err
	}
	if c.feeds, err = l.newFeeds(spec); err != nil {
		c.Cancel()
		return nil, err
	}
	return c, nil
}

// comes reports whether the key is in a store, which may give it later.
func (l *Log) comes(spec *policy.Audit) bool { return spec.Key.Remote() }

// Cancel lets go of what Prepare opened.
func (c *Change) Cancel() {
	if c.file != nil {
		c.file.close()
	}
	for _, f := range c.feeds {
		f.close()
	}
}

// Commit puts the block in force. What was written to before, and is not any more,
// is closed. It waits for that at most 2 s.
func (c *Change) Commit() {
	if c.same || c.begun {
		return
	}
	c.begun = true
	c.log.do(func() { c.log.writer.change(c) })
}

// Tighten has what has to be on record be so from now on, while Commit may still wait for
// a disk that hangs: meanwhile Record holds to both blocks. Without a block before, it is Commit.
func (c *Change) Tighten() {
	switch {
	case c.same || c.spec == nil || !c.spec.Required:
	case c.log.mode.Load() == off:
		c.Commit()
	default:
		c.log.mode.Store(strict)
	}
}

// change is Commit, on the writer's goroutine.
func (w *writer) change(c *Change) {
	old, before := w.spec, ""
	// A file is let go of too while there is no key to go on with in it.
	if old != nil && (c.spec == nil || old.File != c.spec.File || c.seal == nil && w.file != nil) {
		before = old.File
		w.finish(c.spec != nil)
	}
	feeds := w.feeds
	w.spec, w.feeds = c.spec, c.feeds
	for _, f := range feeds {
		go f.close() // a server that is stuck must not hold the next one up
	}
	switch {
	case c.spec == nil:
	case c.file != nil:
		w.seal, w.key = c.seal, c.key
		w.use(c.file, c.was, before)
	case c.seal == nil:
		w.seal = nil // open gets it, once it is there
	case w.seal == nil && c.spec.File != "": // open gets the file, and the key of this policy
	case w.seal == nil:
		w.seal, w.key = c.seal, c.key
		w.notes = append(w.notes, noteStart(w.log.cfg.Now(), before))
	case c.key.Reveal() != w.key.Reveal():
		w.rekey(c.seal, c.key)
	}
	w.announce()
	w.flush()
}

// announce tells the request path and the status page what holds now.
func (w *writer) announce() {
	mode, c := off, &w.log.counts
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spec, c.sinks, c.main = w.spec, nil, w.primary()
	if spec := w.spec; spec != nil {
		mode = lenient
		if spec.Required {
			mode = strict
		}
		for _, s := range sinksOf(spec) {
			c.sinks = append(c.sinks, s.String())
		}
	}
	w.log.mode.Store(mode)
}

// sinksOf lists where lines go, the one that counts first.
func sinksOf(spec *policy.Audit) []sink {
	var all []sink
	for _, s := range []struct {
		wanted bool
		sink   sink
	}{
		{spec.File != "", sinkFile},
		{spec.Stdout, sinkStdout},
		{spec.Syslog.Address != "", sinkSyslog},
		{spec.OTLP != nil, sinkOTLP},
	} {
		if s.wanted {
			all = append(all, s.sink)
		}
	}
	return all
}

// sealOf returns the seal of a policy's key.
func (l *Log) sealOf(spec *policy.Audit) (*seal, policy.Secret, error) {
	if spec.Key.IsZero() {
		s, err := newSeal(nil)
		return s, policy.Secret{}, err
	}
	key, err := l.cfg.Secrets.Secret(spec.Key)
	if err != nil {
		return nil, policy.Secret{}, err
	}
	s, err := newSeal([]byte(key.Reveal()))
	return s, key, err
}

// readable are the seals that a file may end in: ours, and none.
func readable(s *seal) seals {
	if s.prefix == plainPrefix {
		return seals{s}
	}
	plain, _ := newSeal(nil) // without a key, it cannot fail
	return seals{s, plain}
}
