package envoy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

// RenderLiteLLM returns the mcp_servers block of a LiteLLM configuration: every
// upstream of the policy, by the way through Envoy. LiteLLM itself gets no
// credential; what it needs to be known by Envoy, it reads from its environment.
func RenderLiteLLM(set *policy.Set) ([]byte, error) {
	ups, err := targets(set)
	if err != nil {
		return nil, fmt.Errorf("rendering litellm: %w", err)
	}
	servers := mapping()
	said := map[string]bool{}
	seen := map[string]string{}
	for _, t := range ups {
		name := litellmName(t.Name)
		if other, ok := seen[name]; ok {
			return nil, fmt.Errorf("rendering litellm: upstreams %q and %q would both be named %q there, where names have no - or .; rename one", other, t.Name, name)
		}
		seen[name] = t.Name
		addServer(servers, name, set.CallerURL(t.Upstream), t, said)
	}
	doc := mapping()
	add(doc, "mcp_servers", servers, "")
	var b bytes.Buffer
	b.WriteString(litellmHeader())
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

func litellmHeader() string {
	return `# LiteLLM's MCP servers, all by the way through Envoy. Written by
# "envoy-mcp-auth render litellm".
#
# No server has an auth_type, and Authorization is in no extra_headers: LiteLLM
# then sends no credential at all, and envoy-mcp-auth adds the right one.
#
# Take out what is no MCP server, such as an LLM provider: docs/providers.md.
`
}

// addServer adds one server. Each remark is made once.
func addServer(servers *yaml.Node, name, at string, t target, said map[string]bool) {
	once := func(remark string) string {
		if said[remark] {
			return ""
		}
		said[remark] = true
		return remark
	}
	s := mapping()
	add(s, "url", scalarNode(at), "")
	variable, keyed := keyVariable(t)
	transport, remark := "http", ""
	if t.Listen != "" && strings.HasSuffix(t.path, "/sse") {
		transport, remark = "sse", "By its path, a server of the legacy SSE transport."
	}
	add(s, "transport", scalarNode(transport), remark)
	if names, remark := t.passed(); len(names) > 0 {
		list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, n := range names {
			list.Content = append(list.Content, scalarNode(n))
		}
		add(s, "extra_headers", list, once(remark))
	} else if remark != "" {
		add(s, "extra_headers", &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}, once(remark))
	}
	if keyed {
		h := mapping()
		add(h, "x-mcp-auth-key", scalarNode("os.environ/"+variable), "")
		add(s, "static_headers", h, once("The key by which this LiteLLM is known. In lower case, no client can add a second one."))
	}
	comment := ""
	if onlyMTLS([]target{t}) {
		comment = once("The policy knows callers only by client certificate here. If LiteLLM cannot present\none, put a proxy with one in between, or give it a caller of kind key.")
	}
	if name != t.Name {
		comment = fmt.Sprintf("Upstream %q: LiteLLM allows no - in names, and . is not safe in them.", t.Name)
	}
	add(servers, name, s, comment)
}

// passed are the headers of its own callers that LiteLLM passes on, and a remark:
// cookies, and the tokens of users. What is in Authorization LiteLLM takes for its
// own key, so nobody can be known by that here.
func (t target) passed() (names []string, remark string) {
	var remarks []string
	if !t.Cookies.Empty() {
		names = append(names, "Cookie")
		remarks = append(remarks, "LiteLLM can pass on all cookies or none. Those that the policy does not allow are\ntaken off behind it.")
	}
	only := len(t.Callers) > 0
	tokens := len(names)
	for _, c := range t.Callers {
		own := c.JWT != nil && c.JWT.Header != "authorization"
		if own && !slices.Contains(names, c.JWT.Header) {
			names = append(names, c.JWT.Header)
		}
		only = only && c.JWT != nil && !own
	}
	if len(names) > tokens {
		remarks = append(remarks, "Users send LiteLLM their own access token in a header of its own, and it passes it on.")
	}
	if only {
		remarks = append(remarks, "The policy knows callers only by a token in Authorization here, which LiteLLM keeps for\nitself: give the policy's jwt caller a header of its own, or LiteLLM a caller of kind key.")
	}
	return names, strings.Join(remarks, "\n")
}

// keyVariable names the environment variable with the key of the caller that
// LiteLLM is, where a key is what the upstream wants: the caller named litellm
// if there is one, else the first that has a key.
func keyVariable(t target) (string, bool) {
	found := ""
	for _, c := range t.Callers {
		switch {
		case c.Any:
			return "", false
		case len(c.Keys) > 0 && (found == "" || c.Name == "litellm"):
			found = c.Name
		}
	}
	word := strings.NewReplacer("-", "_", ".", "_").Replace(found)
	return "MCP_AUTH_KEY_" + strings.ToUpper(word), found != ""
}

// litellmName is the name as LiteLLM takes it: one with - stops its start.
func litellmName(name string) string { return strings.NewReplacer("-", "_", ".", "_").Replace(name) }

func mapping() *yaml.Node            { return &yaml.Node{Kind: yaml.MappingNode} }
func scalarNode(s string) *yaml.Node { n := &yaml.Node{}; n.SetString(s); return n }

func add(m *yaml.Node, key string, value *yaml.Node, comment string) {
	k := scalarNode(key)
	k.HeadComment = comment
	m.Content = append(m.Content, k, value)
}
