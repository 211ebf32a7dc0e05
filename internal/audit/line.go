package audit

import (
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/envoy-mcp-auth/envoy-mcp-auth/extproc"
)

// Line is one line of the log as others may read it. Nothing in it is secret:
// arguments, tokens and the values of cookies are never here. Members that do not
// apply are left out. seq, prev and hash are always the last three.
type Line struct {
	// Time is when the line was made: RFC 3339 with nanoseconds, in UTC.
	Time string `json:"time" kinds:"all"`
	// Kind is `decision` (before the reply to Envoy), `outcome` (how a call ended, from Envoy's access log), or what the log says of itself: `start` and `end` of writing to a file, `dropped`, `recovered` and `withdrawn`.
	Kind string `json:"kind" kinds:"all"`

	// RequestID is the x-request-id, which joins decisions and outcome. The caller's to choose, unless Envoy makes it.
	RequestID string `json:"request_id" kinds:"decision outcome"`
	// Upstream is the upstream's name in the policy. On an outcome without a decision, by Envoy's cluster.
	Upstream string `json:"upstream" kinds:"decision outcome"`
	// Caller is the name in the policy of the verified caller.
	Caller string `json:"caller" kinds:"decision outcome"`
	// Issuer is the issuer of the caller's token.
	Issuer string `json:"issuer" kinds:"decision outcome"`
	// Subject is the subject of the caller's token.
	Subject string `json:"subject" kinds:"decision outcome"`
	// Tool is what the request would run, where tool rules govern that: a tool's name, else method and target; of a batch, what decided.
	Tool string `json:"tool" kinds:"decision outcome"`
	// Tools is all that a batch would run.
	Tools []string `json:"tools" kinds:"decision"`
	// Rule is the number of the tool rule that decided, from 1.
	Rule int `json:"rule" kinds:"decision"`
	// Reason is `allowed`, or why not. On an outcome, that of the last decision.
	Reason string `json:"reason" kinds:"decision outcome"`
	// Attempt is Envoy's count, from 1.
	Attempt int `json:"attempt" kinds:"decision"`
	// Token is the fingerprint of the access token that was lent. It holds for one process.
	Token string `json:"token" kinds:"decision outcome"`
	// CookiesKept is the number of cookies that went on.
	CookiesKept int `json:"cookies_kept" kinds:"decision"`
	// CookiesDropped is the number of those that did not.
	CookiesDropped int `json:"cookies_dropped" kinds:"decision"`

	// Decided is whether a decision had come to Envoy when the call ended. When not, the call was answered before, or Envoy no longer waited.
	Decided bool `json:"decided" kinds:"outcome"`
	// Status is what the caller was answered; 0 when it was not.
	Status int `json:"status" kinds:"outcome"`
	// Refusal is the reason that the answer names; left out when the answer was the upstream's.
	Refusal string `json:"refusal" kinds:"outcome"`
	// Attempts is how many attempts Envoy made, those included that were refused here; 0 when it never came to one.
	Attempts int `json:"attempts" kinds:"outcome"`
	// Reset is whether the call ended without a whole answer.
	Reset bool `json:"reset" kinds:"outcome"`
	// Left is whether the caller's side ended it so; taken for granted with `outcomes: response_headers`, which cannot say.
	Left bool `json:"left" kinds:"outcome"`
	// Duration is how long the decision took, or the whole call, in seconds.
	Duration float64 `json:"duration" kinds:"decision outcome"`
	// Own is how long the decisions of the call took together, in seconds.
	Own float64 `json:"own" kinds:"outcome"`
	// Sent is the bytes of the answer's body.
	Sent int64 `json:"sent" kinds:"outcome"`
	// Received is the bytes of the request's body.
	Received int64 `json:"received" kinds:"outcome"`

	// After is the name of the file that this one follows.
	After string `json:"after" kinds:"start"`
	// Next is whether the chain was to go on in another file.
	Next bool `json:"next" kinds:"end"`
	// Lines is how many lines could not be written since the line before. What was refused for it is among them.
	Lines uint64 `json:"lines" kinds:"dropped"`
	// Cut is how many bytes of an unfinished line were cut off: the process was killed, or the machine failed, while it was written.
	Cut int64 `json:"cut" kinds:"recovered"`
	// Of is the number of a decision whose line was written too late, so that its request was refused with `audit_unavailable`.
	Of uint64 `json:"of" kinds:"withdrawn"`

	// Seq is the number of the line, from 1, without gaps.
	Seq uint64 `json:"seq" kinds:"all"`
	// Prev is the hash of the line before; empty for the first.
	Prev string `json:"prev" kinds:"all"`
	// Hash is over this line without this member: `sha256:HEX`, or with a key `hmac-sha256:ID:HEX`, where ID says which key.
	Hash string `json:"hash" kinds:"all"`
}

// kind is what a line is about.
type kind int

const (
	kindDecision kind = iota
	kindOutcome
	kindStart
	kindEnd
	kindDropped
	kindRecovered
	kindWithdrawn
	kindCount int = iota
)

// String returns the word in the line.
func (k kind) String() string {
	return [kindCount]string{"decision", "outcome", "start", "end", "dropped", "recovered", "withdrawn"}[k]
}

// maxText bounds, in bytes, what a caller or an issuer can choose. A tool's name is
// bounded already.
const maxText = 256

// maxID bounds a request id, as extproc.Outcome.RequestID is bounded.
const maxID = 64

// timeLayout has a fixed width, so that lines sort as text.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

// fields appends the members of a line, and none that is empty.
type fields []byte

