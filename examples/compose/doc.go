// Package compose holds the demo as a compose file. Its tests hold the file to
// the native demo.
package compose
