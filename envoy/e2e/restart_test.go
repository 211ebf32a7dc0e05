package e2e_test

import (
	"context"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// TestE9_RollingRestart: two programs behind one Envoy, each restarted once
// under load. No call may fail.
func TestE9_RollingRestart(t *testing.T) {
	graceful := strings.ReplaceAll(standard, "drain_delay: 100ms", "drain_delay: 3s")
	r := newRig(t, graceful)
	first := *r.facts
	second := first
	second.Socket, second.Admin = filepath.Join(r.dir, "q.sock"), free(t)
	r.facts = &second
	r.write("second.yaml", r.fill(graceful))
	r.facts = &first
	secondPolicy := filepath.Join(r.dir, "second.yaml")
	one, two := r.serve(r.policy, first.Admin), r.serve(secondPolicy, second.Admin)
	r.startEnvoy(edited(r.render(), func(c config) {
		endpoints := asMap(at(c.cluster("envoy_mcp_auth"), "load_assignment", "endpoints", 0))
		endpoints["lb_endpoints"] = append(endpoints["lb_endpoints"].([]any), map[string]any{
			"endpoint": map[string]any{"address": map[string]any{"pipe": map[string]any{"path": second.Socket}}},
		})
	}))
	r.waitProcessor(2)
	o := r.under(14*time.Second, func() {
		for p, start := range map[*processor]func() *processor{
			one: func() *processor { return r.serve(r.policy, first.Admin) },
			two: func() *processor { return r.serve(secondPolicy, second.Admin) },
		} {
			p.signal(syscall.SIGTERM)
			<-p.done
			start()
			r.waitProcessor(2)
		}
	})
	if o.refused != 0 || o.fine < 1000 {
		t.Errorf("want no failure, got %d in %d calls", o.refused, o.refused+o.fine)
	}
}

// TestE9_SingleRestart: with one program only, calls are refused while it is
// away, and nothing worse.
func TestE9_SingleRestart(t *testing.T) {
	r := start(t, standard)
	o := r.under(4*time.Second, func() {
		time.Sleep(500 * time.Millisecond)
		r.proc.signal(syscall.SIGTERM)
		<-r.proc.done
		r.proc = r.serve(r.policy, r.facts.Admin)
	})
	if o.fine < 100 || o.lastFine.Before(o.lastNo) {
		t.Errorf("want calls to go on after the restart, got %d fine and %d refused", o.fine, o.refused)
	}
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
