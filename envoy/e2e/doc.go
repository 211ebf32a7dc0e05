// Package e2e holds the end-to-end tests: a policy file, the program built from
// this tree, the configuration it renders, the real Envoy, a real authorization
// server, and upstreams that keep every byte that reaches them.
//
//	ENVOY=/path/to/envoy LITELLM=/path/to/litellm go test -race -timeout 10m ./envoy/e2e
//
// A test starts a rig, sends something through it and says what must come of it.
// What holds for every case is not said again: when the rig stops, it looks
// through all that reached an upstream for a secret of the caller, a cookie that
// was not permitted or another upstream's credential, and through all that
// anybody else could read (logs at every level, metrics, status, answers) for
// any secret at all.
package e2e
