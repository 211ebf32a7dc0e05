// Package keycloak tries the whole line with a real Keycloak as authorization
// server: this program, the real Envoy, and MCP servers that check the tokens
// against the keys, or with the introspection, of Keycloak.
//
//	KEYCLOAK="$(tools/install keycloak)" go test ./envoy/e2e/keycloak
//
// Keycloak takes a minute or two to start, so the tests run only where $KEYCLOAK
// names its kc.sh: `make e2e-keycloak` does.
package keycloak
