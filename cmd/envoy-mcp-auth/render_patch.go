package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// patch attaches a policy to the Envoy configuration in a file, and tells on w what
// was changed, assumed and left open. What is left open is errFound, beside the
// result: the same findings fail `check --envoy`.
func patch(set *policy.Set, file string, opt envoy.Options, w io.Writer) ([]byte, error) {
	b, err := os.ReadFile(file) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, fmt.Errorf("reading the Envoy configuration: %w; give the path of an existing file with --patch", err)
	}
	done, err := envoy.Patch(file, b, set, opt)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, patchReport(file, done)); err != nil {
		return nil, err
	}
	if len(done.Open) > 0 {
		return done.Config, errFound
	}
	return done.Config, nil
}

func patchReport(file string, p *envoy.Patched) string {
	var b strings.Builder
	for _, c := range p.Changes {
		fmt.Fprintf(&b, "changed: %s\n", c)
	}
	for _, s := range p.Assumed {
		fmt.Fprintf(&b, "assumed: %s\n", s)
	}
	for _, s := range p.Notes {
		fmt.Fprintf(&b, "look at: %s\n", s)
	}
	for _, f := range p.Open {
		fmt.Fprintf(&b, "decide: %s\n", f)
	}
	changes := "nothing to change"
	if n := len(p.Changes); n > 0 {
		changes = plural(n, "change")
	}
	fmt.Fprintf(&b, "%s: %s, %s, %d left for a person to decide\n", file, changes, plural(len(p.Assumed), "assumption"), len(p.Open))
	return b.String()
}
