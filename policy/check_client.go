package policy

import (
	"slices"
	"strings"
)

// method is auth_method, or what follows from the things the client has; empty
// when that is for the issuer's metadata to say.
func (o *OAuth2Spec) method() AuthMethod {
	switch {
	case o.AuthMethod != "":
		return AuthMethod(o.AuthMethod)
	case o.Grant == string(JWTBearer) && o.ClientSecret.Ref.IsZero() && o.PrivateKey.Ref.IsZero() && o.Certificate == nil:
		return NoClientAuth
	case o.Issuer != "":
		return ""
	case o.Certificate != nil:
		return TLSClientAuth
	case !o.PrivateKey.Ref.IsZero():
		return PrivateKeyJWT
	}
	return ClientSecretBasic
}

// clientAuth checks that the client has what its method takes. A key that the
// method would leave unused is a fault too: somebody relies on it.
func (c *checker) clientAuth(path string, spec *OAuth2Spec) {
	m := spec.method()
	if c.has(path+".auth_method") && !c.good(path+".auth_method") {
		return
	}
	if id := path + ".client_id"; !c.has(id) && m != NoClientAuth {
		c.fault(id, "want a value, got nothing; add this key")
	}
	if spec.AuthMethod == "" && m != NoClientAuth && !c.anyOf(path, "client_secret", "private_key", "certificate") {
		c.fault(path+".client_secret", "want a client_secret, a private_key or a certificate, got none; add the one that this client is registered with")
		return
	}
	c.methodKeys(path, m)
	if p := path + ".token_url"; c.good(p) && m.MutualTLS() && !strings.HasPrefix(strings.ToLower(spec.TokenURL), "https:") {
		c.fault(p, "want https, since a client certificate is shown in TLS only, got %s; correct it", c.gotURL(p))
	}
	if p := path + ".client_id"; c.good(p) && spec.BasicEncoding == "raw" && strings.Contains(spec.ClientID, ":") {
		c.fault(p, "want no colon with basic_encoding: raw, where it would end the id; use client_secret_post, or basic_encoding: form")
	}
}

// methodKeys checks for the keys that a method needs, and against those it does not use.
func (c *checker) methodKeys(path string, m AuthMethod) {
	var uses []string
	methods := []AuthMethod{m}
	if m == "" {
		methods = c.candidates(path)
	}
	for _, m = range methods {
		needs := m.needs()
		for _, key := range needs {
			if p := join(path, key); !c.has(p) {
				c.fault(p, "want a value, since the auth_method is %s; add this key", m)
			}
		}
		uses = append(append(uses, needs...), m.allows()...)
		if m == PrivateKeyJWT && !c.has(path+".issuer") && !c.has(path+".assertion_audience") {
			c.fault(path+".assertion_audience", "want the issuer of the authorization server, which a token_url does not tell; add this key, or write issuer in place of token_url")
		}
	}
	for _, key := range []string{
		"client_secret", "private_key", "certificate", "key_id", "signing_algorithm", "assertion_audience", "assertion_typ", "basic_encoding",
	} {
		if p := join(path, key); c.good(p) && !slices.Contains(uses, key) {
			c.fault(p, "the auth_method %s does not use this key; remove it, or choose another auth_method", m)
		}
	}
}

// candidates lists what the metadata chooses from, one for each thing the client has.
func (c *checker) candidates(path string) []AuthMethod {
	if c.has(path + ".certificate") {
		return []AuthMethod{TLSClientAuth}
	}
	var all []AuthMethod
	if c.has(path + ".client_secret") {
		all = append(all, ClientSecretBasic)
	}
	if c.has(path + ".private_key") {
		all = append(all, PrivateKeyJWT)
	}
	return all
}

func (c *checker) anyOf(path string, keys ...string) bool {
	for _, key := range keys {
		if c.has(join(path, key)) {
			return true
		}
	}
	return false
}

// needs lists the keys that a method cannot do without.
func (m AuthMethod) needs() []string {
	switch m {
	case PrivateKeyJWT:
		return []string{"private_key"}
	case TLSClientAuth, SelfSignedTLSClientAuth:
		return []string{"certificate", "private_key"}
	case NoClientAuth:
		return nil
	case ClientSecretBasic, ClientSecretPost:
	}
	return []string{"client_secret"}
}

// allows lists the further keys that a method uses.
func (m AuthMethod) allows() []string {
	switch m {
	case PrivateKeyJWT:
		return []string{"key_id", "signing_algorithm", "assertion_audience", "assertion_typ"}
	case ClientSecretBasic:
		return []string{"basic_encoding"}
	case ClientSecretPost, TLSClientAuth, SelfSignedTLSClientAuth, NoClientAuth:
	}
	return nil
}
