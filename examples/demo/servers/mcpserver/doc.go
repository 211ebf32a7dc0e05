// Package mcpserver holds the MCP servers of the demo and of the end-to-end
// tests: one that demands an access token, and one that is open to everybody.
//
//	open := mcpserver.NewOpen()
//	protected, err := mcpserver.NewProtected(mcpserver.Config{
//		Issuer:   "http://127.0.0.1:9000",
//		JWKSURL:  "http://127.0.0.1:9000/jwks",
//		Audience: "http://127.0.0.1:9001/mcp",
//		Scope:    "mcp.read",
//		Now:      time.Now,
//	})
//
// Both speak MCP 2025-11-25 with sessions and 2026-07-28 without. A Recorder
// around either one remembers what arrived.
package mcpserver
