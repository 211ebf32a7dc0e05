package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write attach.yaml and attach-patched.yaml anew, and with $EGCTL the translations")

// variants are the rendered files, and their translations in testdata.
func variants() map[string]string {
	return map[string]string{"attach.yaml": "testdata/xds.yaml", "attach-patched.yaml": "testdata/xds-patched.yaml"}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// held compares a file with what it should be, or writes it.
func held(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(read(t, name)), string(got)); diff != "" {
		t.Errorf("%s (-update writes it; then run make e2e-gateway), -want +got:\n%s", name, diff)
	}
}

func load(t *testing.T) *policy.Set {
	t.Helper()
	set, err := policy.Parse("policy.yaml", read(t, "policy.yaml"), func(name string) (string, bool) {
		return "s3cret", strings.HasSuffix(name, "_CLIENT_SECRET")
	})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestRendered(t *testing.T) {
	for name := range variants() {
		opt := envoy.GatewayOptions{Resources: read(t, "gateway.yaml"), Patch: name == "attach-patched.yaml"}
		opt.Processor = "mcp-envoy-mcp-auth.agents.svc.cluster.local:9440"
		got, err := envoy.RenderGateway(load(t), opt)
		if err != nil {
			t.Fatal(err)
		}
		held(t, name, got)
	}
}

// applied is all that Envoy Gateway is given.
func applied(t *testing.T, name string) []byte {
	t.Helper()
	return bytes.Join([][]byte{read(t, "gateway.yaml"), read(t, name), read(t, "testdata/secret.yaml")}, []byte("\n---\n"))
}

// TestTranslated: Envoy Gateway's own validation takes the files, and its translation
// of them is what the tests of the real Envoy run with.
func TestTranslated(t *testing.T) {
	egctl := os.Getenv("EGCTL")
	if egctl == "" {
		t.Skip("needs egctl: run make e2e-gateway")
	}
	for name, golden := range variants() {
		cmd := exec.CommandContext(t.Context(), egctl, "x", "translate", "--from", "gateway-api", "--to", "xds", "-f", "-")
		cmd.Stdin = bytes.NewReader(applied(t, name))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		held(t, golden, append(stamp(t, name), out...))
	}
}

// stamp says of which files a translation is.
func stamp(t *testing.T, name string) []byte {
	t.Helper()
	sum := sha256.Sum256(applied(t, name))
	return []byte("# egctl 1.9.1, of files with SHA-256 " + hex.EncodeToString(sum[:]) + "\n")
}

// TestTranslationIsOfTheseFiles needs no egctl.
func TestTranslationIsOfTheseFiles(t *testing.T) {
	for name, golden := range variants() {
		if !bytes.HasPrefix(read(t, golden), stamp(t, name)) {
			t.Errorf("%s is of other files than gateway.yaml and %s; run make e2e-gateway WRITE=1", golden, name)
		}
	}
}

func TestCheckTakesTheTranslation(t *testing.T) {
	for _, golden := range variants() {
		for with, set := range map[string]*policy.Set{"with the policy": load(t), "without": nil} {
			found, err := envoy.Check(golden, read(t, golden), set)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				t.Errorf("%s: %s", with, f)
			}
		}
	}
}

// TestCheckNamesWhatIsUnsafe: each is one change of an object that Envoy Gateway takes.
func TestCheckNamesWhatIsUnsafe(t *testing.T) {
	extension := "envoy.filters.http.ext_proc/envoyextensionpolicy/agents/envoy-mcp-auth-crm/extproc/0:\n"
	for name, tc := range map[string]struct{ file, old, changed, want string }{
		"failOpen: true":                     {"xds.yaml", "allowModeOverride: true\n", "allowModeOverride: true\n                      failureModeAllow: true\n", "failure-mode-allow"},
		"no EnvoyExtensionPolicy on a route": {"xds.yaml", "                " + extension, "                x/" + extension, "challenge-relayed no-attempt-count no-filter"},
		"no SecurityPolicy on a route":       {"xds.yaml", "onNoMatch:\n                        action:\n                          name: default\n", "onNoMatch:\n                        none:\n                          name: default\n", "no-guard"},
		"another upstream's mark":            {"xds.yaml", "exact: crm\n", "exact: wiki\n", "guard-other-upstream"},
		"the default messageTimeout":         {"xds.yaml", "messageTimeout: 2s\n", "messageTimeout: 0.200s\n", "message-timeout"},
		"no metadata to read":                {"xds.yaml", "forwardingNamespaces:\n", "others:\n", "no-forwarding-namespace"},
		"the default request timeout":        {"xds.yaml", "                timeout: 0s\n", "", "route-timeout"},
		"slashes let through":                {"xds.yaml", "pathWithEscapedSlashesAction: REJECT_REQUEST", "pathWithEscapedSlashesAction: KEEP_UNCHANGED", "escaped-slashes"},
		"no access log":                      {"xds.yaml", "clusterName: accesslog_als_0_0", "clusterName: elsewhere", "no-outcome-log"},
		"the caller's own attempt count":     {"xds.yaml", "                      - remove: x-envoy-attempt-count\n", "", "no-attempt-count"},
		"the answer's 401 passes":            {"xds.yaml", `exact: "401"`, `exact: "403"`, "rejection-relayed"},
		"no identity":                        {"xds.yaml", "- xds.route_name", "- request.path", "no-identity"},
		"healing without its count":          {"xds-patched.yaml", "includeRequestAttemptCount: true", "includeRequestAttemptCount: false", "no-attempt-count"},
		"a second attempt without a guard":   {"xds-patched.yaml", `if mark ~= "crm" then`, `if false then`, "guard-other-upstream"},
		"a reply may route":                  {"xds-patched.yaml", "disallowIsError: true", "disallowIsError: false", "mutations-dropped"},
	} {
		t.Run(name, func(t *testing.T) {
			b := string(read(t, "testdata/"+tc.file))
			if !strings.Contains(b, tc.old) {
				t.Fatalf("the file has no %q", tc.old)
			}
			found, err := envoy.Check(tc.file, []byte(strings.ReplaceAll(b, tc.old, tc.changed)), load(t))
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, f := range found {
				if !slices.Contains(ids, f.ID) {
					ids = append(ids, f.ID)
				}
			}
			slices.Sort(ids)
			if got := strings.Join(ids, " "); got != tc.want {
				t.Errorf("want %s, got %s: %v", tc.want, got, found)
			}
		})
	}
}
