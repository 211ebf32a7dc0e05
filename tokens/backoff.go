package tokens

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// firstDelay is the pause after a first failure; each further one doubles it.
	firstDelay = time.Second
	// shortOutage and shortCap keep the cost of a brief outage small: while
	// it is younger than the one, callers never wait longer than the other.
	shortOutage = 10 * time.Second
	shortCap    = 2 * time.Second
	// callerCap bounds the pause while calls arrive: 3600 s / 4.5 s keeps an
	// hour of outage under 800 requests.
	callerCap = 5 * time.Second
	// idleCap bounds the pause while nobody asks.
	idleCap = 30 * time.Second
	// refreshLeast is the least pause between a token and its replacement,
	// for lives that are at least twice that.
	refreshLeast = 30 * time.Second
	// lastDelay is the shortest pause of a refresh whose token is about to die.
	lastDelay = 250 * time.Millisecond
	// permanentHold is the pause after an error that asking again cannot heal:
	// an authorization server may lock out a client that goes on.
	permanentHold = 5 * time.Minute
	// secretPoll is how often a held entry looks whether its secret changed.
	secretPoll = 5 * time.Second
	// retryAfterCap bounds what an endpoint may ask for.
	retryAfterCap = time.Minute
	// spreadShare is the share of a pause that is random, either way.
	spreadShare = 0.1
)

// plan says when a failed fetch may be repeated: next for the first caller that
// comes, wake for the background. The failure is the nth of a run that began
// age ago; left is the life of the token that is still there, 0 for none; dice
// is in [0,1).
func plan(err *Error, n int, age, left time.Duration, dice float64) (next, wake time.Duration) {
	if err.permanent {
		hold := permanentHold + time.Duration(dice*spreadShare*float64(permanentHold))
		return hold, hold
	}
	limit := callerCap
	if age < shortOutage {
		limit = shortCap
	}
	next = spread(doubled(n, limit), limit, dice)
	wake = spread(doubled(n, idleCap), idleCap, dice)
	if left > 0 {
		// The nearer the end of a living token, the closer the tries: a call
		// fails only when the endpoint was down for the whole of the window.
		wake = min(wake, max(left/2, lastDelay))
	}
	if err.after > 0 {
		asked := min(err.after+time.Duration(dice*spreadShare*float64(err.after)), retryAfterCap)
		next, wake = max(next, asked), max(wake, asked)
	}
	return next, wake
}

// doubled returns the nth pause: firstDelay, twice that, and so on up to limit.
func doubled(n int, limit time.Duration) time.Duration {
	d := firstDelay
	for ; n > 1 && d < limit; n-- {
		d *= 2
	}
	return min(d, limit)
}

// spread moves d by up to 10 % either way and folds what is over limit back
// under it, so that the limit stays a promise and no two replicas keep step.
func spread(d, limit time.Duration, dice float64) time.Duration {
	d += time.Duration((2*dice - 1) * spreadShare * float64(d))
	if d > limit {
		d = 2*limit - d
	}
	return d
}

// refreshAhead returns how long before its end a token is replaced:
// min(max(20 % of life, 60 s), half life), 10 % either way.
func refreshAhead(life time.Duration, dice float64) time.Duration {
	ahead := min(max(life/5, time.Minute), life/2)
	return ahead + time.Duration((2*dice-1)*spreadShare*float64(ahead))
}

// refreshAfter returns how long after its coming a token is replaced. An endpoint
// may say when, as refresh_in: that is kept to, but for what would leave no time
// to try again, or would turn each call into a token request.
func refreshAfter(life, asked time.Duration, dice float64) time.Duration {
	if asked <= 0 || asked >= life {
		return life - refreshAhead(life, dice)
	}
	asked = min(max(asked, min(refreshLeast, life/2)), life-life/10)
	return asked - time.Duration(dice*spreadShare*float64(asked))
}

// retryAfter reads a Retry-After header (RFC 9110 §10.2.3), in seconds or as a
// date, and caps it. What is in the past, negative or unreadable is 0. A date is
// the server's, so it is measured against the server's own Date when it sent one.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	if strings.Trim(v, "0123456789") == "" {
		secs, err := strconv.ParseInt(v, 10, 64)
		if err != nil || secs > int64(retryAfterCap/time.Second) {
			return retryAfterCap
		}
		return time.Duration(secs) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), retryAfterCap)
}
