package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/audit"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/watchfile"
)

// maxKey bounds a key file, as it bounds every secret.
const maxKey = 64 << 10

func newAudit(st streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Look into the record of what was decided",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newAuditVerify(st))
	return cmd
}

// auditKeys is where verify gets keys from.
type auditKeys struct{ files, variables []string }

func newAuditVerify(st streams) *cobra.Command {
	var keys auditKeys
	var head string
	var f format
	cmd := &cobra.Command{
		Use:   "verify FILE…",
		Short: "Find the first line of an audit log that is not as it was written",
		Long: "Walks the hash chain through the files, in the order of the chain, and names the first line that was\n" +
			"changed, removed, moved or added. A file that is being written may be among them. What was cut off at\n" +
			"the end shows only against a line that was known before: --head takes seq and head of audit in /status.\n" +
			"The exit status is 0 when every line is as it was written, else 1.",
		Example: "  envoy-mcp-auth audit verify /var/log/envoy-mcp-auth/audit.jsonl*\n" +
			"  envoy-mcp-auth audit verify --key-file audit.key --head 1204:hmac-sha256:1f0c… audit.jsonl",
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, files []string) error {
			files = slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, ".lock") }) // FILE.lock matches FILE* too
			cfg := audit.VerifyConfig{Head: head, Read: new(atomic.Int64)}
			var err error
			if cfg.Keys, err = keys.read(st.env); err != nil {
				return err
			}
			stop := tellBytes(st.err, cfg.Read, files)
			report, err := audit.Verify(cfg, files)
			stop()
			if err != nil {
				return err
			}
			if err := f.print(st.out, report, func() error { return printVerified(st.out, report) }); err != nil {
				return err
			}
			if !report.OK {
				return errFound
			}
			return nil
		},
	}
	f.bind(cmd)
	cmd.Flags().StringArrayVar(&keys.files, "key-file", nil, "file with the key of audit.key; give each key that was in use")
	cmd.Flags().StringArrayVar(&keys.variables, "key-env", nil, "environment variable with such a key")
	cmd.Flags().StringVar(&head, "head", "", "SEQ:HASH of a line that must be there")
	return cmd
}

// read returns the keys, cut as those of a policy are.
func (k *auditKeys) read(env func(string) (string, bool)) ([][]byte, error) {
	var all [][]byte
	for _, name := range k.files {
		b, err := watchfile.Read(name, maxKey)
		if err != nil {
			return nil, fmt.Errorf("--key-file: %w", err)
		}
		all = append(all, b)
	}
	for _, name := range k.variables {
		v, ok := env(name)
		if !ok {
			return nil, fmt.Errorf("--key-env: environment variable %s is not set", name)
		}
		all = append(all, []byte(v))
	}
	for i := range all {
		all[i] = bytes.TrimSuffix(bytes.TrimSuffix(all[i], []byte{'\n'}), []byte{'\r'})
		if len(all[i]) == 0 {
			return nil, fmt.Errorf("an audit key is empty; give the one of audit.key in the policy")
		}
	}
	return all, nil
}

// tellBytes says on the error stream how far a long walk is, until it is stopped.
func tellBytes(w io.Writer, read *atomic.Int64, files []string) (stop func()) {
	var total int64
	for _, name := range files {
		if info, err := os.Stat(name); err == nil {
			total += info.Size()
		}
	}
	ended, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(progressAfter)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				say(w, "%d of %d MiB read\n", read.Load()>>20, total>>20)
			}
		}
	}()
	return func() { close(ended); <-gone }
}

func printVerified(w io.Writer, r *audit.Report) error {
	var b strings.Builder
	for _, f := range r.Files {
		if f.Lines == 0 {
			fmt.Fprintf(&b, "%s: no sound line\n", f.File)
			continue
		}
		fmt.Fprintf(&b, "%s: %s, %d to %d\n", f.File, plural64(f.Lines, "line"), f.First, f.Last)
	}
	if r.Dropped+r.Recovered+r.Withdrawn > 0 {
		fmt.Fprintf(&b, "the log says of itself: %s not written, %s cut off, %s written too late\n",
			plural64(r.Dropped, "line"), plural64(r.Recovered, "unfinished line"), plural64(r.Withdrawn, "decision"))
	}
	switch {
	case r.Unfinished > 0:
		fmt.Fprintf(&b, "%s after the last line: it is being written, or its writer was killed\n", plural64(uint64(r.Unfinished), "byte"))
	case r.OK && r.Continues:
		b.WriteString("the log goes on in a file that was not given\n")
	case r.OK && !r.Closed:
		b.WriteString("not closed: it is still written to, or its writer was killed\n")
	}
	if r.OK {
		kind := "without a key: it shows every change but by somebody who makes all hashes anew"
		if r.Keyed {
			kind = "with a key"
		}
		fmt.Fprintf(&b, "ok: %s, unbroken from %d to %d, %s\nhead: %d:%s\n", plural64(r.Lines, "line"), r.First, r.Last, kind, r.Last, r.Head)
		if r.First > 1 {
			fmt.Fprintf(&b, "the %s before were not given\n", plural64(r.First-1, "line"))
		}
	} else {
		fmt.Fprintf(&b, "broken: %s\n", r.Broken)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func plural64(n uint64, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
