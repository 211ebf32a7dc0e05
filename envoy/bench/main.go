// Command bench measures what this server costs: processor time per call next
// to an empty ext_proc server behind the same Envoy in the same run, and its
// start-up time and memory.
//
//	go run ./envoy/bench
//	go run ./envoy/bench -rounds 9 -requests 40000
//
// Everything runs on loopback, bounded, and ends by itself. These machines are
// noisy: read the ratios, which are medians of pairs measured one after the other.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
)

// options are the flags.
type options struct {
	rounds, requests, upstreams int
	skipMemory, skipCalls       bool
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "empty-server" {
		exit(serveEmpty(os.Args[2]))
	}
	var opt options
	flag.IntVar(&opt.rounds, "rounds", 5, "pairs to measure at each number of connections")
	flag.IntVar(&opt.requests, "requests", 20000, "calls of one measurement")
	flag.IntVar(&opt.upstreams, "upstreams", 10000, "upstreams of the memory measurement")
	flag.BoolVar(&opt.skipMemory, "skip-memory", false, "leave out start-up time and memory")
	flag.BoolVar(&opt.skipCalls, "skip-calls", false, "leave out the cost of calls")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, opt)
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, opt options) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	binary := filepath.Join(dir, "envoy-mcp-auth")
	say("building envoy-mcp-auth")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/envoy-mcp-auth") //nolint:gosec // a temporary path
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building envoy-mcp-auth: %w; run from the project's root", err)
	}
	if !opt.skipCalls {
		if err := compare(ctx, dir, binary, opt); err != nil {
			return err
		}
	}
	if opt.skipMemory {
		return nil
	}
	return footprint(ctx, dir, binary, opt.upstreams)
}

// say tells what is going on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
