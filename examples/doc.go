// Package examples holds what people copy: demo, compose, litellm, providers,
// prometheus and envoy. Every file of it is under test.
package examples
