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

// TestRenderLiteLLMTokens: a user's token passes LiteLLM in a header of its own, and
// in no other.
func TestRenderLiteLLMTokens(t *testing.T) {
	inHeader := func(name string) *policy.Caller {
		c := people("https://idp.company.com")
		c.JWT.Header = name
		return c
	}
	key := &policy.Caller{Name: "litellm", Keys: [][32]byte{{1}}}
	for what, row := range map[string]struct {
		callers []*policy.Caller
		cookie  bool
		want    []string
		not     string
	}{
		"a header of its own":      {[]*policy.Caller{inHeader("x-user-token")}, false, []string{"extra_headers: [x-user-token]", "# Users send LiteLLM"}, "Authorization here"},
		"with a cookie":            {[]*policy.Caller{inHeader("x-user-token")}, true, []string{"extra_headers: [Cookie, x-user-token]", "# Users send LiteLLM", "# LiteLLM can pass"}, "Authorization here"},
		"two callers, one header":  {[]*policy.Caller{inHeader("x-a"), inHeader("x-a"), inHeader("authorization")}, false, []string{"extra_headers: [x-a]"}, "Authorization here"},
		"authorization alone":      {[]*policy.Caller{inHeader("authorization")}, false, []string{"extra_headers: []", "# The policy knows callers only by a token in Authorization here"}, "extra_headers: [a"},
		"authorization, and a key": {[]*policy.Caller{inHeader("authorization"), key}, false, []string{"x-mcp-auth-key: os.environ/MCP_AUTH_KEY_LITELLM"}, "extra_headers: ["},
	} {
		u := upstream("a", "https://a.company.com/mcp")
		u.Callers = row.callers
		if row.cookie {
			u.Cookies = policy.NewCookieRule(policy.CookiesSpec{Allow: []string{"session_id"}})
		}
		b, err := envoy.RenderLiteLLM(set(u))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range row.want {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s: want %q in\n%s", what, want, b)
			}
		}
		if strings.Contains(string(b), row.not) {
			t.Errorf("%s: want no %q in\n%s", what, row.not, b)
		}
	}
}
