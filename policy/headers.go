package policy

import (
	"slices"
	"strings"
)

// guardHeader is the mark a reply leaves for the guard behind the filter. It is
// ours to set, so a caller's own is overwritten and never listed for removal.
const guardHeader = "x-mcp-auth-guard"

// keyHeader carries the key of a caller of kind key.
const keyHeader = "x-mcp-auth-key"

// HeaderRule is the compiled `headers` block of one upstream. It is immutable.
//
// It reads names in two ways. What denies, the built-in list and the patterns of
// `remove`, is read loosely: letters in any case, and `_` as `-`, because CGI,
// WSGI and their kin make one variable of both spellings. What permits is read
// strictly, in any case and no more. So are the exact names of `remove`, which
// Envoy need not show us and which are taken off as they are written.
//
// The zero value takes every secret off and is right for an upstream that is
// lent nothing.
type HeaderRule struct {
	// set are the headers that a reply may write. They are never removed too:
	// Envoy removes before it writes, but its API does not promise that, and the
	// other order would take the credential off again.
	set []string
	// pass are secrets of the caller that may go on.
	pass []string
	// tokens are the headers in which a caller of any upstream has a token.
	tokens []string
	// always is what Always returns, with the exact names of `remove` in it;
	// remove holds the patterns, without the trailing *.
	always []string
	remove []string
	allow  []pattern
}

// pattern is a header name, or the beginning of one.
type pattern struct {
	name   string // without the trailing *
	prefix bool
}

// NewHeaderRule compiles a checked block. It needs the credential because the
// headers of the credential overwrite the caller's, whatever the block says.
// What is in one of the headers named last, in lower case, is as secret as what
// is in x-mcp-auth-key: those in which callers have tokens.
func NewHeaderRule(spec HeadersSpec, credential Credential, tokens ...string) HeaderRule {
	h := HeaderRule{pass: slices.Clone(spec.Pass), tokens: tokens}
	if credential.OAuth2 != nil {
		h.set = append(h.set, "authorization")
	}
	for _, fixed := range credential.Headers {
		h.set = append(h.set, fixed.Name)
	}
	var exact []string
	for _, p := range spec.Remove {
		if prefix, ok := strings.CutSuffix(p, "*"); ok {
			h.remove = append(h.remove, prefix)
		} else {
			exact = append(exact, p)
		}
	}
	for _, p := range spec.Allow {
		name, prefix := strings.CutSuffix(p, "*")
		h.allow = append(h.allow, pattern{name, prefix})
	}
	h.always = h.blind(exact)
	return h
}

// secretHeaders are the headers of the caller's own secrets, and cookie2, whose
// only use was to switch a server's cookie parser. LiteLLM takes a key of its own
// in any of authorization, api-key, x-api-key, x-goog-api-key,
// ocp-apim-subscription-key and x-litellm-api-key; x-litellm-key is what its
// documentation calls a header of one's choice. Those that a pattern denies are
// in denied.
func secretHeaders() [11]string {
	return [...]string{
		"authorization", "proxy-authorization", "x-litellm-api-key", "x-litellm-key",
		"x-api-key", "api-key", "x-goog-api-key", "ocp-apim-subscription-key",
		"x-mcp-auth", keyHeader, "cookie2",
	}
}

