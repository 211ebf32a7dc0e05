// Package envoy holds what to paste into an Envoy that is already there. Its
// tests cut the pieces out of what `render envoy` prints, paste them, and hold
// the result to `check --envoy` and to the real Envoy.
package envoy

//go:generate go test -count=1 -run ^TestPieces$ . -update
