package watchfile

import "syscall"

// identify notes which file it is, and when anything about it last changed.
func (s *Stamp) identify(st *syscall.Stat_t) {
	s.dev, s.ino, s.ctime = uint64(st.Dev), st.Ino, st.Ctimespec.Nano() //nolint:gosec // a number of a device, only compared
}