// blind collects what Always returns; exact are the exact names of `remove`.
func (h *HeaderRule) blind(exact []string) []string {
	var out []string
	for _, name := range secretHeaders() {
		if !h.ours(name) && !listed(h.pass, name) {
			out = append(out, name)
		}
	}
	for _, name := range h.tokens {
		if !h.ours(name) && !listed(h.pass, name) && !listed(out, name) {
			out = append(out, name)
		}
	}
	for _, name := range exact {
		if !h.ours(name) && !listed(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// Always returns the headers to remove from every request, whether they were
// seen or not, because Envoy's forward rules may hide them from us: the secrets
// of the caller and the exact names of `remove`. It names no header that a reply
// may set, nor cookie, which has an edit of its own. The caller must not change
// the slice.
func (h *HeaderRule) Always() []string {
	if h.always == nil { // the zero value: even a pass list leaves some
		return h.blind(nil)
	}
	return h.always
}

// NeedsAll reports whether Envoy must show us every header of a request: an allow
// list has to see what it drops, and so has a pattern in `remove`, unless it
// lies in the x-mcp- range, which is always shown.
func (h *HeaderRule) NeedsAll() bool {
	return len(h.allow) > 0 || slices.ContainsFunc(h.remove, func(prefix string) bool {
		return !strings.HasPrefix(prefix, "x-mcp-")
	})
}

// Inspected returns the headers that Envoy must forward to us for its decisions
// to be right, as exact names and as prefixes, both sorted. With all set, that is
// every header. Fewer than these must not be forwarded, more may.
//
// The prefixes are those under which a denied name may hide behind underscores;
// the plain spellings of x-api-key and its like are removed unseen, so that a
// secret which decides nothing does not travel here.
func (u *Upstream) Inspected() (names, prefixes []string, all bool) {
	names = []string{"authorization", "cookie", keyHeader, "origin", "traceparent", "x-envoy-attempt-count", "x-request-id"}
	for i := range u.bearers {
		names = append(names, u.bearers[i].header)
	}
	if u.Headers.tokensMatter() {
		names = append(names, pathHeader)
	}
	prefixes = u.Headers.prefixes()
	if u.Tools != nil {
		names = append(names, standardHeaders()...)
	}
	if u.BindsSessions {
		names = append(names, sessionHeader)
		prefixes = sorted(append(prefixes, hidingPlaces(sessionHeader)...))
	}
	if u.OutcomesFromHeaders {
		// Envoy holds the headers of answers against the same list. DELETE ends a
		// session.
		names = append(names, ":method", ":status")
	}
	return sorted(names), prefixes, u.Headers.NeedsAll()
}

// Mutable returns the headers that a reply of ours may set or remove, for
// Envoy's mutation rules, as exact names and as prefixes, both sorted. With all
// set, any header may be removed but those that Envoy keeps to itself.
func (u *Upstream) Mutable() (names, prefixes []string, all bool) {
	names = []string{"authorization", "cookie", guardHeader}
	names = append(names, u.Headers.set...)
	names = append(names, u.Headers.Always()...)
	return sorted(names), u.Headers.prefixes(), u.Headers.NeedsAll()
}

func (h *HeaderRule) prefixes() []string {
	out := []string{
		"api_", "ocp-apim-subscription_", "ocp-apim_", "ocp_", "proxy_",
		"x-api_", "x-goog-api_", "x-goog_", "x-litellm-api_", "x-litellm_", "x-mcp", "x_",
	}
	for _, name := range h.tokens {
		if listed(h.always, name) {
			out = append(out, hidingPlaces(name)...)
		}
	}
	for _, prefix := range h.remove {
		if prefix != "" {
			out = append(out, prefix)
		}
	}
	return sorted(out)
}

// hidingPlaces returns the prefixes of all spellings of a name with an underscore
// for a hyphen.
func hidingPlaces(name string) []string {
	var out []string
	for i := range len(name) {
		if name[i] == '-' {
			out = append(out, name[:i]+"_")
		}
	}
	return out
}

func sorted(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// tokensMatter reports whether a caller of any upstream has a token.
func (h *HeaderRule) tokensMatter() bool { return len(h.tokens) > 0 }

// drops reports whether a header that was seen must be named for removal. The
// order of the questions is the rule: what is not ours to touch, what may pass,
// what is denied, what the policy removes, and last what it does not allow.
func (h *HeaderRule) drops(name string) bool {
	switch {
	case h.ours(name), listed(h.always, name):
		return false
	case listed(h.pass, name):
		return h.removes(name)
	case denied(name), h.isToken(name), h.removes(name):
		return true
	}
	return len(h.allow) > 0 && !needed(name) && !h.allows(name)
}

// ours reports whether a removal must not name the header: Envoy refuses to have
// its own touched, framing is not a policy's affair, the cookie header has an
// edit of its own, and the headers a reply sets are overwritten.
func (h *HeaderRule) ours(name string) bool {
	return strings.HasPrefix(name, ":") || hasPrefix(name, "x-envoy-", strict) ||
		equal(name, "host", strict) || equal(name, "cookie", strict) ||
		equal(name, "content-length", strict) || equal(name, "transfer-encoding", strict) ||
		equal(name, guardHeader, strict) || listed(h.set, name)
}

// denied reports whether the header may hold a secret of the caller, or is one of
// the forms x-mcp-SERVER-HEADER by which a client overrides what LiteLLM sends:
// HEADER may be any that holds a credential, and -key ends all that hold keys.
func denied(name string) bool {
	if hasPrefix(name, "x-mcp-", loose) {
		return hasPrefix(name, "x-mcp-auth", loose) || hasSuffix(name, "-authorization") ||
			hasSuffix(name, "-cookie") || hasSuffix(name, "-host") || hasSuffix(name, "-key")
	}
	for _, secret := range secretHeaders() {
		if equal(name, secret, loose) {
			return true
		}
	}
	return false
}

// isToken reports whether callers have tokens in the header, in any spelling.
func (h *HeaderRule) isToken(name string) bool {
	for _, token := range h.tokens {
		if equal(name, token, loose) {
			return true
		}
	}
	return false
}

// needed reports whether HTTP or MCP needs the header, so that an allow list need
// not name it. baggage is missing on purpose: it carries whatever callers put in.
func needed(name string) bool {
	for _, n := range neededHeaders() {
		if equal(name, n, strict) {
			return true
		}
	}
	return hasPrefix(name, "mcp-param-", strict)
}

func neededHeaders() [23]string {
	return [...]string{
		"content-type", "content-encoding", "te", "expect", "connection", "upgrade",
		"accept", "accept-encoding", "accept-language", "user-agent", "cache-control",
		"last-event-id", "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name",
		"origin", "x-request-id", "x-forwarded-proto", "x-forwarded-for",
		"traceparent", "tracestate", "keep-alive",
	}
}

func (h *HeaderRule) removes(name string) bool {
	for _, prefix := range h.remove {
		if hasPrefix(name, prefix, loose) {
			return true
		}
	}
	return false
}

func (h *HeaderRule) allows(name string) bool {
	for i := range h.allow {
		p := &h.allow[i]
		if p.prefix && hasPrefix(name, p.name, strict) || equal(name, p.name, strict) {
			return true
		}
	}
	return false
}

func listed(list []string, name string) bool {
	for _, n := range list {
		if equal(name, n, strict) {
			return true
		}
	}
	return false
}

// reading is how two spellings of a header name are compared, byte by byte and
// without an allocation.
type reading uint8

const (
	// strict ignores the case of ASCII letters (RFC 9110 §5.1).
	strict reading = iota
	// loose takes `_` for `-` besides.
	loose
)

func equal(a, b string, fold reading) bool {
	return len(a) == len(b) && same(a, b, fold)
}

func hasPrefix(name, prefix string, fold reading) bool {
	return len(name) >= len(prefix) && same(name[:len(prefix)], prefix, fold)
}

func hasSuffix(name, suffix string) bool {
	return len(name) >= len(suffix) && same(name[len(name)-len(suffix):], suffix, loose)
}

// same compares strings of one length.
func same(a, b string, fold reading) bool {
	for i := range len(a) {
		if x, y := a[i], b[i]; x != y && folded(x, fold) != folded(y, fold) {
			return false
		}
	}
	return true
}

func folded(c byte, fold reading) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case c == '_' && fold == loose:
		return '-'
	}
	return c
}
