package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
)

// serveFlags are the flags of serve.
type serveFlags struct {
	source   source
	logLevel string
	logJSON  bool
}

func newServe(st streams) *cobra.Command {
	f := serveFlags{source: source{st: st}}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server that Envoy asks",
		Long: "Serves Envoy's external-processing calls on server.listen, and /healthz, /readyz, /metrics and\n" +
			"/status on server.admin. The policy file is read again when it changes and on SIGHUP; a file\n" +
			"with faults changes nothing. SIGTERM drains: health first, then calls in flight.",
		Example: "  envoy-mcp-auth serve -c policy.yaml\n" +
			"  MCP_OAUTH2_TOKEN_URL=… MCP_OAUTH2_CLIENT_ID=… MCP_OAUTH2_CLIENT_SECRET=… \\\n" +
			"    envoy-mcp-auth serve --upstream tools=https://tools.company.com/mcp",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := newLog(st.err, f.logLevel, f.logJSON)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), &f.source, log, st)
		},
	}
	f.source.bind(cmd, true)
	cmd.Flags().StringVar(&f.logLevel, "log-level", "info", "least level logged: trace, debug, info, warn, error")
	cmd.Flags().BoolVar(&f.logJSON, "log-json", true, "log JSON lines; false for people")
	return cmd
}

// newLog makes the logger. It is a value that is handed on: there is no global one.
func newLog(w io.Writer, level string, asJSON bool) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Logger{}, fmt.Errorf("--log-level %q: want trace, debug, info, warn or error", level)
	}
	if !asJSON {
		w = zerolog.ConsoleWriter{Out: w, NoColor: os.Getenv("NO_COLOR") != ""}
	}
	return zerolog.New(w).Level(l).With().Timestamp().Logger(), nil
}

// serve runs until ctx ends and everything is drained.
func serve(ctx context.Context, src *source, log zerolog.Logger, st streams) error {
	a, err := newApp(ctx, src, log)
	if err != nil {
		return err
	}
	defer a.close()
	if len(src.quick) > 0 {
		_, text, _ := src.text()
		say(st.out, "%s", text)
	}
	return a.run(ctx)
}
