// Package audit keeps a record of what was decided and how it ended: JSON lines,
// each bound to the one before by a hash, in a file and wherever else the policy
// says. Verify reads such files and names the first line that is not as it was written.
//
// A line is on its way to the kernel before the reply to Envoy is: one goroutine
// numbers, chains and writes what waits, all of it in one system call, so that the
// request path holds a lock for one append only and no disk or reader can hold it
// up for longer than its patience. What could not be written is counted, and a line
// says so once it can.
package audit
