package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// footprint measures start-up time and memory, with one upstream and with many.
// Each of the many has a token of its own: its resource is its url.
func footprint(ctx context.Context, dir, binary string, many int) error {
	tokens := tokenEndpoint()
	defer tokens.Close()
	fmt.Printf("\nStart-up and memory\n\n| upstreams | start to ready, every token fetched | resident memory, idle |\n|---|---|---|\n") //nolint:forbidigo // this is the output
	for _, n := range []int{1, many} {
		took, mib, err := startWith(ctx, dir, binary, tokens.URL, n)
		if err != nil {
			return err
		}
		fmt.Printf("| %d | %d ms | %.0f MiB |\n", n, took.Milliseconds(), mib) //nolint:forbidigo // this is the output
	}
	return nil
}

func startWith(ctx context.Context, dir, binary, tokenURL string, n int) (time.Duration, float64, error) {
	admin, err := freeAddress(ctx)
	if err != nil {
		return 0, 0, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nserver: {listen: \"unix://%s/f%d.sock\", admin: %q, ready: tokens}\ncallers: {anyone: {any: true}}\n", dir, n, admin)
	fmt.Fprintf(&b, "defaults:\n  callers: [anyone]\n  credential: {oauth2: {token_url: %q, client_id: bench, client_secret: \"${BENCH_SECRET}\"}}\nupstreams:\n", tokenURL)
	for i := range n {
		fmt.Fprintf(&b, "  up%d: {url: \"https://up%d.test/mcp\", cookies: {allow: [session]}}\n", i, i)
	}
	file := filepath.Join(dir, fmt.Sprintf("many%d.yaml", n))
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		return 0, 0, err
	}
	p, err := start(filepath.Join(dir, "many.log"), []string{"BENCH_SECRET=bench"}, binary, "serve", "-c", file)
	if err != nil {
		return 0, 0, err
	}
	defer p.stop()
	if err := p.waitReady(ctx, admin, 2*time.Minute); err != nil {
		return 0, 0, err
	}
	took := time.Since(p.started)
	time.Sleep(2 * time.Second) // what the start left behind goes back by itself
	mib, err := rss(p.pid())
	return took, mib, err
}
