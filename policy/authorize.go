package policy

// Authorize refuses until it is written.
func (u *Upstream) Authorize(*Request, *Screening) (*Caller, Reason) { return nil, CallerUnknown }
