package conformance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// verdicts are the statuses of each check of a run. A check that comes several
// times in a scenario is told apart by its number.
type verdicts map[string]string

// passed counts the checks that succeeded.
func (v verdicts) passed() (n int) {
	for _, status := range v {
		if status == "SUCCESS" {
			n++
		}
	}
	return n
}

// differ lists the checks that are not the same in both.
func differ(direct, through verdicts) (out []string) {
	all := maps.Clone(direct)
	maps.Copy(all, through)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if d, p := direct[name], through[name]; d != p {
			out = append(out, fmt.Sprintf("%s: direct %q, through the proxy %q", name, d, p))
		}
	}
	return out
}

// run runs the suite and reads what it says. A check that is scored and fails, or
// a client that does, fails the test.
func (p parts) run(t *testing.T, env []string, args ...string) (verdicts, string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), p.suite, append(args, "--timeout", "60000", "--output-dir", dir)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Errorf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	v := verdicts{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "checks.json" {
			return err
		}
		return v.read(path, strings.TrimPrefix(filepath.Dir(path), dir+"/"))
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(v) == 0 {
		t.Fatalf("want checks, got none\n%s", said.String())
	}
	return v, said.String()
}

// stamp is what the suite puts behind the name of a scenario.
var stamp = regexp.MustCompile(`-\d{4}-\d\d-\d\dT[0-9-]+Z$`)

func (v verdicts) read(path, scenario string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var checks []struct{ ID, Status string }
	if err := json.Unmarshal(b, &checks); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	seen := map[string]int{}
	for _, c := range checks {
		if c.Status == "INFO" {
			continue // a note of the traffic, as many as there were messages
		}
		seen[c.ID]++
		v[fmt.Sprintf("%s: %s %d", stamp.ReplaceAllString(scenario, ""), c.ID, seen[c.ID])] = c.Status
	}
	return nil
}

// serve runs the SDK's conformance server.
func (p parts) serve(t *testing.T, address string, stateless bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.server, "-http="+address, fmt.Sprintf("-stateless=%t", stateless))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address); err == nil {
			_ = conn.Close()
			return
		}
	}
	t.Fatalf("the conformance server does not listen on %s", address)
}
