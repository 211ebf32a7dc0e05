package envoy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/rs/zerolog"
	"google.golang.org/grpc"
)

// ackWait is how long a part of a push waits for Envoys to take it.
const ackWait = 5 * time.Second

// everyone is the one key of the cache: all Envoys are served the same.
const everyone = "all"

// XDSConfig is what an XDS needs.
type XDSConfig struct {
	// Now is the clock. Required.
	Now func() time.Time
	// Log gets a line for each Envoy that comes, goes or refuses.
	Log zerolog.Logger
	// Refused is told the type of a resource that an Envoy refused. Nil: nobody is.
	Refused func(kind string)
}

// XDS serves configuration to Envoys (aggregated discovery, incremental). A push
// goes in three parts, each taken by every Envoy before the next: new clusters, then
// the routes, then the end of old clusters, so that no route ever leads nowhere.
// Its methods may be called from any number of goroutines.
type XDS struct {
	cfg    XDSConfig
	cache  cachev3.SnapshotCache
	server serverv3.Server
	stop   context.CancelFunc
	next   chan *Resources // the newest not yet pushed

	mu      sync.Mutex // guards what follows
	version uint64
	pushed  time.Time
	streams map[int64]*follower
	heard   chan struct{} // closed when an Envoy said something, and made anew
}

// follower is an Envoy on a stream.
type follower struct {
	node, build string
	since       time.Time
	taken       map[string]uint64 // by type: the newest version that was answered
	sent        map[string]uint64 // by nonce
	refusal     *Refusal
}

// Refusal is a resource that an Envoy did not take. It goes on with what it had.
type Refusal struct {
	Kind  string    `json:"kind"`
	At    time.Time `json:"at"`
	Error string    `json:"error"`
}

// XDSStatus is what Envoys were told. Nothing in it is secret.
type XDSStatus struct {
	// Version counts the parts pushed since the start.
	Version uint64 `json:"version"`
	// PushedAt is when the last push was complete; zero while one is under way for the first time.
	PushedAt time.Time  `json:"pushed_at"`
	Envoys   []Follower `json:"envoys"`
}

// Follower is one Envoy that follows.
type Follower struct {
	Node    string    `json:"node"`
	Build   string    `json:"build"`
	Since   time.Time `json:"since"`
	Behind  bool      `json:"behind"`
	Refused *Refusal  `json:"refused,omitempty"`
}

// NewXDS returns an XDS that serves nothing until Push.
func NewXDS(cfg XDSConfig) *XDS {
	x := &XDS{
		cfg: cfg, next: make(chan *Resources, 1), streams: map[int64]*follower{}, heard: make(chan struct{}),
		cache: cachev3.NewSnapshotCache(true, oneKey{}, nil),
	}
	ctx, stop := context.WithCancel(context.Background())
	x.stop = stop
	x.server = serverv3.NewServer(ctx, x.cache, serverv3.CallbackFuncs{
		DeltaStreamOpenFunc:    func(_ context.Context, id int64, _ string) error { x.came(id); return nil },
		DeltaStreamClosedFunc:  func(id int64, _ *corev3.Node) { x.went(id) },
		StreamDeltaRequestFunc: func(id int64, r *discoveryv3.DeltaDiscoveryRequest) error { x.said(id, r); return nil },
		StreamDeltaResponseFunc: func(id int64, _ *discoveryv3.DeltaDiscoveryRequest, r *discoveryv3.DeltaDiscoveryResponse) {
			x.told(id, r)
		},
	})
	return x
}

// oneKey gives every Envoy the same.
type oneKey struct{}

// ID implements cachev3.NodeHash.
func (oneKey) ID(*corev3.Node) string { return everyone }

// Register adds the discovery service to a gRPC server. Whoever may ask for a
// decision may also read the configuration.
func (x *XDS) Register(g *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, x.server)
}

// Stop ends all streams. Envoys go on with what they have.
func (x *XDS) Stop() { x.stop() }

// Push makes r what Envoys shall have, and returns at once. Of several pushes in a
// row only the last is certain to be sent.
func (x *XDS) Push(r *Resources) {
	for {
		select {
		case x.next <- r:
			return
		default:
		}
		select {
		case <-x.next:
		default:
		}
	}
}

