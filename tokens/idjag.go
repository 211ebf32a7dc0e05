package tokens

import (
	"encoding/base64"
	"encoding/json"
	"strings"
)

// Names of RFC 8693 §3, and of the draft on identity assertion authorization
// grants (ID-JAG).
const (
	tokenExchange   = "urn:ietf:params:oauth:grant-type:token-exchange" //nolint:gosec // a name, no secret
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"   //nolint:gosec // as above
	typeIDToken     = "urn:ietf:params:oauth:token-type:id_token"       //nolint:gosec // as above
	typeIDJAG       = "urn:ietf:params:oauth:token-type:id-jag"         //nolint:gosec // as above
	idJAGTyp        = "oauth-id-jag+jwt"
)

// take checks an answer for what was asked.
func (a answer) take(cl *client, got *granted) *Error {
	// A server that hands out another kind than the one asked for has
	// decided something that nobody here understands (rule O6).
	if cl.wants != "" && text(a.issued) != cl.wants {
		return refused("issued_token_type", "the issued_token_type is not %s, which was asked for", cl.wants)
	}
	if cl.wants == typeIDJAG {
		return a.takeIDJAG(cl.o.Audience, got)
	}
	return a.accept(&cl.o, got)
}

// takeIDJAG takes an ID-JAG that could be one for the audience. The server there
// verifies it; here only what is plainly another thing is kept from going on.
func (a answer) takeIDJAG(audience string, got *granted) *Error {
	if !strings.EqualFold(text(a.kind), "N_A") {
		return refused("token_type", "the token_type is not N_A, as that of an ID-JAG must be")
	}
	jag := text(a.access)
	parts := strings.Split(jag, ".")
	if len(parts) != 3 || !isB64Token(jag) || parts[2] == "" {
		return refused("id_jag", "what came as an ID-JAG is no signed JWT")
	}
	var header struct {
		Type string `json:"typ"`
	}
	var claims struct {
		Audience json.RawMessage `json:"aud"`
	}
	if !segment(parts[0], &header) || !segment(parts[1], &claims) {
		return refused("id_jag", "what came as an ID-JAG is no JWT")
	}
	// RFC 7515 §4.1.9: a media type, without application/ or with it.
	if typ := strings.ToLower(header.Type); strings.TrimPrefix(typ, "application/") != idJAGTyp {
		return refused("id_jag", "the typ of the ID-JAG is not %s", idJAGTyp)
	}
	one := text(claims.Audience)
	var list []string
	if json.Unmarshal(claims.Audience, &list) == nil && len(list) == 1 {
		one = list[0]
	}
	if one == "" || one != audience {
		return refused("id_jag", "the ID-JAG is not for %s alone: check the audience of idp", oneLine(audience, 100))
	}
	got.access = jag
	return nil
}

// segment reads one part of a JWT.
func segment(part string, into any) bool {
	b, err := base64.RawURLEncoding.DecodeString(part)
	return err == nil && json.Unmarshal(b, into) == nil
}
