// Package examples holds what people copy: demo, compose, litellm, providers, envoy, envoy-gateway,
// prometheus and grafana. Every file of it is under test.
package examples
