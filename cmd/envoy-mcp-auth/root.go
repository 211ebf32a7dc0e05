package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// version is stamped at build time with -ldflags "-X main.version=…".
var version = ""

// streams is what a command may touch of the process it runs in.
type streams struct {
	out, err io.Writer
	env      func(string) (string, bool)
}

// errFound ends a command with status 1 after it printed its findings itself.
var errFound = errors.New("found faults")

// run is the program: arguments in, exit status out.
func run(ctx context.Context, args []string, st streams) int {
	root := newRoot(st) //nolint:contextcheck // commands get it from ExecuteContext
	root.SetArgs(args)
	root.SetOut(st.out)
	root.SetErr(st.err)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFound):
		return 1
	}
	if faults, ok := errors.AsType[policy.Faults](err); ok {
		say(st.err, "%v\nenvoy-mcp-auth: error: the policy has %s; mend it and run again\n", faults, plural(len(faults), "fault"))
		return 1
	}
	say(st.err, "envoy-mcp-auth: error: %v\n", err)
	return 1
}

// say prints for a person. There is nobody to tell when that fails.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

func newRoot(st streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "envoy-mcp-auth",
		Short: "Service credentials for agent traffic through Envoy",
		Long: "An Envoy external-processing server. On routes to MCP servers and other APIs it names the\n" +
			"upstream, verifies the caller, puts a cached OAuth token on the request and passes only the\n" +
			"permitted cookies, while Envoy does the streaming.",
		Version:       versionString(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetVersionTemplate("{{.DisplayName}} {{.Version}} (" + goVersion() + ")\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(newServe(st), newCheck(st), newExplain(st), newRender(st), newImport(st), newToken(st), newAudit(st), newVersion(st))
	return root
}

// source is where a command's policy comes from: a file, or --upstream flags.
type source struct {
	file  string
	quick []string
	st    streams
	// again is set once a policy from here is in force.
	again bool
	// hash is the digest of what load read last, empty when it could not.
	hash string
}

// maxPolicy bounds a policy file, as policy.Parse does: 10,000 upstreams take about 2 MB.
const maxPolicy = 16 << 20

// bind adds -c, and --upstream NAME=URL where quick is wanted.
func (s *source) bind(cmd *cobra.Command, quick bool) {
	cmd.Flags().StringVarP(&s.file, "config", "c", "", "policy file")
	if quick {
		cmd.Flags().StringArrayVar(&s.quick, "upstream", nil,
			"NAME=URL instead of a policy file, for a first try; the credential comes from\n"+
				"MCP_OAUTH2_TOKEN_URL, MCP_OAUTH2_CLIENT_ID and MCP_OAUTH2_CLIENT_SECRET")
	}
}

// text returns the policy's name and bytes.
func (s *source) text() (name string, b []byte, err error) {
	if s.file != "" && len(s.quick) > 0 {
		return "", nil, errors.New("both -c and --upstream were given; use one")
	}
	if s.file != "" {
		b, err := s.read()
		if err != nil {
			return "", nil, fmt.Errorf("reading the policy: %w; give the path of an existing file with -c", err)
		}
		return s.file, b, nil
	}
	if len(s.quick) == 0 {
		return "", nil, errors.New("no policy; give one with -c FILE")
	}
	ups := map[string]string{}
	for _, q := range s.quick {
		name, url, ok := strings.Cut(q, "=")
		if !ok || ups[name] != "" {
			return "", nil, fmt.Errorf("--upstream %q: want NAME=URL, each name once, such as tools=https://tools.company.com/mcp", q)
		}
		ups[name] = url
	}
	return "--upstream", []byte(policy.QuickText(ups, quickSocket())), nil
}

// read reads the policy file. At the start it may be a pipe, such as <(…) of a
// shell; a reload must not wait for anybody.
func (s *source) read() ([]byte, error) {
	if s.again {
		return watchfile.Read(s.file, maxPolicy)
	}
	f, err := os.Open(s.file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err == nil && len(b) > maxPolicy {
		err = fmt.Errorf("%s has more than %d bytes", s.file, maxPolicy)
	}
	return b, err
}

// load reads and checks the policy.
func (s *source) load() (*policy.Set, error) {
	s.hash = ""
	name, b, err := s.text()
	if err != nil {
		return nil, err
	}
	s.hash = digest(b)
	return policy.Parse(name, b, s.st.env)
}

// quickSocket is a socket that any user may make: the default needs /run.
func quickSocket() string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if dir == "" {
		dir = os.TempDir()
	}
	return fmt.Sprintf("unix://%s/envoy-mcp-auth-%d.sock", dir, os.Getuid())
}

// format is the -o flag.
type format string

func (f *format) bind(cmd *cobra.Command) {
	*f = "text"
	cmd.Flags().StringVarP((*string)(f), "output", "o", "text", "output format: text or json")
	words(cmd, "output", "text", "json")
}

// words makes the shell complete the values of a flag.
func words(cmd *cobra.Command, flag string, values ...string) {
	// It fails for a flag that is not there.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// print writes v as JSON, or runs text.
func (f *format) print(w io.Writer, v any, text func() error) error {
	switch *f {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "text":
		return text()
	}
	return fmt.Errorf("output format %q: want text or json", string(*f))
}

func newVersion(st streams) *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  envoy-mcp-auth version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := map[string]string{"version": versionString(), "go": goVersion()}
			return f.print(st.out, v, func() error {
				_, err := fmt.Fprintf(st.out, "envoy-mcp-auth %s (%s)\n", v["version"], v["go"])
				return err
			})
		},
	}
	f.bind(cmd)
	return cmd
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func goVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.GoVersion
	}
	return "go"
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
