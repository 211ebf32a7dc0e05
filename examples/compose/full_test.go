package compose_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/examples/demo/parts"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

var update = flag.Bool("update", false, "write the rendered files anew")

// fullSecrets are the names of those that only the policy of full/ wants.
func fullSecrets() []string {
	return []string{"MCP_KEYCLOAK_CLIENT_SECRET", "REDIS_PASSWORD", "MCP_SHARED_CACHE_KEY"}
}

// TestFullIsRendered: the files of full/ are what its policy renders to.
func TestFullIsRendered(t *testing.T) {
	values := environment(t)
	text := read(t, filepath.Join(fullDir, parts.PolicyFile))
	set, err := policy.Parse(parts.PolicyFile, text, func(name string) (string, bool) { v, ok := values[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := parts.Render(text, set)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range rendered {
		path := filepath.Join(fullDir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := read(t, path); !bytes.Equal(got, want) {
			t.Errorf("%s is not what the policy renders to; run go generate ./examples/compose (-want +got):\n%s", path, cmp.Diff(string(want), string(got)))
		}
	}
}

// TestServicesOfProfiles: each is of a profile, hardened, shares the network, is
// pinned, and has a check where its image can run one.
func TestServicesOfProfiles(t *testing.T) {
	t.Parallel()
	profiles := map[string][]string{
		"full":    {"keycloak", "keycloak-server", "ratelimit", "redis"},
		"observe": {"grafana", "prometheus"},
	}
	got := map[string][]string{}
	for name, s := range compose(t).Services {
		if len(s.Profiles) == 0 {
			continue
		}
		got[s.Profiles[0]] = append(got[s.Profiles[0]], name)
		slices.Sort(got[s.Profiles[0]])
		if len(s.Profiles) != 1 || s.NetworkMode != "service:envoy" || len(s.Ports) > 0 || len(s.Healthcheck.Test) == 0 && name != "ratelimit" ||
			!slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) ||
			!s.ReadOnly && name != "keycloak" || s.User == "" || strings.HasPrefix(s.User, "0:") {
			t.Errorf("%s: %+v", name, s)
		}
		if tag := regexp.MustCompile(`^[a-z0-9./-]+:(v?\d[\w.-]*)(@sha256:[0-9a-f]{64})?$`); s.Build.Target == "" && !tag.MatchString(s.Image) {
			t.Errorf("%s: want an exact version, got %q", name, s.Image)
		}
		for _, v := range s.Environment {
			if strings.Contains(v, "made-up") {
				t.Errorf("%s: a secret in the file: %s", name, v)
			}
		}
	}
	if diff := cmp.Diff(profiles, got); diff != "" {
		t.Errorf("profiles (-want +got):\n%s", diff)
	}
}

// TestImagesAreThoseOfTheTests: what is installed here has the version of the image.
func TestImagesAreThoseOfTheTests(t *testing.T) {
	t.Parallel()
	installed := map[string]string{}
	for line := range strings.Lines(string(read(t, filepath.Join(root, "tools/versions.env")))) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			installed[name] = value
		}
	}
	commit := installed["RATELIMIT_VERSION"]
	commit = commit[strings.LastIndex(commit, "-")+1:]
	services := compose(t).Services
	for name, want := range map[string]string{
		"keycloak": "quay.io/keycloak/keycloak:" + installed["KEYCLOAK_VERSION"],
		// Its images are tagged with the first 8 digits of a commit.
		"ratelimit": "envoyproxy/ratelimit:" + commit[:8],
		// promtool has Prometheus' version as a Go module: 0.316.0 is 3.16.0.
		"prometheus": "prom/prometheus:v3." + strings.TrimPrefix(installed["PROMTOOL_VERSION"], "0.3"),
	} {
		if s := services[name]; s == nil || s.Image != want {
			t.Errorf("%s: want %s, got %+v", name, want, s)
		}
	}
}
