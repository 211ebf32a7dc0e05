package e2e_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
)

// TestAdmin: what the admin listener answers, and that it only reads.
func TestAdmin(t *testing.T) {
	r := start(t, standard)
	r.post("/alpha/mcp", "{}", own("")...)
	r.post("/keyed/mcp", "{}")
	for path, want := range map[string]string{
		"/": ">alpha<", "/healthz": "ok", "/readyz": "ready", "/status": `"alpha"`,
		"/metrics": `mcp_auth_decisions_total{reason="allowed",upstream="alpha"} 1`,
	} {
		if status, body := r.proc.get(path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: want 200 and %q, got %d %.300q", path, want, status, body)
		}
	}
	for _, name := range []string{
		`mcp_auth_decisions_total{reason="caller_unknown",upstream="keyed"}`,
		`mcp_auth_token_requests_total{result="ok",upstream="alpha"}`,
		`mcp_auth_token_expiry_timestamp_seconds{upstream="alpha"}`,
		`mcp_auth_config_last_reload_successful`, `mcp_auth_decision_seconds_count`,
	} {
		if v := r.proc.metric(name); v < 1 {
			t.Errorf("%s: want at least 1, got %v", name, v)
		}
	}
	_, body := r.proc.get("/status")
	var status struct {
		Upstreams []struct{ Name, Credential string } `json:"upstreams"`
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil || len(status.Upstreams) != 5 {
		t.Errorf("want five upstreams as JSON, got %v, %.300q", err, body)
	}
	for _, path := range []string{"/nothing", "/debug/pprof/", "/quit", "/reload"} {
		if status, _ := r.proc.get(path); status != http.StatusNotFound {
			t.Errorf("%s: want 404, got %d", path, status)
		}
	}
	if got := r.do(t.Context(), nil, r.proc.admin+"/status", nil, nil); got.status != http.StatusMethodNotAllowed {
		t.Errorf("POST: want 405, got %v", got)
	}
}

// TestMetricsLint: what the real /metrics says after calls of several kinds keeps
// Prometheus' conventions, by promtool's own linter.
func TestMetricsLint(t *testing.T) {
	missing := errors.New("no promtool found: set $PROMTOOL to the program, or run tools/install promtool")
	program := cached.Require(t, "promtool", cached.Part{Env: "PROMTOOL", Dir: "promtool", Program: "promtool", Missing: missing}.Find, missing)
	r := start(t, standard)
	r.post("/alpha/mcp", "{}", own("")...)
	r.post("/keyed/mcp", "{}")
	r.post("/nobody/mcp", "{}")
	r.eventually("the calls have ended", 5*time.Second, func() bool { return r.logged() >= 2 })
	_, text := r.proc.get("/metrics")
	if n := strings.Count(text, "\n# TYPE mcp_auth_"); n < 20 {
		t.Errorf("want the metrics, got %d of ours", n)
	}
	cmd := exec.CommandContext(t.Context(), program, "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// The pieces of a policy that grows and shrinks.
const (
	lateUpstream = "  late: {url: {{.URL \"late\"}}, credential: none}\n"
	lateText     = standard + lateUpstream
)

// TestO8_Reload: a changed file is in force within seconds, under load, without
// a single failure; a removed upstream is refused from then on.
func TestO8_Reload(t *testing.T) {
	r := newRig(t, lateText)
	bootstrap := r.render() // Envoy knows all upstreams from the start
	r.write("policy.yaml", r.recorded(standard))
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(bootstrap)
	r.post("/late/mcp", "{}").refused(t, http.StatusForbidden, "no_policy")
	o := r.under(200, func(*outcomes) {
		r.write("policy.yaml", r.recorded(lateText))
		r.eventually("a changed file is in force", 5*time.Second, func() bool {
			return r.post("/late/mcp", "{}").status == http.StatusOK
		})
		r.write("policy.yaml", r.recorded(standard))
		r.proc.signal(syscall.SIGHUP)
		r.eventually("SIGHUP reloads", 10*time.Second, func() bool {
			return r.post("/late/mcp", "{}").reason() == "no_policy"
		})
		const reloads = `mcp_auth_config_reloads_total{result="ok"}`
		before := r.proc.metric(reloads)
		r.proc.signal(syscall.SIGHUP)
		r.eventually("SIGHUP reads a file that did not change", 10*time.Second, func() bool { return r.proc.metric(reloads) > before })
		r.broken(t)
	})
	if o.refused != 0 || o.fine < 500 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
	if n := r.issuer.RequestsBy("alpha-client"); n != 1 {
		t.Errorf("want the token kept over reloads, got %d requests", n)
	}
}

// broken writes files that cannot be loaded, and then a good one.
func (r *rig) broken(t *testing.T) {
	t.Helper()
	const gauge = "mcp_auth_config_last_reload_successful"
	for _, text := range []string{"", "version: 1\nupstreams: {", r.fill(standard) + "  x: {url: 1}\nnonsense: 1\n", strings.ReplaceAll(r.fill(standard), "beta.secret", "nobody.secret")} {
		r.write("policy.yaml", text)
		r.proc.signal(syscall.SIGHUP)
		r.eventually("the failure shows in the metric and in /status", 10*time.Second, func() bool {
			_, body := r.proc.get("/status")
			return r.proc.metric(gauge) == 0 && strings.Contains(body, `"error"`)
		})
		if got := r.post("/beta/mcp", "{}"); got.status != http.StatusOK {
			t.Errorf("want the last good policy in force, got %v", got)
		}
		r.write("policy.yaml", r.recorded(standard))
		r.proc.signal(syscall.SIGHUP)
		r.eventually("a good file is taken again", 10*time.Second, func() bool { return r.proc.metric(gauge) == 1 })
	}
}

// TestO8_SecretFiles: a secret that changes by rename, or as kubelet swaps its
// mounts, is used within 5 s.
func TestO8_SecretFiles(t *testing.T) {
	t.Parallel() // it waits more than it works
	mounted := strings.ReplaceAll(standard, "{{.Dir}}/fixed.secret", "{{.Dir}}/mount/key")
	r := newRig(t, mounted)
	swap := func(version, secret string) {
		t.Helper()
		mount := filepath.Join(r.dir, "mount")
		if err := os.MkdirAll(filepath.Join(mount, version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mount, version, "key"), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(version, filepath.Join(mount, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")); err != nil {
			t.Fatal(err)
		}
		_ = os.Symlink("..data/key", filepath.Join(mount, "key")) // there, after the first time
	}
	swap("..2026_01", fixedKey)
	r.proc = r.serve(r.policy, r.facts.Admin)
	r.startEnvoy(r.render())
	arrives := func(how, secret string) {
		t.Helper()
		r.eventually(how+" is picked up", 5*time.Second, func() bool {
			r.up("fixed").take()
			r.post("/fixed/mcp", "{}")
			came := r.up("fixed").take()
			return len(came) == 1 && came[0].Header.Get("X-Api-Key") == secret
		})
	}
	arrives("the first", fixedKey)
	swap("..2026_02", fixedKey+"-2")
	arrives("a symlink swap", fixedKey+"-2")
	swap("..2026_03", fixedKey+"-3")
	arrives("another", fixedKey+"-3")

	// A client secret is used at the next fetch; the token lives on.
	r.issuer.SetSecret("beta-client", betaSecret+"-2")
	r.write("beta.secret", betaSecret+"-2\n")
	r.up("beta").answer(r.guarded(length))
	r.eventually("the program noticed", 5*time.Second, func() bool {
		return strings.Contains(tail(r.proc.log, 1<<20), "beta.secret")
	})
	before := r.issuer.RequestsBy("beta-client")
	r.issuer.Revoke()
	if got := r.post("/beta/mcp", "{}"); got.status != http.StatusOK {
		t.Errorf("with the new client secret: got %v", got)
	}
	if n := r.issuer.RequestsBy("beta-client") - before; n != 1 {
		t.Errorf("want one token request, got %d", n)
	}
}
