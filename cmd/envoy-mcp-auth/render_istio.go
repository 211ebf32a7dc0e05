package main

import (
	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func newRenderIstio(st streams) *cobra.Command {
	var opt envoy.IstioOptions
	mesh := false
	cmd := newRenderer(st, "istio", "Resources that attach this program to an Istio mesh", func(set *policy.Set) ([]byte, error) {
		if mesh {
			return envoy.RenderIstioMesh(set, opt)
		}
		return envoy.RenderIstio(set, opt)
	})
	cmd.Long = "Prints an EnvoyFilter that has the proxies of callers, or an egress gateway's, ask this program about\n" +
		"calls to the upstreams; the ServiceEntry, DestinationRule and VirtualService of each; and who may reach\n" +
		"this program, by mutual TLS. Each upstream needs the name of its cluster as Istio has it, such as\n" +
		"envoy: {cluster: \"outbound|80||mcp.company.com\"}. Comments in the output say what was assumed."
	cmd.Example = "  envoy-mcp-auth render istio -c policy.yaml --namespace agents --selector app=litellm -o istio.yaml\n" +
		"  envoy-mcp-auth render istio -c policy.yaml --namespace agents --gateway istio-egressgateway.istio-system\n" +
		"  envoy-mcp-auth render istio -c policy.yaml --mesh-config -o values.yaml"
	f := cmd.Flags()
	f.StringVar(&opt.Namespace, "namespace", "", "namespace of the callers' pods (default \"default\")")
	f.StringVar(&opt.Selector, "selector", "", "label KEY=VALUE of the pods whose proxies ask (default app=litellm, or istio=egressgateway)")
	f.StringVar(&opt.Service, "service", "", "NAME.NAMESPACE of this program's Service (default envoy-mcp-auth.envoy-mcp-auth)")
	f.StringArrayVar(&opt.Principals, "principal", nil, "who may reach this program, such as cluster.local/ns/agents/sa/litellm (default all of the proxies' namespace)")
	f.StringVar(&opt.Gateway, "gateway", "", "NAME.NAMESPACE of an egress gateway's Service that asks, instead of sidecars")
	f.BoolVar(&opt.RouteLevel, "route-level", false, "filters on the listener instead of in clusters, where those cannot be patched")
	f.BoolVar(&mesh, "mesh-config", false, "only what goes into the mesh's own configuration")
	return cmd
}
