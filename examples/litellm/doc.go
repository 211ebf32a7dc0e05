// Package litellm holds a LiteLLM configuration to start from, and the policy
// that goes with it. Its test holds the one to the other.
package litellm

//go:generate go test -count=1 -run ^TestConfig$ . -update
