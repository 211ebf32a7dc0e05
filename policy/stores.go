package policy

import (
	"reflect"
	"slices"
	"strings"
	"time"
)

// SecretStores is the compiled `secret_stores` block. The settings of each
// store are comparable.
type SecretStores struct {
	// Every is how often a secret in a store is read again.
	Every time.Duration
	// Vault, AWS and GCP are nil when the file does not have them.
	Vault *VaultStore
	AWS   *AWSStore
	GCP   *GCPStore
}

// VaultStore is how Vault is reached. Of Token, AppRole and Kubernetes one is
// set; what the other two hold is zero.
type VaultStore struct {
	Address, Namespace, CA string
	Token                  SecretRef
	AppRole                VaultAppRole
	Kubernetes             VaultKubernetes
}

// VaultAppRole is a login by AppRole.
type VaultAppRole struct {
	Mount, RoleID string
	SecretID      SecretRef
}

// VaultKubernetes is a login by a service account, whose token is JWT.
type VaultKubernetes struct {
	Mount, Role string
	JWT         SecretRef
}

// AWSStore is how AWS Secrets Manager is reached. Without AccessKeyID, the
// SDK's own chain finds credentials.
type AWSStore struct {
	Region, Endpoint             string
	AccessKeyID, SecretAccessKey SecretRef
}

// GCPStore is how Google Secret Manager is reached. Without Credentials, they
// are the application default ones.
type GCPStore struct {
	Endpoint    string
	Credentials SecretRef
}

// Secrets lists the secrets that the stores themselves are opened with: never
// one that is in a store.
func (s *SecretStores) Secrets() []SecretRef {
	var refs []SecretRef
	if v := s.Vault; v != nil {
		refs = append(refs, v.Token, v.AppRole.SecretID, v.Kubernetes.JWT)
	}
	if a := s.AWS; a != nil {
		refs = append(refs, a.AccessKeyID, a.SecretAccessKey)
	}
	if g := s.GCP; g != nil {
		refs = append(refs, g.Credentials)
	}
	return slices.DeleteFunc(refs, SecretRef.IsZero)
}

// storedAt is one secret of the file that is in a store.
type storedAt struct {
	path, store string
}

// stored decodes {vault: …}, {aws: …} or {gcp: …}. A secret may have been
// pasted here too, so that keys and values are not repeated.
func (s *SecretSpec) stored(d *decoder, p pair) {
	if strings.HasPrefix(p.path, "secret_stores.") {
		d.fault(p.path, "a store cannot be opened with a secret that is in a store; %s", byReference)
		return
	}
	s.Vault, s.AWS, s.GCP = nil, nil, nil
	switch p.key {
	case "vault":
		s.Vault = new(VaultSecretSpec)
		if d.place(p, reflect.ValueOf(s.Vault).Elem(), "mount", "path", "key") {
			s.Ref = VaultRef(s.Vault.Mount, s.Vault.Path, s.Vault.Key)
			d.vaultPlace(p.path, s.Vault)
		}
	case "aws":
		s.AWS = new(AWSSecretSpec)
		if d.place(p, reflect.ValueOf(s.AWS).Elem(), "secret", "key") {
			s.Ref = AWSRef(s.AWS.Secret, s.AWS.Key)
			d.awsPlace(p.path, s.AWS)
		}
	case "gcp":
		s.GCP = new(GCPSecretSpec)
		if d.place(p, reflect.ValueOf(s.GCP).Elem(), "secret", "version") {
			s.Ref = GCPRef(s.GCP.Secret, s.GCP.Version)
			d.gcpPlace(p.path, s.GCP)
		}
	}
	d.remote = append(d.remote, storedAt{p.path, p.key})
}

// place decodes where in a store a secret is, and reports whether that worked.
func (d *decoder) place(p pair, v reflect.Value, known ...string) bool {
	if !d.only(p.node, p.path, known...) {
		return false
	}
	before := len(d.faults)
	d.block(p.node, p.path, v)
	return len(d.faults) == before
}

func (d *decoder) vaultPlace(path string, spec *VaultSecretSpec) {
	if !isPath(spec.Mount) {
		d.fault(path+".mount", "want a mount such as secret or team/kv (what stands there is not shown); write it without slashes at its ends")
	}
	switch {
	case !isPath(spec.Path):
		d.fault(path+".path", "want a path such as mcp/client (what stands there is not shown); write it without slashes at its ends")
	case strings.HasPrefix(spec.Path, "data/"):
		d.fault(path+".path", "want the path as vault kv get takes it; take data/ off, the API's own word that is added here")
	}
	if !isPlain(spec.Key) {
		d.fault(path+".key", "want the name of a key (what stands there is not shown); write it without control characters")
	}
}

func (d *decoder) awsPlace(path string, spec *AWSSecretSpec) {
	if slices.ContainsFunc([]byte(spec.Secret), func(b byte) bool {
		return !isAlnum(b) && !strings.ContainsRune("/_+=.@-!:", rune(b))
	}) {
		d.fault(path+".secret", "want the name or ARN of a secret (what stands there is not shown); use letters, digits and /_+=.@-")
	}
	if !isPlain(spec.Key) {
		d.fault(path+".key", "want the name of a member (what stands there is not shown); write it without control characters")
	}
}

