package envoy_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

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
		upstream("root", "http://127.0.0.1:9000"),
		upstream("open_server", "https://open-mcp.company.com/mcp", withoutCredential),
		upstream("legacy-sse", "http://127.0.0.1:9001/sse", withListen("127.0.0.1:10001")),
	)
	hosts := set(upstream("one", "https://one.company.com/mcp", withMTLS), upstream("two", "https://10.1.2.3:8443/mcp/"))
	hosts.Envoy.ByHost, hosts.Envoy.Host = true, "mcp.company.com"
	hosts.Envoy.TLS = &policy.TLSSpec{Certificate: "tls.crt", PrivateKey: "tls.key", ClientCA: "ca.crt"}
	hosts.Envoy.PublicURL = "https://mcp.company.com:10000"
	hosts.Server.Listen = "auth.company.com:9440"
	hosts.Server.TLS = &policy.TLSSpec{Certificate: "tls.crt", PrivateKey: "tls.key", ClientCA: "ca.crt"}
	return map[string]*policy.Set{"plain": plain, "hosts": hosts}
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
