package envoy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// gatewayName is what our objects are called in a cluster, alone or before the name
// of the HTTPRoute that they are about.
const gatewayName = "envoy-mcp-auth"

// GatewayOptions are the choices of RenderGateway that are not part of the policy.
type GatewayOptions struct {
	Options

	// Resources are the user's Gateways and HTTPRoutes: YAML documents, or a list as
	// `kubectl get -o yaml` prints it. Required.
	Resources []byte
	// Namespace is where the Backend that leads to this program is, and the Secret
	// with Envoy's own certificate. Empty means that of the first Gateway.
	Namespace string
	// Secret is the name of the kubernetes.io/tls Secret by which Envoy proves itself
	// to this program; its ca.crt signed the certificate of this program. Empty means
	// envoy-mcp-auth-client. Unused with a Unix socket.
	Secret string
	// Patch adds an EnvoyPatchPolicy for each Gateway.
	Patch bool
}

// RenderGateway returns the objects that attach this program to Envoy Gateway 1.9: for
// each upstream's HTTPRoute the policies by which Envoy asks, demands our mark and
// limits bodies; for each Gateway the policy by which it cleans requests up; and the
// access log. With Patch, a revoked token heals inside the call. What a patch does not
// reach stays as safe as without it: patches only add.
func RenderGateway(set *policy.Set, opt GatewayOptions) ([]byte, error) {
	opt.Options = opt.withDefaults(set)
	if opt.Secret == "" {
		opt.Secret = gatewayName + "-client"
	}
	plan, err := newGatewayPlan(set, opt)
	if err != nil {
		return nil, fmt.Errorf("rendering envoy-gateway: %w", err)
	}
	docs, err := plan.documents()
	if err != nil {
		return nil, fmt.Errorf("rendering envoy-gateway: %w", err)
	}
	var b bytes.Buffer
	b.WriteString(gatewayHeader(opt.Patch))
	for i, d := range docs {
		// Not before the first: Envoy Gateway's file provider takes comments alone
		// for a document, and refuses the file.
		if b.WriteString("\n"); i > 0 {
			b.WriteString("---\n")
		}
		b.WriteString(remark(d.why))
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(d.object); err != nil {
			return nil, err
		}
		if err := enc.Close(); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// remark is a text as comment lines.
func remark(text string) string {
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		if column += len(word) + 1; column > 88 || b.Len() == 0 {
			b.WriteString("\n#")
			column = len(word) + 2
		}
		b.WriteString(" " + word)
	}
	return strings.TrimPrefix(b.String(), "\n") + "\n"
}

// gatewayDocument is an object of Kubernetes, and why it is there.
type gatewayDocument struct {
	why    string
	object manifest
}

type manifest = map[string]any

// gatewayPlan is what is attached, and to what.
type gatewayPlan struct {
	set      *policy.Set
	opt      GatewayOptions
	legs     []*gatewayLeg
	gateways []*gatewayResource // those that the routes name, in order of appearance
}

// gatewayLeg is an upstream with its HTTPRoute.
type gatewayLeg struct {
	target

	route    *gatewayResource
	gateways []*gatewayResource
}

func newGatewayPlan(set *policy.Set, opt GatewayOptions) (*gatewayPlan, error) {
	if err := fitting(set); err != nil {
		return nil, err
	}
	ups, err := targets(set)
	if err != nil {
		return nil, err
	}
	have, err := readGateway(opt.Resources)
	if err != nil {
		return nil, err
	}
	p := &gatewayPlan{set: set, opt: opt}
	taken := map[*gatewayResource]string{}
	for _, t := range ups {
		leg, err := have.leg(t)
		if err != nil {
			return nil, fmt.Errorf("upstream %q: %w", t.Name, err)
		}
		if other := taken[leg.route]; other != "" {
			return nil, fmt.Errorf("upstream %q: HTTPRoute %s is that of upstream %q; a policy attaches to a whole HTTPRoute, so give each upstream one of its own", t.Name, leg.route, other)
		}
		taken[leg.route] = t.Name
		p.legs = append(p.legs, leg)
		for _, g := range leg.gateways {
			if !slices.Contains(p.gateways, g) {
				p.gateways = append(p.gateways, g)
			}
		}
	}
	if p.opt.Namespace == "" {
		p.opt.Namespace = p.gateways[0].Metadata.Namespace
	}
	return p, nil
}

// documents are all of them, in the order in which they are best applied: at no
// moment is a route open that was not before.
func (p *gatewayPlan) documents() ([]gatewayDocument, error) {
	backend, err := p.backend()
	if err != nil {
		return nil, err
	}
	all := []gatewayDocument{backend}
	if grant, needed := p.grant(); needed {
		all = append(all, grant)
	}
	for _, g := range p.gateways {
		if log, first := p.accessLog(g); first {
			all = append(all, log)
		}
		all = append(all, p.clientTraffic(g))
	}
	for _, l := range p.legs {
		all = append(all, l.guard(), p.ask(l), l.backendTraffic())
	}
	if !p.opt.Patch {
		return all, nil
	}
	for _, g := range p.gateways {
		patch, err := p.patch(g)
		if err != nil {
			return nil, err
		}
		all = append(all, patch)
	}
	return all, nil
}

func gatewayHeader(patched bool) string {
	text := `# What attaches envoy-mcp-auth to Envoy Gateway 1.9. Written by
# "envoy-mcp-auth render envoy-gateway"; change the policy and render again rather
# than edit here. Keep your own Gateways, HTTPRoutes and Backends as they are.
#
# Each upstream is known by the name of its Envoy route, which Envoy Gateway makes
# from the HTTPRoute. A caller can write neither. Where an object of one of these kinds
# stands on the same target already, Envoy Gateway takes the older and says so in
# the status of the other: put the two together.
#
# Envoy Gateway must have Backends enabled: extensionApis.enableBackend: true.
`
	if patched {
		return text + `#
# With the patches at the end (extensionApis.enableEnvoyPatchPolicy: true), a token that
# was revoked is replaced inside the call, and each cluster has a guard of its own. They
# only add: where a patch finds nothing, its EnvoyPatchPolicy says so in its status, and
# what is above them decides as without.
`
	}
	return text + `#
# This attachment decides in the listener's filter chain, once per call. So, other
# than with --patch-policies or with "render envoy":
#   - a call with a token that was revoked fails with a 502, and the next has a new one;
#   - trailers of a caller go on (HTTP/2);
#   - every request header is sent to envoy-mcp-auth, not only those that it reads;
#   - the upstream learns by x-forwarded-host which host the caller asked for.
`
}
