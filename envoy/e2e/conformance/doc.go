// Package conformance runs the MCP conformance suite with Envoy and this
// program in the middle.
//
//	CONFORMANCE="$(tools/install conformance)" go test ./envoy/e2e/conformance
//
// In server mode the suite is the client: it judges the Go SDK's own
// conformance server twice, directly and through the proxy, and every check
// must come out the same. In client mode the suite is the server, and where a
// scenario asks for it the authorization server: it judges the Go SDK's own
// conformance client, first as it is and then with the proxy before it. In the
// auth scenarios that client knows of no token, and the proxy is the OAuth client.
//
// docs/conformance.md is what came of it: -update writes it.
package conformance
