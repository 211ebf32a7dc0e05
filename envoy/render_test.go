package envoy_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/internal/realenvoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the golden files")

// rendered are the policies whose configuration is kept under testdata.
func rendered() map[string]*policy.Set {
	plain := set(
		upstream("protected_server", "https://protected-mcp.company.com/mcp"),
		upstream("bare", "http://127.0.0.1:9000"),
		upstream("open_server", "https://open-mcp.company.com/mcp", withoutCredential),
		upstream("legacy-sse", "http://127.0.0.1:9001/sse", withListen("127.0.0.1:10001")),
	)
	hosts := set(upstream("one", "https://one.company.com/mcp", withMTLS), upstream("two", "https://10.1.2.3:8443/mcp/"))
	hosts.Envoy.ByHost, hosts.Envoy.Host = true, "mcp.company.com"
	hosts.Envoy.TLS = &policy.TLSSpec{Certificate: "tls.crt", PrivateKey: "tls.key", ClientCA: "ca.crt"}
	hosts.Envoy.PublicURL = "https://mcp.company.com:10000"
	hosts.Server.Listen = "auth.company.com:9440"
	hosts.Server.TLS = &policy.TLSSpec{Certificate: "tls.crt", PrivateKey: "tls.key", ClientCA: "ca.crt"}
	tools := set(
		upstream("read", "https://read.company.com/mcp", withTools(policy.ProofBody, 4<<20)),
		upstream("small", "http://127.0.0.1:9000", withTools(policy.ProofBody, 64<<10), withoutCredential, withAnswers),
		upstream("filtered", "https://filtered.company.com/mcp", withTools(policy.ProofMCPFilter, 1<<20)),
		upstream("modern", "https://modern.company.com/mcp", withTools(policy.ProofHeaders, 0)),
		upstream("own", "https://own.company.com/mcp", withTools(policy.ProofBody, 1<<20), withListen("127.0.0.1:10001")),
	)
	return map[string]*policy.Set{"plain": plain, "hosts": hosts, "tools": tools}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run go test ./envoy -update", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got); run go test ./envoy -update if this is meant:\n%s", path, diff)
	}
}

func render(t *testing.T, s *policy.Set, opt envoy.Options) []byte {
	t.Helper()
	b, err := envoy.Render(s, opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRenderGolden(t *testing.T) {
	for name, s := range rendered() {
		t.Run(name, func(t *testing.T) {
			got := render(t, s, envoy.Options{})
			golden(t, name+".golden.yaml", got)
			for range 20 { // protojson is random on purpose
				if again := render(t, s, envoy.Options{}); string(again) != string(got) {
					t.Fatal("two renderings of one policy differ")
				}
			}
		})
	}
}

func TestRenderedAcceptedByEnvoy(t *testing.T) {
	binary := realenvoy.Require(t)
	for name, s := range rendered() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			writePairs(t, dir)
			b := render(t, s, envoy.Options{Admin: "127.0.0.1:9901", SystemCA: filepath.Join(dir, "ca.crt")})
			file := filepath.Join(dir, "envoy.yaml")
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := realenvoy.Validate(t.Context(), binary, file); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// parsed is the policy of a file, as the command line has it.
func parsed(t *testing.T, path string) *policy.Set {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := policy.Parse(path, b, func(string) (string, bool) { return "x", true })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRenderOfAParsedPolicy goes the way of the command line: file, Set, bootstrap,
// and nothing to find in it.
func TestRenderOfAParsedPolicy(t *testing.T) {
	s := parsed(t, "../policy/testdata/good/design.yaml")
	for _, f := range check(t, render(t, s, envoy.Options{}), s) {
		t.Error(f)
	}
	if _, err := envoy.RenderLiteLLM(s); err != nil {
		t.Error(err)
	}
}

func TestRenderRefuses(t *testing.T) {
	late := set(upstream("a", "https://a.company.com/mcp"))
	late.Server.Deadline = 2 * time.Second
	badListen := set()
	badListen.Envoy.Listen = "10000"
	cases := map[string]*policy.Set{
		`upstream "a": url "https://a.company.com/mcp?x=1": want no query`:                    set(upstream("a", "https://a.company.com/mcp?x=1")),
		`upstream "a": url "https://a.company.com/a//b": want a path without empty`:           set(upstream("a", "https://a.company.com/a//b")),
		`upstream "a": want an http or https url`:                                             set(upstream("a", "ftp://a.company.com")),
		`server.deadline: want less than 2s`:                                                  late,
		`envoy.listen: want HOST:PORT or unix:///PATH, got "10000"`:                           badListen,
		`upstream "b": cluster "a" is already that of upstream "a"`:                           set(upstream("a", "http://127.0.0.1:1"), upstream("b", "http://127.0.0.1:2", func(u *policy.Upstream) { u.Cluster = "a" })),
		`upstream "envoy_mcp_auth": cluster "envoy_mcp_auth" is already that of this program`: set(upstream("envoy_mcp_auth", "http://127.0.0.1:1")),
	}
	for want, s := range cases {
		if _, err := envoy.Render(s, envoy.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func BenchmarkRender1000(b *testing.B) {
	var ups []*policy.Upstream
	for i := range 1000 {
		ups = append(ups, upstream(fmt.Sprintf("server_%d", i), fmt.Sprintf("https://s%d.company.com/mcp", i)))
	}
	s := set(ups...)
	out, err := envoy.Render(s, envoy.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("render", func(b *testing.B) {
		for b.Loop() {
			_, _ = envoy.Render(s, envoy.Options{})
		}
	})
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			_, _ = envoy.Check("", out, s)
		}
	})
}
