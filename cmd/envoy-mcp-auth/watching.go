package main

import (
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/alert"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/metrics"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watch"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// startWatch makes the watch, and the way to those that it alerts.
func (a *app) startWatch(log zerolog.Logger) {
	counts := metrics.NewWatch(a.metrics.Registry, func(yield func(string, bool)) { a.watch.Off(yield) })
	a.alerts = alert.New(alert.Config{
		Secrets: a.secrets, Now: time.Now, Dice: rand.Float64, Log: log, Delivered: counts.Delivered,
	})
	a.watch = watch.New(watch.Config{
		Now: time.Now, Log: log, Dice: rand.Float64, Notify: a.alerts.Notify, Fired: counts.Fired,
	})
}

// fetched is told of each token request. Those of before the watch are not: there
// are none.
func (a *app) fetched(f tokens.Fetch) {
	a.metrics.Fetched(f)
	a.watch.Fetched(f)
}
