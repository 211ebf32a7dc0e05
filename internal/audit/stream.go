package audit

import (
	"context"
	"io"
)

// stream sends lines to standard output when they are on record elsewhere.
type stream struct{ w io.Writer }

func (s stream) send(_ context.Context, lines [][]byte) error {
	for _, line := range lines {
		if _, err := s.w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

func (stream) close() {}
