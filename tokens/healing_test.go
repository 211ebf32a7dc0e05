package tokens

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// TestO18_WhatWasNotHadMakesNoPauseLonger: while others have the bucket, a user's
// second attempts fail, and must not keep it from its turn later.
func TestO18_WhatWasNotHadMakesNoPauseLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		alice := caller("alice")
		replace := func(p *Principal) error {
			_, err := w.s.ReplaceFor(t.Context(), w.s.Mark(p), heldFor(t, w.s, p).Authorization())
			return err
		}
		if err := replace(alice); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		for _, p := range callers(bucketSize) {
			if err := replace(p); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			if err := replace(alice); err == nil {
				t.Fatal("want the bucket empty")
			}
		}
		time.Sleep(bucketPace)
		if err := replace(alice); err != nil {
			t.Errorf("want a new token once there is one to take, got %v", err)
		}
	})
}

// TestO18_ManyTokensOfOnePerson: a user who is given a new token again and again,
// and has each refused, leaves the others half of the bucket.
func TestO18_ManyTokensOfOnePerson(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newUserWorld(t, nil)
		bob := caller("bob")
		had := 0
		for i := range 600 { // a minute
			p := callerWith("mallory", strconv.Itoa(i), time.Hour)
			if _, err := w.s.ReplaceFor(t.Context(), w.s.Mark(p), heldFor(t, w.s, p).Authorization()); err == nil {
				had++
			} else if e := failed(t, err); e.Kind != Rejected {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if had != int(time.Minute/personPause) {
			t.Errorf("want one each %s, got %d in a minute", personPause, had)
		}
		for range 2 { // at once
			if _, err := w.s.ReplaceFor(t.Context(), w.s.Mark(bob), heldFor(t, w.s, bob).Authorization()); err != nil {
				t.Errorf("want a new token for somebody else, got %v", err)
			}
			bob = caller("carol")
		}
		for i := range 10_000 { // whoever has paid is forgotten in time
			who := person{subject: strconv.Itoa(i)}
			if err := w.s.entry.crowd.heals.take(time.Now(), who, func(time.Time) *Error { return nil }); err != nil {
				t.Fatal(err)
			}
			time.Sleep(bucketPace)
		}
		if n := len(w.s.entry.crowd.heals.m); n > 3 {
			t.Errorf("want those of the last %s, got %d", personPause, n)
		}
	})
}
