package e2e_test

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// config is an Envoy configuration to change. What is not there is a panic: the
// test and the renderer disagree then, and nothing else is of interest.
type config map[string]any

// edited changes a rendered configuration.
func edited(bootstrap []byte, change func(config)) []byte {
	c := config{}
	if err := yaml.Unmarshal(bootstrap, &c); err != nil {
		panic(err) //nolint:forbidigo // see config
	}
	change(c)
	b, err := yaml.Marshal(map[string]any(c))
	if err != nil {
		panic(err) //nolint:forbidigo // see config
	}
	return b
}

// at follows keys and indexes.
func at(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			v = asMap(v)[p]
		case int:
			v = v.([]any)[p]
		}
	}
	return v
}

func asMap(v any) map[string]any {
	switch v := v.(type) {
	case config:
		return v
	case map[string]any:
		return v
	}
	panic(fmt.Sprintf("want a mapping, got %T", v)) //nolint:forbidigo // see config
}

// named returns the element of a list with that name.
func named(list any, name string) map[string]any {
	for _, v := range list.([]any) {
		if m := asMap(v); m["name"] == name {
			return m
		}
	}
	panic("nothing is called " + name) //nolint:forbidigo // see config
}

func (c config) cluster(name string) map[string]any {
	return named(at(c, "static_resources", "clusters"), name)
}

func (c config) manager() map[string]any {
	return asMap(at(c, "static_resources", "listeners", 0, "filter_chains", 0, "filters", 0, "typed_config"))
}

func (c config) route(name string) map[string]any {
	return named(at(c.manager(), "route_config", "virtual_hosts", 0, "routes"), name)
}
