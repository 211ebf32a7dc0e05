package policy

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// FuzzParse: no input crashes, and no fault shows the value of a variable (S4).
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			f.Add(string(readFile(f, file)))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, canary) {
			t.Skip("the file itself holds the canary")
		}
		set, err := Parse("f", []byte(text), testEnv)
		switch {
		case (set == nil) == (err == nil):
			t.Fatalf("want a Set or an error, got %v and %v", set, err)
		case err != nil:
			if strings.Contains(err.Error(), canary) {
				t.Fatalf("the error shows the value of a variable: %v", err)
			}
			return
		}
		for _, w := range set.Warnings {
			if strings.Contains(w.String(), canary) {
				t.Fatalf("the warning shows the value of a variable: %v", w)
			}
		}
		for _, u := range set.Upstreams {
			if len(u.Callers) == 0 {
				t.Fatalf("S2: upstream %q without callers", u.Name)
			}
		}
	})
}

// bigPolicy is a policy with n upstreams, each with blocks of its own.
func bigPolicy(n int) []byte {
	var b strings.Builder
	b.WriteString("version: 1\ncallers:\n  ci: {mtls: {san: \"spiffe://company/ci\"}}\ndefaults:\n  callers: [ci]\n" +
		"  credential: {oauth2: {token_url: https://auth.example/token, client_id: id, client_secret: \"${SECRET}\"}}\nupstreams:\n")
	for i := range n {
		fmt.Fprintf(&b, "  upstream-%d:\n    url: https://mcp-%d.company.example/mcp\n    cookies: {allow: [session_id, user_context]}\n"+
			"    headers: {remove: [x-internal]}\n    origins: {allow: [\"https://app-%d.example\"]}\n    envoy: {route: \"r%d-*\"}\n", i, i, i, i)
	}
	return []byte(b.String())
}

// TestManyUpstreams: the time to read 10,000 upstreams does not grow with their
// square, which would take many minutes. BenchmarkParse has the figures.
func TestManyUpstreams(t *testing.T) {
	t.Parallel()
	text := bigPolicy(10_000)
	start := time.Now()
	set, err := Parse("many", text, testEnv)
	if err != nil {
		t.Fatal(err)
	}
	const limit = time.Minute
	if took := time.Since(start); len(set.Upstreams) != 10_000 || took > limit {
		t.Errorf("want 10,000 upstreams in less than %s, got %d in %s", limit, len(set.Upstreams), took)
	}
}

// TestLargeFiles: the size cap holds, and what is below it is not read in quadratic time.
func TestLargeFiles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ text, want string }{
		"too large":    {strings.Repeat("#", maxFile+1), "want at most 16777216 bytes"},
		"open braces":  {"a: " + strings.Repeat("${", 1<<20), "unknown key"},
		"named braces": {"version: \"" + strings.Repeat("${A", 1<<20) + "\"", "want a whole number"},
		"dollars":      {"server: {listen: \"" + strings.Repeat("$", 1<<20) + "\"}", "want unix:///PATH"},
		"deep":         {strings.Repeat("[", 1<<20), "not YAML"},
		"long key":     {"k: 1\n" + strings.Repeat("k", 1000) + ": 1", "unknown key"},
		"many faults":  {strings.Repeat("callers: 1\n", 20_000), "want a value"},
		"control":      {"version: \x00", "not YAML"},
		"not utf-8":    {"version: \xff", "not YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse("f", []byte(c.text), testEnv)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want an error with %q, got %.300v", c.want, err)
			}
			if n := len(strings.SplitN(err.Error(), "\n", 2)[0]); n > 1000 {
				t.Errorf("want a short line, got %d bytes", n)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	text := bigPolicy(10_000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse("many", text, testEnv); err != nil {
			b.Fatal(err)
		}
	}
}
