package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
)

// serveFlags are the flags of serve.
type serveFlags struct {
	source   source
	logLevel string
	logJSON  bool
	xds      bool
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
			lines := newLogQueue(logWriter(st.err, f.logJSON))
			defer lines.flush()
			log, err := newLog(lines, f.logLevel)
			if err != nil {
				return err
			}
			return serve(cmd.Context(), &f, log, lines, st)
		},
	}
	f.source.bind(cmd, true)
	cmd.Flags().StringVar(&f.logLevel, "log-level", "info", "least level logged: "+strings.Join(logLevels(), ", "))
	words(cmd, "log-level", logLevels()...)
	cmd.Flags().BoolVar(&f.xds, "xds", false, "also serve Envoy its configuration (see `render envoy --xds`)")
	cmd.Flags().BoolVar(&f.logJSON, "log-json", true, "log JSON lines; false for people")
	return cmd
}

// logWriter writes JSON lines as they are, or for people. Colours are for
// terminals, unless NO_COLOR is set.
func logWriter(w io.Writer, asJSON bool) io.Writer {
	if asJSON {
		return w
	}
	colour := false
	if f, ok := w.(*os.File); ok && os.Getenv("NO_COLOR") == "" {
		info, err := f.Stat()
		colour = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return zerolog.ConsoleWriter{Out: w, NoColor: !colour}
}

// newLog makes the logger. It is a value that is handed on: there is no global one.
func newLog(w io.Writer, level string) (zerolog.Logger, error) {
	l, err := zerolog.ParseLevel(level)
	if err != nil || !slices.Contains(logLevels(), level) {
		return zerolog.Logger{}, fmt.Errorf("--log-level %q: want one of %s", level, strings.Join(logLevels(), ", "))
	}
	return zerolog.New(w).Level(l).With().Timestamp().Logger(), nil
}

func logLevels() []string { return []string{"trace", "debug", "info", "warn", "error"} }

// serve runs until ctx or a signal ends it and everything is drained.
func serve(ctx context.Context, f *serveFlags, log zerolog.Logger, lines *logQueue, st streams) error {
	// A reader of the log that went away must not take the server with it.
	signal.Ignore(syscall.SIGPIPE)
	src := &f.source
	a, err := newApp(ctx, src, log, lines, f.xds)
	if err != nil {
		return err
	}
	defer a.close() //nolint:contextcheck // it comes after the end of every context
	// Only from here on is there anything to drain. Before, and in all other
	// commands, a signal ends the process at once, whatever it waits for.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	if len(src.quick) > 0 {
		_, text, _ := src.text()
		say(st.out, "%s", text)
	}
	return a.run(ctx)
}
