package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// How often the policy file is looked at, and how often one that failed to load
// is tried again as it is: a secret file it names may have appeared since.
const (
	lookEvery  = time.Second
	retryEvery = 5 * time.Second
)

// reloader keeps the policy in force in step with the file.
type reloader struct {
	src *source
	app *app
	set atomic.Pointer[policy.Set]
	// state is what /status shows of the last attempt.
	state atomic.Pointer[reloadState]

	stamp  watchfile.Stamp
	once   bool      // the file was a pipe and is read up
	failed time.Time // when the file as it is failed to load; zero when it is in force
	ill    string    // the failure last logged
}

type reloadState struct {
	LoadedAt time.Time `json:"loaded_at"`
	// Hash is the digest of the file in force.
	Hash  string `json:"sha256"`
	Error string `json:"error,omitempty"`
	// Reloads are the latest attempts, newest first.
	Reloads []admin.Reload `json:"reloads"`
}

// first loads the policy at start: here, and only here, a fault ends the program.
func (r *reloader) first() error {
	r.look()
	if err := r.load(); err != nil {
		return err
	}
	r.app.metrics.Reloaded(time.Now(), nil)
	if info, err := os.Stat(r.src.file); err == nil && !info.Mode().IsRegular() {
		r.once = true
		r.app.log.Warn().Msg("the policy came through a pipe: it cannot be read again")
	}
	r.src.again = true
	return nil
}

// run follows the file, and reloads on each hup.
func (r *reloader) run(ctx context.Context, hup <-chan os.Signal) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			if r.once {
				continue
			}
			r.look()
			r.attempt(ctx)
		case <-tick.C:
			if r.look() || !r.failed.IsZero() && time.Since(r.failed) >= retryEvery {
				r.attempt(ctx)
			}
		}
	}
}

// look reports whether the file changed since the last look. The stamp is taken
// before the file is read, so a change in between is seen at the next look.
func (r *reloader) look() bool {
	if r.src.file == "" || r.once {
		return false
	}
	stamp, err := watchfile.Of(r.src.file)
	if err != nil {
		stamp = watchfile.Stamp{} // gone: a change, and load says so
	}
	changed := stamp != r.stamp
	r.stamp = stamp
	return changed
}

// attempt loads the file and tells the log and the metrics how that went. The
// same failure is logged once.
func (r *reloader) attempt(ctx context.Context) {
	err := r.load()
	now := time.Now()
	r.app.metrics.Reloaded(now, err)
	if err != nil {
		r.failed = now
		err = brief(err)
		r.state.Store(r.state.Load().after(now, r.src.hash, err.Error()))
		if r.ill != err.Error() {
			r.ill = err.Error()
			r.app.log.Error().Err(err).Msg("policy not reloaded, the last good one stays in force")
		}
		return
	}
	r.failed, r.ill = time.Time{}, ""
	r.app.tokens.Warm(ctx)
	r.app.callers.Warm()
	r.app.log.Info().Int("upstreams", len(r.set.Load().Upstreams)).Msg("policy reloaded")
}

// load builds everything the file asks for and then puts it in force, or
// changes nothing.
func (r *reloader) load() error {
	set, err := r.src.load()
	if err != nil {
		return err
	}
	var served *envoy.Resources
	if r.app.xds != nil {
		if served, err = envoy.NewResources(set, envoy.Options{}); err != nil {
			return err
		}
	}
	needs := secrets.Of(set)
	if err := r.app.secrets.Require(needs); err != nil {
		return fmt.Errorf("reading secrets: %w", err)
	}
	parts, err := r.build(set)
	if err == nil {
		r.app.metrics.Expect(set)
		err = r.app.server.LoadAfter(set, func() { parts.guard(r.app) })
	}
	if err != nil {
		parts.drop(r.app)
		if old := r.set.Load(); old != nil {
			r.app.secrets.Retain(secrets.Of(old))
		}
		return err
	}
	parts.use(r.app)
	if served != nil {
		// After the policy: what Envoy does not know yet is refused by nobody, and
		// what the policy does not know any more is refused here.
		r.app.xds.Push(served)
	}
	r.app.metrics.Retain(set)
	r.app.secrets.Retain(needs)
	if r.set.Swap(set) != nil && needsRestart(&r.app.started, &set.Server) {
		r.app.log.Warn().Msg("server.listen, admin, tls, drain_delay and drain_timeout take effect at the next start")
	}
	for _, w := range set.Warnings {
		r.app.log.Warn().Msg(w.String())
	}
	r.state.Store(r.state.Load().after(time.Now(), r.src.hash, ""))
	settleMemory(r.src.st.env)
	return nil
}

// parts are what a policy has besides its decisions, made and not yet in force.
type parts struct {
	set   *policy.Set
	plan  *limits.Plan
	fleet *tokens.Fleet
	audit *audit.Change
	tell  *alert.Plan
}

// build makes the parts. After an error, those that are made have to be dropped.
func (r *reloader) build(set *policy.Set) (p parts, err error) {
	p.set = set
	if p.plan, err = r.app.limits.Build(set); err != nil {
		return p, err
	}
	if p.fleet, err = r.fleet(set); err != nil {
		return p, err
	}
	if err = r.app.traces.Check(set); err != nil {
		return p, err
	}
	if p.tell, err = r.app.alerts.Build(set.Watch); err != nil {
		return p, err
	}
	p.audit, err = r.app.audit.Prepare(set.Audit)
	return p, err
}

func (p *parts) drop(a *app) {
	a.limits.Drop(p.plan)
	if p.fleet != nil && p.fleet != a.fleet.Load() {
		p.fleet.Close()
	}
	if p.audit != nil {
		p.audit.Cancel()
	}
}

// guard puts in force what the gate asks and what must be on record: before the
// decisions, so that no call passes by what limits or switches off its upstream.
func (p *parts) guard(a *app) {
	a.limits.Use(p.plan)
	a.watch.Load(p.set)
	p.audit.Tighten()
}

// use puts the rest in force, after the decisions. Who is told of alerts does not
// wait for an audit that cannot be closed.
func (p *parts) use(a *app) {
	a.alerts.Use(p.tell)
	p.audit.Commit()
	a.share(p.fleet)
	a.traces.Use(p.set)
}

// fleet returns the shared cache of a policy: the one in force when the policy
// says nothing new about it, so that it keeps its connections.
func (r *reloader) fleet(set *policy.Set) (*tokens.Fleet, error) {
	if old := r.set.Load(); old != nil && old.SharedCache != nil && set.SharedCache != nil && *old.SharedCache == *set.SharedCache {
		return r.app.fleet.Load(), nil
	}
	return r.app.newFleet(set)
}

// needsRestart reports whether a reload changed what only a start puts in force.
func needsRestart(old, now *policy.Server) bool {
	tls := func(s *policy.Server) policy.TLSSpec {
		if s.TLS == nil {
			return policy.TLSSpec{}
		}
		return *s.TLS
	}
	return old.Listen != now.Listen || old.Admin != now.Admin || tls(old) != tls(now) ||
		old.DrainDelay != now.DrainDelay || old.DrainTimeout != now.DrainTimeout
}

// brief cuts a long list of faults: one wrong line under callers can make one
// for each of 10,000 upstreams, and the log and /status would hold them all.
func brief(err error) error {
	const most = 10
	if faults, ok := errors.AsType[policy.Faults](err); ok && len(faults) > most {
		return fmt.Errorf("%w\nand %d more; run envoy-mcp-auth check", faults[:most], len(faults)-most)
	}
	return err
}

// sources lists the token sources in use.
func (r *reloader) sources() []*tokens.Source { return r.app.server.Sources() }
