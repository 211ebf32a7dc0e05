package policy

// grant checks what the grant takes: the assertion, the caller's token, and the
// identity provider.
func (c *checker) grant(path string, spec *OAuth2Spec) {
	if c.has(path+".grant") && !c.good(path+".grant") {
		return
	}
	assertion, subject := path+".assertion", path+".subject"
	switch grant := Grant(spec.Grant); grant {
	case JWTBearer:
		switch {
		case c.has(assertion) && c.good(subject):
			c.fault(subject, "want assertion or subject: caller, got both; keep the one whose JWT is to be shown")
		case !c.has(assertion) && !c.has(subject):
			c.fault(assertion, "want the file of the JWT that jwt_bearer shows, got nothing; add {file: PATH}, or subject: caller to show the caller's own token")
		}
	case ClientCredentials:
		if c.good(subject) {
			c.fault(subject, "the grant client_credentials has no subject; remove it, or choose the grant token_exchange, id_jag or jwt_bearer")
		}
		c.noAssertion(assertion)
	case TokenExchange, IDJAG:
		c.noAssertion(assertion)
	}
	c.idp(path, spec)
}

func (c *checker) noAssertion(path string) {
	if c.good(path) {
		c.fault(path, "this is for the grant jwt_bearer; remove it, or add grant: jwt_bearer")
	}
}

// idp checks the identity provider of id_jag, as the OAuth 2 client that it is.
func (c *checker) idp(path string, spec *OAuth2Spec) {
	p := path + ".idp"
	switch jag := spec.Grant == string(IDJAG); {
	case jag && !c.has(p):
		c.fault(p, "want the identity provider that id_jag asks first, got nothing; add {issuer: …, client_id: …} and the client's secret or key")
	case !jag && c.good(p):
		c.fault(p, "this is for the grant id_jag; remove it, or add grant: id_jag")
	case jag && c.good(p) && spec.IDP != nil:
		c.oauth2(p, spec.IDP.client())
		if r := path + ".resource"; c.good(r) && spec.Resource.Off {
			c.fault(r, "id_jag always names the resource that the assertion is for; remove it, or write the resource that the authorization server knows")
		}
		if !c.has(p+".audience") && !c.has(path+".issuer") {
			c.fault(p+".audience", "want the issuer of the authorization server that takes the identity assertion, which a token_url does not tell; add this key, or write issuer in place of the token_url of oauth2")
		}
	}
}

// client is the identity provider's part of id_jag as a client of its own: the
// exchange of the caller's token for the identity assertion.
func (s *IDPSpec) client() *OAuth2Spec {
	return &OAuth2Spec{
		Grant:             string(TokenExchange),
		TokenURL:          s.TokenURL,
		Issuer:            s.Issuer,
		AllowPlaintext:    s.AllowPlaintext,
		AllowPrivate:      s.AllowPrivate,
		ClientID:          s.ClientID,
		ClientSecret:      s.ClientSecret,
		PrivateKey:        s.PrivateKey,
		KeyID:             s.KeyID,
		SigningAlgorithm:  s.SigningAlgorithm,
		AssertionAudience: s.AssertionAudience,
		AssertionTyp:      s.AssertionTyp,
		Certificate:       s.Certificate,
		AuthMethod:        s.AuthMethod,
		BasicEncoding:     s.BasicEncoding,
		CA:                s.CA,
		Audience:          s.Audience,
		Params:            s.Params,
	}
}

// userBound reports whether each caller gets a token of its own.
func (o *OAuth2Spec) userBound() bool {
	switch Grant(o.Grant) {
	case TokenExchange, IDJAG:
		return true
	case JWTBearer:
		return o.Subject == "caller"
	case ClientCredentials:
	}
	return false
}

// userBound checks that there is a token to exchange, whoever of the upstream's
// callers calls.
func (c *checker) userBound(path string, up *UpstreamSpec, credential *CredentialSpec) {
	if credential == nil || credential.OAuth2 == nil || !credential.OAuth2.userBound() {
		return
	}
	for _, name := range c.callersOf(up) {
		if caller, ok := c.f.Callers[name]; ok && caller.JWT == nil && c.good(join("callers", name)) {
			c.fault(path+".callers", "each caller's own token is exchanged for the one that is lent, and caller %s has none; list callers of kind jwt only, or choose another grant", show(name))
			return
		}
	}
}
