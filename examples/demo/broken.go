package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
)

// brokenCredential revokes the protected server's token, and lets the
// authorization server give no other one, while an agent goes on calling. All
// times are counted from then, the last two from when that is mended.
func (d *demo) brokenCredential(ctx context.Context) (string, error) {
	if err := d.control(ctx, "revoke"); err != nil {
		return "", err
	}
	if err := d.control(ctx, "fail?fault=status_503"); err != nil {
		return "", err
	}
	defer func() { _ = d.control(context.WithoutCancel(ctx), "heal") }()
	told := d.count("alerts", "alerts: firing "+credentialOf)
	over := d.count("alerts", "alerts: resolved "+credentialOf)

	broken := stopwatch{d: d, began: time.Now(), left: []sight{
		{"switched off", func(r reply) bool { return r.reason == "upstream_disabled" }},
		{"webhook received", func(reply) bool { return d.count("alerts", "alerts: firing "+credentialOf) > told }},
		{"the page shows it", func(reply) bool { return d.pageSays(ctx, "Switched off") }},
	}}
	if err := broken.run(ctx); err != nil {
		return "", err
	}
	if _, err := d.openCall(ctx); err != nil {
		return "", fmt.Errorf("the open server is concerned: %w", err)
	}
	if err := d.control(ctx, "heal"); err != nil {
		return "", err
	}
	mended := stopwatch{d: d, began: time.Now(), left: []sight{
		{"calls work again", func(r reply) bool { return r.status == http.StatusOK }},
		{"told that it is over", func(reply) bool { return d.count("alerts", "alerts: resolved "+credentialOf) > over }},
	}}
	if err := mended.run(ctx); err != nil {
		return "", err
	}
	who, err := d.newCaller().whoami(ctx)
	if err != nil {
		return "", err
	}
	return broken.String() + "; the open server works on; mended: " + mended.String(), lent(who)
}

// credentialOf is what the alert of this step is about.
const credentialOf = "auth_failures " + parts.Protected + " credential"

// control tells the authorization server how to be.
func (d *demo) control(ctx context.Context, what string) error {
	got, err := status(ctx, http.MethodPost, d.layout.Issuer+"/control/"+what, nil)
	if err != nil || got != http.StatusOK {
		return fmt.Errorf("control/%s: want 200, got %d (%w)", what, got, err)
	}
	return nil
}

// reply is what a call to the protected server came to.
type reply struct {
	status int
	reason string
}

// sight is something to wait for.
type sight struct {
	name string
	seen func(reply) bool
}

// stopwatch calls the protected server until everything was seen, and says when.
type stopwatch struct {
	d     *demo
	began time.Time
	left  []sight
	times []string
}

func (w *stopwatch) String() string { return strings.Join(w.times, ", ") }

func (w *stopwatch) run(ctx context.Context) error {
	for len(w.left) > 0 {
		last, err := w.d.ask(ctx)
		if err != nil {
			return fmt.Errorf("after %q, not seen: %s: %w", w.String(), w.left[0].name, err)
		}
		var still []sight
		for _, s := range w.left {
			if !s.seen(last) {
				still = append(still, s)
				continue
			}
			w.times = append(w.times, s.name+" after "+short(time.Since(w.began)))
		}
		w.left = still
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("after %q, not seen: %s; the last call was answered %d %s: %w", w.String(), w.left[0].name, last.status, last.reason, err)
		}
	}
	return nil
}

// ask calls the protected server as LiteLLM does, and reads why it was refused.
func (d *demo) ask(ctx context.Context) (reply, error) {
	const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"demo","version":"1"}}}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.layout.Envoy+"/"+parts.Protected+"/mcp", strings.NewReader(hello))
	if err != nil {
		return reply{}, err
	}
	req.Header = http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "X-Mcp-Auth-Key": {d.secrets[parts.CallerKey]},
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return reply{resp.StatusCode, resp.Header.Get("X-Mcp-Auth-Reason")}, nil
}

// pageSays reports whether the protected server's page has a text.
func (d *demo) pageSays(ctx context.Context, text string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.layout.Admin+"/upstreams/"+parts.Protected, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req) //nolint:forbidigo // a page on loopback
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	page, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return err == nil && strings.Contains(string(page), text)
}
