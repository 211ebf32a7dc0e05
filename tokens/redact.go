package tokens

import (
	"encoding/base64"
	"net/url"
	"strings"
)

// maxQuote is how much of an error_description is quoted.
const maxQuote = 200

// redactor keeps a client's secret out of what an authorization server says.
// Some of them quote the request in their errors.
type redactor struct{ forbidden []string }

// newRedactor prepares the forms in which the secret travels: as it is,
// form-encoded, and in the Basic credentials, alone or with the client's id. Of
// an assertion, the signature is looked for: without it, the rest proves nothing.
func newRedactor(id, secret string, assertions ...string) redactor {
	var r redactor
	if secret != "" {
		form := url.QueryEscape(secret)
		r.forbidden = []string{secret, form, url.PathEscape(secret)}
		for _, s := range []string{secret, form, id + ":" + secret, url.QueryEscape(id) + ":" + form} {
			r.forbidden = append(
				r.forbidden,
				strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(s)), "="),
				base64.RawURLEncoding.EncodeToString([]byte(s)),
			)
		}
	}
	for _, jwt := range assertions {
		if signature := jwt[strings.LastIndexByte(jwt, '.')+1:]; signature != "" {
			r.forbidden = append(r.forbidden, signature)
		}
	}
	for i, s := range r.forbidden {
		r.forbidden[i] = strings.ToLower(s)
	}
	return r
}

// clean returns what may be quoted of s: all of it that fits on a line, or
// nothing if the secret is anywhere in it. Case is ignored, because percent
// encoding has two.
func (r redactor) clean(s string) string {
	low := strings.ToLower(s)
	for _, f := range r.forbidden {
		if strings.Contains(low, f) {
			return ""
		}
	}
	return oneLine(s, maxQuote)
}

// oneLine keeps the characters of RFC 6749 §5.2 (%x20-21 / %x23-5B / %x5D-7E),
// turns each run of others and of blanks into one blank, and cuts at limit.
func oneLine(s string, limit int) string {
	var b strings.Builder
	for _, c := range s {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			c = ' '
		}
		if c == ' ' && strings.HasSuffix(b.String(), " ") {
			continue
		}
		if b.Len() == limit {
			break
		}
		b.WriteRune(c)
	}
	return strings.TrimSpace(b.String())
}
