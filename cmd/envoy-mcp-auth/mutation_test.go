package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// mounted is a policy file as kubelet mounts one: a link to a link to a directory
// that is replaced whole.
type mounted struct {
	dir string
	n   int
}

func (m *mounted) file() string { return filepath.Join(m.dir, "policy.yaml") }

// swap puts a new text in place at once.
func (m *mounted) swap(t *testing.T, text []byte) {
	t.Helper()
	m.n++
	version, link := fmt.Sprint("..v", m.n), filepath.Join(m.dir, "..data")
	steps := []error{
		os.Mkdir(filepath.Join(m.dir, version), 0o700),
		os.WriteFile(filepath.Join(m.dir, version, "policy.yaml"), text, 0o600),
		os.Symlink(version, link+"_tmp"),
		os.Rename(link+"_tmp", link),
		os.RemoveAll(filepath.Join(m.dir, fmt.Sprint("..v", m.n-1))),
	}
	if m.n == 1 {
		steps = append(steps, os.Symlink("..data/policy.yaml", m.file()))
	}
	for _, err := range steps {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// mutate spoils a text: half written, a byte turned, lines lost, doubled or moved.
func mutate(dice *rand.Rand, text []byte) []byte {
	out := slices.Clone(text)
	lines := strings.SplitAfter(string(text), "\n")
	i, j := dice.IntN(len(lines)), dice.IntN(len(lines))
	switch dice.IntN(7) {
	case 0:
		return out[:dice.IntN(len(out))]
	case 1:
		out[dice.IntN(len(out))] ^= 1 << dice.IntN(8)
	case 2:
		return []byte(strings.Join(slices.Delete(lines, i, i+1), ""))
	case 3:
		return []byte(strings.Join(slices.Insert(lines, i, lines[j]), ""))
	case 4:
		lines[i], lines[j] = lines[j], lines[i]
		return []byte(strings.Join(lines, ""))
	case 5:
		at := dice.IntN(len(out))
		return slices.Insert(out, at, []byte("\x00\t- {")[dice.IntN(5)])
	case 6:
		clear(out[dice.IntN(len(out)):]) // a file system that lost the blocks
	}
	return out
}

// TestO8_RandomMutations: of a thousand spoiled policy files each is either put in
// force whole or changes nothing at all, and is told of; a good one is taken
// after any of them.
func TestO8_RandomMutations(t *testing.T) {
	m := &mounted{dir: t.TempDir()}
	good := []byte(servePolicy("unix://"+filepath.Join(m.dir, "s"), freeAddress(t), "http://127.0.0.1:1/token") +
		"  other: {url: http://127.0.0.1:2, callers: [anyone], credential: none}\n")
	m.swap(t, good)
	env := func(name string) (string, bool) { return "canary-secret", name == "SECRET" || name == "GOGC" }
	var log lockedBuffer
	ctx, cancel := context.WithCancel(t.Context())
	a, err := newApp(ctx, &source{file: m.file(), st: streams{env: env}}, zerolog.New(&log), newLogQueue(&log), false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	defer cancel()
	dice := rand.New(rand.NewPCG(5, 6)) // the same each time
	taken, kept := 0, 0
	try := func(text []byte) {
		before, sources := a.reload.set.Load(), a.reload.sources()
		m.swap(t, text)
		if !a.reload.look() {
			t.Fatal("the swap was not seen")
		}
		a.reload.attempt(ctx)
		failed := a.reload.state.Load().Error
		if failed == "" {
			taken++
			want, err := policy.Parse(m.file(), text, env)
			if err != nil || cmp.Diff(names(want), names(a.reload.set.Load())) != "" {
				t.Fatalf("want all of it in force, got %v, %v of\n%s", err, names(a.reload.set.Load()), text)
			}
			return
		}
		kept++
		if a.reload.set.Load() != before || !slices.Equal(a.reload.sources(), sources) {
			t.Fatalf("a part of it is in force: %s\n%s", failed, text)
		}
	}
	for range 1000 {
		try(mutate(dice, good))
		if dice.IntN(10) == 0 {
			if try(good); a.reload.state.Load().Error != "" {
				t.Fatalf("a good file is not taken: %s", a.reload.state.Load().Error)
			}
		}
	}
	try(nil)
	if a.reload.state.Load().Error == "" {
		t.Error("want an empty file refused")
	}
	if strings.Contains(log.String(), "canary") {
		t.Error("a secret is in the log")
	}
	if taken < 100 || kept < 500 {
		t.Errorf("want many of both, got %d taken and %d kept out", taken, kept)
	}
}

// names says what a policy serves.
func names(s *policy.Set) []string {
	out := make([]string, 0, len(s.Upstreams))
	for _, up := range s.Upstreams {
		out = append(out, up.Name+" "+up.URL)
	}
	return out
}

// TestO8_LostAndFound: a file that is gone, or that may not be read, is a bad one;
// its return is seen within the two seconds that two looks take.
func TestO8_LostAndFound(t *testing.T) {
	r := start(t, servePolicy)
	good, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	for what, lose := range map[string]func() error{
		"gone":        func() error { return os.Remove(r.policy) },
		"a directory": func() error { _ = os.Remove(r.policy); return os.Mkdir(r.policy, 0o700) },
		"unreadable": func() error {
			if os.Geteuid() == 0 {
				_ = os.Remove(r.policy)
				return os.Symlink("/proc/self/mem", r.policy) // root may read all else
			}
			return os.Chmod(r.policy, 0)
		},
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 0")
		if got := r.get(t, "/status"); !strings.Contains(got, `"name": "tools"`) {
			t.Errorf("%s: want the last good policy in force, got %s", what, got)
		}
		if err := os.RemoveAll(r.policy); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		r.write(t, string(good))
		r.until(t, "/metrics", "mcp_auth_config_last_reload_successful 1")
		t.Logf("%s: in force %s after its return", what, time.Since(back).Round(time.Millisecond))
	}
}
