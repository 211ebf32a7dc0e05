package realredis_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realredis"
)

func TestStartPauseRestartStop(t *testing.T) {
	r, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir(), Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Stop()
	db := r.Client()
	defer db.Close() //nolint:errcheck // nothing is left to lose
	answers := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return db.Ping(ctx).Err()
	}
	if err := r.Pause(); err != nil || answers() == nil {
		t.Errorf("paused: want no answer; %v", err)
	}
	if err := r.Continue(); err != nil || answers() != nil {
		t.Errorf("continued: want an answer; %v", err)
	}
	before := r.PID()
	r.Stop()
	r.Stop()
	if err := syscall.Kill(before, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("want no process %d, got %v", before, err)
	}
	if err := r.Restart(t.Context()); err != nil || r.PID() == before {
		t.Errorf("restarted: %v", err)
	}
}

func TestStartTellsWhatRedisSaid(t *testing.T) {
	_, err := realredis.Start(t.Context(), realredis.Config{Binary: realredis.Require(t), Dir: t.TempDir(), Args: []string{"--bind", "192.0.2.1"}})
	if err == nil || !strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("want Redis's complaint about the address, got %v", err)
	}
}

func TestFindTakesNoOtherThanREDIS(t *testing.T) {
	t.Setenv("REDIS", filepath.Join(t.TempDir(), "gone"))
	if p, err := realredis.Find(); err == nil || errors.Is(err, realredis.ErrNotFound) {
		t.Errorf("want an error about $REDIS, got %q, %v", p, err)
	}
}

// fake records what Require does to a test.
type fake struct{ got string }

func (*fake) Helper()                     {}
func (f *fake) Skipf(s string, a ...any)  { f.got = "skip: " + fmt.Sprintf(s, a...) }
func (f *fake) Fatalf(s string, a ...any) { f.got = "fatal: " + fmt.Sprintf(s, a...) }

func TestRequireWithoutRedis(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("PATH", dir)
	t.Setenv("REDIS", "")
	for ci, want := range map[string]string{"": "skip", "true": "fatal"} {
		t.Setenv("CI", ci)
		f := &fake{}
		if realredis.Require(f); !strings.HasPrefix(f.got, want+": needs the real Redis: no redis-server found") {
			t.Errorf("CI=%q: got %q", ci, f.got)
		}
	}
}
