package tokens

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/policy"
)

const (
	// maxToken bounds an access token: it goes into a header.
	maxToken = 16 << 10
	// shortestLife is the life of a token that comes dead: enough for the
	// call that waits for it, and a floor between two requests.
	shortestLife = time.Second
	// otherError stands for each error code that is not registered.
	otherError = "error"
)

// answer holds the members of a token answer that we read, still as JSON.
type answer struct {
	access, kind, expires, refresh, scope, issued json.RawMessage

	code, description string
}

// parseAnswer reads a JSON object, going by the body's shape and not by its
// media type. Member names are exact (RFC 6749 §5.1): x/oauth2 takes
// ACCESS_TOKEN too, and the last of two. Here two of a name are none, because
// nobody can say which one the server meant.
func parseAnswer(body []byte) (answer, *Error) {
	fields, bad := members(body)
	if bad != nil {
		return answer{}, bad
	}
	return answer{
		access: fields["access_token"], kind: fields["token_type"], expires: fields["expires_in"], scope: fields["scope"],
		refresh: fields["refresh_in"], issued: fields["issued_token_type"],
		code: errorWord(fields["error"]), description: text(fields["error_description"]),
	}, nil
}

// members reads the members of a JSON object, those that are null left out.
func members(body []byte) (map[string]json.RawMessage, *Error) {
	seen, bad := object(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), maxAnswer)
	maps.DeleteFunc(seen, func(_ string, value json.RawMessage) bool { return string(value) == "null" })
	return seen, bad
}

// object reads the members of a JSON object, none of which may be there twice,
// and reads no more than that many.
func object(body []byte, most int) (map[string]json.RawMessage, *Error) {
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) || !json.Valid(body) {
		return nil, notJSON()
	}
	seen := map[string]json.RawMessage{}
	dec := json.NewDecoder(bytes.NewReader(body))
	_, _ = dec.Token() // the brace
	for dec.More() {
		if len(seen) == most {
			return nil, refused("too_many_members", "the answer has more than %d members", most)
		}
		name, _ := dec.Token()
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, notJSON()
		}
		member, _ := name.(string)
		if _, twice := seen[member]; twice {
			return nil, refused("duplicate_member", "the answer has a member twice")
		}
		seen[member] = value
	}
	return seen, nil
}

func notJSON() *Error {
	return refused("not_json", "the answer is not one JSON object: check token_url or issuer")
}

// errorWord returns the error member as a word, "" for none. One that is not a
// string is an error all the same.
func errorWord(raw json.RawMessage) string {
	if raw == nil || string(raw) == `""` {
		return ""
	}
	if s := text(raw); s != "" {
		return s
	}
	return otherError
}

// text returns a JSON string's value, "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	if raw == nil || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// accept takes the token if it is one we understand and may put in a header.
func (a answer) accept(o *policy.OAuth2, got *granted) *Error {
	if a.access == nil {
		return refused("access_token", "the answer has no access_token")
	}
	access := text(a.access)
	if !isB64Token(access) {
		return refused("access_token", "the access_token is no bearer token: want 1 to %d characters of RFC 6750 §2.1", maxToken)
	}
	// RFC 6749 §7.1: a client must not use a token whose type it does not understand.
	if !strings.EqualFold(text(a.kind), "bearer") {
		return refused("token_type", "the token_type is not Bearer")
	}
	life, given, ok := lifetime(a.expires, o.DefaultLifetime, o.MaxLifetime)
	if !ok {
		return refused("expires_in", "the expires_in is not a number")
	}
	got.access, got.life, got.noLife = access, life, !given
	// refresh_in is a wish: what cannot be read is as good as none.
	if refresh, given, ok := lifetime(a.refresh, 0, o.MaxLifetime); given && ok && refresh > shortestLife {
		got.refresh = refresh
	}
	if s := text(a.scope); isScope(s) {
		got.scope = s
	}
	return nil
}

// isB64Token reports whether s is a b64token (RFC 6750 §2.1). A header value
// made of it cannot hold CR, LF, NUL or a second header.
func isB64Token(s string) bool {
	if len(s) > maxToken {
		return false
	}
	body := strings.TrimRight(s, "=")
	for i := range len(body) {
		c := body[i]
		if !isAlnum(c) && strings.IndexByte("-._~+/", c) < 0 {
			return false
		}
	}
	return body != ""
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// isScope reports whether s is a scope list (RFC 6749 §3.3) fit to be shown.
func isScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return len(s) <= 4096
}

// lifetime reads expires_in. Seconds may be an integer, a decimal, or either of
// them in a string; nothing, null and the empty string are the default. What is
// not above a second is a second; limit caps all. given reports whether the
// answer named a life, ok is false when it named nonsense.
func lifetime(raw json.RawMessage, byDefault, limit time.Duration) (life time.Duration, given, ok bool) {
	number := string(raw)
	if strings.HasPrefix(number, `"`) {
		number = text(raw)
	}
	if number == "" {
		return min(byDefault, limit), false, true
	}
	if c := number[0]; c != '-' && (c < '0' || c > '9') || !json.Valid([]byte(number)) {
		return 0, true, false
	}
	// A finite number of any size; json.Valid leaves out NaN, hex and 1_000.
	secs, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsInf(secs, 0) {
		return 0, true, false
	}
	switch {
	case secs >= limit.Seconds():
		return limit, true, true
	case secs <= shortestLife.Seconds():
		return min(shortestLife, limit), true, true
	}
	return time.Duration(secs * float64(time.Second)), true, true
}

// errorCode returns a code of the closed list, and whether asking again is
// useless until the policy, the secret, or the client's registration changes
// (RFC 6749 §5.2, RFC 8707 §2).
func errorCode(code string) (known string, permanent bool) {
	switch code {
	case "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope",
		"invalid_target", "invalid_request", "invalid_grant", "access_denied":
		return code, true
	case "temporarily_unavailable", "server_error", "slow_down":
		return code, false
	}
	return otherError, false
}
