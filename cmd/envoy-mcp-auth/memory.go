package main

import (
	"runtime"
	"runtime/debug"
)

// Collecting a heap of a few megabytes each time it doubles costs 5 to 7 % of a
// call. So a small heap may grow by a fixed room instead, and a large one by
// as much again as it holds, which is Go's default.
const (
	gcRoom    = 48 << 20
	gcMost    = 400
	gcDefault = 100
)

// settleMemory gives back what reading the policy left behind, which is many
// times its size, and sets the pace of garbage collection by what stayed. An
// operator's own GOGC is left alone.
func settleMemory(env func(string) (string, bool)) {
	debug.FreeOSMemory()
	if _, set := env("GOGC"); set {
		return
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	debug.SetGCPercent(gcPercent(m.HeapAlloc))
}

// gcPercent is the growth, in percent of live bytes, before the next collection.
func gcPercent(live uint64) int {
	return int(min(max(100*gcRoom/max(live, 1), gcDefault), gcMost))
}
