package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

func (c *checker) caller(name string) {
	path := join("callers", name)
	c.name(path, name, "caller")
	if !c.good(path) {
		return
	}
	spec := c.f.Callers[name]
	c.exactlyOne(path, "any", "key", "mtls", "jwt")
	if p := path + ".any"; c.good(p) && !spec.Any {
		c.fault(p, "want true, got false; remove this caller, since one that admits nobody is not needed")
	}
	c.each(path+".scopes", spec.Scopes, c.scope)
	if spec.JWT != nil && c.good(path+".jwt") {
		c.jwt(path+".jwt", spec.JWT)
	}
	if p := path + ".scopes"; spec.JWT != nil && c.good(p) {
		c.fault(p, "this is for callers without a token, and its scopes come from its token; remove it, or see jwt.require_scopes")
	}
	if p := path + ".key.sha256"; spec.Key != nil && c.good(p) {
		c.some(p, len(spec.Key.SHA256))
		c.each(p, spec.Key.SHA256, c.keySum)
	}
	if p := path + ".mtls.san"; spec.MTLS != nil && c.good(p) {
		c.some(p, len(spec.MTLS.SAN))
		c.each(p, spec.MTLS.SAN, func(path, san string) {
			if !isVisible(san) || strings.Contains(san, ",") {
				c.fault(path, "want a URI such as spiffe://company/litellm or a DNS name, got %s; blanks, commas and non-ASCII letters do not occur in one", c.got(path))
			}
		})
	}
}

// some refuses an empty list where nothing would match.
func (c *checker) some(path string, n int) {
	if n == 0 {
		c.fault(path, "want at least one entry, got an empty list; add one")
	}
}

// keySum does not repeat what it refuses: it is most often the key itself.
func (c *checker) keySum(path, sum string) {
	raw, err := hex.DecodeString(sum)
	nothing := sha256.Sum256(nil)
	switch {
	case err != nil || len(raw) != sha256.Size || strings.ToLower(sum) != sum:
		c.fault(path, "want 64 lower-case hex digits, got %d characters (not shown); take the SHA-256 of the key: printf %%s KEY | sha256sum", len(sum))
	case string(raw) == string(nothing[:]):
		c.fault(path, "this is the SHA-256 of an empty key; take the SHA-256 of the key itself: printf %%s KEY | sha256sum")
	}
}

// callerList checks a list of callers' names.
func (c *checker) callerList(path string, names []string) {
	if !c.good(path) {
		return
	}
	c.some(path, len(names))
	c.each(path, names, func(path, name string) {
		if _, ok := c.f.Callers[name]; !ok {
			c.fault(path, "want the name of one of callers, got %s; add it there or correct the name", c.got(path))
		}
	})
}

// lending warns about what is allowed and rarely meant: an identity lent to
// everybody, and a caller that the rendered Envoy can never admit.
func (c *checker) lending() {
	users := map[string]int{}
	lenders := map[string]int{}
	for name := range c.f.Upstreams {
		up := c.f.Upstreams[name]
		credential := or(up.Credential, c.f.Defaults.Credential)
		for _, caller := range c.callersOf(&up) {
			users[caller]++
			if credential != nil && !credential.None {
				lenders[caller]++
			}
		}
	}
	for name, spec := range c.f.Callers {
		path := join("callers", name)
		if spec.Any && lenders[name] > 0 {
			c.warn(path, "everybody who reaches Envoy is lent the credential of %s; use a key or mtls caller unless Envoy is closed to others", count(lenders[name], "upstream"))
		}
		if tls := c.f.Envoy.TLS; spec.MTLS != nil && users[name] > 0 && (tls == nil || tls.ClientCA == "") {
			c.warn(path, "the rendered Envoy asks for no client certificate, so this caller is never admitted there; set envoy.tls with client_ca, or bring an Envoy that verifies client certificates")
		}
	}
}

func (c *checker) callersOf(up *UpstreamSpec) []string {
	if up.Callers != nil {
		return up.Callers
	}
	return c.f.Defaults.Callers
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// or returns the upstream's own block, else the default one.
func or[T any](own, inherited *T) *T {
	if own != nil {
		return own
	}
	return inherited
}
