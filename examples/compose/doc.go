// Package compose holds the demo as a compose file, and with its profiles all that
// belongs around it. Its tests hold the file to the native demo, and run what can
// be run without containers.
package compose

//go:generate go test -count=1 -run ^TestFullIsRendered$ . -update