func (d *decoder) gcpPlace(path string, spec *GCPSecretSpec) {
	parts := strings.Split(spec.Secret, "/")
	ok := len(parts) == 4 && parts[2] == "secrets" || len(parts) == 6 && parts[2] == "locations" && parts[4] == "secrets"
	ok = ok && parts[0] == "projects"
	for _, part := range parts {
		ok = ok && isSegment(part)
	}
	if !ok {
		d.fault(path+".secret", "want projects/P/secrets/S (what stands there is not shown); write the resource name without its version, which has a key of its own")
	}
	if !isSegment(spec.Version) {
		d.fault(path+".version", "want latest, a number or an alias (what stands there is not shown); correct it")
	}
}

// isPath takes what stands in a URL path as it is.
func isPath(s string) bool {
	for segment := range strings.SplitSeq(s, "/") {
		if !isSegment(segment) {
			return false
		}
	}
	return true
}

// isSegment takes one segment of a path: neither empty nor dots, and nothing
// that a URL would have to escape.
func isSegment(s string) bool {
	for _, b := range []byte(s) {
		if !isAlnum(b) && !strings.ContainsRune("-_.~@:+=!$&*,", rune(b)) {
			return false
		}
	}
	return s != "" && !hasDots(s)
}

func isPlain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// stores checks the `secret_stores` block, and that a store is there for every
// secret that is in one.
func (c *checker) stores() {
	s := &c.f.SecretStores
	if p := "secret_stores.every"; c.good(p) && time.Duration(s.Every) < time.Second {
		c.fault(p, "want at least 1s, got %s; stores count requests and throttle", c.got(p))
	}
	if s.Vault != nil {
		c.vaultStore("secret_stores.vault", s.Vault)
	}
	if s.AWS != nil {
		c.awsStore("secret_stores.aws", s.AWS)
	}
	if s.GCP != nil {
		c.url("secret_stores.gcp.endpoint", s.GCP.Endpoint, storeURL(s.GCP.AllowPlaintext))
	}
	for _, secret := range c.remote {
		missing := secret.store == "vault" && s.Vault == nil || secret.store == "aws" && s.AWS == nil
		if missing && c.good(secret.path) && !c.has("secret_stores."+secret.store) {
			c.fault(secret.path, "want secret_stores.%s for this secret, got none; add that block", secret.store)
		}
	}
}

func storeURL(plaintext bool) urlRules {
	return urlRules{plaintext: plaintext, hint: "set allow_plaintext: true if the network between is yours"}
}

func (c *checker) vaultStore(path string, spec *VaultStoreSpec) {
	c.url(path+".address", spec.Address, storeURL(spec.AllowPlaintext))
	for _, p := range []struct{ path, value string }{
		{path + ".namespace", strings.TrimSuffix(spec.Namespace, "/")},
		{path + ".auth.approle.mount", appRole(spec).Mount},
		{path + ".auth.kubernetes.mount", kubernetes(spec).Mount},
	} {
		if c.good(p.path) && !isPath(p.value) {
			c.fault(p.path, "want a path such as team/one, got %s; write it without a slash before it", c.got(p.path))
		}
	}
	for _, p := range []struct{ path, value string }{
		{path + ".auth.approle.role_id", appRole(spec).RoleID},
		{path + ".auth.kubernetes.role", kubernetes(spec).Role},
	} {
		if c.good(p.path) && !isVisible(p.value) {
			c.fault(p.path, "want visible ASCII without blanks (what stands there is not shown); correct it")
		}
	}
	if p := path + ".auth"; c.good(p) {
		c.exactlyOne(p, "token", "approle", "kubernetes")
	}
}

func appRole(spec *VaultStoreSpec) VaultAppRoleSpec { return valueOf(spec.Auth.AppRole) }

func kubernetes(spec *VaultStoreSpec) VaultKubernetesSpec { return valueOf(spec.Auth.Kubernetes) }

// valueOf returns what p points at, or the zero value.
func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func (c *checker) awsStore(path string, spec *AWSStoreSpec) {
	if p := path + ".region"; c.good(p) && !isDomain(spec.Region) {
		c.fault(p, "want a region such as eu-central-1, got %s; correct it", c.got(p))
	}
	c.url(path+".endpoint", spec.Endpoint, storeURL(spec.AllowPlaintext))
	id, key := c.has(path+".access_key_id"), c.has(path+".secret_access_key")
	if id != key {
		c.fault(path, "want both access_key_id and secret_access_key, got one; add the other, or leave both out for the credentials of the environment")
	}
}

func (c *checker) compileStores() SecretStores {
	spec := &c.f.SecretStores
	s := SecretStores{Every: time.Duration(spec.Every)}
	if v := spec.Vault; v != nil {
		s.Vault = &VaultStore{
			Address: strings.TrimSuffix(v.Address, "/"), Namespace: v.Namespace, CA: c.resolve(v.CA), Token: valueOf(v.Auth.Token).Ref,
		}
		if a := v.Auth.AppRole; a != nil {
			s.Vault.AppRole = VaultAppRole{Mount: a.Mount, RoleID: a.RoleID, SecretID: a.SecretID.Ref}
		}
		if k := v.Auth.Kubernetes; k != nil {
			s.Vault.Kubernetes = VaultKubernetes{Mount: k.Mount, Role: k.Role, JWT: SecretRef{SecretFile, c.resolve(k.TokenFile)}}
		}
	}
	if a := spec.AWS; a != nil {
		s.AWS = &AWSStore{
			Region: a.Region, Endpoint: a.Endpoint,
			AccessKeyID: valueOf(a.AccessKeyID).Ref, SecretAccessKey: valueOf(a.SecretAccessKey).Ref,
		}
	}
	if g := spec.GCP; g != nil {
		s.GCP = &GCPStore{Endpoint: g.Endpoint, Credentials: valueOf(g.Credentials).Ref}
	}
	return s
}
