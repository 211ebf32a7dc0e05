//go:build race

package e2e_test

// raceFlag builds the program as these tests were built.
const raceFlag = "-race=true"
