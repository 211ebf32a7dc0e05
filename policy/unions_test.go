package policy

import (
	"strings"
	"testing"
)

// TestPrivateKeyMayHaveLines: PEM has line breaks, a client secret must not.
func TestPrivateKeyMayHaveLines(t *testing.T) {
	t.Parallel()
	env := func(string) (string, bool) {
		return "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", true
	}
	const text = `version: 1
callers: {anyone: {any: true}}
upstreams:
  a:
    url: https://a.test/mcp
    callers: [anyone]
    credential: {oauth2: {issuer: "https://as.test", client_id: c, SECRET}}
`
	for secret, ok := range map[string]bool{
		`private_key: "${K}"`:     true,
		`private_key: {env: K}`:   true,
		`client_secret: "${K}"`:   false,
		`client_secret: {env: K}`: false,
	} {
		_, err := Parse("policy.yaml", []byte(strings.Replace(text, "SECRET", secret, 1)), env)
		if (err == nil) != ok {
			t.Errorf("%s: %v, want it accepted: %v", secret, err, ok)
		}
		if err != nil && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("the secret is in the error: %v", err)
		}
	}
}
