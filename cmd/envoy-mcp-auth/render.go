package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func newRender(st streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "render",
		Short:   "Print the configuration that goes with a policy",
		Example: "  envoy-mcp-auth render envoy -c policy.yaml -o envoy.yaml",
		// Without these, cobra prints the help for a misspelt word, with status 0.
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var opt envoy.Options
	xds, mine := false, ""
	forEnvoy := newRenderer(st, "envoy", "A complete, safe Envoy configuration",
		func(set *policy.Set) ([]byte, error) {
			switch {
			case mine != "":
				return patch(set, mine, opt, st.err)
			case xds:
				return envoy.RenderXDS(set, opt)
			}
			return envoy.Render(set, opt)
		})
	forEnvoy.Long = "Prints one complete bootstrap. With --patch it attaches to an Envoy that you already run: FILE is what that starts with,\n" +
		"or the answer of its /config_dump, and what comes is the same with the policy's upstreams protected, or the parts to\n" +
		"change. What was changed, assumed and is left for you to decide is told on standard error; with anything left, the\n" +
		"status is 1, as `check --envoy` of the result has it."
	forEnvoy.Example += "\n  envoy-mcp-auth render envoy -c policy.yaml --patch my-envoy.yaml -o patched.yaml"
	forEnvoy.Flags().StringVar(&mine, "patch", "", "attach to the Envoy that runs with this configuration; from a config_dump, print what to change in it")
	forEnvoy.Flags().BoolVar(&xds, "xds", false, "only the bootstrap of an Envoy that follows `serve --xds`")
	forEnvoy.Flags().StringVar(&opt.Admin, "admin", "", "give Envoy an admin listener at this address; it has none otherwise")
	forEnvoy.MarkFlagsMutuallyExclusive("patch", "xds")
	forEnvoy.MarkFlagsMutuallyExclusive("patch", "admin")
	cmd.AddCommand(forEnvoy, newGatewayRenderer(st), newRenderIstio(st),
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
			if err != nil && !errors.Is(err, errFound) {
				return fmt.Errorf("rendering for %s: %w", name, err)
			}
			return errors.Join(write(out, b, st.out), err)
		},
	}
	src.bind(cmd, true)
	cmd.Flags().StringVarP(&out, "output", "o", "", "write to this file instead of standard output")
	return cmd
}

// write puts b into a file, whole or not at all, or on w when there is no file.
// A symlink stays, and what it leads to is written; a device or a pipe is
// written to and never replaced.
func write(path string, b []byte, w io.Writer) error {
	switch path {
	case "", "-":
		_, err := w.Write(b)
		return err
	case "json", "text", "yaml":
		return fmt.Errorf("-o %s: here -o is the file to write; give its path, such as ./%s.yaml", path, path)
	}
	if err := replace(path, b); err != nil {
		return fmt.Errorf("writing %s: %w; give the path of a file in a directory that this user may write with -o", path, err)
	}
	return nil
}

func replace(path string, b []byte) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
	case info.IsDir():
		return errors.New("it is a directory")
	case !info.Mode().IsRegular():
		return os.WriteFile(path, b, 0o644) //nolint:gosec // rendered configuration holds no secret
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".envoy-mcp-auth-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := tmp.Write(b); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Chmod(0o644), tmp.Close()); err != nil { // Envoy's user reads it; it holds no secret
		return err
	}
	return os.Rename(tmp.Name(), path)
}
