package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/admin"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/limits"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/refusals"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/tracing"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// app is the running server: the rooms, wired.
type app struct {
	log     zerolog.Logger
	secrets *secrets.Store
	tokens  *tokens.Cache
	// resources compares what upstreams say of themselves with the policy.
	resources *tokens.Resources
	callers   *tokens.Verifier
	audit     *audit.Log
	fleet     atomic.Pointer[tokens.Fleet] // nil without a shared cache
	server    *extproc.Server
	metrics   *metrics.Metrics
	traces    *tracing.Tracing
	// watchers are told of decisions and outcomes; complete before the first.
	watchers observers
	watch    *watch.Watch
	alerts   *alert.Alerts
	limits   *limits.Limits
	// refusals are the latest, for /status and the page.
	refusals *refusals.Ring
	birth    time.Time
	reload   *reloader
	xds      *envoy.XDS // nil unless Envoys are served their configuration
	grpc     *grpc.Server
	health   *health.Server
	admin    *http.Server
	started  policy.Server // the server block at the start
	// draining is set once the end has begun.
	draining atomic.Bool
	// warm is set once every credential of the first policy was tried. It stays:
	// a reload that adds a credential must not turn every replica unready at once.
	warm atomic.Bool
	// socket is the newest one of listen, nil when that is a port.
	socket atomic.Pointer[socket]
	began  atomic.Bool // every secret was there once

	grpcListener, adminListener net.Listener
}

// newApp loads the policy and opens the listeners, so that every mistake shows
// before anything is served.
func newApp(ctx context.Context, src *source, log zerolog.Logger, lines *logQueue, xds bool) (*app, error) {
	a := &app{log: log, refusals: refusals.New(time.Now), birth: time.Now()}
	a.metrics = metrics.New(versionString(), a.expiries)
	a.secrets = secrets.New(secrets.Config{Env: src.st.env, Log: log, Stale: a.metrics.SecretsStale})
	lines.onDrop = a.metrics.LogDropped
	a.tokens = tokens.New(tokens.Config{Secrets: a.secrets, Now: time.Now, Log: log, Observe: a.fetched})
	a.resources = tokens.NewResources(tokens.ResourceConfig{Now: time.Now, Log: log, Dice: rand.Float64})
	a.callers = tokens.NewVerifier(tokens.VerifierConfig{Now: time.Now, Log: log})
	a.audit = audit.New(audit.Config{Secrets: a.secrets, Now: time.Now, Stdout: src.st.out, Log: log, Version: versionString()})
	a.traces = tracing.New(tracing.Config{
		Secrets: a.secrets, Version: versionString(), Now: time.Now, Dice: rand.Float64, Count: a.metrics.Spans, Log: log,
	})
	a.startWatch(log)
	a.watchers.decisions = []extproc.Observer{a.metrics, a.watch, a.refusals, a.traces}
	a.watchers.outcomes = []extproc.OutcomeObserver{a.metrics, a.watch, a.refusals, a.audit}
	a.limits = newLimits(a.metrics, log)
	var err error
	a.server, err = extproc.New(extproc.Config{
		Tokens: a.tokens, Verifier: a.callers, Secrets: a.secrets, Now: time.Now, Log: lines.refusals(log),
		Observe: &a.watchers, Outcomes: &a.watchers, Gate: gates{a.watch, a.limits}, Audit: a.audit,
	})
	if err != nil {
		return nil, err
	}
	a.metrics.AccessLog(a.server.LogStats)
	a.metrics.StaleTokens(a.stale)
	a.metrics.Audit(a.audit.Status)
	if xds {
		refused := a.metrics.XDS(func() int { return len(a.xds.Status().Envoys) })
		a.xds = envoy.NewXDS(envoy.XDSConfig{Now: time.Now, Log: log, Refused: refused}) //nolint:contextcheck // its streams end with Stop
	}
	a.reload = &reloader{src: src, app: a}
	if err := a.reload.first(); err != nil {
		a.tokens.Close()
		a.callers.Close()
		a.audit.Close()
		a.secrets.Close()
		return nil, err
	}
	if err := a.open(ctx, a.reload.set.Load(), lines.refusals(log)); err != nil {
		a.close() //nolint:contextcheck // it comes after the end of every context
		return nil, err
	}
	return a, nil
}

// open makes the gRPC and admin listeners.
func (a *app) open(ctx context.Context, set *policy.Set, refusals zerolog.Logger) error {
	opts := a.server.Options()
	if set.Server.TLS != nil {
		cfg, err := serverTLS(set.Server.TLS, a.log)
		if err != nil {
			return err
		}
		opts = append(opts, grpc.Creds(tellingTLS{credentials.NewTLS(cfg), refusals}))
	}
	a.grpc = grpc.NewServer(opts...)
	a.server.Register(a.grpc) //nolint:contextcheck // each stream brings its own
	if a.xds != nil {
		a.xds.Register(a.grpc)
	}
	a.health = health.NewServer()
	grpc_health_v1.RegisterHealthServer(a.grpc, a.health)
	a.started = set.Server

	a.admin = &http.Server{
		Handler: admin.New(admin.Config{
			Ready: a.ready, Status: a.status, Metrics: a.metrics.Registry, View: a.view, Now: time.Now, Address: set.Server.Admin,
		}),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
	}
	var err error
	if a.adminListener, err = listen(ctx, set.Server.Admin); err != nil {
		return fmt.Errorf("server.admin: %w", err)
	}
	if a.grpcListener, err = listen(ctx, set.Server.Listen); err != nil {
		return fmt.Errorf("server.listen: %w", err)
	}
	if s, ok := a.grpcListener.(*socket); ok {
		a.socket.Store(s)
	}
	return nil
}

