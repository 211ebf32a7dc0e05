package envoy

import (
	"fmt"
	"slices"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// Names that Envoy, the server and the checker must agree on.
const (
	// ProcessorCluster is the cluster of this program's gRPC server.
	ProcessorCluster = "envoy_mcp_auth"
	// MetadataNamespace is the namespace of our dynamic metadata.
	MetadataNamespace = "mcp_auth"
	// UpstreamMetadata is the gRPC initial metadata that names the upstream.
	UpstreamMetadata = "mcp-upstream"
	// GuardHeader is set by every reply of the server to the upstream's name;
	// a request without it goes no further.
	GuardHeader = "x-mcp-auth-guard"
	// ReasonHeader names the reason of a refusal.
	ReasonHeader = "x-mcp-auth-reason"
	// SessionHeader names an MCP session.
	SessionHeader = "mcp-session-id"

	guardWord       = "guard"
	guardText       = "The request was not decided upon. The operator must check the processor behind this Envoy."
	attemptHeader   = "x-envoy-attempt-count"
	challengeHeader = "www-authenticate"

	filterExtProc        = "envoy.filters.http.ext_proc"
	filterGuard          = "envoy.filters.http.lua"
	filterHeaderMutation = "envoy.filters.http.header_mutation"
	filterCustomResponse = "envoy.filters.http.custom_response"
	filterUpstreamCodec  = "envoy.filters.http.upstream_codec"
	filterRouter         = "envoy.filters.http.router"
)

// The figures of the rendered configuration.
const (
	// messageTimeout must stay above server.deadline, so that a slow token
	// endpoint is answered by us, with a reason, and not by Envoy's bare 504.
	messageTimeout = 2 * time.Second
	// bufferLimit is how much of a body Envoy keeps to send it again: 1 MiB.
	bufferLimit = 1 << 20
	// bufferRoom is what a buffer has beyond the largest body that it must hold.
	bufferRoom = 64 << 10
	// ceiling replaces Envoy's defaults of 1024 connections and requests and 3
	// retries at once.
	ceiling = 16384

	maxDownstreamConnections = 50000

	systemCA = "/etc/ssl/certs/ca-certificates.crt"
)

// Options are the choices that are not part of the policy.
type Options struct {
	// Admin is the address of Envoy's admin interface, HOST:PORT. Empty, the
	// default, renders none: it can stop the Envoy and shows its configuration.
	Admin string
	// Processor is the address where Envoy reaches the server, as unix:///PATH
	// or HOST:PORT. Empty means set.Server.Listen.
	Processor string
	// ProcessorTLS are the files on Envoy's side when the server speaks TLS:
	// Envoy's own pair, and in ClientCA the authority that signed the server's
	// certificate. Nil means the paths of set.Server.TLS: files of the same
	// names on Envoy's host.
	ProcessorTLS *policy.TLSSpec
	// SystemCA is the path of the authorities that https upstreams without a
	// `ca` of their own are verified with. Empty means
	// /etc/ssl/certs/ca-certificates.crt.
	SystemCA string
}

func (o Options) withDefaults(set *policy.Set) Options {
	if o.Processor == "" {
		o.Processor = set.Server.Listen
	}
	if o.ProcessorTLS == nil {
		o.ProcessorTLS = set.Server.TLS
	}
	if o.SystemCA == "" {
		o.SystemCA = systemCA
	}
	return o
}

// Render returns one complete Envoy bootstrap as YAML, with comments that say
// why each unusual setting is there. The same policy gives the same bytes.
func Render(set *policy.Set, opt Options) ([]byte, error) {
	b, err := bootstrap(set, opt.withDefaults(set))
	if err != nil {
		return nil, fmt.Errorf("rendering envoy: %w", err)
	}
	return commented(b, bootstrapComments())
}

// bootstrap is the whole configuration as Envoy's own message.
func bootstrap(set *policy.Set, opt Options) (*bootstrapv3.Bootstrap, error) {
	if err := fitting(set); err != nil {
		return nil, err
	}
	ups, err := targets(set)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
	if b.StaticResources.Listeners, err = listeners(set, ups); err != nil {
		return nil, err
	}
	if b.StaticResources.Clusters, err = clusters(ups, opt); err != nil {
		return nil, err
	}
	return b, common(b, opt)
}

// fitting finds what a policy says that no rendered configuration can keep.
func fitting(set *policy.Set) error {
	if set.Server.Deadline >= messageTimeout {
		return fmt.Errorf("server.deadline: want less than %s, which is the time Envoy waits for a decision, got %s", messageTimeout, set.Server.Deadline)
	}
	return nil
}

// common fills in what every bootstrap has.
func common(b *bootstrapv3.Bootstrap, opt Options) (err error) {
	b.Node = &corev3.Node{Id: "envoy-mcp-auth", Cluster: "envoy-mcp-auth"}
	if opt.Admin != "" {
		addr, err := address(opt.Admin)
		if err != nil {
			return fmt.Errorf("admin address: %w", err)
		}
		b.Admin = &bootstrapv3.Admin{Address: addr}
	}
	if b.LayeredRuntime, err = runtime(); err != nil {
		return err
	}
	b.OverloadManager, err = overload()
	return err
}

// runtime raises the size of regular expressions that Envoy accepts (100): an
// upstream's list of headers to remove may be longer.
func runtime() (*bootstrapv3.LayeredRuntime, error) {
	values, err := structpb.NewStruct(map[string]any{"re2.max_program_size.error_level": 10000})
	if err != nil {
		return nil, err
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name:           "envoy_mcp_auth",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: values},
	}}}, nil
}

func overload() (*overloadv3.OverloadManager, error) {
	limit, err := anypb.New(&connectionsv3.DownstreamConnectionsConfig{MaxActiveDownstreamConnections: maxDownstreamConnections})
	if err != nil {
		return nil, err
	}
	return &overloadv3.OverloadManager{ResourceMonitors: []*overloadv3.ResourceMonitor{{
		Name:       "envoy.resource_monitors.global_downstream_max_connections",
		ConfigType: &overloadv3.ResourceMonitor_TypedConfig{TypedConfig: limit},
	}}}, nil
}

// packed puts messages into Any. Packing fails only for invalid UTF-8, which
// a checked policy does not hold, so the first error is kept and asked for once.
type packed struct{ err error }

func (p *packed) any(m proto.Message) *anypb.Any {
	a := &anypb.Any{}
	// Deterministic, because the bytes are compared when configuration is served.
	err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true})
	if err != nil && p.err == nil {
		p.err = err
	}
	return a
}

func seconds(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
func yes() *wrapperspb.BoolValue                   { return wrapperspb.Bool(true) }
func u32(n uint32) *wrapperspb.UInt32Value         { return wrapperspb.UInt32(n) }
func sortedCopy(s []string) []string               { s = slices.Clone(s); slices.Sort(s); return slices.Compact(s) }
