package envoy

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const protocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// clusters returns the server's cluster, then one per upstream.
func clusters(ups []target, opt Options) ([]*clusterv3.Cluster, error) {
	processor, err := processorCluster(opt)
	if err != nil {
		return nil, err
	}
	all := []*clusterv3.Cluster{processor}
	byName := map[string]string{ProcessorCluster: "this program"}
	for _, t := range ups {
		if other, ok := byName[t.Cluster]; ok {
			return nil, fmt.Errorf("upstream %q: cluster %q is already that of %s; give each its own envoy.cluster", t.Name, t.Cluster, other)
		}
		byName[t.Cluster] = fmt.Sprintf("upstream %q", t.Name)
		c, err := upstreamCluster(t, opt)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", t.Name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// upstreamCluster is where the policy is enforced: the filters in it run for
// every attempt, after every routing decision.
func upstreamCluster(t target, opt Options) (*clusterv3.Cluster, error) {
	var p packed
	c := baseCluster(t.Cluster, socketAddress(t.host, t.port))
	c.ConnectTimeout = seconds(5 * time.Second)
	c.PerConnectionBufferLimitBytes = u32(buffers(t))
	filters, err := upstreamFilters(&p, t)
	if err != nil {
		return nil, err
	}
	options := &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: seconds(4 * time.Second)},
		HttpFilters:               filters,
	}
	if t.tls {
		options.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_AutoConfig{AutoConfig: &httpv3.HttpProtocolOptions_AutoHttpConfig{}}
		c.TransportSocket = tlsSocket(&p, upstreamTLS(t, opt))
	} else {
		options.UpstreamProtocolOptions = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
			},
		}
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{protocolOptions: p.any(options)}
	return c, p.err
}

// baseCluster holds what all clusters share: one endpoint, resolved by name or
// fixed, and limits that do not refuse an ordinary day's traffic.
func baseCluster(name string, addr *corev3.Address) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery(addr)},
		DnsLookupFamily:      clusterv3.Cluster_V4_PREFERRED,
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr}},
			}}}},
		},
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     u32(ceiling),
			MaxPendingRequests: u32(ceiling),
			MaxRequests:        u32(ceiling),
			MaxRetries:         u32(ceiling),
		}}},
	}
}

func discovery(addr *corev3.Address) clusterv3.Cluster_DiscoveryType {
	if addr.GetPipe() != nil {
		return clusterv3.Cluster_STATIC
	}
	if _, err := netip.ParseAddr(addr.GetSocketAddress().GetAddress()); err == nil {
		return clusterv3.Cluster_STATIC
	}
	return clusterv3.Cluster_STRICT_DNS
}

func upstreamTLS(t target, opt Options) *tlsv3.UpstreamTlsContext {
	ca := opt.SystemCA
	if t.CA != "" {
		ca = t.CA
	}
	return verifiedTLS(t.host, ca, &tlsv3.CommonTlsContext{})
}

// verifiedTLS verifies chain and name. Envoy by itself verifies neither.
func verifiedTLS(host, ca string, common *tlsv3.CommonTlsContext) *tlsv3.UpstreamTlsContext {
	san, sni := tlsv3.SubjectAltNameMatcher_DNS, host
	if _, err := netip.ParseAddr(host); err == nil {
		san, sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, "" // RFC 6066 §3: no addresses in SNI
	}
	common.TlsParams = &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2}
	common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: file(ca),
		MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
			SanType: san,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host}},
		}},
	}}
	return &tlsv3.UpstreamTlsContext{Sni: sni, CommonTlsContext: common}
}

func tlsSocket(p *packed, ctx *tlsv3.UpstreamTlsContext) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: p.any(ctx)},
	}
}

// processorCluster is the way to this program.
func processorCluster(opt Options) (*clusterv3.Cluster, error) {
	host, addr, err := processorAddress(opt.Processor)
	if err != nil {
		return nil, fmt.Errorf("server.listen: %w", err)
	}
	var p packed
	c := baseCluster(ProcessorCluster, addr)
	c.ConnectTimeout = seconds(250 * time.Millisecond)
	c.HealthChecks = []*corev3.HealthCheck{{
		Timeout:            seconds(time.Second),
		Interval:           seconds(time.Second),
		NoTrafficInterval:  seconds(time.Second),
		UnhealthyThreshold: u32(2),
		HealthyThreshold:   u32(1),
		HealthChecker:      &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{}},
	}}
	c.OutlierDetection = &clusterv3.OutlierDetection{
		Interval:         seconds(time.Second),
		BaseEjectionTime: seconds(time.Second),
		MaxEjectionTime:  seconds(10 * time.Second),
	}
	// With one server left, Envoy goes on asking it even when it looks ill:
	// refusing for want of an answer is all it could do otherwise.
	c.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 50}}
	if opt.ProcessorTLS != nil {
		c.TransportSocket = tlsSocket(&p, processorTLS(host, opt.ProcessorTLS))
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{protocolOptions: p.any(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
					ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: seconds(30 * time.Second), Timeout: seconds(5 * time.Second)},
				}},
			},
		},
	})}
	return c, p.err
}

func processorAddress(s string) (host string, addr *corev3.Address, err error) {
	if addr, err = address(s); err != nil || strings.HasPrefix(s, "unix://") {
		return "", addr, err
	}
	host, _, err = net.SplitHostPort(s)
	if err != nil {
		return "", nil, err
	}
	// A server that listens everywhere is reached on this host.
	sock := addr.GetSocketAddress()
	if a, perr := netip.ParseAddr(sock.GetAddress()); perr == nil && a.IsUnspecified() {
		host, sock.Address = "localhost", "127.0.0.1"
	}
	return host, addr, nil
}

func processorTLS(host string, files *policy.TLSSpec) *tlsv3.UpstreamTlsContext {
	if host == "" {
		host = "localhost"
	}
	return verifiedTLS(host, files.ClientCA, &tlsv3.CommonTlsContext{
		TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: file(files.Certificate), PrivateKey: file(files.PrivateKey)}},
		AlpnProtocols:   []string{"h2"},
	})
}
