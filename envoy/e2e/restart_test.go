package e2e_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// replica is one of several programs behind one Envoy.
type replica struct {
	policy, admin string
	proc          *processor
}

// startTwo runs two programs behind one Envoy.
func startTwo(t *testing.T, change ...func(*rig)) (*rig, []*replica) {
	t.Helper()
	graceful := strings.ReplaceAll(standard, "drain_delay: 100ms", "drain_delay: 3s")
	r := newRig(t, graceful, change...)
	first := *r.facts
	second := first
	second.Socket, second.Admin = filepath.Join(r.dir, "q.sock"), free(t)
	r.facts = &second
	r.write("second.yaml", r.fill(graceful))
	r.facts = &first
	both := []*replica{{policy: r.policy, admin: first.Admin}, {policy: filepath.Join(r.dir, "second.yaml"), admin: second.Admin}}
	for _, p := range both {
		p.proc = r.serve(p.policy, p.admin)
	}
	r.startEnvoy(edited(r.render(), func(c config) {
		endpoints := asMap(at(c.cluster("envoy_mcp_auth"), "load_assignment", "endpoints", 0))
		endpoints["lb_endpoints"] = append(endpoints["lb_endpoints"].([]any), map[string]any{
			"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": second.Socket}}},
		})
	}))
	r.waitProcessor(2)
	return r, both
}

// rounds is how often each replica is restarted.
func rounds() int {
	if os.Getenv("SOAK") != "" {
		return 10
	}
	return 1
}

// roll restarts each in turn, as a rolling update does.
func (r *rig) roll(all []*replica) {
	r.t.Helper()
	for _, p := range all {
		p.proc.signal(syscall.SIGTERM)
		<-p.proc.done
		p.proc = r.serve(p.policy, p.admin)
		r.waitProcessor(uint64(len(all)))
	}
}

// TestE9_RollingRestart: two programs behind one Envoy, each restarted in turn under
// load. No call may fail.
func TestE9_RollingRestart(t *testing.T) {
	r, both := startTwo(t)
	o := r.under(100, func(*outcomes) {
		for range rounds() {
			r.roll(both)
		}
	})
	if o.refused != 0 || o.fine < 400 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
	t.Logf("%d restarts by SIGTERM: %d calls, %d failed", 2*rounds(), o.refused+o.fine, o.refused)
}

// TestE9_Upgrade: another version, $PREVIOUS, is replaced by this one, and put back,
// one of two at a time, under load and with the Envoy configuration that it rendered.
// No call fails, and the record goes on. Without the variable it is this one twice.
func TestE9_Upgrade(t *testing.T) {
	previous := os.Getenv("PREVIOUS")
	r, both := startTwo(t, func(r *rig) { r.program = previous })
	o := r.under(100, func(*outcomes) {
		for _, version := range []string{"", previous} {
			r.program = version
			r.roll(both)
		}
	})
	if o.refused != 0 || o.fine < 400 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
	t.Logf("there and back: %d calls, %d failed", o.refused+o.fine, o.refused)
}

// TestE9_KillOneOfTwo: two programs behind one Envoy, each killed in turn under load.
// What a dead one had not answered, Envoy asks the other.
func TestE9_KillOneOfTwo(t *testing.T) {
	r, both := startTwo(t)
	o := r.under(100, func(*outcomes) {
		for range rounds() {
			for _, p := range both {
				time.Sleep(time.Second)
				p.proc.kill()
				time.Sleep(3 * time.Second) // until Envoy no longer counts on it
				p.proc = r.serve(p.policy, p.admin)
				r.waitProcessor(2)
			}
		}
	})
	kills := 2 * rounds()
	if o.refused > kills || o.fine < 400 { // one may be half answered
		t.Errorf("want at most %d failed, got %d in %d calls", kills, o.refused, o.refused+o.fine)
	}
	if n := len(r.up("alpha").take()); n != o.fine {
		t.Errorf("want %d requests at the upstream, one for each good answer, got %d", o.fine, n)
	}
	t.Logf("%d kills: %d calls, %d failed, %v asked again", kills, o.refused+o.fine, o.refused, r.envoyStats()["cluster.envoy_mcp_auth.upstream_rq_retry"])
}

// TestE9_SingleRestart: with one program only, calls are refused while it is
// away, and nothing worse.
func TestE9_SingleRestart(t *testing.T) {
	r := start(t, standard)
	o := r.under(100, func(*outcomes) {
		r.proc.signal(syscall.SIGTERM)
		<-r.proc.done
		r.proc = r.serve(r.policy, r.facts.Admin)
	})
	if n := len(r.up("alpha").take()); n != o.fine {
		t.Errorf("want %d requests at the upstream, one for each good answer, got %d", o.fine, n)
	}
	if r.proc.cmd.ProcessState != nil {
		t.Error("the program ended")
	}
	if code := r.spawned[0].cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("want status 0 after SIGTERM, got %d", code)
	}
}

// TestE9_HealthOnSIGTERM: the health service says NOT_SERVING first, while calls
// are still answered.
func TestE9_HealthOnSIGTERM(t *testing.T) {
	t.Parallel() // it waits more than it works
	r := start(t, strings.ReplaceAll(standard, "drain_delay: 100ms", "drain_delay: 1500ms"))
	conn, err := grpc.NewClient("unix://"+r.facts.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	health := func() healthv1.HealthCheckResponse_ServingStatus {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		got, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		if err != nil {
			return healthv1.HealthCheckResponse_UNKNOWN
		}
		return got.GetStatus()
	}
	if got := health(); got != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("want SERVING, got %s", got)
	}
	r.proc.signal(syscall.SIGTERM)
	r.eventually("NOT_SERVING", time.Second, func() bool { return health() == healthv1.HealthCheckResponse_NOT_SERVING })
	if got := r.post("/alpha/mcp", "{}"); got.status != http.StatusOK {
		t.Errorf("while draining: got %v", got)
	}
	select {
	case <-r.proc.done:
	case <-time.After(10 * time.Second):
		t.Error("the program did not end")
	}
}
