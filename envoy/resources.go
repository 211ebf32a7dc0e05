package envoy

import (
	"fmt"
	"path/filepath"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// URLMetadata is the gRPC initial metadata by which served configuration says
// where the upstream's cluster leads: the upstream's url. The server lends nothing
// to a cluster that leads elsewhere than its policy says.
const URLMetadata = "mcp-upstream-url"

// secretName is the name of the TLS pair of listeners, and validationName that of
// the authorities of callers.
const (
	secretName     = "mcp_tls"
	validationName = "mcp_client_ca"
)

// Resources are what an Envoy is served: the configuration that Render prints, in
// the parts that Envoy asks for. They hold no secret: TLS keys are named by path.
type Resources struct {
	listeners []*listenerv3.Listener
	routes    []*routev3.RouteConfiguration
	clusters  []*clusterv3.Cluster
	secrets   []*tlsv3.Secret
}

// NewResources makes the resources of a policy. It fails where Render does, and
// where Envoy's own rules for its messages are not met.
func NewResources(set *policy.Set, opt Options) (*Resources, error) {
	r, err := newResources(set, opt.withDefaults(set))
	if err == nil {
		err = r.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("configuration to serve: %w", err)
	}
	return r, nil
}

func newResources(set *policy.Set, opt Options) (*Resources, error) {
	if err := fitting(set); err != nil {
		return nil, err
	}
	ups, err := targets(set)
	if err != nil {
		return nil, err
	}
	for i := range ups {
		ups[i].served = true
	}
	r := new(Resources)
	if r.listeners, err = listeners(set, ups); err != nil {
		return nil, err
	}
	for _, l := range r.listeners {
		if err := r.divide(l, set.Envoy.TLS); err != nil {
			return nil, err
		}
	}
	all, err := clusters(ups, opt)
	if err != nil {
		return nil, err
	}
	r.clusters = all[1:] // the first is the way here, and in the bootstrap
	if files := set.Envoy.TLS; files != nil {
		r.secrets = tlsSecrets(files)
	}
	return r, nil
}

// divide takes the routes out of a listener, and the paths of its keys, so that
// neither changes it: a changed listener drains the connections of the old one.
func (r *Resources) divide(l *listenerv3.Listener, files *policy.TLSSpec) error {
	chain := l.GetFilterChains()[0]
	filter := chain.GetFilters()[0]
	hcm := new(hcmv3.HttpConnectionManager)
	if err := filter.GetTypedConfig().UnmarshalTo(hcm); err != nil {
		return err
	}
	routes := hcm.GetRouteConfig()
	r.routes = append(r.routes, routes)
	hcm.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: fromADS(), RouteConfigName: routes.GetName()}}
	var p packed
	filter.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: p.any(hcm)}
	if files != nil {
		ctx := new(tlsv3.DownstreamTlsContext)
		if err := chain.GetTransportSocket().GetTypedConfig().UnmarshalTo(ctx); err != nil {
			return err
		}
		byName(ctx.GetCommonTlsContext())
		chain.TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: p.any(ctx)}
	}
	return p.err
}

// byName replaces files by the names of secrets.
func byName(c *tlsv3.CommonTlsContext) {
	c.TlsCertificates = nil
	c.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{{Name: secretName, SdsConfig: fromADS()}}
	if c.GetValidationContextType() != nil {
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: validationName, SdsConfig: fromADS()},
		}
	}
}

// tlsSecrets name the files, which Envoy reads and watches: no key is sent.
func tlsSecrets(files *policy.TLSSpec) []*tlsv3.Secret {
	watched := func(path string) *corev3.WatchedDirectory {
		return &corev3.WatchedDirectory{Path: filepath.Dir(path)}
	}
	all := []*tlsv3.Secret{{Name: secretName, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: file(files.Certificate), PrivateKey: file(files.PrivateKey), WatchedDirectory: watched(files.Certificate),
	}}}}
	if files.ClientCA != "" {
		all = append(all, &tlsv3.Secret{Name: validationName, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(files.ClientCA), WatchedDirectory: watched(files.ClientCA),
		}}})
	}
	return all
}

func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// validate holds every resource against the rules in Envoy's own messages, so that
// a fault is found here and not by every Envoy.
func (r *Resources) validate() error {
	for _, l := range r.listeners {
		if err := l.ValidateAll(); err != nil {
			return fmt.Errorf("listener %s: %w", l.GetName(), err)
		}
	}
	for _, c := range r.clusters {
		if err := c.ValidateAll(); err != nil {
			return fmt.Errorf("cluster %s: %w", c.GetName(), err)
		}
	}
	for _, rc := range r.routes {
		if err := rc.ValidateAll(); err != nil {
			return fmt.Errorf("routes %s: %w", rc.GetName(), err)
		}
	}
	return nil
}

// RenderXDS returns the bootstrap of an Envoy that follows a server run with --xds:
// where that server is, and nothing else of the policy.
func RenderXDS(set *policy.Set, opt Options) ([]byte, error) {
	b, err := xdsBootstrap(set, opt.withDefaults(set))
	if err != nil {
		return nil, fmt.Errorf("rendering envoy: %w", err)
	}
	return commented(b, bootstrapComments())
}

func xdsBootstrap(set *policy.Set, opt Options) (*bootstrapv3.Bootstrap, error) {
	if err := fitting(set); err != nil {
		return nil, err
	}
	processor, err := processorCluster(opt)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:             corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion: corev3.ApiVersion_V3,
				GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
					EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: ProcessorCluster},
				}}},
			},
			CdsConfig: fromADS(),
			LdsConfig: fromADS(),
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{processor}},
	}
	return b, common(b, opt)
}
