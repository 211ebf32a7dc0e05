package tokens

import (
	"fmt"
	"time"
)

// Kind says what a failure means for the call that waits.
type Kind uint8

// The kinds.
const (
	// Unavailable: no usable answer came. The token endpoint is down, slow,
	// overloaded or unreachable, or the client's own secret cannot be read.
	Unavailable Kind = iota + 1
	// Refused: the token endpoint answered, and not with a token we may use.
	Refused
	// Rejected: the upstream refuses our tokens faster than we may replace them.
	Rejected
)

// String returns the kind as one word.
func (k Kind) String() string {
	switch k {
	case Unavailable:
		return "unavailable"
	case Refused:
		return "refused"
	case Rejected:
		return "rejected"
	}
	return "unknown"
}

// Error is why there is no token. All of it is safe to log: it is one line,
// holds no secret, no token and no body of an answer, and what it quotes of an
// authorization server is cut and filtered (RFC 6749 §5.2 characters only). It
// is still not meant for callers, who get the fixed text of a policy.Reason.
type Error struct {
	// Kind is what it means for the call.
	Kind Kind
	// Code is one word from a closed list: an OAuth error code such as
	// invalid_client, or one of ours such as timeout or redirect_refused.
	Code string
	// Text is a sentence for the operator.
	Text string
	// RetryAfter is how long until another try makes sense, at least a second.
	RetryAfter time.Duration
	// Status is the HTTP status of the answer, 0 when there was none.
	Status int

	// permanent marks the OAuth errors that only a change of policy or secret can heal.
	permanent bool
	// after is what the endpoint itself asked for with Retry-After.
	after time.Duration
	// secondHand marks what another request found out: none was made.
	secondHand bool
	// cause is the end of a caller's own context, for errors.Is.
	cause error
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("token %s: %s (%s)", e.Kind, e.Text, e.Code)
}

// Unwrap returns the end of the caller's own context when that is what ended
// the wait, else nil.
func (e *Error) Unwrap() error { return e.cause }

// in returns a copy that asks for another try after d.
func (e *Error) in(d time.Duration) *Error {
	c := *e
	c.RetryAfter = max(d, time.Second)
	return &c
}

// unavailable and refused are the two ends of a fetch without a token.
func unavailable(code, format string, args ...any) *Error {
	return &Error{Kind: Unavailable, Code: code, Text: fmt.Sprintf(format, args...), RetryAfter: time.Second}
}

func refused(code, format string, args ...any) *Error {
	return &Error{Kind: Refused, Code: code, Text: fmt.Sprintf(format, args...), RetryAfter: time.Second}
}
