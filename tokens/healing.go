package tokens

import (
	"maps"
	"sync"
	"time"
)

const (
	// healPause and healPauseMax bound the fetches that the 401s of one user's
	// token can cause. The pause doubles, so that a user who brings the upstream
	// to refuse it again and again leaves the upstream's bucket to the others.
	healPause    = 5 * time.Second
	healPauseMax = 5 * time.Minute
	// personPause bounds them for all tokens of one person, of whom there may be
	// a new one each minute: nobody has more than half of a bucket. It does not
	// double, since one name may stand for many replicas of a service.
	personPause = 2 * bucketPace
)

// heal pays for one more fetch for a 401, if it is this user's to have. What was
// not had makes no pause longer. mu is held.
func (u *user) heal(now time.Time, pay func(time.Time) *Error) *Error {
	since, again := now.Sub(u.healed), !u.healed.IsZero()
	if again && since < u.pause {
		return healedLately(u.pause - since)
	}
	if u.who == nil {
		return subjectGone()
	}
	if err := u.crowd.heals.take(now, u.who.person(), pay); err != nil {
		return err
	}
	if u.healed = now; !again || since > healPauseMax {
		u.pause = healPause
	} else {
		u.pause = min(2*u.pause, healPauseMax)
	}
	return nil
}

func healedLately(left time.Duration) *Error {
	err := &Error{Kind: Rejected, Code: "rejected_repeatedly", Text: "the upstream refuses one new token of the same user after another"}
	return err.in(left)
}

// heals remembers when persons last had a fetch for a 401. Whoever is in it has
// paid, so that the buckets of the upstreams bound it.
type heals struct {
	mu sync.Mutex
	m  map[person]time.Time
}

// take says whether one more is this person's to have, and pays for it.
func (h *heals) take(now time.Time, who person, pay func(time.Time) *Error) *Error {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.m, func(_ person, at time.Time) bool { return now.Sub(at) >= personPause })
	if at, lately := h.m[who]; lately {
		return healedLately(personPause - now.Sub(at))
	}
	if err := pay(now); err != nil {
		return err
	}
	if h.m == nil {
		h.m = map[person]time.Time{}
	}
	h.m[who] = now
	return nil
}
