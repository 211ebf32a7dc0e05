package policy

// CookieRule is the compiled `cookies` block of one upstream. The zero value
// lets no cookie on.
type CookieRule struct {
	allow map[string]struct{}
}

// NewCookieRule compiles a checked block.
func NewCookieRule(CookiesSpec) CookieRule { return CookieRule{} }

// Filter refuses until the rule is written.
func (c *CookieRule) Filter([]byte, [][]byte) CookieResult {
	return CookieResult{Edit: CookieRefuse}
}
