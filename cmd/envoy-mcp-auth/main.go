// Command envoy-mcp-auth is an Envoy external-processing server that puts
// service credentials on requests to MCP servers and other HTTP APIs.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], streams{out: os.Stdout, err: os.Stderr, env: os.LookupEnv}))
}
