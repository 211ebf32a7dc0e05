package main

import "testing"

func TestGCPercent(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int{0: 400, 5 << 20: 400, 16 << 20: 300, 48 << 20: 100, 500 << 20: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("with %d bytes live: %d %%, want %d", live, got, want)
		}
	}
}
