// Package versions runs the tests that hold Envoy's side of the contract against
// every Envoy that is supported, and keeps docs/versions.md, which says what works
// where. Run it with `make versions`.
package versions
