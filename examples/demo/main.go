// Command demo starts the whole line on this machine, on real parts, and walks
// through what it promises:
//
//	LiteLLM → Envoy → MCP servers
//	            ↓
//	     envoy-mcp-auth → authorization server
//
// Run it from anywhere in the repository:
//
//	go run ./examples/demo
//
// It needs Go and Python 3; it installs Envoy and LiteLLM into .cache/ by itself.
// These environment variables change what it does:
//
//	KEEP=1           leave everything running after the walk, until Ctrl-C
//	LITELLM=0        without LiteLLM: a plain MCP client calls Envoy
//	LITELLM, ENVOY   a program to use instead of the pinned one
//	PORT_OFFSET=100  move every port up by 100
//	NO_COLOR=1       no colours
//
// It ends with status 0 if every step held.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := 0
	if err := start(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "demo: error: %v\n", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

// start reads the environment and runs the demo.
func start(ctx context.Context) error {
	opt := options{litellm: os.Getenv("LITELLM") != "0", keep: os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0"}
	if s := os.Getenv("PORT_OFFSET"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("PORT_OFFSET=%q: want a number, such as 100", s)
		}
		opt.offset = n
	}
	return run(ctx, opt, newNarrator(os.Stdout))
}
