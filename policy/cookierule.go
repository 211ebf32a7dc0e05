package policy

// Empty reports whether no cookie goes on under this rule.
func (c *CookieRule) Empty() bool { return len(c.allow) == 0 }
