package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var errNoResources = errors.New("it attaches to your Gateways and HTTPRoutes: write them with " +
	"`kubectl get gateways,httproutes -A -o yaml >mine.yaml` and give the file with --resources")

// newGatewayRenderer is `render envoy-gateway`.
func newGatewayRenderer(st streams) *cobra.Command {
	var opt envoy.GatewayOptions
	var resources string
	cmd := newRenderer(st, "envoy-gateway", "The objects that attach to an Envoy Gateway 1.9 that you run", func(set *policy.Set) (_ []byte, err error) {
		if resources == "" {
			return nil, errNoResources
		}
		if opt.Resources, err = os.ReadFile(resources); err != nil { //nolint:gosec // the operator names the file
			return nil, fmt.Errorf("reading your resources: %w; give the path of an existing file with --resources", err)
		}
		return envoy.RenderGateway(set, opt)
	})
	cmd.Long = `The objects that attach to an Envoy Gateway 1.9 that you run: for each upstream's HTTPRoute an
EnvoyExtensionPolicy, a guard and its traffic's settings, for each Gateway the access log and how
requests are cleaned up. Each upstream names its HTTPRoute in the policy, by
envoy: {route: "httproute/NAMESPACE/NAME/rule/*"}.`
	cmd.Example = `  kubectl get gateways,httproutes -A -o yaml >mine.yaml
  envoy-mcp-auth render envoy-gateway -c policy.yaml --resources mine.yaml \
    --processor mcp-envoy-mcp-auth.agents.svc.cluster.local:9440 -o attach.yaml
  kubectl apply -f attach.yaml`
	flags := cmd.Flags()
	flags.StringVar(&resources, "resources", "", "file with your Gateways and HTTPRoutes, as kubectl get -o yaml prints them")
	flags.StringVar(&opt.Processor, "processor", "", "where Envoys reach the server, HOST:PORT or unix:///PATH; else server.listen")
	flags.StringVar(&opt.Namespace, "namespace", "", "namespace of the Backend that leads to the server; else that of the first Gateway")
	flags.StringVar(&opt.Secret, "processor-secret", "", "Secret with Envoy's own certificate for the server; else envoy-mcp-auth-client")
	flags.BoolVar(&opt.Patch, "patch-policies", false, "add EnvoyPatchPolicies: a revoked token then heals inside the call")
	return cmd
}
