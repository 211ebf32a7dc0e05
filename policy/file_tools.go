package policy

// ToolsSpec says who may use which tool, prompt or resource. Left out, every caller of the upstream may use all of them, and no body is read. With it, `initialize`, `ping`, the lists and notifications pass unless a rule is about them; a request that does not prove what it would run is refused.
type ToolsSpec struct {
	// Default is what happens to a tool, prompt or resource that no rule is about, and to a method that is none of MCP's.
	Default string `yaml:"default" default:"deny" enum:"deny,allow"`
	// Proof is what proves the tool that a call names: its `body`; the word of Envoy's own `mcp_filter`; or its `headers`, from callers that speak 2026-07-28, whose servers compare them with the body.
	Proof string `yaml:"proof" default:"body" enum:"body,mcp_filter,headers"`
	// MaxBody is the largest body that is read, from 1KiB to 16MiB. A larger one is refused.
	MaxBody Size `yaml:"max_body" default:"1MiB"`
	// Rules are tried in order: the first that is about a call and its caller decides.
	Rules []ToolRuleSpec `yaml:"rules"`
	// Implies maps a scope to those it includes, such as `admin: [customer:read]`. What those include, it includes too.
	Implies map[string][]string `yaml:"implies"`
}

// ToolRuleSpec is one rule. It lets in whoever has all of its scopes, and refuses everybody else.
type ToolRuleSpec struct {
	// Names are the names of tools and prompts, or the URIs of resources, that the rule is about; a `*` stands for any run of characters. May be left out when `methods` is given, for all.
	Names []string `yaml:"names"`
	// Methods are the JSON-RPC methods that the rule is about. Left out, `tools/call`.
	Methods []string `yaml:"methods"`
	// Scopes are the scopes that the caller needs, all of them. Left out, every caller that the rule is about is let in.
	Scopes []string `yaml:"scopes"`
	// Callers are the callers that the rule is about. Left out, all of the upstream's.
	Callers []string `yaml:"callers"`
}
