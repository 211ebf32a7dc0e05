//go:build race

package limits_test

// subjects is what TestBounded can do in a few seconds under the race detector.
const subjects = 150_000
