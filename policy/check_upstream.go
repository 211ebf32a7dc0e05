package policy

import (
	"maps"
	"slices"
	"strings"
)

func (c *checker) upstream(name string) {
	path := join("upstreams", name)
	c.name(path, name, "upstream")
	up := c.f.Upstreams[name]
	c.url(path+".url", up.URL, urlRules{plaintext: up.AllowPlaintext, hint: "set allow_plaintext: true if the network between is yours"})
	c.callerList(path+".callers", up.Callers)
	c.credential(path+".credential", up.Credential)
	c.cookies(path+".cookies", up.Cookies)
	c.headers(path+".headers", up.Headers)
	c.origins(path+".origins", up.Origins)
	c.tools(path+".tools", up.Tools, c.callersOf(&up))
	c.toolsOf(path, &up)
	if up.Watch != nil {
		c.watchRules(path+".watch", up.Watch)
	}
	c.disableNeedsNames(path, &up)
	if up.Envoy != nil {
		c.upstreamEnvoy(path+".envoy", up.Envoy)
	}
	if c.at[path].node != nil && !c.isBlock(path) {
		return
	}
	c.lends(path, &up)
}

// isBlock reports whether the file has a mapping at path; if not, its missing keys are no further faults.
func (c *checker) isBlock(path string) bool { return len(c.at[path].node.Content) > 0 }

// lends checks what is needed before anything may be lent, and refuses an
// upstream that nobody may call (rule S2: who lends its own identity has to
// know to whom).
func (c *checker) lends(path string, up *UpstreamSpec) {
	credential := or(up.Credential, c.f.Defaults.Credential)
	if credential == nil && !c.said(path, "credential") {
		c.fault(path+".credential", "want a credential, got none here and none in defaults; add one, or write credential: none")
	}
	if c.callersOf(up) == nil && !c.said(path, "callers") {
		c.fault(path+".callers", "want the names of those who may call, got none here and none in defaults; to admit everybody, add callers: [anyone] here and anyone: {any: true} under callers")
	}
	c.tokenKeys(path, up, credential)
	c.userBound(path, up, credential)
	headers, at := up.Headers, path+".headers.pass"
	if headers == nil {
		headers, at = c.f.Defaults.Headers, path
	}
	if headers != nil && len(headers.Pass) > 0 && credential != nil && !credential.None {
		c.fault(at, "headers.pass lets the caller's own secrets go on, and this upstream is lent a credential; keep one: remove pass, or write credential: none")
	}
	if headers != nil {
		c.passesToken(at, headers.Pass, up)
	}
}

// tokenKeys refuses keys about access tokens where none is lent.
func (c *checker) tokenKeys(path string, up *UpstreamSpec, credential *CredentialSpec) {
	if credential == nil || credential.OAuth2 != nil {
		return
	}
	if p := path + ".stale_grace"; c.good(p) {
		c.fault(p, "this is about access tokens, and the upstream is lent none; remove it")
	}
	if p := path + ".discover"; c.good(p) && up.Discover {
		c.fault(p, "this compares whose access tokens are asked for and taken, and the upstream is lent none; remove it")
	}
}

// said reports whether the file has this key in the upstream or in defaults,
// right or wrong, or has it hidden behind a fault of the whole of defaults.
func (c *checker) said(path, key string) bool {
	return c.has(join(path, key)) || c.has(join("defaults", key)) || c.at["defaults"].bad
}

func (c *checker) origins(path string, spec *OriginsSpec) {
	if spec == nil {
		return
	}
	c.each(path+".allow", spec.Allow, func(path, origin string) {
		if !isOrigin(origin) {
			c.fault(path, "want SCHEME://HOST[:PORT] as browsers send it or null, got %s; lower case, no path, no default port", c.gotURL(path))
		}
	})
}

// isOrigin checks for an origin as a browser serialises it (RFC 6454 §6.2). Any
// other spelling would never match.
func isOrigin(s string) bool {
	if s == "null" {
		return true
	}
	u, ok := parseURL(s)
	if !ok || u.Hostname() == "" || strings.Contains(s, "*") {
		return false
	}
	return s == u.Scheme+"://"+u.Host && s == canonical(s)
}

func (c *checker) upstreamEnvoy(path string, spec *UpstreamEnvoySpec) {
	if p := path + ".cluster"; c.good(p) && !isVisible(spec.Cluster) {
		c.fault(p, "want the name of an Envoy cluster, got %s; write it without blanks, in ASCII", c.got(p))
	}
	if p := path + ".route"; c.good(p) {
		rest := strings.TrimSuffix(spec.Route, "*")
		if rest == "" || strings.Contains(rest, "*") || !isVisible(rest) {
			c.fault(p, "want the name of an Envoy route, got %s; a * may only end it, after at least one character", c.got(p))
		}
	}
	c.envoyListen(path+".listen", spec.Listen)
}

// clashes refuses two upstreams that Envoy's configuration could not tell
// apart, and two listeners on one address.
func (c *checker) clashes() {
	clusters, routes, listens := map[string]string{}, map[string]string{}, map[string]string{}
	for _, own := range []struct{ path, address string }{
		{"server.listen", c.f.Server.Listen}, {"server.admin", c.f.Server.Admin}, {"envoy.listen", c.f.Envoy.Listen},
	} {
		if !strings.HasSuffix(own.address, ":0") {
			c.once(listens, own.path, own.address)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.f.Upstreams)) {
		path := join("upstreams", name) + ".envoy"
		var spec UpstreamEnvoySpec
		if e := c.f.Upstreams[name].Envoy; e != nil {
			spec = *e
		}
		if spec.Cluster == "" {
			spec.Cluster = name
		}
		c.once(clusters, path+".cluster", spec.Cluster)
		c.once(routes, path+".route", spec.Route)
		c.once(listens, path+".listen", spec.Listen)
	}
}

// once refuses a value that another path has already. Of the two, the one that
// the file spells out is named.
func (c *checker) once(taken map[string]string, path, value string) {
	if value == "" || c.at[path].bad {
		return
	}
	other, clash := taken[value]
	if !clash {
		taken[value] = path
		return
	}
	if !c.has(path) && c.has(other) {
		path, other = other, path
	}
	c.fault(path, "this is also the value of %s; give each its own", other)
}
