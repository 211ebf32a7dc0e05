package envoy_test

import (
	"crypto/sha256"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// oauth is a credential as the policy compiles it; only its presence matters here.
func oauth() policy.Credential {
	return policy.Credential{OAuth2: &policy.OAuth2{
		TokenURL: "https://auth.company.com/oauth2/token", ClientID: "litellm-proxy",
		ClientSecret: policy.SecretRef{Kind: policy.SecretEnv, Name: "MCP_OAUTH2_CLIENT_SECRET"},
		AuthMethod:   policy.ClientSecretBasic, DefaultLifetime: 5 * time.Minute, MaxLifetime: 24 * time.Hour,
	}}
}

// upstream is a compiled upstream with the defaults that the policy fills in.
func upstream(name, url string, change ...func(*policy.Upstream)) *policy.Upstream {
	u := &policy.Upstream{
		Name: name, URL: url, Resource: url, Cluster: name, RetryOn401: true, Credential: oauth(), BindsSessions: true,
		Callers: []*policy.Caller{{Name: "litellm", Keys: [][32]byte{sha256.Sum256([]byte("key"))}}},
	}
	for _, f := range change {
		f(u)
	}
	return u
}

func withoutCredential(u *policy.Upstream) { u.Credential = policy.Credential{} }

func withAnswers(u *policy.Upstream) { u.OutcomesFromHeaders = true }

func withMTLS(u *policy.Upstream) {
	u.Callers = []*policy.Caller{{Name: "litellm", SANs: []string{"spiffe://company/litellm"}}}
}

func withTools(proof policy.Proof, limit int64) func(*policy.Upstream) {
	return func(u *policy.Upstream) {
		u.Tools = &policy.Tools{Proof: proof, MaxBody: limit, Rules: []policy.ToolRule{{Methods: []string{"tools/call"}, Names: []string{"read"}}}}
	}
}

func withListen(addr string) func(*policy.Upstream) {
	return func(u *policy.Upstream) { u.Listen = addr }
}

func set(ups ...*policy.Upstream) *policy.Set {
	return &policy.Set{
		Server:    policy.Server{Listen: "unix:///run/envoy-mcp-auth/grpc.sock", Admin: "127.0.0.1:9441", Deadline: 1500 * time.Millisecond},
		Envoy:     policy.Envoy{Listen: "127.0.0.1:10000", PublicURL: "http://127.0.0.1:10000"},
		Upstreams: ups,
	}
}
