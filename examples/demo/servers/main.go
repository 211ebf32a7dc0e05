// Command demo-servers runs the servers of the demo, one per process:
//
//	demo-servers auth --listen 127.0.0.1:9000
//	demo-servers protected --listen 127.0.0.1:9001 --issuer http://127.0.0.1:9000
//	demo-servers open --listen 127.0.0.1:9002
//	demo-servers alerts --listen 127.0.0.1:9003
//
// Each prints one line when it is ready, and one for each request.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	root := newRoot(os.Stdout, os.LookupEnv)
	err := root.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo-servers: error: %v\n", err)
		os.Exit(1)
	}
}
