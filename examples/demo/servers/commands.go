package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/servers/mcpserver"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/tokens/tokenstest"
)

// shutdown is how long requests in flight may take to end, such as a slow call.
const shutdown = 2 * time.Second

func newRoot(out io.Writer, env func(string) (string, bool)) *cobra.Command {
	root := &cobra.Command{
		Use:           "demo-servers",
		Short:         "The MCP servers, the authorization server and the receiver of alerts of the demo",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetOut(out)
	log := &lines{w: out}
	root.AddCommand(newOpen(log), newProtected(log), newAuth(log, env), newAlerts(log, env), newReady())
	return root
}

// lines writes whole lines from any goroutine.
type lines struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (l *lines) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, format+"\n", args...)
}

func newOpen(log *lines) *cobra.Command {
	var listen string
	cmd := &cobra.Command{
		Use:     "open",
		Short:   "An MCP server that asks for no credential",
		Example: "  demo-servers open --listen 127.0.0.1:9002",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), log, "open", listen, "/mcp", func(string) (http.Handler, error) {
				return mcpserver.NewOpen(), nil
			})
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:9002", "address to listen on")
	return cmd
}

func newProtected(log *lines) *cobra.Command {
	var listen string
	var cfg mcpserver.Config
	cmd := &cobra.Command{
		Use:     "protected",
		Short:   "An MCP server that demands an access token",
		Example: "  demo-servers protected --listen 127.0.0.1:9001 --issuer http://127.0.0.1:9000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), log, "protected", listen, "/mcp", func(url string) (http.Handler, error) {
				cfg.JWKSURL = orDefault(cfg.JWKSURL, cfg.Issuer+"/jwks")
				if !cmd.Flags().Changed("revocation-url") {
					cfg.RevocationURL = cfg.Issuer + "/revoked"
				}
				cfg.Audience = orDefault(cfg.Audience, url)
				cfg.Now = time.Now
				return mcpserver.NewProtected(cfg)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9001", "address to listen on")
	f.StringVar(&cfg.Issuer, "issuer", "http://127.0.0.1:9000", "issuer of the tokens")
	f.StringVar(&cfg.JWKSURL, "jwks-url", "", "where the issuer's keys are (default ISSUER/jwks)")
	f.StringVar(&cfg.RevocationURL, "revocation-url", "", "where to ask about a token, empty for nowhere (default ISSUER/revoked)")
	f.StringVar(&cfg.Audience, "audience", "", "audience of the tokens (default http://LISTEN/mcp)")
	f.StringVar(&cfg.Scope, "scope", "mcp.read", "scope that a token must have")
	return cmd
}

func newAuth(log *lines, env func(string) (string, bool)) *cobra.Command {
	var listen, issuer, id, secretEnv string
	var life time.Duration
	cmd := &cobra.Command{
		Use:   "auth",
		Short: "An authorization server with one client",
		Long: "An authorization server for the client credentials grant. POST /control/revoke revokes every token,\n" +
			"/control/rotate changes the key, /control/fail?fault=NAME and /control/heal break and mend the token endpoint.",
		Example: "  MCP_OAUTH2_CLIENT_SECRET=made-up demo-servers auth --listen 127.0.0.1:9000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, ok := env(secretEnv)
			if !ok || secret == "" {
				return fmt.Errorf("%s is not set: put the client's secret there", secretEnv)
			}
			s, err := tokenstest.New(tokenstest.Config{
				Addr: listen, Issuer: issuer, Lifetime: life, Control: true,
				Clients: map[string]tokenstest.Client{id: {Secret: secret}},
			})
			if err != nil {
				return err
			}
			defer s.Close()
			log.printf("auth: listening on %s", s.URL())
			logTokenRequests(cmd.Context(), log, s)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:9000", "address to listen on")
	f.StringVar(&issuer, "issuer", "", "issuer of the tokens (default http://LISTEN)")
	f.StringVar(&id, "client-id", "litellm-proxy", "the one client")
	f.StringVar(&secretEnv, "client-secret-env", "MCP_OAUTH2_CLIENT_SECRET", "environment variable with its secret")
	f.DurationVar(&life, "lifetime", 5*time.Minute, "life of the tokens")
	return cmd
}

// newReady is the health check of containers, whose image has nothing else to ask with.
func newReady() *cobra.Command {
	var want int
	cmd := &cobra.Command{
		Use:     "ready URL",
		Short:   "Ask a server whether it is ready: exit status 0 if it answers with the status",
		Example: "  demo-servers ready http://127.0.0.1:9001/mcp --status 401",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, args[0], nil)
			if err != nil {
				return err
			}
			resp, err := (&http.Client{Timeout: 3 * time.Second}).Do(req)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				return fmt.Errorf("%s is not ready: want status %d, got %d", args[0], want, resp.StatusCode)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&want, "status", http.StatusOK, "status of a server that is ready")
	return cmd
}

// logTokenRequests prints a line for each token request until ctx ends. What the
// client proved itself with is not printed.
func logTokenRequests(ctx context.Context, log *lines, s *tokenstest.Server) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	seen := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		all := s.Recorded()
		if n := s.Requests() - seen; n < len(all) {
			all = all[len(all)-n:]
		}
		for _, r := range all {
			log.printf("auth: POST /token resource=%q scope=%q", r.Form.Get("resource"), r.Form.Get("scope"))
		}
		seen += len(all)
	}
}

// serve runs a handler until ctx ends. The handler is made when the address is
// known: its audience may be its own URL.
func serve(ctx context.Context, log *lines, name, listen, path string, handler func(url string) (http.Handler, error)) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("%w: choose another address with --listen", err)
	}
	url := "http://" + l.Addr().String() + path
	h, err := handler(url)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	rec := mcpserver.NewRecorder(time.Now, func(r mcpserver.Received) {
		path, _, _ := strings.Cut(r.Path, "?") // a query may hold a secret
		log.printf("%s: %s %s %d %s", name, r.Method, path, r.Status, r.Took.Round(time.Millisecond))
	})
	server := &http.Server{Handler: rec.Wrap(h), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	log.printf("%s: listening on %s", name, url)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
	defer cancel()
	if server.Shutdown(end) != nil {
		return server.Close() // an open stream does not end by itself
	}
	return nil
}

func orDefault(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
