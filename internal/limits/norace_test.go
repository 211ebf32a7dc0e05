//go:build !race

package limits_test

// subjects is how many people TestBounded makes up.
const subjects = 1_000_000
