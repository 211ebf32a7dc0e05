package conformance_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/cached"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realproxy"
)

var update = flag.Bool("update", false, "write docs/conformance.md")

// TestMain is the suite's client when the environment says so: the suite starts
// a program as its client, and this one brings a proxy with it.
func TestMain(m *testing.M) {
	if os.Getenv(harnessProgram) == "" {
		m.Run()
		return
	}
	if err := harness(context.Background(), os.Args[len(os.Args)-1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // the suite reads the status
	}
}

// parts are the programs that take part.
type parts struct {
	envoy, suite, proxy, server, client string
}

// everything builds and finds them.
func everything(t *testing.T) parts {
	t.Helper()
	envoy := realenvoy.Require(t)
	missing := errors.New("no MCP conformance suite found: set $CONFORMANCE, or run tools/install conformance")
	suite := cached.Require(t, "MCP conformance suite", cached.Part{
		Env: "CONFORMANCE", Dir: "conformance", Program: "conformance", Missing: missing,
	}.Find, missing)
	dir := t.TempDir()
	p := parts{envoy: envoy, suite: suite, server: filepath.Join(dir, "server"), client: filepath.Join(dir, "client")}
	var err error
	if p.proxy, err = realproxy.Build(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	const sdk = "github.com/modelcontextprotocol/go-sdk/conformance/everything-"
	for program, pkg := range map[string]string{p.server: sdk + "server", p.client: sdk + "client"} {
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, pkg).CombinedOutput(); err != nil {
			t.Fatalf("building %s: %v\n%s", pkg, err, out)
		}
	}
	return p
}
