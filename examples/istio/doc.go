// Package istio holds a policy for an Istio mesh and the resources that go with it. Its
// tests hold the resources to what `render istio` prints; Istio's own control plane
// reads them in tools/istio.
package istio

//go:generate go test -count=1 -run ^TestRendered$ . -update
