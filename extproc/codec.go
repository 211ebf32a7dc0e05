package extproc

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// codec moves ProcessingRequest, ProcessingResponse and access logs without the
// generated types, and everything else (health checks) with grpc's own.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*logMessage); ok {
		b := data.MaterializeToBuffer(mem.DefaultBufferPool())
		m.decode(b.ReadOnlyData())
		b.Free()
		return nil
	}
	m, ok := v.(*message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	// grpc takes its buffers back when this returns, and the headers are read later.
	for _, b := range data {
		m.buf = append(m.buf, b.ReadOnlyData()...)
	}
	return m.decode()
}

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*reply)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	// grpc writes after Marshal returns, and the reply's memory is used again by then.
	return mem.BufferSlice{mem.Copy(r.wire, mem.DefaultBufferPool())}, nil
}
