package policy

// Screen refuses until it is written.
func (u *Upstream) Screen(*Request, *Screening) Reason { return BadRequest }