// begin starts a line. It stays open: the chain closes it.
func begin(b []byte, k kind, now time.Time) fields {
	b = append(b[:0], `{"time":"`...)
	b = now.UTC().AppendFormat(b, timeLayout)
	b = append(b, `","kind":"`...)
	b = append(b, k.String()...)
	return append(b, '"')
}

func (f fields) key(name string) fields {
	f = append(f, ',', '"')
	f = append(f, name...)
	return append(f, '"', ':')
}

func (f fields) text(name, v string) fields {
	if v == "" {
		return f
	}
	return appendText(f.key(name), v, maxText)
}

func (f fields) number(name string, v int64) fields {
	if v == 0 {
		return f
	}
	return strconv.AppendInt(f.key(name), v, 10)
}

func (f fields) flag(name string, v bool) fields {
	return strconv.AppendBool(f.key(name), v)
}

// seconds has nine digits after the point and no exponent.
func (f fields) seconds(name string, v time.Duration) fields {
	return strconv.AppendFloat(f.key(name), v.Seconds(), 'f', 9, 64)
}

// id has the request id in the form that the access log's has, so that they are equal.
func (f fields) id(v []byte) fields {
	if len(v) == 0 {
		return f
	}
	f = append(f.key("request_id"), '"')
	for _, c := range v[:min(len(v), maxID)] {
		if c > ' ' && c < 0x7f {
			f = appendASCII(f, c)
		}
	}
	return append(f, '"')
}

// appendDecision is the line of a decision, but for its end.
func appendDecision(b []byte, d *extproc.Decision, now time.Time) []byte {
	f := begin(b, kindDecision, now)
	f = f.id(d.RequestID)
	f = f.text("upstream", d.Upstream).text("caller", d.Caller).text("issuer", d.Issuer).text("subject", d.Subject)
	f = f.text("tool", d.Tool)
	if len(d.Calls) > 1 {
		f = append(f.key("tools"), '[')
		for i := range d.Calls {
			if i > 0 {
				f = append(f, ',')
			}
			f = appendText(f, extproc.ToolName(&d.Calls[i]), maxText)
		}
		f = append(f, ']')
	}
	return f.number("rule", int64(d.Rule)).
		text("reason", d.Reason.String()).
		number("attempt", int64(d.Attempt)).
		text("token", d.Token).
		number("cookies_kept", int64(d.CookiesKept)).
		number("cookies_dropped", int64(d.CookiesDropped)).
		seconds("duration", d.Took)
}

// appendOutcome is the line of an outcome, but for its end.
func appendOutcome(b []byte, o *extproc.Outcome, now time.Time) []byte {
	f := begin(b, kindOutcome, now).
		text("request_id", o.RequestID).
		text("upstream", o.Upstream).
		text("caller", o.Caller).
		text("issuer", o.Issuer).
		text("subject", o.Subject).
		text("tool", o.Tool).
		text("reason", o.Reason).
		text("token", o.Token).
		flag("decided", o.Decided)
	f = strconv.AppendInt(f.key("status"), int64(o.Status), 10)
	f = f.text("refusal", o.Refusal)
	f = strconv.AppendInt(f.key("attempts"), int64(o.Attempts), 10)
	if o.Reset {
		f = f.flag("reset", true)
	}
	if o.Left {
		f = f.flag("left", true)
	}
	return f.seconds("duration", o.Took).
		seconds("own", o.Own).
		number("sent", o.Sent).
		number("received", o.Received)
}

// appendText appends v as a JSON string of at most limit bytes of v. Whoever reads
// the log in a terminal or an editor must see one line and nothing that moves a
// cursor or turns text around: all that is not printable is escaped, and what is
// not UTF-8 becomes U+FFFD.
func appendText[T string | []byte](b []byte, v T, limit int) []byte {
	cut := len(v) > limit
	if cut {
		end := limit
		for end > limit-utf8.UTFMax && !utf8.RuneStart(v[end]) { // not through a rune
			end--
		}
		v = v[:end]
	}
	b = append(b, '"')
	for i := 0; i < len(v); {
		if c := v[i]; c < utf8.RuneSelf {
			b = appendASCII(b, c)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(string(v[i:min(len(v), i+utf8.UTFMax)]))
		b = appendRune(b, r)
		i += n
	}
	if cut {
		b = append(b, "…"...)
	}
	return append(b, '"')
}

func appendASCII(b []byte, c byte) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(b, '\\', c)
	case c < ' ' || c == 0x7f:
		return appendEscape(b, rune(c))
	}
	return append(b, c)
}

func appendRune(b []byte, r rune) []byte {
	if unicode.IsPrint(r) {
		return utf8.AppendRune(b, r)
	}
	if r > 0xffff { // not printable and beyond the 16 bits of \u
		r = utf8.RuneError
	}
	return appendEscape(b, r)
}

func appendEscape(b []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	return append(b, '\\', 'u', digits[r>>12&0xf], digits[r>>8&0xf], digits[r>>4&0xf], digits[r&0xf])
}

// The lines that the log writes about itself.

func noteStart(now time.Time, after string) []byte {
	return begin(nil, kindStart, now).text("after", after)
}

func noteEnd(now time.Time, next bool) []byte { return begin(nil, kindEnd, now).flag("next", next) }

func noteDropped(now time.Time, lines uint64) []byte {
	return strconv.AppendUint(begin(nil, kindDropped, now).key("lines"), lines, 10)
}

func noteRecovered(now time.Time, cut int64) []byte {
	return begin(nil, kindRecovered, now).number("cut", cut)
}

func noteWithdrawn(now time.Time, of uint64) []byte {
	return strconv.AppendUint(begin(nil, kindWithdrawn, now).key("of"), of, 10)
}
