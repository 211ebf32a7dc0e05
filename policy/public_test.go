package policy

import "testing"

// TestA2_CallerURL: the identifier that callers see, and where RFC 9728 §3.1 puts
// its metadata.
func TestA2_CallerURL(t *testing.T) {
	for name, c := range map[string]struct {
		envoy         Envoy
		up            Upstream
		url, metadata string
	}{
		"prefix": {
			Envoy{PublicURL: "https://mcp.company.com"},
			Upstream{URL: "https://a.test/mcp"},
			"https://mcp.company.com/a/mcp", "https://mcp.company.com/.well-known/oauth-protected-resource/a/mcp",
		},
		"root": {
			Envoy{PublicURL: "http://127.0.0.1:10000"},
			Upstream{URL: "https://a.test/"},
			"http://127.0.0.1:10000/a/", "http://127.0.0.1:10000/.well-known/oauth-protected-resource/a",
		},
		"behind a path": {
			Envoy{PublicURL: "https://gw.company.com/mcp/"},
			Upstream{URL: "https://a.test/x%20y"},
			"https://gw.company.com/mcp/a/x%20y", "https://gw.company.com/.well-known/oauth-protected-resource/mcp/a/x%20y",
		},
		"host": {
			Envoy{PublicURL: "https://gw.company.com:8443", ByHost: true, Host: "mcp.company.com"},
			Upstream{URL: "https://a.test/mcp"},
			"https://a.mcp.company.com:8443/mcp", "https://a.mcp.company.com:8443/.well-known/oauth-protected-resource/mcp",
		},
		"own listener": {
			Envoy{PublicURL: "https://gw.company.com", TLS: &TLSSpec{}},
			Upstream{URL: "https://a.test/sse", Listen: "127.0.0.1:10001"},
			"https://127.0.0.1:10001/sse", "https://127.0.0.1:10001/.well-known/oauth-protected-resource/sse",
		},
	} {
		c.up.Name = "a"
		s := &Set{Envoy: c.envoy}
		if got := s.CallerURL(&c.up); got != c.url {
			t.Errorf("%s: want %s, got %s", name, c.url, got)
		}
		if got := s.MetadataURL(&c.up); got != c.metadata {
			t.Errorf("%s: want %s, got %s", name, c.metadata, got)
		}
	}
}
