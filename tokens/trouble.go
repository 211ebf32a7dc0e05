package tokens

import (
	"crypto/hmac"
	"sync"
	"time"
)

// trouble is a failure that many users have in common: what one of them found
// out, the others need not. After its pause one of them tries again, and no
// more than one.
type trouble struct {
	mu      sync.Mutex
	fail    failure
	probing bool
	// suspect met a failure that may be its own doing. Only when somebody
	// else meets one too, with no success in between, is it everybody's:
	// else a user could switch a service off for all.
	suspect person
}

// person is who a principal is, whatever token it shows.
type person struct{ issuer, subject string }

// finding is what a request says about a trouble.
type finding uint8

const (
	nothing finding = iota // the request was not made, or says nothing
	healthy
	ill
	perhapsIll // it may be the user's own doing
)

// held returns the failure that is too young to try again, or nil. It is for
// those who have not begun.
func (t *trouble) held(now time.Time, secret []byte) *Error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heldLocked(now, secret)
}

func (t *trouble) heldLocked(now time.Time, secret []byte) *Error {
	if t.fail.err == nil {
		return nil
	}
	var err *Error
	switch {
	case t.probing:
		err = t.fail.err.in(time.Second)
	case now.Before(t.fail.next) && hmac.Equal(t.fail.secret, secret):
		err = t.fail.err.in(t.fail.next.Sub(now))
	default:
		return nil
	}
	err.secondHand = true
	return err
}

// enter lets a request begin, or says why not. After a failure it begins as the
// one probe. leave must follow.
func (t *trouble) enter(now time.Time, secret []byte) (probe bool, err *Error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.heldLocked(now, secret); err != nil {
		return false, err
	}
	t.probing = t.fail.err != nil
	return t.probing, nil
}

// outcome is the end of a request.
type outcome struct {
	finding finding
	err     *Error // of one that is ill
	probe   bool
	who     person
	// secret and files are keyed hashes of what the client proved itself with.
	secret, files []byte
}

// leave ends a request. It reports what changed for everybody.
func (t *trouble) leave(now time.Time, o outcome, dice float64) (changed, recovered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.probe {
		t.probing = false
	}
	switch o.finding {
	case nothing:
		return false, false
	case healthy:
		recovered = t.fail.err != nil
		t.fail, t.suspect = failure{}, person{}
		return false, recovered
	case perhapsIll:
		if t.fail.err == nil && (t.suspect == person{} || t.suspect == o.who) {
			t.suspect = o.who
			return false, false
		}
	case ill:
	}
	if t.fail.err != nil && !o.probe {
		return false, false // it began before the failure was known, and says nothing new
	}
	changed = t.fail.err == nil || t.fail.err.Code != o.err.Code
	if t.fail.count == 0 {
		t.fail.since = now
	}
	t.fail.count++
	next, _ := plan(o.err, t.fail.count, now.Sub(t.fail.since), 0, dice)
	t.fail.err, t.fail.next, t.fail.secret, t.fail.files = o.err.in(next), now.Add(next), o.secret, o.files
	return changed, false
}

// clear ends a failure from outside: what caused it has changed.
func (t *trouble) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail.next = time.Time{}
}

// state returns the failure for those who report it.
func (t *trouble) state() failure {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fail
}

// aboutClient is what a failure says of the client. RFC 8693 §2.2.2 makes a bad
// subject token an invalid_request, so that one is the user's.
func aboutClient(err *Error) finding {
	if err == nil {
		return healthy
	}
	switch err.Code {
	case "invalid_client", "unauthorized_client", "unsupported_grant_type":
		return ill
	case "http_401":
		return perhapsIll
	}
	if aboutUser(err) {
		return healthy // whoever judges the user has taken the client
	}
	return nothing
}

// aboutEndpoint is what a failure says of the endpoint.
func aboutEndpoint(err *Error) finding {
	if err == nil || aboutUser(err) {
		return healthy
	}
	switch err.Code {
	case "invalid_client", "unauthorized_client", "unsupported_grant_type", "http_401":
		return healthy
	case "closed", "busy", "secret_unavailable", "certificate_unusable", "ca_unreadable", "key_unusable", "auth_method":
		return nothing // our own side
	case "http_500":
		return perhapsIll
	}
	if err.Kind == Unavailable {
		return ill
	}
	return perhapsIll
}

// aboutUser reports whether the server refused this user, and nobody else.
func aboutUser(err *Error) bool {
	switch err.Code {
	case "invalid_grant", "invalid_request", "invalid_scope", "invalid_target", "access_denied", otherError:
		return true
	}
	return false
}
