// Package istio has Istio's own control plane read what `render istio` writes, and keeps
// what it makes of it. It is a module of its own because the control plane brings a few
// hundred others.
package istio
