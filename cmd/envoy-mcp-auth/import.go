package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/litellmconfig"
)

func newImport(st streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "import",
		Short:   "Write a policy from the configuration of another program",
		Example: "  envoy-mcp-auth import litellm config.yaml -o policy.yaml --litellm-out litellm.yaml --key-file litellm.key",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImportLiteLLM(st))
	return cmd
}

// importer is what the flags of import litellm say.
type importer struct {
	st                            streams
	opt                           litellmconfig.Options
	out, litellm, keyEnv, keyPath string
	force, strict                 bool
}

func newImportLiteLLM(st streams) *cobra.Command {
	im := importer{st: st}
	cmd := &cobra.Command{
		Use:   "litellm CONFIG.yaml",
		Short: "Write a policy from LiteLLM's config.yaml",
		Long: "Reads the mcp_servers of a LiteLLM configuration and writes the policy that lends each server what LiteLLM\n" +
			"sent it. With --litellm-out it also writes LiteLLM's new configuration: the servers by the way through Envoy,\n" +
			"without their credentials. A secret that the file holds is not copied: the policy names a variable, and the\n" +
			"report on standard error says which one to put it in. The report also names, with file and line, what was not\n" +
			"carried over, why, and what to do; a server that cannot be behind Envoy stays as it was.\n\n" +
			"The exit status is 0 when a policy was written; with --strict it is 1 when anything was not carried over.",
		Example: "  envoy-mcp-auth import litellm config.yaml -o policy.yaml --litellm-out litellm.yaml --key-file litellm.key\n" +
			"  envoy-mcp-auth render envoy -c policy.yaml -o envoy.yaml\n" +
			"  envoy-mcp-auth serve -c policy.yaml & envoy -c envoy.yaml &\n" +
			"  MCP_AUTH_KEY_LITELLM=$(cat litellm.key) litellm --config litellm.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("want the path of one LiteLLM configuration, got %s; write import litellm CONFIG.yaml", plural(len(args), "argument"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return im.run(args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&im.out, "output", "o", "", "write the policy to this file instead of standard output")
	f.StringVar(&im.litellm, "litellm-out", "", "write LiteLLM's new configuration to this file, for its user alone (mode 0600)")
	f.StringVar(&im.keyEnv, "key-env", "", "the variable with the key by which LiteLLM is known; the policy gets its SHA-256")
	f.StringVar(&im.keyPath, "key-file", "", "the file with that key; when there is none, a new key is written to it (mode 0600)")
	f.StringArrayVar(&im.opt.Cookies, "cookie", nil, "the name of a cookie that goes on to servers with Cookie in extra_headers; may be repeated")
	f.StringVar(&im.opt.Listen, "listen", "", "server.listen of the policy")
	f.StringVar(&im.opt.EnvoyListen, "envoy-listen", "", "envoy.listen of the policy")
	f.StringVar(&im.opt.EnvoyURL, "envoy-url", "", "envoy.public_url of the policy: where LiteLLM reaches Envoy")
	f.BoolVar(&im.force, "force", false, "overwrite files that exist")
	f.BoolVar(&im.strict, "strict", false, "exit with status 1 when anything was not carried over")
	return cmd
}

func (im *importer) run(path string) error {
	if err := im.sane(path); err != nil {
		return err
	}
	b, err := readLimited(path)
	if err != nil {
		return fmt.Errorf("reading LiteLLM's configuration: %w; give the path of an existing file", err)
	}
	if im.opt.KeySum, err = im.keySum(); err != nil {
		return err
	}
	im.opt.Env = im.st.env
	res, err := litellmconfig.Convert(path, b, im.opt)
	if err != nil {
		for _, n := range res.Notes {
			say(im.st.err, "%s\n", n)
		}
		return fmt.Errorf("importing %w", err)
	}
	if im.litellm != "" {
		if err := im.write(im.litellm, res.LiteLLM, 0o600); err != nil {
			return err
		}
	}
	if im.out == "" || im.out == "-" {
		if _, err := im.st.out.Write(res.Policy); err != nil {
			return err
		}
	} else if err := im.write(im.out, res.Policy, 0o644); err != nil {
		return err
	}
	im.report(path, res)
	if im.strict && res.Lost() {
		return errFound
	}
	return nil
}

// sane refuses what would overwrite something before anything is done.
func (im *importer) sane(path string) error {
	if im.keyEnv != "" && im.keyPath != "" {
		return errors.New("both --key-env and --key-file were given; use one")
	}
	seen := map[string]string{}
	for _, f := range []struct{ flag, path string }{{"the configuration to read", path}, {"-o", im.out}, {"--litellm-out", im.litellm}, {"--key-file", im.keyPath}} {
		if f.path == "" || f.path == "-" {
			continue
		}
		id := f.path
		if target, err := filepath.EvalSymlinks(id); err == nil {
			id = target
		}
		if abs, err := filepath.Abs(id); err == nil {
			id = abs
		}
		if other, twice := seen[id]; twice {
			return fmt.Errorf("%s and %s are the same file, %s; give each its own", other, f.flag, f.path)
		}
		seen[id] = f.flag
		if _, err := os.Lstat(f.path); err == nil && !im.force && (f.flag == "-o" || f.flag == "--litellm-out") {
			return fmt.Errorf("%s %s exists, and is not overwritten; give another path, or --force", f.flag, f.path)
		}
	}
	return nil
}

// keySum is the SHA-256 of the key by which LiteLLM is known; empty when nothing
// is known of it.
func (im *importer) keySum() (string, error) {
	var key string
	switch {
	case im.keyEnv != "":
		v, ok := im.st.env(im.keyEnv)
		if key = strings.TrimRight(v, "\r\n"); !ok || key == "" {
			return "", fmt.Errorf("--key-env: the variable %s is not set or empty; export a key there: openssl rand -hex 32", im.keyEnv)
		}
	case im.keyPath != "":
		var err error
		if key, err = keyFile(im.keyPath); err != nil {
			return "", fmt.Errorf("--key-file: %w", err)
		}
	default:
		return "", nil
	}
	if len(key) < 16 || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("the key by which LiteLLM is known must be at least 16 visible ASCII characters (what it is, is not shown); make one: openssl rand -hex 32")
	}
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:]), nil
}

