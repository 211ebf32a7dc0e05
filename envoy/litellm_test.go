package envoy_test

import (
	"strings"
	"testing"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/envoy"
	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

func TestRenderLiteLLMGolden(t *testing.T) {
	all := rendered()
	u := upstream("user-aware.server", "https://user.company.com/mcp")
	u.Cookies = policy.NewCookieRule(policy.CookiesSpec{Allow: []string{"session_id"}})
	all["plain"].Upstreams = append(all["plain"].Upstreams, u)
	for name, s := range all {
		t.Run(name, func(t *testing.T) {
			b, err := envoy.RenderLiteLLM(s)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".litellm.golden.yaml", b)
		})
	}
}

func TestRenderLiteLLMNamesThatCollide(t *testing.T) {
	_, err := envoy.RenderLiteLLM(set(upstream("a-b", "http://127.0.0.1:1/mcp"), upstream("a_b", "http://127.0.0.1:2/mcp")))
	if err == nil || !strings.Contains(err.Error(), `"a-b" and "a_b"`) {
		t.Errorf("want an error naming both upstreams, got %v", err)
	}
}
