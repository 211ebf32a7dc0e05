package tokens

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// fetchDeadline bounds one token request, from connecting to the last byte.
	fetchDeadline = 5 * time.Second
	// perEndpoint bounds the background fetches at one token endpoint: 10,000
	// upstreams must not fall upon it at once, and one that hangs must not hold up the others.
	perEndpoint = 16
	// perProcess bounds all background fetches together.
	perProcess = 128
)

// SecretSource reads secrets. It is asked before every token request, and must
// answer from memory.
type SecretSource interface {
	Secret(ref policy.SecretRef) (policy.Secret, error)
}

// Config is what a Cache needs.
type Config struct {
	// Secrets reads the clients' secrets. Required.
	Secrets SecretSource
	// Now is the clock, with the monotonic reading of time.Now. Required.
	// Timers run on the process's own clock: to fake time, fake both, as
	// testing/synctest does.
	Now func() time.Time
	// Log gets one line when a credential starts to fail, fails in another
	// way, or recovers. The zero value logs nothing.
	Log zerolog.Logger
	// Observe is called once for every token request that ended, from the
	// goroutine that made it. It may be nil.
	Observe func(Fetch)
	// Transport replaces the network. The answer is read as strictly as
	// ever; redirects and cookies stay off. Nil means the cache's own: TLS 1.2
	// or newer, the system's authorities or those of the credential, and the
	// proxy of the environment.
	Transport http.RoundTripper
	// Dice returns random numbers in [0,1) that spread pauses, from any
	// goroutine. Nil means a good source.
	Dice func() float64
}

// Fetch is a token request that ended.
type Fetch struct {
	// Upstreams are the names of those who share it, sorted.
	Upstreams []string
	// Endpoint is the host of the token endpoint.
	Endpoint string
	// Result is "ok" or the Code of the Error: a closed list.
	Result string
	// Kind is that of the Error, 0 for "ok".
	Kind Kind
	// Took is the duration from reading the secret to the checked answer.
	Took time.Duration
	// Expiry is the end of the new token, zero when none came.
	Expiry time.Time
	// Skew is how far the endpoint's clock (its Date header) is ahead of
	// ours, negative when behind; zero when it is not known.
	Skew time.Duration
}

// Cache keeps the tokens of all upstreams. Its methods may be called from any
// goroutine.
type Cache struct {
	cfg    Config
	key    []byte          // of fingerprints and of remembered secrets
	ctx    context.Context //nolint:containedctx // the life of the fetches, which is the cache's and no caller's
	cancel context.CancelFunc
	net    *network
	dir    *directory
	slots  chan struct{}
	fleet  atomic.Pointer[Fleet] // nil when nothing is shared
	// deadline is fetchDeadline, but in tests that cannot wait for it.
	deadline time.Duration

	mu        sync.Mutex // guards the maps
	entries   map[key]*entry
	sources   map[string]*Source
	endpoints map[string]chan struct{}
	gates     map[endpoint]*gate
	users     *users // has locks of its own

	crew
}

