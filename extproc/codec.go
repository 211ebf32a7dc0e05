package extproc

import (
	"errors"
	"slices"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// maxHeaders bounds a message without a body. Envoy's own limit for headers is
// 96 KiB at most.
const maxHeaders = 1 << 20

var errSize = errors.New("a message is larger than what it may hold")

// codec moves ProcessingRequest, ProcessingResponse and access logs without the
// generated types, and everything else (health checks) with grpc's own.
type codec struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*logMessage); ok {
		if data.Len() > maxHeaders {
			return errSize
		}
		b := data.MaterializeToBuffer(mem.DefaultBufferPool())
		m.decode(b.ReadOnlyData())
		b.Free()
		return nil
	}
	m, ok := v.(*message)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if data.Len() > m.room {
		return errSize
	}
	// grpc takes its buffers back when this returns, and the headers are read later.
	have := len(m.buf)
	m.buf = slices.Grow(m.buf, data.Len())
	for _, b := range data {
		m.buf = append(m.buf, b.ReadOnlyData()...)
	}
	return m.decode(m.buf[have:])
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
