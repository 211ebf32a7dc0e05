// Package envoy renders and checks Envoy configuration.
//
// Render turns a policy into one complete bootstrap:
//
//	b, err := envoy.Render(set, envoy.Options{})
//
// Check reads the configuration of an Envoy, rendered or not, and names every
// setting with which a request could get past the policy, or a credential to
// where it does not belong:
//
//	findings, err := envoy.Check("envoy.yaml", b, set)
//
// What Render writes, Check finds nothing in; a test holds both to it. The
// settings follow from how Envoy 1.36 to 1.40 behave, measured, and each
// comment in the rendered file says what goes wrong without its setting.
//
// The configuration is built as Envoy's own protobuf messages, one function per
// listener, route and cluster, and becomes YAML at the very end.
package envoy
