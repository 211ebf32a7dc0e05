package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/reallitellm"
)

// offset finds ports that no demo and no other test uses: below those that the
// system hands out, and so that two offsets never share a port.
func offset(t *testing.T) int {
	t.Helper()
	for range 100 {
		if n := 20000 + 10*rand.IntN(40); allFree(t.Context(), n) {
			return n
		}
	}
	t.Fatal("no free ports")
	return 0
}

func allFree(ctx context.Context, offset int) bool {
	for _, port := range []int{4000, 9000, 9001, 9002, 9003, 9441, 10000} {
		if free(ctx, parts.Part{Address: fmt.Sprintf("127.0.0.1:%d", port+offset)}) != nil {
			return false
		}
	}
	return true
}

// wants fails the test unless the narration has all of these.
func wants(t *testing.T, told string, all ...string) {
	t.Helper()
	for _, want := range all {
		if !strings.Contains(told, want) {
			t.Errorf("want %q in\n%s", want, told)
		}
	}
}

func TestDemo(t *testing.T) {
	t.Setenv("ENVOY", realenvoy.Require(t))
	for _, litellm := range []bool{false, true} {
		t.Run(fmt.Sprintf("litellm %t", litellm), func(t *testing.T) {
			if litellm {
				t.Setenv("LITELLM", reallitellm.Require(t))
			}
			var told bytes.Buffer
			opt := options{litellm: litellm, offset: offset(t)}
			err := run(t.Context(), opt, &narrator{w: &told})
			if err != nil {
				t.Fatalf("%v\n%s", err, told.String())
			}
			wants(t, told.String(), "every step held", " 9. One server's credential breaks", "10. envoy-mcp-auth killed", "11. envoy-mcp-auth back again")
			if skipped := strings.Contains(told.String(), "skipped"); skipped == litellm {
				t.Errorf("steps skipped: %t\n%s", skipped, told.String())
			}
			if !allFree(t.Context(), opt.offset) {
				t.Error("something is left running")
			}
			if left, _ := filepath.Glob(fmt.Sprintf("/tmp/envoy-mcp-auth-demo-%d*", opt.offset)); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if strings.Contains(told.String(), "\x1b") {
				t.Error("colours, and this is no terminal")
			}
		})
	}
}

// A walk that cannot fail shows nothing.
func TestWalkNamesWhatFailed(t *testing.T) {
	t.Setenv("ENVOY", realenvoy.Require(t))
	var told bytes.Buffer
	d := &demo{
		options: options{offset: offset(t)}, narrator: &narrator{w: &told},
		running: map[string]*process{}, program: map[string]string{},
	}
	t.Cleanup(d.stop)
	if err := d.prepare(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, told.String())
	}
	for _, p := range d.parts() {
		if err := d.launch(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	crash := func(name string) {
		p := d.running[name]
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	d.running["open"].kill() // on purpose, so the walk goes on
	if failed := d.walk(t.Context()); failed != 2 {
		t.Errorf("want the 2 steps to fail that use it, got %d", failed)
	}
	wants(t, told.String(), "✗  5. The open server", "✗  9. One server", "✓ 11. ")
	crash("envoy")
	if failed := d.walk(t.Context()); failed != 1 {
		t.Errorf("want the walk to end at the first step that needs Envoy, got %d failures\n%s", failed, told.String())
	}
	wants(t, told.String(), "✗  3. A tool call", "Envoy is not running any more; the end of ", "the rest was not tried")
}

func TestInterruptedRunStopsWhatItStarted(t *testing.T) {
	t.Setenv("ENVOY", realenvoy.Require(t))
	ctx, cancel := context.WithCancel(t.Context())
	opt := options{offset: offset(t)}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { // the moment that Envoy runs
		defer cancel()
		var told []byte
		b := make([]byte, 1024)
		for !bytes.Contains(told, []byte("✓ Envoy")) {
			n, err := r.Read(b)
			if err != nil {
				return
			}
			told = append(told, b[:n]...)
		}
	}()
	err = run(ctx, opt, &narrator{w: w})
	_ = w.Close()
	if err == nil || err.Error() != "interrupted" {
		t.Errorf("want interrupted, got %v", err)
	}
	if !allFree(t.Context(), opt.offset) {
		t.Error("something is left running")
	}
}

func TestPortTakenSaysWhatToDo(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	err = free(t.Context(), parts.Part{Title: "open MCP server", Address: l.Addr().String()})
	if err == nil {
		t.Fatal("want an error")
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	wants(t, err.Error(), "port "+port+" (open MCP server) is taken", "PORT_OFFSET=")
}

func TestSocketDirectoryMustBeOurs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours")
	for range 2 { // made, and then found
		if err := socketDir(ours); err != nil {
			t.Error(err)
		}
	}
	if err := os.Chmod(ours, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{ours, filepath.Join(dir, "link")} {
		if err := socketDir(path); err == nil {
			t.Errorf("%s: want an error", filepath.Base(path))
		}
	}
}

func TestDurationsAreShort(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		100 * time.Microsecond: "<1ms", 12345 * time.Microsecond: "12ms", 1260 * time.Millisecond: "1.3s", 61700 * time.Millisecond: "1m2s",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: want %s, got %s", d, want, got)
		}
	}
}
