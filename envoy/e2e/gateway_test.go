package e2e_test

import (
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// gatewayDir holds the example, and in testdata what Envoy Gateway's own translator
// makes of it.
const gatewayDir = "../../examples/envoy-gateway/testdata/"

// inGateway is what the upstreams of twelve are called in the example.
func inGateway() map[string]string {
	return map[string]string{"alpha": "tickets", "beta": "crm", "gamma": "wiki"}
}

// gatewayPolicy is twelve where upstreams are known by their routes and speak TLS,
// and so does the program.
func gatewayPolicy(text string) string {
	text = strings.Replace(text, `listen: "unix://{{.Socket}}"`,
		`listen: "{{.Spare}}", tls: {certificate: "{{.Dir}}/tls.crt", private_key: "{{.Dir}}/tls.key", client_ca: "{{.Dir}}/ca.pem"}`, 1)
	for up, name := range inGateway() {
		text = strings.Replace(text, `url: {{.URL "`+up+`"}}`,
			`url: {{.SecureURL "`+up+`"}}`+"\n    ca: {{.Dir}}/ca.pem\n"+`    envoy: {route: "httproute/agents/`+name+`/rule/*"}`, 1)
	}
	return text
}

// gateway attaches by what Envoy Gateway made of the example.
func gateway(file string) func(r *rig) func(string) string {
	return func(r *rig) func(string) string {
		proc := r.serve(r.policy, r.facts.Admin)
		r.startEnvoy(r.translated(file))
		r.proc = proc
		r.eventually("Envoy sees the processor healthy", 10*time.Second, func() bool {
			n, ok, err := r.envoy.Stat(r.t.Context(), "cluster.envoyextensionpolicy/agents/envoy-mcp-auth-wiki/extproc/0.membership_healthy")
			return err == nil && ok && n == 1
		})
		return func(upstream string) string { return r.url + "/" + inGateway()[upstream] + "/mcp" }
	}
}

type tree = map[string]any

// translated makes a bootstrap of a translation: what Envoy would be served is in it,
// addresses and authorities are those of the rig, and nothing else is changed.
func (r *rig) translated(file string) []byte {
	r.t.Helper()
	b, err := os.ReadFile(gatewayDir + file)
	if err != nil {
		r.t.Fatal(err)
	}
	var all struct {
		XDS map[string]struct {
			Configs []tree `yaml:"configs"`
		} `yaml:"xds"`
	}
	if err := yaml.Unmarshal(b, &all); err != nil {
		r.t.Fatal(err)
	}
	clusters, listeners, routes := []tree{}, []tree{}, tree{}
	for _, c := range all.XDS["agents/mcp"].Configs {
		for _, d := range list(c["dynamicActiveClusters"]) {
			clusters = append(clusters, r.onLoopback(under(d, "cluster")))
		}
		for _, d := range list(c["dynamicRouteConfigs"]) {
			rc := under(d, "routeConfig")
			delete(rc, "@type")
			name, _ := rc["name"].(string)
			routes[name] = rc
		}
		for _, d := range list(c["dynamicListeners"]) {
			l := under(d, "activeState", "listener")
			if strings.HasPrefix(l["name"].(string), "agents/") {
				listeners = append(listeners, l)
			}
		}
	}
	for _, l := range listeners {
		delete(l, "@type")
		host, port, _ := strings.Cut(r.facts.Listen, ":")
		l["address"] = tree{"socketAddress": tree{"address": host, "portValue": port}}
		hcm := under(list(under(l, "defaultFilterChain")["filters"])[0], "typedConfig")
		hcm["routeConfig"] = routes[under(hcm, "rds")["routeConfigName"].(string)]
		delete(hcm, "rds")
	}
	ca := tree{"trustedCa": tree{"filename": r.dir + "/ca.pem"}}
	doc := tree{
		"layeredRuntime": tree{"layers": []tree{{"name": "gateway", "staticLayer": tree{"re2.max_program_size.error_level": 4294967295}}}},
		"staticResources": tree{
			"clusters": clusters, "listeners": listeners,
			"secrets": []tree{
				{"name": "system_ca_certificates", "validationContext": ca},
				{"name": "envoy-mcp-auth/agents-ca", "validationContext": ca},
				{"name": "agents/envoy-mcp-auth-client", "tlsCertificate": tree{
					"certificateChain": tree{"filename": r.dir + "/tls.crt"}, "privateKey": tree{"filename": r.dir + "/tls.key"},
				}},
			},
		},
	}
	r.own(doc)
	out, err := yaml.Marshal(doc)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// onLoopback moves a cluster to this host.
func (r *rig) onLoopback(c tree) tree {
	delete(c, "@type")
	delete(c, "clusterType")
	c["type"] = "STATIC"
	to := r.facts.Spare // the processor, and its access log
	for up, name := range inGateway() {
		if c["name"] == "httproute/agents/"+name+"/rule/0" {
			to = r.up(up).addr
		}
	}
	host, port, _ := strings.Cut(to, ":")
	endpoint := under(list(list(under(c, "loadAssignment")["endpoints"])[0]["lbEndpoints"])[0], "endpoint")
	endpoint["address"] = tree{"socketAddress": tree{"address": host, "portValue": port}}
	return c
}

// own gives the rig's names to what goes by names of the example: hosts, marks, and
// secrets that Envoy would fetch.
func (r *rig) own(v any) {
	switch v := v.(type) {
	case []tree:
		for _, item := range v {
			r.own(item)
		}
	case []any:
		for _, item := range v {
			r.own(item)
		}
	case tree:
		delete(v, "sdsConfig")
		for key, value := range v {
			if text, ok := value.(string); ok {
				v[key] = r.ownText(key, text)
				continue
			}
			r.own(value)
		}
	}
}

func (r *rig) ownText(key, text string) string {
	for up, name := range inGateway() {
		host := name + ".company.com"
		switch {
		case text == host && key == "hostRewriteLiteral":
			return r.up(up).addr
		case text == host:
			return "localhost" // the name in the certificate
		case text == name && (key == "exact" || key == "value"):
			return up // the mark, and the identity
		case key == "inlineString":
			text = strings.ReplaceAll(text, `"`+name+`"`, `"`+up+`"`)
		}
	}
	if strings.HasSuffix(text, ".svc.cluster.local") {
		return "localhost"
	}
	return text
}

func under(t tree, keys ...string) tree {
	for _, k := range keys {
		t, _ = t[k].(tree)
	}
	return t
}

func list(v any) (all []tree) {
	items, _ := v.([]any)
	for _, item := range items {
		if t, ok := item.(tree); ok {
			all = append(all, t)
		}
	}
	return all
}
