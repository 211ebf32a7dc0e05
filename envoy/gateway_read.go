package envoy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// gatewayResource is what is read of a Gateway or an HTTPRoute.
type gatewayResource struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name      string `yaml:"name"`
		Namespace string `yaml:"namespace"`
	} `yaml:"metadata"`
	Spec struct {
		Infrastructure struct {
			ParametersRef struct {
				Kind string `yaml:"kind"`
				Name string `yaml:"name"`
			} `yaml:"parametersRef"`
		} `yaml:"infrastructure"`
		Listeners []struct {
			Name string `yaml:"name"`
		} `yaml:"listeners"`
		ParentRefs []struct {
			Kind        string `yaml:"kind"`
			Name        string `yaml:"name"`
			Namespace   string `yaml:"namespace"`
			SectionName string `yaml:"sectionName"`
		} `yaml:"parentRefs"`
		Rules []struct {
			Filters     []gatewayFilter `yaml:"filters"`
			BackendRefs []yaml.Node     `yaml:"backendRefs"`
		} `yaml:"rules"`
	} `yaml:"spec"`
	Items []gatewayResource `yaml:"items"`
}

// gatewayFilter is a filter of an HTTPRoute's rule.
type gatewayFilter struct {
	Type                  string `yaml:"type"`
	RequestHeaderModifier struct {
		Remove []string `yaml:"remove"`
	} `yaml:"requestHeaderModifier"`
}

// String is NAMESPACE/NAME.
func (r *gatewayResource) String() string { return r.Metadata.Namespace + "/" + r.Metadata.Name }

// proxyName is the name of a Gateway's EnvoyProxy: the one that it has, or else ours.
func (r *gatewayResource) proxyName() string {
	return cmp.Or(r.Spec.Infrastructure.ParametersRef.Name, gatewayName)
}

// gatewayResources are the user's, by kind and then by namespace and name.
type gatewayResources map[string]map[string]*gatewayResource

func readGateway(b []byte) (gatewayResources, error) {
	all := gatewayResources{"Gateway": {}, "HTTPRoute": {}}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var r gatewayResource
		err := dec.Decode(&r)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading your resources: %w; give the YAML of your Gateways and HTTPRoutes", err)
		}
		all.add(r)
		for _, item := range r.Items {
			all.add(item)
		}
	}
	if len(all["Gateway"]) == 0 || len(all["HTTPRoute"]) == 0 {
		return nil, errors.New("your resources hold no Gateway, or no HTTPRoute; write them with `kubectl get gateways,httproutes -A -o yaml`")
	}
	return all, nil
}

func (all gatewayResources) add(r gatewayResource) {
	if r.Metadata.Namespace == "" {
		r.Metadata.Namespace = "default"
	}
	if named := all[r.Kind]; named != nil {
		named[r.String()] = &r
	}
}

// leg finds the HTTPRoute that an upstream's envoy.route names, and its Gateways.
func (all gatewayResources) leg(t target) (*gatewayLeg, error) {
	leg := &gatewayLeg{target: t}
	parts := strings.Split(t.Route, "/")
	if len(parts) != 5 || parts[0] != "httproute" || parts[3] != "rule" || parts[4] != "*" {
		return leg, fmt.Errorf(`envoy.route: want the routes of an HTTPRoute, got %q; write envoy: {route: "httproute/NAMESPACE/NAME/rule/*"}`, t.Route)
	}
	name := parts[1] + "/" + parts[2]
	if leg.route = all["HTTPRoute"][name]; leg.route == nil {
		return leg, fmt.Errorf("there is no HTTPRoute %s in your resources; mend envoy.route, or give a file that has it", name)
	}
	for _, ref := range leg.route.Spec.ParentRefs {
		if ref.Kind != "" && ref.Kind != "Gateway" {
			continue
		}
		namespace := ref.Namespace
		if namespace == "" {
			namespace = leg.route.Metadata.Namespace
		}
		g := all["Gateway"][namespace+"/"+ref.Name]
		if g == nil {
			return leg, fmt.Errorf("HTTPRoute %s names Gateway %s/%s, which is not in your resources; give a file that has it", name, namespace, ref.Name)
		}
		if !slices.Contains(leg.gateways, g) {
			leg.gateways = append(leg.gateways, g)
		}
	}
	if len(leg.gateways) == 0 {
		return leg, fmt.Errorf("HTTPRoute %s is attached to no Gateway; give it parentRefs", name)
	}
	return leg, leg.sound()
}

// sound refuses what would send a call where it was not decided for.
func (l *gatewayLeg) sound() error {
	for i, rule := range l.route.Spec.Rules {
		for _, f := range rule.Filters {
			if f.Type == "RequestMirror" {
				return fmt.Errorf("HTTPRoute %s, rule %d: a RequestMirror would copy the credential and run tools twice; take it out", l.route, i)
			}
		}
		if len(rule.BackendRefs) > 1 {
			return fmt.Errorf("HTTPRoute %s, rule %d: it spreads calls over %d backends, and the credential is for one upstream; give each upstream an HTTPRoute of its own", l.route, i, len(rule.BackendRefs))
		}
	}
	return nil
}

// removes returns the request headers that a rule of the route takes off, and whether
// our mark is among them.
func (l *gatewayLeg) removes(rule int) (others []string, mark bool) {
	for _, f := range l.route.Spec.Rules[rule].Filters {
		for _, name := range f.RequestHeaderModifier.Remove {
			if strings.EqualFold(name, GuardHeader) {
				mark = true
				continue
			}
			others = append(others, name)
		}
	}
	return others, mark
}

// clusters are the names that Envoy Gateway gives to the clusters of the route.
func (l *gatewayLeg) clusters() []string {
	all := make([]string, len(l.route.Spec.Rules))
	for i := range all {
		all[i] = fmt.Sprintf("httproute/%s/rule/%d", l.route, i)
	}
	return all
}

// listeners are the names that Envoy Gateway gives to the listeners of a Gateway at
// which the route may be, and to their routes.
func (l *gatewayLeg) listeners(g *gatewayResource) []string {
	var all []string
	for _, ref := range l.route.Spec.ParentRefs {
		if ref.Name != g.Metadata.Name {
			continue
		}
		for _, listener := range g.Spec.Listeners {
			name := g.String() + "/" + listener.Name
			if (ref.SectionName == "" || ref.SectionName == listener.Name) && !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	return all
}
