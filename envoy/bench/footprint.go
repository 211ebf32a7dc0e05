package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realprocess"
)

// need is what a server needs that has some number of upstreams.
type need struct {
	start      time.Duration // until it is ready
	idle, most float64       // MiB of resident memory; the latter with a reload
}

// footprint measures start-up time and memory, with one upstream and with many.
// Each of the many has a token of its own: its resource is its url.
func footprint(ctx context.Context, dir, binary string, many int) error {
	tokens := tokenEndpoint()
	defer tokens.Close()
	fmt.Printf("\nStart-up and memory\n\n| upstreams | start to ready, every token fetched | resident memory, idle | at most, a reload included |\n|---|---|---|---|\n") //nolint:forbidigo // this is the output
	for n := 1; n <= many; n = max(10*n, 100) {
		is, err := startWith(ctx, dir, binary, tokens.URL, n)
		if err != nil {
			return err
		}
		fmt.Printf("| %d | %d ms | %.0f MiB | %.0f MiB |\n", n, is.start.Milliseconds(), is.idle, is.most) //nolint:forbidigo // this is the output
	}
	return nil
}

func startWith(ctx context.Context, dir, binary, tokenURL string, n int) (is need, err error) {
	admin, err := realprocess.Address(ctx)
	if err != nil {
		return is, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nserver: {listen: \"unix://%s/f%d.sock\", admin: %q, ready: tokens}\ncallers: {anyone: {any: true}}\n", dir, n, admin)
	fmt.Fprintf(&b, "defaults:\n  callers: [anyone]\n  credential: {oauth2: {token_url: %q, client_id: bench, client_secret: \"${BENCH_SECRET}\"}}\nupstreams:\n", tokenURL)
	for i := range n {
		fmt.Fprintf(&b, "  up%d: {url: \"https://up%d.test/mcp\", cookies: {allow: [session]}}\n", i, i)
	}
	file := filepath.Join(dir, fmt.Sprintf("many%d.yaml", n))
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return is, err
	}
	p, err := start(filepath.Join(dir, "many.log"), []string{"BENCH_SECRET=bench"}, binary, "serve", "-c", file)
	if err != nil {
		return is, err
	}
	defer p.stop()
	if err := p.waitReady(ctx, admin, 2*time.Minute); err != nil {
		return is, err
	}
	is.start = time.Since(p.started)
	time.Sleep(2 * time.Second) // what the start left behind goes back by itself
	if is.idle, _, err = memory(p.pid()); err != nil {
		return is, err
	}
	if err := p.reload(ctx, admin); err != nil {
		return is, err
	}
	_, is.most, err = memory(p.pid())
	return is, err
}

// reload has the server read its policy again, and waits until it has.
func (p *process) reload(ctx context.Context, admin string) error {
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	for range 600 {
		b, err := get(ctx, "http://"+admin+"/metrics")
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte(`mcp_auth_config_reloads_total{result="ok"} 2`)) { // the start is the first
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("the policy is not read again within 30 s")
}
