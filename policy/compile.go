package policy

import (
	"cmp"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"
)

// compile turns a checked file into a Set. It cannot fail.
func (c *checker) compile() *Set {
	s := &Set{
		Server:   c.compileServer(),
		Envoy:    c.compileEnvoy(),
		Stores:   c.compileStores(),
		Warnings: c.warnings.inLineOrder(),
	}
	s.SharedCache = c.compileSharedCache()
	s.Audit = c.compileAudit()
	s.Limits = c.compileLimits()
	s.Watch = c.compileWatch()
	s.Tracing = c.compileTracing()
	callers := make(map[string]*Caller, len(c.f.Callers))
	for _, name := range slices.Sorted(maps.Keys(c.f.Callers)) {
		callers[name] = c.compileCaller(name)
		s.Callers = append(s.Callers, callers[name])
	}
	s.Upstreams = make([]*Upstream, 0, len(c.f.Upstreams))
	for _, name := range slices.Sorted(maps.Keys(c.f.Upstreams)) {
		s.Upstreams = append(s.Upstreams, c.compileUpstream(name, callers, tokenHeaders(s.Callers)))
	}
	return s
}

func (c *checker) compileServer() Server {
	spec := &c.f.Server
	return Server{
		Listen:           spec.Listen,
		Admin:            spec.Admin,
		TLS:              c.compileTLS(spec.TLS),
		Deadline:         time.Duration(spec.Deadline),
		DrainDelay:       time.Duration(spec.DrainDelay),
		DrainTimeout:     time.Duration(spec.DrainTimeout),
		ReadyNeedsTokens: spec.Ready == "tokens",
	}
}

func (c *checker) compileEnvoy() Envoy {
	spec := &c.f.Envoy
	e := Envoy{
		Listen:    spec.Listen,
		Host:      spec.Host,
		PublicURL: strings.TrimSuffix(spec.PublicURL, "/"),
		ByHost:    spec.Route == "host",
		TLS:       c.compileTLS(spec.TLS),
	}
	switch {
	case e.PublicURL != "":
	case e.TLS != nil:
		e.PublicURL = "https://" + e.Listen
	default:
		e.PublicURL = "http://" + e.Listen
	}
	return e
}

func (c *checker) compileTLS(spec *TLSSpec) *TLSSpec {
	if spec == nil {
		return nil
	}
	return &TLSSpec{
		Certificate: c.resolve(spec.Certificate),
		PrivateKey:  c.resolve(spec.PrivateKey),
		ClientCA:    c.resolve(spec.ClientCA),
	}
}

func (c *checker) compileCaller(name string) *Caller {
	spec := c.f.Callers[name]
	caller := &Caller{Name: name, Any: spec.Any, Scopes: spec.Scopes}
	if spec.JWT != nil {
		caller.JWT = c.compileJWT(spec.JWT)
	}
	if spec.Key != nil {
		for _, sum := range spec.Key.SHA256 {
			raw, _ := hex.DecodeString(sum) // checked by keySum
			caller.Keys = append(caller.Keys, [32]byte(raw))
		}
	}
	if spec.MTLS != nil {
		caller.SANs = spec.MTLS.SAN
	}
	return caller
}