// keyFile reads the key, or makes one that no other user can read.
func keyFile(path string) (string, error) {
	b, err := readLimited(path)
	if err == nil {
		return strings.TrimRight(string(b), "\r\n"), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // it never fails
	key := hex.EncodeToString(raw)
	return key, create(path, []byte(key+"\n"), 0o600)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, maxPolicy+1))
	if err == nil && len(b) > maxPolicy {
		err = fmt.Errorf("%s has more than %d bytes", path, maxPolicy)
	}
	return b, err
}

// write puts b into a new file, or with --force into one that is there.
func (im *importer) write(path string, b []byte, mode fs.FileMode) error {
	err := create(path, b, mode)
	if info, statErr := os.Lstat(path); errors.Is(err, fs.ErrExist) && im.force && statErr == nil {
		if !info.Mode().IsRegular() {
			return fmt.Errorf("writing: %s is no file; give the path of one", path)
		}
		if err = os.Remove(path); err == nil {
			err = create(path, b, mode)
		}
	}
	if err != nil {
		return fmt.Errorf("writing: %w; give the path of a file in a directory that this user may write", err)
	}
	return nil
}

// create makes a file that was not there.
func create(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode) //nolint:gosec // the operator names the file
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// report says what a person must know and do.
func (im *importer) report(path string, res *litellmconfig.Result) {
	w := im.st.err
	for _, n := range res.Notes {
		say(w, "%s\n", n)
	}
	for i, forLiteLLM := range []bool{false, true} {
		first := true
		for j := range res.Variables {
			v := &res.Variables[j]
			if v.ForLiteLLM != forLiteLLM {
				continue
			}
			if first {
				say(w, "%s\n", []string{"Set where envoy-mcp-auth runs:", "Set where LiteLLM runs:"}[i])
				first = false
			}
			say(w, "  %s: %s\n", v.Name, v.About(path))
		}
		if i == 0 && im.opt.KeySum == "" {
			say(w, "  %s: the SHA-256 of LiteLLM's key; the policy says how\n", litellmconfig.SumVariable)
		}
		if forLiteLLM {
			if first {
				say(w, "Set where LiteLLM runs:\n")
			}
			say(w, "  %s: %s\n", litellmconfig.KeyVariable, im.keyHint())
		}
	}
	say(w, "%s behind Envoy, %d called directly as before\n", plural(res.Servers, "server"), res.Direct)
}

func (im *importer) keyHint() string {
	switch {
	case im.keyPath != "":
		return "$(cat " + im.keyPath + ")"
	case im.keyEnv != "":
		return "the key in " + im.keyEnv
	}
	return "its key; the policy says how to make one"
}
