// Package kubernetes holds a Helm chart and manifests; its tests render them with
// the real Helm and check them against the schemas of Kubernetes.
package kubernetes