// compileUpstream is handed all callers, and the headers in which any of them has
// a token.
func (c *checker) compileUpstream(name string, callers map[string]*Caller, secret []string) *Upstream {
	spec := c.f.Upstreams[name]
	up := &Upstream{
		Name:     name,
		URL:      spec.URL,
		Resource: canonical(spec.URL),
		CA:       c.resolve(spec.CA),
		Cluster:  name,
		Discover: spec.Discover,
		Watch:    c.compileWatchRules(spec.Watch),
		Disabled: spec.Disabled,
	}
	if e := spec.Envoy; e != nil {
		up.Route, up.Listen, up.OutcomesFromHeaders = e.Route, e.Listen, e.Outcomes == "response_headers"
		if e.Cluster != "" {
			up.Cluster = e.Cluster
		}
	}
	for _, caller := range c.callersOf(&spec) {
		up.Callers = append(up.Callers, callers[caller])
	}
	up.bearers = bearers(up.Callers)
	up.Credential = c.compileCredential(or(spec.Credential, c.f.Defaults.Credential), up.Resource)
	if up.Credential.OAuth2 != nil {
		up.Credential.OAuth2.StaleGrace = time.Duration(spec.StaleGrace)
	}
	// A fixed header would be the same the second time.
	up.RetryOn401 = up.Credential.OAuth2 != nil && (spec.RetryOn401 == nil || *spec.RetryOn401)
	var cookies CookiesSpec
	if b := or(spec.Cookies, c.f.Defaults.Cookies); b != nil {
		cookies = *b
	}
	up.Cookies = NewCookieRule(cookies)
	var headers HeadersSpec
	if b := or(spec.Headers, c.f.Defaults.Headers); b != nil {
		headers = *b
	}
	up.Headers = NewHeaderRule(headers, up.Credential, secret...)
	if b := or(spec.Origins, c.f.Defaults.Origins); b != nil {
		up.Origins = b.Allow
	}
	up.Tools = compileTools(or(spec.Tools, c.f.Defaults.Tools))
	up.BindsSessions = cmp.Or(spec.Sessions, c.f.Defaults.Sessions) != "off"
	return up
}

func (c *checker) compileCredential(spec *CredentialSpec, resource string) Credential {
	var lent Credential
	if spec.OAuth2 != nil {
		lent.OAuth2 = c.compileOAuth2(spec.OAuth2, resource)
	}
	for name, secret := range spec.Header {
		lent.Headers = append(lent.Headers, SecretHeader{strings.ToLower(name), secret.Ref})
	}
	slices.SortFunc(lent.Headers, func(a, b SecretHeader) int { return strings.Compare(a.Name, b.Name) })
	return lent
}

func (c *checker) compileOAuth2(o *OAuth2Spec, resource string) *OAuth2 {
	lent := &OAuth2{
		TokenURL:          o.TokenURL,
		Issuer:            o.Issuer,
		AllowPlaintext:    o.AllowPlaintext,
		AllowPrivate:      o.AllowPrivate,
		Grant:             Grant(o.Grant),
		SubjectCaller:     o.userBound(),
		CA:                c.resolve(o.CA),
		ClientID:          o.ClientID,
		ClientSecret:      o.ClientSecret.Ref,
		PrivateKey:        o.PrivateKey.Ref,
		KeyID:             o.KeyID,
		SigningAlgorithm:  o.SigningAlgorithm,
		AssertionAudience: o.AssertionAudience,
		NoAssertionTyp:    o.AssertionTyp != nil && !*o.AssertionTyp,
		AuthMethod:        o.method(),
		RawBasic:          o.BasicEncoding == "raw",
		Scopes:            o.Scopes,
		Resource:          resource,
		Audience:          o.Audience,
		DefaultLifetime:   time.Duration(o.DefaultLifetime),
		MaxLifetime:       time.Duration(o.MaxLifetime),
	}
	if lent.AssertionAudience == "" {
		lent.AssertionAudience = o.Issuer
	}
	if o.Assertion != nil {
		lent.Assertion = c.resolve(o.Assertion.File)
	}
	if o.Certificate != nil {
		lent.Certificate = c.resolve(o.Certificate.File)
	}
	if o.Resource.Off || o.Resource.Value != "" {
		lent.Resource = o.Resource.Value
	}
	for _, name := range slices.Sorted(maps.Keys(o.Params)) {
		lent.Params = append(lent.Params, Param{name, o.Params[name]})
	}
	if o.IDP != nil {
		lent.IDP = c.compileIDP(o.IDP, lent)
	}
	return lent
}

// compileIDP is the client at the identity provider, which asks there for what
// the assertion shall be good for: the outer client's scopes and resource.
func (c *checker) compileIDP(spec *IDPSpec, outer *OAuth2) *OAuth2 {
	idp := c.compileOAuth2(spec.client(), outer.Resource)
	idp.Scopes, idp.DefaultLifetime, idp.MaxLifetime = outer.Scopes, outer.DefaultLifetime, outer.MaxLifetime
	if idp.Audience == "" {
		idp.Audience = outer.Issuer
	}
	return idp
}