// run serves until ctx ends, then drains.
func (a *app) run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	go a.secrets.Run(background)
	if a.xds != nil {
		go a.xds.Run(background)
	}
	go a.reload.run(background, hup)
	go a.watch.Run(background)
	a.tokens.Warm(background)
	go a.resources.Watch(background, func() []*policy.Upstream { return a.reload.set.Load().Upstreams })
	a.callers.Warm()

	failed := make(chan error, 2)
	go func() { failed <- a.grpc.Serve(a.grpcListener) }()
	go a.keepSocket(background)
	go func() { failed <- a.admin.Serve(a.adminListener) }()
	set := a.reload.set.Load()
	a.log.Info().Str("version", versionString()).Str("listen", set.Server.Listen).Str("admin", set.Server.Admin).
		Int("upstreams", len(set.Upstreams)).Msg("serving")
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	a.shutdown(failed)
	return nil
}

// keepSocket listens anew when the socket's file was removed, which leaves a
// listener that nobody can reach. The old listener stays open: closing it would
// read as the end of serving.
func (a *app) keepSocket(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ill := ""; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		old := a.socket.Load()
		if old == nil || old.there() || a.draining.Load() {
			continue
		}
		s, err := listenUnix(ctx, old.path)
		if err != nil {
			if ill != err.Error() {
				ill = err.Error()
				a.log.Error().Err(err).Msg("the socket was removed or replaced, and cannot be made anew")
			}
			continue
		}
		ill = ""
		a.socket.Store(s)
		a.log.Warn().Str("socket", s.path).Msg("the socket was removed; it is made anew")
		go func() { _ = a.grpc.Serve(s) }() // it ends with the server
	}
}

// shutdown is the graceful stop: health says NOT_SERVING, Envoy's health check
// has the time to see it, calls in flight end, and what is left is cut off.
func (a *app) shutdown(failed <-chan error) {
	a.log.Info().Dur("delay_ms", a.started.DrainDelay).Msg("draining")
	a.draining.Store(true)
	a.health.Shutdown()
	wait := time.NewTimer(a.started.DrainDelay)
	defer wait.Stop()
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGTERM, os.Interrupt)
	defer signal.Stop(again)
	select {
	case <-wait.C:
	case <-again:
	case err := <-failed:
		a.log.Error().Err(err).Msg("a listener failed while draining")
	}
	done := make(chan struct{})
	if a.xds != nil {
		a.xds.Stop()
	}
	a.server.StopOutcomes() // Envoy never ends a log stream itself, so it would last until drain_timeout
	go func() { a.grpc.GracefulStop(); close(done) }()
	select {
	case <-done:
	case <-again:
	case <-time.After(a.started.DrainTimeout):
		a.log.Warn().Msg("calls still in flight are cut off; raise server.drain_timeout if they need longer")
	}
	a.log.Info().Msg("stopped")
}

// close ends everything at once. It may be called after any failure of newApp.
func (a *app) close() {
	if a.grpc != nil {
		a.grpc.Stop()
	}
	if a.admin != nil {
		_ = a.admin.Close()
	}
	for _, l := range []net.Listener{a.grpcListener, a.adminListener} {
		if l != nil {
			_ = l.Close()
		}
	}
	a.tokens.Close()
	a.callers.Close()
	a.share(nil)
	a.audit.Close()
	a.traces.Close()
	a.limits.Close()
	a.alerts.Close()
	a.secrets.Close()
}

// newLimits makes the gate of the policy's limits.
func newLimits(m *metrics.Metrics, log zerolog.Logger) *limits.Limits {
	counts := metrics.NewLimits(m)
	return limits.New(limits.Config{
		Now: time.Now, Log: log, Limited: counts.Limited, Asked: counts.Asked, Up: counts.Up, Off: counts.Off,
	})
}

// newFleet makes the shared cache of a policy, nil when it has none.
func (a *app) newFleet(set *policy.Set) (*tokens.Fleet, error) {
	if set.SharedCache == nil {
		return nil, nil
	}
	return tokens.NewFleet(tokens.FleetConfig{
		Spec: *set.SharedCache, Secrets: a.secrets, Now: time.Now, Log: a.log,
		Observe: a.metrics.SharedCache, Up: a.metrics.SharedCacheUp,
	})
}

// share puts a shared cache in force, or none, and closes the one before.
func (a *app) share(f *tokens.Fleet) {
	a.tokens.Share(f)
	a.server.Share(f)
	if old := a.fleet.Swap(f); old != nil && old != f {
		old.Close()
	}
	if f == nil {
		a.metrics.SharedCacheOff()
	}
}

// ready is what /readyz asks.
func (a *app) ready() error {
	set := a.reload.set.Load()
	if a.draining.Load() {
		return errors.New("draining, about to stop")
	}
	if a.grpcListener == nil {
		return errors.New("the listener is not open yet")
	}
	if s := a.socket.Load(); s != nil && !s.there() {
		return fmt.Errorf("the socket %s was removed or replaced by another; Envoy cannot connect", s.path)
	}
	// Only until they were there once: one new secret of a later policy is no
	// reason to take every other upstream's traffic away.
	if !a.began.Load() {
		if err := errors.Join(a.secrets.Missing()...); err != nil {
			return err
		}
		a.began.Store(true)
	}
	waiting, failing := 0, ""
	for _, s := range a.reload.sources() {
		if !s.Tried() {
			waiting++
		}
		if set.Server.ReadyNeedsTokens && !s.Ready() {
			failing = s.Name()
		}
	}
	if waiting > 0 && !a.warm.Load() {
		return fmt.Errorf("%s not tried yet", plural(waiting, "credential"))
	}
	a.warm.Store(true)
	if failing != "" {
		return fmt.Errorf("no token for upstream %s; see /status", failing)
	}
	return nil
}
