// Package envoy holds an Envoy that is already there, and the same with a policy's
// upstream in it. Its tests hold the second to what `render envoy --patch` makes of
// the first, to `check --envoy`, and to the real Envoy.
package envoy

//go:generate go test -count=1 -run ^TestAfter$ . -update
