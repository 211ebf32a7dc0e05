package watchfile

import "syscall"

// identify notes which file it is, and when anything about it last changed.
func (s *Stamp) identify(st *syscall.Stat_t) {
	s.dev, s.ino, s.ctime = st.Dev, st.Ino, st.Ctim.Nano()
}
