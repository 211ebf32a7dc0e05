package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// request is a call as LiteLLM makes it, with a cookie header to filter.
func request(path string) []byte {
	body := `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hello"}}}`
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nhost: bench.test\r\naccept-encoding: gzip, deflate\r\n"+
		"user-agent: python-httpx2/2.16.2\r\naccept: application/json, text/event-stream\r\n"+
		"content-type: application/json\r\nmcp-session-id: 0123456789abcdef0123456789abcdef\r\n"+
		"mcp-protocol-version: 2025-11-25\r\nauthorization: Bearer sk-the-callers-own\r\n"+
		"cookie: session=0123456789abcdef; tracking=zzz\r\nx-tenant: acme\r\ncontent-length: %d\r\n\r\n%s",
		path, len(body), body)
}

// load makes n calls over some kept connections, as fast as they are answered,
// and fails at the first answer that is not 200.
func load(ctx context.Context, address, path string, connections, n int) error {
	var wg sync.WaitGroup
	errs := make(chan error, connections)
	for i := range connections {
		share := n / connections
		if i < n%connections {
			share++
		}
		wg.Go(func() {
			if err := loop(ctx, address, path, share); err != nil {
				errs <- err
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func loop(ctx context.Context, address, path string, n int) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing to lose
	r, msg := bufio.NewReader(c), request(path)
	for range n {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write(msg); err != nil {
			return err
		}
		if err := answer(r); err != nil {
			return err
		}
	}
	return nil
}

// answer reads one answer with a content-length.
func answer(r *bufio.Reader) error {
	status, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200") {
		return errors.New("answered " + strings.TrimSpace(status))
	}
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if line = strings.TrimSpace(line); line == "" {
			break
		}
		if _, err := fmt.Sscanf(strings.ToLower(line), "content-length: %d", &length); err == nil {
			continue
		}
	}
	_, err = io.CopyN(io.Discard, r, int64(length))
	return err
}
