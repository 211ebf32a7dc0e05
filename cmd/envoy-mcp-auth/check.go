package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/secrets"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens"
)

// secretsWait is how long check and token wait for stores.
const secretsWait = 15 * time.Second

// checkReport is what check shows.
type checkReport struct {
	Policy   string          `json:"policy"`
	Faults   []policy.Fault  `json:"faults"`
	Warnings []policy.Fault  `json:"warnings"`
	Findings []envoy.Finding `json:"envoy_findings"`
	// Discovered is what --discover found.
	Discovered []discovered `json:"discovered,omitempty"`
}

// clean reports whether nothing is wrong.
func (r *checkReport) clean() bool {
	return len(r.Faults)+len(r.Findings) == 0 && !slices.ContainsFunc(r.Discovered, func(d discovered) bool { return len(d.Findings) > 0 })
}

func newCheck(st streams) *cobra.Command {
	src := source{st: st}
	var envoyFile string
	var online bool
	var f format
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Name every fault of a policy and every unsafe setting of an Envoy configuration",
		Long: "Reads the policy as serve would, secrets and certificates included, and names all faults at once with file, line\n" +
			"and key. With --envoy it also reads an Envoy configuration (YAML or JSON) or the answer of\n" +
			"/config_dump, and names each setting that would let a request past the policy. With --discover\n" +
			"it asks every issuer for its metadata (RFC 8414), those of callers also for their keys, and every\n" +
			"upstream with discover: true for its own metadata (RFC 9728), and names where they differ from the\n" +
			"policy; no token is asked for. Without, it asks nobody but secret stores.",
		Example: "  envoy-mcp-auth check -c policy.yaml --envoy envoy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, set, err := check(&src, envoyFile)
			if err == nil && online && set != nil && len(report.Faults) == 0 {
				report.Discovered, err = discover(cmd.Context(), set, st)
			}
			if err != nil {
				return err
			}
			if err := f.print(st.out, report, func() error { return report.text(st.out) }); err != nil {
				return err
			}
			if !report.clean() {
				return errFound
			}
			return nil
		},
	}
	src.bind(cmd, false)
	f.bind(cmd)
	cmd.Flags().StringVar(&envoyFile, "envoy", "", "Envoy configuration or config_dump to check too")
	cmd.Flags().BoolVar(&online, "discover", false, "ask issuers and upstreams what they say of themselves, and compare")
	return cmd
}

// check returns the policy too, nil when it has faults.
func check(src *source, envoyFile string) (*checkReport, *policy.Set, error) {
	report := &checkReport{Policy: src.file, Faults: []policy.Fault{}, Warnings: []policy.Fault{}, Findings: []envoy.Finding{}}
	set, err := src.load()
	var faults policy.Faults
	switch {
	case errors.As(err, &faults):
		report.Faults = faults
	case err != nil:
		return nil, nil, err
	default:
		report.Warnings = append(report.Warnings, set.Warnings...)
		for _, err := range unusable(set, src.st.env) {
			report.Faults = append(report.Faults, policy.Fault{File: src.file, Line: 1, Text: err.Error()})
		}
	}
	if envoyFile == "" {
		return report, set, nil
	}
	b, err := os.ReadFile(envoyFile) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, nil, fmt.Errorf("reading the Envoy configuration: %w; give the path of an existing file with --envoy", err)
	}
	found, err := envoy.Check(envoyFile, b, set)
	if err != nil {
		return nil, nil, err
	}
	report.Findings = append(report.Findings, found...)
	return report, set, nil
}

// unusable names what serve would stumble over when it opens what the policy
// names: secrets, authorities of token endpoints and the files of server.tls.
func unusable(set *policy.Set, env func(string) (string, bool)) []error {
	store := secrets.New(secrets.Config{Env: env, Wait: secretsWait, Log: zerolog.Nop()})
	defer store.Close()
	if err := store.Require(secrets.Of(set)); err != nil {
		if all, ok := err.(interface{ Unwrap() []error }); ok {
			return all.Unwrap()
		}
		return []error{err}
	}
	faults := store.Missing()
	if set.Server.TLS != nil {
		if _, err := serverTLS(set.Server.TLS, zerolog.Nop()); err != nil {
			faults = append(faults, err)
		}
	}
	// No request is made: nobody warms these two.
	cache := tokens.New(tokens.Config{Secrets: store, Now: time.Now})
	defer cache.Close()
	callers := tokens.NewVerifier(tokens.VerifierConfig{Now: time.Now})
	defer callers.Close()
	server, err := extproc.New(extproc.Config{Tokens: cache, Verifier: callers, Secrets: store, Now: time.Now})
	if err == nil {
		err = server.Load(set)
	}
	if err != nil {
		faults = append(faults, err)
	}
	return faults
}

func (r *checkReport) text(w io.Writer) error {
	var b strings.Builder
	for _, f := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", f)
	}
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "fault: %s\n", f)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "unsafe: %s\n", f)
	}
	for i := range r.Discovered {
		r.Discovered[i].text(&b)
	}
	if r.clean() {
		fmt.Fprintf(&b, "ok: %s", r.Policy)
		if len(r.Warnings) > 0 {
			fmt.Fprintf(&b, " (%s)", plural(len(r.Warnings), "warning"))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
