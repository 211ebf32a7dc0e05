package audit

import (
	"context"
	"io"
)

// stream sends lines to standard output when they are on record elsewhere.
type stream struct{ w io.Writer }

func (s stream) send(_ context.Context, lines [][]byte) (int, error) {
	for i, line := range lines {
		if _, err := s.w.Write(line); err != nil {
			return i, err
		}
	}
	return len(lines), nil
}

func (stream) close() {}
