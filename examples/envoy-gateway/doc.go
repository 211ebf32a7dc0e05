// Package gateway holds what a user of Envoy Gateway has, what `render envoy-gateway`
// adds, and in testdata what Envoy Gateway's own translator makes of both; its tests
// keep the three in step.
package gateway
