//go:build race

package policy

// raceDetector slows everything down about twentyfold.
const raceDetector = true
