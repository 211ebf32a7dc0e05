package audit

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
)

// BenchmarkRecord is what a decision waits for its line in a file, alone and among others.
func BenchmarkRecord(b *testing.B) {
	started := func(b *testing.B) *Log {
		b.Helper()
		l := New(Config{Now: time.Now, Log: zerolog.Nop()})
		b.Cleanup(l.Close)
		spec := fileSpec(filepath.Join(b.TempDir(), "audit.jsonl"))
		spec.Keep = 1
		l.strictPatience = time.Minute
		commit(b, l, spec)
		b.ReportAllocs()
		return l
	}
	b.Run("one", func(b *testing.B) {
		l, d := started(b), decision(1)
		for b.Loop() {
			if err := l.Record(d); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("64 at once", func(b *testing.B) {
		l := started(b)
		b.SetParallelism(32) // for each of two cores
		b.RunParallel(func(pb *testing.PB) {
			d := decision(1)
			for pb.Next() {
				if err := l.Record(d); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("outcome", func(b *testing.B) {
		l := started(b)
		o := &extproc.Outcome{
			Upstream: "crm", Caller: "litellm", Reason: "allowed", Token: "a1b2c3d4", Status: 200, Attempts: 1,
			RequestID: "2f0c7a52-94fe-9b0a-8f3b-6a8f9d4a2f11", Decided: true, Took: time.Millisecond,
		}
		for i := 0; b.Loop(); i++ {
			if l.Ended(o); i%1000 == 0 {
				l.do(func() {}) // until they are written
			}
		}
		if n := l.counts.unsaid.Load(); n > 0 {
			b.Fatalf("%d were dropped", n)
		}
	})
}
