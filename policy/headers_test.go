package policy

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAlways(t *testing.T) {
	all := []string{
		"authorization", "proxy-authorization", "x-litellm-api-key", "x-litellm-key",
		"x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key", "x-mcp-auth", "x-mcp-auth-key", "cookie2",
	}
	without := func(names ...string) []string {
		return slices.DeleteFunc(slices.Clone(all), func(n string) bool { return slices.Contains(names, n) })
	}
	notOurs := []string{"host", "cookie", ":path", "x-envoy-attempt-count", "content-length", "transfer-encoding", "x-mcp-auth-guard"}
	for _, c := range []struct {
		title      string
		spec       HeadersSpec
		credential Credential
		want       []string
	}{
		{"credential none still takes them off", HeadersSpec{}, Credential{}, all},
		{"oauth2 sets authorization", HeadersSpec{}, oauth2, without("authorization")},
		{"fixed x-api-key", HeadersSpec{}, fixed("x-api-key"), without("x-api-key")},
		{"fixed authorization", HeadersSpec{}, fixed("authorization", "x-org"), without("authorization")},
		{"pass", HeadersSpec{Pass: []string{"authorization", "x-api-key"}}, Credential{}, without("authorization", "x-api-key")},
		{"remove adds, patterns do not", HeadersSpec{Remove: []string{"x-tenant", "x-trace-*"}}, Credential{}, append(without(), "x-tenant")},
		{"remove of what is there", HeadersSpec{Remove: []string{"x-api-key", "x-tenant", "x-tenant"}}, Credential{}, append(without(), "x-tenant")},
		{"remove before pass", HeadersSpec{Remove: []string{"authorization"}, Pass: []string{"authorization"}}, Credential{}, append(without("authorization"), "authorization")},
		{"never what is set", HeadersSpec{Remove: []string{"x-org", "authorization"}}, fixed("authorization", "x-org"), without("authorization")},
		{"never what is not ours", HeadersSpec{Remove: notOurs}, Credential{}, all},
		{"an allow list changes nothing", HeadersSpec{Allow: []string{"x-tenant"}}, Credential{}, all},
	} {
		t.Run(c.title, func(t *testing.T) {
			rule := NewHeaderRule(c.spec, c.credential)
			if diff := cmp.Diff(c.want, rule.Always()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if n := testing.AllocsPerRun(10, func() { rule.Always() }); n != 0 {
				t.Errorf("want it built once, got %v allocations", n)
			}
		})
	}
	var zero HeaderRule
	if diff := cmp.Diff(all, zero.Always()); diff != "" {
		t.Errorf("the zero rule, -want +got:\n%s", diff)
	}
}

// What the policy file says after compilation cannot change the rule.
func TestHeaderRuleIsImmutable(t *testing.T) {
	spec := HeadersSpec{Pass: []string{"authorization"}}
	u := ruled(spec, Credential{})
	spec.Pass[0] = "x-api-key"
	var sc Screening
	u.Screen(&Request{Headers: headers("authorization", "v")}, &sc)
	if len(sc.Remove) != 0 {
		t.Errorf("the rule follows the spec: removes %q", sc.Remove)
	}
}

func TestNeedsAll(t *testing.T) {
	for _, c := range []struct {
		title string
		spec  HeadersSpec
		want  bool
	}{
		{"nothing", HeadersSpec{}, false},
		{"exact removal is blind", HeadersSpec{Remove: []string{"x-tenant"}}, false},
		{"pattern among those always seen", HeadersSpec{Remove: []string{"x-mcp-trace-*"}}, false},
		{"pattern elsewhere", HeadersSpec{Remove: []string{"x-trace-*"}}, true},
		{"pattern that reaches further", HeadersSpec{Remove: []string{"x-m*"}}, true},
		{"default-drop", HeadersSpec{Allow: []string{"x-tenant"}}, true},
		{"pass", HeadersSpec{Pass: []string{"authorization"}}, false},
	} {
		u := ruled(c.spec, Credential{})
		if got := u.Headers.NeedsAll(); got != c.want {
			t.Errorf("%s: want %v, got %v", c.title, c.want, got)
		}
		if _, _, all := u.Inspected(); all != c.want {
			t.Errorf("%s: Inspected: want %v, got %v", c.title, c.want, all)
		}
		if _, _, all := u.Mutable(); all != c.want {
			t.Errorf("%s: Mutable: want %v, got %v", c.title, c.want, all)
		}
	}
}

func TestInspectedAndMutable(t *testing.T) {
	spec := HeadersSpec{Remove: []string{"x-tenant", "x-trace-*", "*"}}
	u := ruled(spec, fixed("x-api-key", "x-org"))

	names, prefixes, _ := u.Inspected()
	wantNames := []string{"authorization", "cookie", "origin", "traceparent", "x-envoy-attempt-count", "x-mcp-auth-key", "x-request-id"}
	wantPrefixes := []string{
		"api_", "ocp-apim-subscription_", "ocp-apim_", "ocp_", "proxy_", "x-api_", "x-goog-api_", "x-goog_",
		"x-litellm-api_", "x-litellm_", "x-mcp", "x-trace-", "x_",
	}
	if diff := cmp.Diff([][]string{wantNames, wantPrefixes}, [][]string{names, prefixes}); diff != "" {
		t.Errorf("Inspected, -want +got:\n%s", diff)
	}

	u.OutcomesFromHeaders = true
	names, _, _ = u.Inspected()
	if !slices.Contains(names, ":status") || !slices.Contains(names, ":method") {
		t.Errorf("want what tells the outcome inspected, got %q", names)
	}

	names, prefixes, _ = u.Mutable()
	wantNames = []string{
		"api-key", "authorization", "cookie", "cookie2", "ocp-apim-subscription-key", "proxy-authorization",
		"x-api-key", "x-goog-api-key", "x-litellm-api-key", "x-litellm-key",
		"x-mcp-auth", "x-mcp-auth-guard", "x-mcp-auth-key", "x-org", "x-tenant",
	}
	if diff := cmp.Diff([][]string{wantNames, wantPrefixes}, [][]string{names, prefixes}); diff != "" {
		t.Errorf("Mutable, -want +got:\n%s", diff)
	}
	if !slices.Contains(u.Headers.Always(), "x-tenant") || !slices.IsSorted(names) {
		t.Error("Mutable sorted the rule's own list")
	}
}

// Sorting a returned list must not touch the rule.
func TestMutableLeavesTheRuleAlone(t *testing.T) {
	u := ruled(HeadersSpec{Remove: []string{"z", "a"}}, fixed("x-z", "x-a"))
	before := strings.Join(u.Headers.Always(), " ")
	u.Mutable()
	u.Inspected()
	if after := strings.Join(u.Headers.Always(), " "); after != before {
		t.Errorf("want %s, got %s", before, after)
	}
}
