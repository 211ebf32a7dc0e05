package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// side is one of the two servers under comparison.
type side struct {
	name    string
	pid     int
	address string // of the listener whose calls go by this server
	path    string
}

// tokenEndpoint issues one long-lived token to whoever asks.
func tokenEndpoint() *httptest.Server {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"`+strings.Repeat("t", 800)+`","token_type":"Bearer","expires_in":86400}`)
	}))
}

// toolRules have the body of a call read.
const toolRules = "\n    tools: {rules: [{names: [other]}, {names: [echo]}]}"

// policyText is the policy of one side; more are further keys of its upstream.
func policyText(name, socket, admin, listen, backend, tokenURL, more string) string {
	return fmt.Sprintf(`version: 1
server: {listen: "unix://%s", admin: %q}
envoy: {listen: %q}
callers: {anyone: {any: true}}
upstreams:
  %s:
    url: http://%s/mcp
    callers: [anyone]
    cookies: {allow: [session]}
    credential: {oauth2: {token_url: %q, client_id: bench, client_secret: "${BENCH_SECRET}"}}%s
`, socket, admin, listen, name, backend, tokenURL, more)
}

func benchEnv(name string) (string, bool) { return "bench", name == "BENCH_SECRET" }

// compare measures both sides in turn behind one Envoy.
func compare(ctx context.Context, dir, binary string, opt options) error {
	tokens := tokenEndpoint()
	defer tokens.Close()
	addr, err := realprocess.Addresses(ctx, 8) // ours, empty, backend, admin, ours with the access log, ours with tool rules, audited, its admin
	if err != nil {
		return err
	}
	oursSocket, emptySocket := filepath.Join(dir, "ours.sock"), filepath.Join(dir, "empty.sock")
	oursText := policyText("ours", oursSocket, addr[3], addr[0], addr[2], tokens.URL, "")
	emptyText := policyText("empty", emptySocket, addr[3], addr[1], addr[2], tokens.URL, "")
	ruledText := policyText("ruled", oursSocket, addr[3], addr[5], addr[2], tokens.URL, toolRules)

	file := filepath.Join(dir, "policy.yaml")
	_, ruled, _ := strings.Cut(ruledText, "upstreams:\n")
	if err := os.WriteFile(file, []byte(oursText+ruled), 0o600); err != nil {
		return err
	}
	ours, err := start(filepath.Join(dir, "ours.log"), []string{"BENCH_SECRET=bench"}, binary, "serve", "-c", file)
	if err != nil {
		return err
	}
	defer ours.stop()
	auditedText := policyText("audited", filepath.Join(dir, "audited.sock"), addr[7], addr[6], addr[2], tokens.URL, "")
	audited, err := startAudited(dir, binary, auditedText)
	if err != nil {
		return err
	}
	defer audited.stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	baseline, err := start(filepath.Join(dir, "empty.log"), nil, self, "empty-server", emptySocket)
	if err != nil {
		return err
	}
	defer baseline.stop()
	for admin, s := range map[string]*process{addr[3]: ours, addr[7]: audited} {
		if err := s.waitReady(ctx, admin, 15*time.Second); err != nil {
			return err
		}
	}
	bootstrap, err := merged(oursText, emptyText, strings.Replace(oursText, addr[0], addr[4], 1), ruledText, auditedText, addr[2])
	if err != nil {
		return err
	}
	e, err := realenvoy.Start(ctx, realenvoy.Config{Bootstrap: bootstrap, Dir: dir})
	if err != nil {
		return err
	}
	defer e.Stop()
	if err := table(ctx, e.PID, opt,
		side{"envoy-mcp-auth", ours.pid(), addr[0], "/ours/mcp"},
		side{"envoy-mcp-auth with the access log", ours.pid(), addr[4], "/ours/mcp"},
		side{"envoy-mcp-auth with tool rules", ours.pid(), addr[5], "/ruled/mcp"},
		side{"envoy-mcp-auth with the access log and the audit", audited.pid(), addr[6], "/audited/mcp"},
		side{"empty ext_proc server", baseline.pid(), addr[1], "/empty/mcp"}); err != nil {
		return err
	}
	return sayMost(ours)
}

// sayMost prints what memory the calls took.
func sayMost(p *process) error {
	_, most, err := memory(p.pid())
	fmt.Printf("\nenvoy-mcp-auth had %.0f MiB of resident memory at most.\n", most) //nolint:forbidigo // this is the output
	return err
}

// startAudited runs our server with an audit that every reply waits for.
func startAudited(dir, binary, text string) (*process, error) {
	file := filepath.Join(dir, "audited.yaml")
	text += "audit: {file: " + filepath.Join(dir, "audit.jsonl") + ", required: true}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return start(filepath.Join(dir, "audited.log"), []string{"BENCH_SECRET=bench"}, binary, "serve", "-c", file)
}

// merged is one Envoy with both sides' rendered configuration, and a listener
// that answers 200 as their upstream. The empty server cannot set our mark, so
// its side goes without the guard. Neither side sends its access log: a third
// listener does, with calls that go by our server as well. A fourth has tool
// rules, so that each body is read. The calls of a fifth go by another of our servers,
// which has its access log and keeps an audit of each.
func merged(ours, empty, logged, ruled, audited, backend string) ([]byte, error) {
	a, err := rendered(ours)
	if err != nil {
		return nil, err
	}
	b, err := rendered(empty)
	if err != nil {
		return nil, err
	}
	l, err := rendered(logged)
	if err != nil {
		return nil, err
	}
	t, err := rendered(ruled)
	if err != nil {
		return nil, err
	}
	f, err := rendered(audited)
	if err != nil {
		return nil, err
	}
	rename(f, "envoy_mcp_auth", "audited_server")
	rename(f, "mcp", "mcp_audited")
	dropLog(a)
	dropLog(b)
	dropLog(t)
	rename(t, "mcp", "mcp_ruled")
	rename(l, "mcp", "mcp_logged")
	dropGuard(b)
	rename(b, "envoy_mcp_auth", "empty_server")
	rename(b, "mcp", "mcp_empty")
	var upstream map[string]any
	host, port, err := net.SplitHostPort(backend)
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(fmt.Appendf(nil, backendListener, host, port), &upstream); err != nil {
		return nil, err
	}
	res, other := a["static_resources"].(map[string]any), b["static_resources"].(map[string]any) //nolint:forcetypeassert // rendered just now
	third := l["static_resources"].(map[string]any)                                              //nolint:forcetypeassert // as above
	fourth := t["static_resources"].(map[string]any)                                             //nolint:forcetypeassert // as above
	fifth := f["static_resources"].(map[string]any)                                              //nolint:forcetypeassert // as above
	res["listeners"] = slices.Concat(list(res["listeners"]), list(other["listeners"]), list(third["listeners"]), list(fourth["listeners"]), list(fifth["listeners"]), []any{upstream})
	// The first cluster of the fourth is the way to our server, which is there already.
	res["clusters"] = slices.Concat(list(res["clusters"]), list(other["clusters"]), list(fourth["clusters"])[1:], list(fifth["clusters"]))
	return yaml.Marshal(a)
}

const backendListener = `
name: backend
address: {socket_address: {address: %s, port_value: %s}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: backend
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
      route_config:
        virtual_hosts:
        - {name: b, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "{}"}}}]}
