// Package providers holds a policy and a LiteLLM configuration for two LLM
// providers and two MCP servers behind one Envoy. docs/providers.md explains
// them, and the tests in envoy/e2e run them.
package providers
