package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// checker checks the decoded file: what a type cannot say.
type checker struct {
	*decoder
	f        *File
	warnings Faults
}

// file checks every block. The order does not matter: faults are sorted by line.
func (c *checker) file() {
	if c.good("version") && c.f.Version != 1 {
		c.fault("version", "want 1, got %d; this program reads version 1 only", c.f.Version)
	}
	c.server()
	c.envoy()
	c.stores()
	if c.f.SharedCache != nil {
		c.sharedCache("shared_cache", c.f.SharedCache)
	}
	if c.f.Watch != nil {
		c.watch("watch", c.f.Watch)
	}
	if c.f.Audit != nil {
		c.audit("audit", c.f.Audit)
	}
	if c.f.Limits != nil {
		c.limits(c.f.Limits)
	}
	if c.f.Tracing != nil {
		c.tracing("tracing", c.f.Tracing)
	}
	for _, name := range slices.Sorted(maps.Keys(c.f.Callers)) {
		c.caller(name)
	}
	c.defaults()
	if c.good("upstreams") && len(c.f.Upstreams) == 0 {
		c.fault("upstreams", "want at least one upstream, got none; add NAME: {url: …}")
	}
	for _, name := range slices.Sorted(maps.Keys(c.f.Upstreams)) {
		c.upstream(name)
	}
	c.clashes()
	c.lending()
}

// defaults checks its blocks in place, so that their faults come once and not
// once per upstream that inherits them.
func (c *checker) defaults() {
	b := &c.f.Defaults
	c.callerList("defaults.callers", b.Callers)
	c.credential("defaults.credential", b.Credential)
	c.cookies("defaults.cookies", b.Cookies)
	c.headers("defaults.headers", b.Headers)
	c.origins("defaults.origins", b.Origins)
	c.tools("defaults.tools", b.Tools, nil)
}

// good reports whether the file has this key and nothing was wrong with it so far.
func (c *checker) good(path string) bool {
	m, ok := c.at[path]
	return ok && !m.bad
}

// got returns the text of a scalar as the file has it, before expansion.
func (c *checker) got(path string) string {
	if m, ok := c.at[path]; ok && m.node != nil {
		return show(m.node.Value)
	}
	return "nothing"
}

// gotUpTo is got, cut at the first of chars: what follows may be a value pasted
// along with a name, and that value a secret.
func (c *checker) gotUpTo(path, chars string) string {
	text := c.at[path].node.Value
	if i := strings.IndexAny(text, chars); i >= 0 {
		return show(text[:i]) + " and more"
	}
	return show(text)
}

func (c *checker) warn(path, format string, args ...any) {
	c.warnings = append(c.warnings, Fault{c.decoder.file, c.line(path), clip(path, 200), fmt.Sprintf(format, args...)})
}

// each runs check over a list of strings and refuses what is there twice.
// Entries that have a fault already are skipped.
func (c *checker) each(path string, list []string, check func(path, item string)) {
	seen := make(map[string]int, len(list))
	for i, item := range list {
		p := path + "[" + strconv.Itoa(i) + "]"
		if !c.has(p) { // a StringList written as one string
			p = path
		}
		if !c.good(p) {
			continue
		}
		if first, twice := seen[item]; twice {
			c.fault(p, "this entry is here twice, first as number %d; remove one", first+1)
			continue
		}
		seen[item] = i
		check(p, item)
	}
}

// name checks the name of a caller or an upstream. It becomes a path segment, a
// cluster name and a metric label.
func (c *checker) name(path, name, what string) {
	ok := name != "" && len(name) <= 63 && isNameStart(name[0])
	for _, b := range []byte(name) {
		ok = ok && (isNameStart(b) || b == '_' || b == '-' || b == '.')
	}
	if !ok {
		c.fault(path, "want lower-case letters, digits, _, - and ., first a letter or digit, at most 63 in all; rename this %s", what)
	}
}

func isNameStart(b byte) bool { return 'a' <= b && b <= 'z' || '0' <= b && b <= '9' }