`

func rendered(text string) (map[string]any, error) {
	set, err := policy.Parse("policy.yaml", []byte(text), benchEnv)
	if err != nil {
		return nil, err
	}
	b, err := envoy.Render(set, envoy.Options{})
	if err != nil {
		return nil, err
	}
	var m map[string]any
	return m, yaml.Unmarshal(b, &m)
}

func list(v any) []any { l, _ := v.([]any); return l }

// dropLog takes every access log out.
func dropLog(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "access_log")
		for _, child := range v {
			dropLog(child)
		}
	case []any:
		for _, child := range v {
			dropLog(child)
		}
	}
}

// dropGuard takes the Lua filter out of every filter list.
func dropGuard(v any) {
	switch v := v.(type) {
	case map[string]any:
		if filters, ok := v["http_filters"].([]any); ok {
			v["http_filters"] = slices.DeleteFunc(filters, func(f any) bool {
				m, _ := f.(map[string]any)
				name, _ := m["name"].(string)
				return strings.HasSuffix(name, ".lua")
			})
		}
		for _, child := range v {
			dropGuard(child)
		}
	case []any:
		for _, child := range v {
			dropGuard(child)
		}
	}
}

// rename changes every string that is exactly from.
func rename(v any, from, to string) {
	switch v := v.(type) {
	case map[string]any:
		for k, child := range v {
			if child == from {
				v[k] = to
			}
			rename(child, from, to)
		}
	case []any:
		for i, child := range v {
			if child == from {
				v[i] = to
			}
			rename(child, from, to)
		}
	}
}

// sample is the processor time of one measurement, per call.
type sample struct{ server, envoy float64 } // microseconds

func measure(ctx context.Context, s side, envoyPID, connections, n int) (sample, error) {
	var before, after [2]time.Duration
	read := func(into *[2]time.Duration) error {
		a, err := cpu(s.pid)
		b, err2 := cpu(envoyPID)
		into[0], into[1] = a, b
		return errors.Join(err, err2)
	}
	if err := read(&before); err != nil {
		return sample{}, err
	}
	if err := load(ctx, s.address, s.path, connections, n); err != nil {
		return sample{}, fmt.Errorf("%s: %w", s.name, err)
	}
	if err := read(&after); err != nil {
		return sample{}, err
	}
	per := func(i int) float64 { return float64((after[i] - before[i]).Microseconds()) / float64(n) }
	return sample{per(0), per(1)}, nil
}

func table(ctx context.Context, envoyPID int, opt options, ours, logged, ruled, audited, baseline side) error {
	fmt.Printf("\nProcessor time per call, µs (medians of %d pairs of %d calls; one Envoy worker; rendered configuration)\n\n", opt.rounds, opt.requests)          //nolint:forbidigo // this is the output
	fmt.Printf("| connections | envoy-mcp-auth | empty ext_proc server | ratio | min–max | Envoy with ours | Envoy with empty |\n|---|---|---|---|---|---|---|\n") //nolint:forbidigo // this is the output
	var added []cost
	for _, connections := range []int{8, 64} {
		all := []side{ours, baseline, logged, ruled, audited}
		for _, s := range all { // warm up
			if _, err := measure(ctx, s, envoyPID, connections, opt.requests/4); err != nil {
				return err
			}
		}
		samples := make([][]sample, len(all))
		for i := range opt.rounds {
			say("%d connections, pair %d of %d", connections, i+1, opt.rounds)
			for k, s := range all {
				x, err := measure(ctx, s, envoyPID, connections, opt.requests)
				if err != nil {
					return err
				}
				samples[k] = append(samples[k], x)
			}
		}
		row(strconv.Itoa(connections), samples[0], samples[1])
		row(strconv.Itoa(connections)+", with the access log", samples[2], samples[1])
		row(strconv.Itoa(connections)+", with tool rules", samples[3], samples[1])
		row(strconv.Itoa(connections)+", with the access log and the audit", samples[4], samples[1])
		added = append(added, cost{connections, "outcomes (the access log)", samples[2], samples[0]},
			cost{connections, "audit, each line waited for", samples[4], samples[2]})
	}
	printAdded(added)
	return nil
}

// cost is what something costs: calls with it and without.
type cost struct {
	connections   int
	what          string
	with, without []sample
}

// printAdded prints what a call costs more with outcomes, and more again with the
// audit, as medians of the differences within one round.
func printAdded(all []cost) {
	fmt.Printf("\nWhat is added to a call, µs, in the same rounds\n\n| connections | added | this server | ratio to without | min–max | Envoy |\n|---|---|---|---|---|---|\n") //nolint:forbidigo // this is the output
	for _, c := range all {
		var ratios, server, proxy []float64
		for i := range c.with {
			ratios = append(ratios, c.with[i].server/c.without[i].server)
			server = append(server, c.with[i].server-c.without[i].server)
			proxy = append(proxy, c.with[i].envoy-c.without[i].envoy)
		}
		slices.Sort(ratios)
		slices.Sort(server)
		slices.Sort(proxy)
		mid := len(ratios) / 2
		fmt.Printf("| %d | %s | %+.1f | **%.2f** | %.2f–%.2f | %+.0f |\n", //nolint:forbidigo // this is the output
			c.connections, c.what, server[mid], ratios[mid], ratios[0], ratios[len(ratios)-1], proxy[mid])
	}
}

// row prints one side next to the empty server.
func row(title string, a, b []sample) {
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].server / b[i].server
	}
	slices.Sort(ratios)
	fmt.Printf("| %s | %.1f | %.1f | **%.2f** | %.2f–%.2f | %.0f | %.0f |\n", title, //nolint:forbidigo // this is the output
		median(a, sample.ofServer), median(b, sample.ofServer), ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1],
		median(a, sample.ofEnvoy), median(b, sample.ofEnvoy))
}

func (s sample) ofServer() float64 { return s.server }
func (s sample) ofEnvoy() float64  { return s.envoy }

func median(all []sample, of func(sample) float64) float64 {
	v := make([]float64, len(all))
	for i, s := range all {
		v[i] = of(s)
	}
	slices.Sort(v)
	return v[len(v)/2]
}
