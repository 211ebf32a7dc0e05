package policy

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func parseStores(t *testing.T, file string) *Set {
	t.Helper()
	set, err := Parse("/etc/mcp/policy.yaml", readFile(t, "testdata/good/"+file), testEnv)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestStoresCompile(t *testing.T) {
	t.Parallel()
	set := parseStores(t, "stores.yaml")
	want := SecretStores{
		Every: 30 * time.Second,
		Vault: &VaultStore{
			Address: "https://vault.company.com:8200", Namespace: "team/mcp", CA: "/etc/mcp/vault-ca.pem",
			AppRole: VaultAppRole{"approle/mcp", canary, SecretRef{SecretFile, "/etc/mcp/secret-id"}},
		},
		AWS: &AWSStore{
			Region: "eu-central-1", Endpoint: "http://aws.internal:4566",
			AccessKeyID: SecretRef{SecretEnv, "AWS_KEY_ID"}, SecretAccessKey: SecretRef{SecretText, "${AWS_KEY}"},
		},
		GCP: &GCPStore{Endpoint: "http://gcp.internal", Credentials: SecretRef{SecretFile, "/etc/mcp/key.json"}},
	}
	if diff := cmp.Diff(want, set.Stores); diff != "" {
		t.Errorf("stores (-want +got):\n%s", diff)
	}
	var got []SecretRef
	for _, up := range set.Upstreams {
		if o := up.Credential.OAuth2; o != nil {
			got = append(got, o.ClientSecret)
		}
		for _, h := range up.Credential.Headers {
			got = append(got, h.Value)
		}
	}
	refs := []SecretRef{
		AWSRef("arn:aws:secretsmanager:eu-central-1:123456789012:secret:mcp/c-AbCdEf", "api_key"), AWSRef("mcp/d", ""),
		{SecretFile, "/etc/mcp/key"},
		GCPRef("projects/p-1/secrets/e", "latest"), GCPRef("projects/p-1/locations/europe-west3/secrets/f", "7"),
		VaultRef("kv/team", "mcp/acme", "client secret"),
	}
	if diff := cmp.Diff(refs, got); diff != "" {
		t.Errorf("secrets of the upstreams (-want +got):\n%s", diff)
	}
	own := []SecretRef{{SecretFile, "/etc/mcp/secret-id"}, {SecretEnv, "AWS_KEY_ID"}, {SecretText, "${AWS_KEY}"}, {SecretFile, "/etc/mcp/key.json"}}
	if diff := cmp.Diff(own, set.Stores.Secrets()); diff != "" {
		t.Errorf("the stores' own secrets (-want +got):\n%s", diff)
	}
}

func TestStoresLogin(t *testing.T) {
	t.Parallel()
	got := parseStores(t, "stores_kubernetes.yaml").Stores
	want := &VaultStore{Address: "http://vault.internal:8200", Kubernetes: VaultKubernetes{"kubernetes/one", "mcp", SecretRef{SecretFile, "/etc/mcp/token"}}}
	if diff := cmp.Diff(want, got.Vault); diff != "" || got.Every != time.Minute {
		t.Errorf("kubernetes, every %s (-want +got):\n%s", got.Every, diff)
	}
	got = parseStores(t, "stores_token.yaml").Stores
	want = &VaultStore{Address: "http://vault.internal:8200", Token: SecretRef{SecretFile, "/run/vault/token"}}
	if diff := cmp.Diff(want, got.Vault); diff != "" {
		t.Errorf("token (-want +got):\n%s", diff)
	}
}

// Equal refs are the same secret, and no two places make equal refs.
func TestStoredRefsDoNotCollide(t *testing.T) {
	t.Parallel()
	refs := []SecretRef{
		VaultRef("a", "b/c", "d"), VaultRef("a/b", "c", "d"), VaultRef("a", "b", "c/d"), VaultRef("a", "b&key=d", "c"),
		AWSRef("a", "b"), AWSRef("a", ""), AWSRef("a&key=b", ""), GCPRef("a", "b"), GCPRef("a", "c"),
		{SecretEnv, "a"},
	}
	seen := map[SecretRef]bool{}
	for _, ref := range refs {
		if seen[ref] {
			t.Errorf("%s is there twice", ref)
		}
		seen[ref] = true
		if ref.Remote() != (ref.Kind != SecretEnv) {
			t.Errorf("%s: Remote is %v", ref, ref.Remote())
		}
	}
	if key := refs[3].Part("key"); key != "c" {
		t.Errorf("want key c, got %q", key)
	}
	if got := (SecretRef{SecretEnv, "key=a"}).Part("key"); got != "" {
		t.Errorf("a variable has no parts, got %q", got)
	}
}
