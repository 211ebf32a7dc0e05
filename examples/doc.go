// Package examples holds what people copy: demo, compose, litellm, providers, envoy,
// prometheus and grafana. Every file of it is under test.
package examples
