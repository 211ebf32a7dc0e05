package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func newRender(st streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "render",
		Short:   "Print the configuration that goes with a policy",
		Example: "  envoy-mcp-auth render envoy -c policy.yaml -o envoy.yaml",
	}
	var opt envoy.Options
	forEnvoy := newRenderer(st, "envoy", "A complete, safe Envoy configuration",
		func(set *policy.Set) ([]byte, error) { return envoy.Render(set, opt) })
	forEnvoy.Flags().StringVar(&opt.Admin, "admin", "", "give Envoy an admin listener at this address; it has none otherwise")
	cmd.AddCommand(forEnvoy,
		newRenderer(st, "litellm", "The mcp_servers block of a LiteLLM configuration", envoy.RenderLiteLLM))
	return cmd
}

func newRenderer(st streams, name, short string, render func(*policy.Set) ([]byte, error)) *cobra.Command {
	src := source{st: st}
	var out string
	cmd := &cobra.Command{
		Use:     name,
		Short:   short,
		Example: "  envoy-mcp-auth render " + name + " -c policy.yaml -o " + name + ".yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			set, err := src.load()
			if err != nil {
				return err
			}
			b, err := render(set)
			if err != nil {
				return fmt.Errorf("rendering for %s: %w", name, err)
			}
			return write(out, b, st.out)
		},
	}
	src.bind(cmd, true)
	cmd.Flags().StringVarP(&out, "output", "o", "", "write to this file instead of standard output")
	return cmd
}

// write puts b into a file, whole or not at all, or on w when there is no file.
func write(path string, b []byte, w io.Writer) error {
	if path == "" {
		_, err := w.Write(b)
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o644); err != nil { //nolint:gosec // rendered configuration holds no secret
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