// Run sends what is pushed until ctx ends.
func (x *XDS) Run(ctx context.Context) {
	var now content
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-x.next:
			now = x.roll(ctx, now, r.content())
		}
	}
}

// content is resources by type and name.
type content map[string]map[string]types.Resource

func (r *Resources) content() content {
	c := content{}
	add := func(kind, name string, m types.Resource) {
		if c[kind] == nil {
			c[kind] = map[string]types.Resource{}
		}
		c[kind][name] = m
	}
	for _, l := range r.listeners {
		add(resourcev3.ListenerType, l.GetName(), l)
	}
	for _, rc := range r.routes {
		add(resourcev3.RouteType, rc.GetName(), rc)
	}
	for _, cl := range r.clusters {
		add(resourcev3.ClusterType, cl.GetName(), cl)
	}
	for _, s := range r.secrets {
		add(resourcev3.SecretType, s.GetName(), s)
	}
	return c
}

// over returns what is in either, and c's where both have it.
func (c content) over(old content, kind string) map[string]types.Resource {
	all := maps.Clone(old[kind])
	if all == nil {
		all = map[string]types.Resource{}
	}
	maps.Copy(all, c[kind])
	return all
}

// roll replaces old by r, part by part, and returns what is served then.
func (x *XDS) roll(ctx context.Context, old, r content) content {
	parts := []content{r}
	if old != nil {
		clusters, secrets := r.over(old, resourcev3.ClusterType), r.over(old, resourcev3.SecretType)
		parts = []content{
			{
				resourcev3.ClusterType: clusters, resourcev3.SecretType: secrets,
				resourcev3.ListenerType: old[resourcev3.ListenerType], resourcev3.RouteType: old[resourcev3.RouteType],
			},
			{
				resourcev3.ClusterType: clusters, resourcev3.SecretType: secrets,
				resourcev3.ListenerType: r[resourcev3.ListenerType], resourcev3.RouteType: r.over(old, resourcev3.RouteType),
			},
			r,
		}
	}
	for _, part := range parts {
		if err := x.send(ctx, part); err != nil {
			// What Envoys have stays, and the policy refuses what does not fit it.
			x.cfg.Log.Error().Err(err).Msg("configuration not served; Envoys keep what they have")
			return old
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pushed = x.cfg.Now()
	return r
}

// send serves c, and waits until every Envoy answered what changed for it. One that
// does not answer in time is not waited for again in this push.
func (x *XDS) send(ctx context.Context, c content) error {
	x.mu.Lock()
	x.version++
	version := x.version
	x.mu.Unlock()
	lists := map[string][]types.Resource{}
	for kind, named := range c {
		for _, m := range named {
			lists[kind] = append(lists[kind], m)
		}
	}
	snapshot, err := cachev3.NewSnapshot(strconv.FormatUint(version, 10), lists)
	if err == nil {
		err = snapshot.ConstructVersionMap()
	}
	if err != nil {
		return err
	}
	before, err := x.cache.GetSnapshot(everyone)
	if err != nil {
		before = &cachev3.Snapshot{}
	}
	kinds := changed(before, snapshot)
	if err := x.cache.SetSnapshot(ctx, everyone, snapshot); err != nil {
		return err
	}
	x.await(ctx, version, kinds)
	return ctx.Err()
}

// changed lists the types of which an Envoy that follows will be told. Routes and
// secrets it asks for by name, so new ones are not sent before their listener is.
func changed(old, now cachev3.ResourceSnapshot) []string {
	var kinds []string
	for _, kind := range []string{resourcev3.ClusterType, resourcev3.ListenerType, resourcev3.RouteType, resourcev3.SecretType} {
		was, is := old.GetVersionMap(kind), now.GetVersionMap(kind)
		whole := kind == resourcev3.ClusterType || kind == resourcev3.ListenerType
		differs := whole && len(was) != len(is)
		for name, version := range is {
			before, had := was[name]
			differs = differs || before != version && (had || whole)
		}
		if differs && len(was) > 0 {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// await returns when every Envoy has answered version for these types, or ackWait is over.
func (x *XDS) await(ctx context.Context, version uint64, kinds []string) {
	limit := time.NewTimer(ackWait)
	defer limit.Stop()
	for {
		x.mu.Lock()
		heard, waiting := x.heard, ""
		for _, f := range x.streams {
			for _, kind := range kinds {
				if taken, follows := f.taken[kind]; follows && taken < version {
					waiting = f.node
				}
			}
		}
		x.mu.Unlock()
		if waiting == "" {
			return
		}
		select {
		case <-heard:
		case <-limit.C:
			x.cfg.Log.Warn().Str("node", waiting).Msg("an Envoy did not answer a change of its configuration in time; the others go on")
			return
		case <-ctx.Done():
			return
		}
	}
}

func (x *XDS) came(id int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.streams[id] = &follower{since: x.cfg.Now(), taken: map[string]uint64{}, sent: map[string]uint64{}}
}

func (x *XDS) went(id int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if f := x.streams[id]; f != nil && f.node != "" {
		x.cfg.Log.Info().Str("node", f.node).Msg("an Envoy went")
	}
	delete(x.streams, id)
	x.wake()
}

// wake is called with the lock held.
func (x *XDS) wake() {
	close(x.heard)
	x.heard = make(chan struct{})
}

// told notes what an Envoy is about to be sent.
func (x *XDS) told(id int64, r *discoveryv3.DeltaDiscoveryResponse) {
	version, err := strconv.ParseUint(r.GetSystemVersionInfo(), 10, 64)
	if err != nil {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if f := x.streams[id]; f != nil {
		f.sent[r.GetNonce()] = version
	}
}

// said reads a request of an Envoy: that it follows a type, took a version, or
// refused one.
func (x *XDS) said(id int64, r *discoveryv3.DeltaDiscoveryRequest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f := x.streams[id]
	if f == nil {
		return
	}
	if f.node == "" && r.GetNode() != nil {
		f.node, f.build = cut(r.GetNode().GetId(), maxNode), build(r.GetNode())
		x.cfg.Log.Info().Str("node", f.node).Str("envoy", f.build).Msg("an Envoy follows")
	}
	kind := r.GetTypeUrl()
	if _, follows := f.taken[kind]; !follows {
		f.taken[kind] = 0
	}
	version, answers := f.sent[r.GetResponseNonce()]
	if !answers {
		return
	}
	delete(f.sent, r.GetResponseNonce())
	f.taken[kind] = max(f.taken[kind], version)
	if e := r.GetErrorDetail(); e != nil {
		f.refusal = &Refusal{Kind: shortKind(kind), At: x.cfg.Now(), Error: cut(e.GetMessage(), maxRefusal)}
		x.cfg.Log.Error().Str("node", f.node).Str("kind", f.refusal.Kind).Err(errors.New(f.refusal.Error)).
			Msg("an Envoy refused its configuration and goes on with what it had")
		if x.cfg.Refused != nil {
			x.cfg.Refused(f.refusal.Kind)
		}
	} else if f.refusal != nil && f.refusal.Kind == shortKind(kind) {
		f.refusal = nil
	}
	x.wake()
}

const (
	maxNode    = 100
	maxRefusal = 1000
)

// cut bounds what an Envoy says of itself.
func cut(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func build(n *corev3.Node) string {
	v := n.GetUserAgentBuildVersion().GetVersion()
	return fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
}

// shortKind turns the URL of a type into a word.
func shortKind(kind string) string {
	switch kind {
	case resourcev3.ClusterType:
		return "cluster"
	case resourcev3.ListenerType:
		return "listener"
	case resourcev3.RouteType:
		return "route"
	case resourcev3.SecretType:
		return "secret"
	}
	return "other"
}

// Status says who follows, and how far.
func (x *XDS) Status() XDSStatus {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := XDSStatus{Version: x.version, PushedAt: x.pushed, Envoys: []Follower{}}
	for _, f := range x.streams {
		if f.node == "" {
			continue
		}
		st.Envoys = append(st.Envoys, Follower{Node: f.node, Build: f.build, Since: f.since, Behind: len(f.sent) > 0, Refused: f.refusal})
	}
	return st
}