// New returns an empty cache. Close it to stop its work.
func New(cfg Config) *Cache {
	if cfg.Dice == nil {
		cfg.Dice = mathrand.Float64
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cache{
		cfg: cfg, ctx: ctx, cancel: cancel,
		key:       make([]byte, 32),
		deadline:  fetchDeadline,
		net:       newNetwork(cfg.Transport),
		slots:     make(chan struct{}, perProcess),
		entries:   map[key]*entry{},
		sources:   map[string]*Source{},
		endpoints: map[string]chan struct{}{},
		gates:     map[endpoint]*gate{},
		users:     newUsers(cfg.Now),
	}
	c.dir = &directory{
		net: c.net, now: cfg.Now, dice: cfg.Dice, spawn: c.spawn, ctx: ctx, servers: map[server]*record{},
		deadline: func() time.Duration { return c.deadline },
	}
	_, _ = rand.Read(c.key) // never fails
	return c
}

// Source returns the handle of an upstream on the credential it is lent. Equal
// credentials share one token, fetch and failure, whatever the upstreams. The
// same question gets the same handle. It makes no request: Warm or the first
// Token does. A user-bound credential has no token of its own: its tokens are
// those of TokenFor. An error means that the credential can never work as it is
// written.
func (c *Cache) Source(upstream string, o *policy.OAuth2) (*Source, error) {
	cl, err := newClient(o, c.dir)
	if err != nil {
		return nil, fmt.Errorf("credential of upstream %q: %w", upstream, err)
	}
	k := keyOf(&cl.o)
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		e = &entry{cache: c, client: cl, slots: c.endpointSlots(cl.host), id: k}
		c.entries[k] = e
		if cl.o.UserBound() {
			e.crowd, e.tried = c.newCrowd(e, k), true
		}
	}
	if s := c.sources[upstream]; s != nil && s.entry == e && s.grace == o.StaleGrace {
		return s, nil
	}
	s := &Source{name: upstream, entry: e, now: c.cfg.Now, bucket: bucket{level: bucketSize}, grace: o.StaleGrace}
	c.sources[upstream] = s
	e.share(upstream)
	return s, nil
}

func (c *Cache) endpointSlots(host string) chan struct{} {
	s := c.endpoints[host]
	if s == nil {
		s = make(chan struct{}, perEndpoint)
		c.endpoints[host] = s
	}
	return s
}

// Retain drops what no handle of keep uses: call it after a reload, with all
// handles in force. A dropped credential is no longer refreshed. Calls that
// still hold an old handle are served to their end.
func (c *Cache) Retain(keep []*Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := map[*entry][]string{}
	clear(c.sources)
	for _, s := range keep {
		names[s.entry] = append(names[s.entry], s.name)
		c.sources[s.name] = s
	}
	hosts, servers, gates := map[string]bool{}, map[server]bool{}, map[endpoint]bool{}
	for k, e := range c.entries {
		if names[e] == nil {
			e.stop()
			delete(c.entries, k)
			if e.crowd != nil {
				e.crowd.drop()
			}
			continue
		}
		e.shared(names[e])
		hosts[e.client.host] = true
		for cl := e.client; cl != nil; cl = cl.idp {
			servers[cl.server()] = true
			gates[cl.endpoint()] = true
		}
	}
	c.dir.retain(servers)
	maps.DeleteFunc(c.gates, func(at endpoint, _ *gate) bool { return !gates[at] })
	for host := range c.endpoints {
		if !hosts[host] {
			delete(c.endpoints, host)
		}
	}
}

// Warm starts fetching every token that was not tried yet, at most 16 at a time
// from one endpoint, in the background. The end of ctx stops it from starting
// more.
func (c *Cache) Warm(ctx context.Context) {
	byHost := map[string][]*entry{}
	c.mu.Lock()
	for _, e := range c.entries {
		if !e.wasTried() {
			byHost[e.client.host] = append(byHost[e.client.host], e)
		}
	}
	c.mu.Unlock()
	for _, list := range byHost {
		feed := make(chan *entry, len(list))
		for _, e := range list {
			feed <- e
		}
		close(feed)
		for range min(perEndpoint, len(list)) {
			c.spawn(func() {
				for e := range feed {
					if ctx.Err() != nil || c.ctx.Err() != nil {
						return
					}
					e.refresh(func() bool { return !e.tried })
				}
			})
		}
	}
}

// Close stops all timers and fetches and waits for them. Calls that wait get an
// error; tokens handed out stay good.
func (c *Cache) Close() {
	c.dismiss()
	c.cancel()
	c.mu.Lock()
	for _, e := range c.entries {
		e.stop()
	}
	c.mu.Unlock()
	c.users.close()
	c.wg.Wait()
	c.net.close()
}
