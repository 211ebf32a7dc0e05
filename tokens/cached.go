package tokens

// Cached returns the living token, or nil when there is none: Token without the wait.
func (s *Source) Cached() *Token { return s.entry.alive(s.now()) }

// Name returns the name of the upstream.
func (s *Source) Name() string { return s.name }
