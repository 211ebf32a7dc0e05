package e2e_test

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
		r.startEnvoy(r.translated(file, ""))
		r.proc = proc
		r.gatewayHealthy()
		return func(upstream string) string { return r.url + "/" + inGateway()[upstream] + "/mcp" }
	}
}

// needsGatewaysEnvoy skips a test with an Envoy that Envoy Gateway 1.9 is not for.
func needsGatewaysEnvoy(t *testing.T) {
	t.Helper()
	if !envoySince(t, 38) {
		t.Skip("this Envoy does not take the configuration that Envoy Gateway 1.9 makes")
	}
}

// gatewayHealthy waits until Envoy holds the processor for healthy.
func (r *rig) gatewayHealthy() {
	r.t.Helper()
	for _, name := range inGateway() {
		r.eventually("Envoy sees the processor healthy", 10*time.Second, func() bool {
			n, ok, err := r.envoy.Stat(r.t.Context(), "cluster.envoyextensionpolicy/agents/envoy-mcp-auth-"+name+"/extproc/0.membership_healthy")
			return err == nil && ok && n == 1
		})
	}
}

// TestGateway_E1: a stream that ends without an error before a reply meets the
// guard, in both forms of the attachment; and a fault is a refusal.
func TestGateway_E1(t *testing.T) {
	needsGatewaysEnvoy(t)
	for _, file := range []string{"xds.yaml", "xds-patched.yaml"} {
		t.Run(file, func(t *testing.T) {
			r, s := startGatewayScripted(t, file)
			for name, way := range map[string]struct {
				act    act
				status int
			}{
				"nil before the message":       {func(stream) error { return nil }, http.StatusForbidden},
				"nil after the message":        {after(func(stream) error { return nil }), http.StatusForbidden},
				"status OK":                    {after(func(stream) error { return status.Error(codes.OK, "fine") }), http.StatusForbidden},
				"the mark of another upstream": {after(func(st stream) error { return st.Send(setHeaders("x-mcp-auth-guard", "beta")) }), http.StatusForbidden},
				"a continue without the mark":  {sends(setHeaders("authorization", "Bearer T1")), http.StatusForbidden},
				"an error":                     {unavailable, http.StatusInternalServerError},
				"no answer":                    {after(func(st stream) error { <-st.Context().Done(); return nil }), http.StatusGatewayTimeout},
			} {
				s.set(way.act)
				r.both(func(proto string, get func(string, ...string) reply) {
					if got := get("/tickets/mcp", spoof("alpha")...); got.status != way.status {
						t.Errorf("%s, %s: want %d, got %v", name, proto, way.status, got)
					}
				})
			}
			r.untouched()
		})
	}
}

// TestGateway_E1SecondAttempt: what holds for the first attempt holds for the
// second, and the caller gets no further by claiming to be on one.
func TestGateway_E1SecondAttempt(t *testing.T) {
	needsGatewaysEnvoy(t)
	r, s := startGatewayScripted(t, "xds-patched.yaml")
	r.leaky = true // the scripted token is none of the authorization server's
	r.up("alpha").answerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	n := 0
	s.set(func(st stream) error {
		if n++; n == 1 {
			return sends(setHeaders("x-mcp-auth-guard", "alpha", "authorization", "Bearer T1"))(st)
		}
		return nil
	})
	got := r.post("/tickets/mcp", "{}", append(own(""), "X-Envoy-Attempt-Count", "2")...)
	got.refused(t, http.StatusForbidden, "guard")
	came := r.up("alpha").take()
	if len(came) != 1 || n != 2 {
		t.Fatalf("want one attempt at the upstream and two decisions, got %d and %d", len(came), n)
	}
	for _, name := range []string{"X-Mcp-Auth-Guard", "X-Forwarded-Host"} {
		if v := came[0].Header.Get(name); v != "" {
			t.Errorf("%s: %s reached the upstream", name, v)
		}
	}
	if strings.Contains(string(r.up("alpha").raw()), canary) {
		t.Error("a secret of the caller reached the upstream")
	}
}

// startGatewayScripted runs a translation with a scripted processor.
func startGatewayScripted(t *testing.T, file string) (*rig, *scripted) {
	t.Helper()
	r := newRig(t, gatewayPolicy(twelve))
	s := &scripted{act: unavailable}
	srv, err := serveScripted(r.facts.Socket, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	r.startEnvoy(r.translated(file, r.facts.Socket))
	r.gatewayHealthy()
	return r, s
}

type tree = map[string]any

// translated makes a bootstrap of a translation: what Envoy would be served is in it,
// addresses and authorities are those of the rig, and nothing else is changed. With a
// socket, the processor is there, in plain text.
func (r *rig) translated(file, socket string) []byte {
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
			clusters = append(clusters, r.onLoopback(under(d, "cluster"), socket))
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
func (r *rig) onLoopback(c tree, socket string) tree {
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
	if to == r.facts.Spare && socket != "" {
		delete(c, "transportSocket")
		delete(c, "transportSocketMatches")
		endpoint["address"] = tree{"pipe": tree{"path": socket}}
		return c
	}
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

// TestGateway_C1Trailers: what docs/envoy-gateway.md says about trailers, and what
// else the two forms pass on.
func TestGateway_C1Trailers(t *testing.T) {
	needsGatewaysEnvoy(t)
	for file, passes := range map[string]bool{"xds.yaml": true, "xds-patched.yaml": false} {
		t.Run(file, func(t *testing.T) {
			r := newRig(t, gatewayPolicy(twelve))
			gateway(file)(r)
			trailer := make(chan string, 1)
			r.up("alpha").answerFunc(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				trailer <- req.Trailer.Get("X-Trail")
				w.Header().Set("Www-Authenticate", `Bearer error="insufficient_scope"`)
				w.WriteHeader(http.StatusForbidden)
			})
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/tickets/mcp", io.MultiReader(strings.NewReader("{}")))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Mcp-Auth-Key", callerKey)
			req.Trailer = http.Header{"X-Trail": {"went"}}
			resp, err := h2c().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if got := <-trailer; resp.StatusCode != http.StatusForbidden || (got == "went") != passes {
				t.Errorf("want trailers passed: %t, got %q with %d", passes, got, resp.StatusCode)
			}
			if got := resp.Header.Get("Www-Authenticate"); (got != "") != passes {
				t.Errorf("want a challenge passed: %t, got %q", passes, got)
			}
			if got := r.up("alpha").take()[0].Header.Get("X-Forwarded-Host"); (got != "") != passes {
				t.Errorf("want x-forwarded-host passed: %t, got %q", passes, got)
			}
		})
	}
}
